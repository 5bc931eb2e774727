"""`caption_clip` records a region, then captions it; cameras die, regions vanish, stamps jump."""

import pytest
from stepped_engine import captions, click, error_of, make_frame, ns, play, stepped, streaming_rig

from pam_ros.errors import (
    CancelledError,
    CapacityError,
    InferenceError,
    InputError,
    NoFrameError,
    PromptError,
)
from pam_ros.records import Language
from pam_ros.runtime.clip_buffer import ClipBuffer
from pam_ros.runtime.requests import PromptRequest


def clip_of(rig, request, duration_s=2.0, language=Language.EN):
    """caption_clip; returns the handle and the progress it reports."""
    progress = []
    handle = rig.engine.caption_clip(
        "front", request, duration_s, language, lambda recorded_s, text: progress.append((recorded_s, text))
    )
    return handle, progress


def recording(**options):
    """A rig that records region 1, prompted at 1.0 s; the handle, and the progress it reports."""
    rig = stepped(**options)
    rig.frame(1.0)
    rig.region()
    handle, progress = clip_of(rig, PromptRequest(prompt=None, region_id=1))
    rig.turn()
    return rig, handle, progress


def test_a_recording_of_a_new_region_starts_with_the_frame_of_its_prompt():
    rig = stepped(clip_frames=3)
    rig.model.words = 2
    rig.engine.submit_frame(make_frame(1.0, 100))
    handle, progress = clip_of(rig, PromptRequest(prompt=click()))
    rig.turn()
    play(rig, [(1.5, 105), (2.0, 110), (2.5, 115)])
    assert not handle.future.done()
    play(rig, [(3.0, 120)])
    event = handle.future.result(0)
    assert event.text == "clip-en-r1f100c110c120<none w"
    assert (event.sequence, event.frame_count, event.region_id) == (0, 3, 1)
    assert (event.clip_start_ns, event.clip_end_ns) == (ns(1.0), ns(3.0))
    assert [recorded_s for recorded_s, text in progress if not text] == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert progress[-2:] == [(2.0, "clip-en-r1f100c110c120<none"), (2.0, "clip-en-r1f100c110c120<none w")]
    assert rig.events.captions == []
    assert rig.reported_ids[0] == [1]
    assert rig.model.sizes("generate") == [1]  # the label of the request's default tasks is left out


def test_a_recording_of_an_existing_region_starts_with_the_next_frame():
    rig = stepped(clip_frames=2)
    rig.model.words = 1
    rig.frame(1.0, 100)
    rig.region()
    handle, _ = clip_of(rig, PromptRequest(prompt=None, region_id=1), 1.0)
    rig.turn()
    play(rig, [(1.2, 102), (1.8, 108), (2.2, 112)])
    assert handle.future.result(0).text == "clip-en-r1f102c112<none"


def test_recordings_are_independent_of_the_streaming_clip():
    rig = streaming_rig(period_s=1.0, clip_frames=3)
    handle, _ = clip_of(rig, PromptRequest(prompt=None, region_id=1), 2.0, Language.ZH)
    rig.turn()
    play(rig, [(1.5, 105), (2.0, 110), (2.5, 115), (3.0, 120), (3.5, 125)])
    assert handle.future.result(0).text == "clip-zh-r1f105c115c125<none"
    assert captions(rig)[:2] == [
        "clip-en-r1f100c105c110<none",
        "clip-en-r1f110c115c120<clip-en-r1f100c105c110",
    ]


def test_a_recording_ends_with_the_frames_so_far_if_the_camera_dies():
    rig = stepped(clip_frames=11)
    rig.model.words = 1
    rig.engine.submit_frame(make_frame(1.0, 100))
    handle, _ = clip_of(rig, PromptRequest(prompt=click()), 10.0)
    rig.turn()
    rig.frame(2.0, 110)
    rig.clock.now_s += 4.9
    assert not rig.turn()
    rig.clock.now_s += 0.2
    rig.settle()
    assert handle.future.result(0).text == "clip-en-r1f100c110<none"
    assert handle.future.result(0).cut_short == "the clip covers 1.0 of 10 s: no image arrived for 5.1 s"


def test_a_recording_of_a_dead_camera_fails():
    rig, handle, progress = recording()
    rig.clock.now_s += 5.1
    rig.settle()
    error = error_of(handle)
    assert isinstance(error, NoFrameError)
    assert "it was not in view, and no image arrived for 5.1 s" in str(error)
    assert progress == []


def test_a_dead_camera_is_silent_even_if_its_last_frame_was_processed_late():
    rig, handle, _ = recording()
    rig.engine.submit_frame(make_frame(1.1))
    rig.clock.now_s += 0.5
    rig.turn()
    rig.clock.now_s += 4.6
    rig.settle()
    assert "no image arrived for 5.1 s" in handle.future.result(0).cut_short


def test_a_slow_camera_is_not_a_dead_one():
    rig = stepped(clip_frames=3)
    rig.model.words = 1
    for i in range(2):
        rig.clock.now_s += 10.0
        rig.frame(10.0 * i, 100 + i)
    rig.region()
    handle, _ = clip_of(rig, PromptRequest(prompt=None, region_id=1), 20.0)
    rig.turn()
    for i in range(2, 5):
        for _ in range(10):
            rig.clock.now_s += 1.0
            rig.turn()
        play(rig, [(10.0 * i, 100 + i)])
    assert handle.future.result(0).text == "clip-en-r1f102c103c104<none"
    assert handle.future.result(0).cut_short == ""
    other, _ = clip_of(rig, PromptRequest(prompt=None, region_id=1), 20.0)
    rig.turn()
    rig.clock.now_s += 30.1
    rig.settle()
    assert "no image arrived for 30.1 s" in str(error_of(other))


@pytest.mark.parametrize(("step_ns", "ends"), [(1, True), (900_000, True), (5_000_000, False)])
def test_a_camera_whose_stamps_creep_counts_as_dead(step_ns, ends):
    rig = stepped(clip_frames=3)
    rig.frame(1.0)
    rig.region()
    handle, _ = clip_of(rig, PromptRequest(prompt=None, region_id=1), 1.0)
    for i in range(60):  # ten images a second for six seconds
        rig.clock.now_s += 0.1
        rig.frame(2.0 + i * step_ns / 1e9)
        rig.settle()
    assert handle.done is ends


def test_a_camera_with_constant_stamps_counts_as_dead():
    rig = stepped()
    rig.model.words = 1
    rig.engine.submit_frame(make_frame(1.0))
    handle, _ = clip_of(rig, PromptRequest(prompt=click()))
    for _ in range(8):
        rig.clock.now_s += 1.0
        rig.engine.submit_frame(make_frame(1.0))
        rig.turn()
    assert handle.future.result(0).frame_count == 1
    assert "the camera's time stood still for 6.0 s" in handle.future.result(0).cut_short


def test_a_slow_worker_is_not_a_dead_camera():
    rig, handle, _ = recording()
    rig.clock.now_s += 4.0
    rig.engine.submit_frame(make_frame(1.1))
    rig.clock.now_s += 4.0  # the worker was busy
    rig.turn()
    assert not handle.future.done()


def test_a_recording_without_its_region_in_view_fails():
    rig, handle, _ = recording(lost_timeout_s=60)
    play(rig, [(1.5, 0), (2.5, 0), (3.5, 0)])
    assert isinstance(error_of(handle), NoFrameError)
    assert "not in view during the 2.0 s" in str(error_of(handle))


def test_stamps_that_jump_back_end_a_recording():
    rig = stepped(clip_frames=3)
    rig.model.words = 1
    rig.engine.submit_frame(make_frame(11.0, 100))
    seen, _ = clip_of(rig, PromptRequest(prompt=click()))
    rig.turn()
    play(rig, [(0.0, 50)])
    assert seen.future.result(0).text == "clip-en-r1f100<none"
    assert seen.future.result(0).cut_short == "the clip covers 0.0 of 2 s: the camera's stamps jumped back"


def test_stamps_that_jump_ahead_end_a_recording():
    rig = stepped(clip_frames=3)
    rig.model.words = 1
    rig.engine.submit_frame(make_frame(11.0, 100))
    early, _ = clip_of(rig, PromptRequest(prompt=click()))
    rig.turn()
    play(rig, [(12.0, 101), (3600.0, 50)])
    event = early.future.result(0)
    assert (event.text, event.clip_end_ns) == ("clip-en-r1f100c101<none", ns(12.0))
    assert event.cut_short == "the clip covers 1.0 of 2 s: the camera's time jumped ahead by 3588.0 s"
    whole, _ = clip_of(rig, PromptRequest(prompt=None, region_id=1))
    rig.turn()
    play(rig, [(3601.0, 51), (3602.0, 52), (3603.0, 53)])
    assert whole.future.result(0).cut_short == ""
    assert whole.future.result(0).frame_count == 3


def test_a_fault_of_one_recording_or_rolling_clip_costs_nothing_else(monkeypatch, caplog):
    rig = streaming_rig(period_s=1.0, clip_frames=3)
    rig.region(click(10, 10))
    broken, _ = clip_of(rig, PromptRequest(prompt=None, region_id=1), 1.5)
    good, _ = clip_of(rig, PromptRequest(prompt=None, region_id=2), 1.0)
    rig.turn()
    add = ClipBuffer.add

    def failing(clip, observation, plan):
        # The recording of region 1, and the rolling clip of region 2.
        region = observation.output.region
        recording = clip._sampler._period_ns == ns(1.5)
        if recording or (region == 2 and clip.start_ns == ns(1.0)):
            raise ZeroDivisionError("float floor division by zero")
        return add(clip, observation, plan)

    monkeypatch.setattr(ClipBuffer, "add", failing)
    label = rig.request(region_id=1)
    play(rig, [(1.5, 105), (2.0, 110), (2.5, 115), (3.0, 120), (3.5, 125)])
    assert isinstance(error_of(broken), InferenceError)
    assert "recording a clip failed: ZeroDivisionError" in str(error_of(broken))
    assert good.future.result(0).region_id == 2
    assert label.future.result(0).texts
    assert 1 in {event.region_id for event in rig.events.captions if event.final}
    assert rig.reported_ids[-1] == [1, 2]


def test_a_recording_ends_with_its_region_or_its_caller():
    rig = stepped()
    rig.frame(1.0)
    for x in (10, 40):
        rig.region(click(x))
    handles = [clip_of(rig, PromptRequest(prompt=None, region_id=k))[0] for k in (1, 2)]
    rig.turn()
    assert rig.engine._flow._recorder.count == 2
    rig.engine.remove_region("front", 1)
    handles[1].cancel()
    rig.turn()
    assert [type(error_of(handle)) for handle in handles] == [CancelledError] * 2
    assert "region 1 was removed" in str(error_of(handles[0]))
    assert rig.engine._flow._recorder.count == 0
    play(rig, [(k, 100) for k in range(2, 6)])
    assert rig.model.batches == []


@pytest.mark.parametrize("duration_s", [0, -1, 1e-10, 0.09, 121, float("nan"), float("inf")])
def test_bad_durations_are_refused(duration_s):
    rig = stepped()
    rig.frame(1.0)
    error = error_of(clip_of(rig, PromptRequest(prompt=click()), duration_s)[0])
    assert isinstance(error, InputError)
    assert "allowed: 0.1 to 120 s" in str(error)


def test_recordings_that_cannot_begin():
    rig = stepped(max_queued_requests=2)
    rig.frame(1.0)
    own = clip_of(rig, PromptRequest(prompt=click(), image=make_frame(0).image))[0]
    assert isinstance(error_of(own), PromptError)
    outside = clip_of(rig, PromptRequest(prompt=click(999)))[0]
    rig.turn()
    assert isinstance(error_of(outside), PromptError)
    rig.region()
    handles = [clip_of(rig, PromptRequest(prompt=None, region_id=1))[0] for _ in range(3)]
    assert isinstance(error_of(handles[2]), CapacityError)
    rig.turn()
    assert isinstance(error_of(rig.request(click())), CapacityError)  # recordings in progress count, too


def test_a_progress_callback_that_raises_is_logged(caplog):
    rig = stepped()
    rig.engine.submit_frame(make_frame(1.0))
    handle = rig.engine.caption_clip(
        "front", PromptRequest(prompt=click()), 1.0, Language.EN, lambda *_: 1 / 0
    )
    rig.turn()
    play(rig, [(2.0, 100)])
    assert handle.future.result(0).final
    assert "on_progress failed" in caplog.text
