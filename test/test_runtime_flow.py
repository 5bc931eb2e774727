"""From frames to masks to texts: order, stamps, lost and found regions, turns of cameras."""

from collections import deque

import numpy as np
import pytest
from fakes import FakeMemory, FakeObservation
from stepped_engine import ALL_TEXTS, box, click, error_of, make_frame, ns, stepped

from pam_ros.errors import CancelledError, InputError
from pam_ros.records import Language, RegionState, Task
from pam_ros.runtime.events import FrameResult, TextEvent
from pam_ros.runtime.requests import PromptRequest
from pam_ros.runtime.statistics import GapCounter
from pam_ros.runtime.tracks import Track, TrackObservation


def test_without_regions_frames_are_reported_and_not_encoded():
    rig = stepped()
    rig.frame(1.0)
    assert rig.reported_ids == [[]]
    assert rig.model.calls == []


def test_results_carry_stamp_frame_id_size_and_image():
    rig = stepped()
    frame = make_frame(12.5, size=(30, 50), frame_id="left_optical")
    rig.clock.now_s = 7.0
    rig.engine.submit_frame(frame)
    rig.clock.now_s = 7.25
    rig.turn()
    (result,) = rig.events.frames
    assert (result.camera, result.stamp_ns, result.frame_id, result.size) == (
        "front",
        ns(12.5),
        "left_optical",
        (30, 50),
    )
    assert result.image is frame.image
    assert result.latency_s == pytest.approx(0.25)


def test_a_prompt_appears_in_its_frame_and_masks_precede_texts():
    rig = stepped()
    handle = rig.request(click(), tasks=(Task.LABEL,))
    assert isinstance(error_of(handle), InputError)  # no frame yet
    rig.engine.submit_frame(make_frame(1.0))
    handle = rig.request(click(30, 20))
    rig.settle()
    kinds = [type(event) for event in rig.events.order]
    assert kinds == [FrameResult, TextEvent, TextEvent, TextEvent]
    (region,) = rig.events.frames[0].regions
    assert region.region_id == 1
    assert region.state is RegionState.TRACKED
    assert region.box_xyxy.tolist() == [26, 16, 34, 24]
    assert region.mask.shape == (8, 8)
    assert region.mask.all()
    assert (region.created_ns, region.last_visible_ns) == (ns(1.0), ns(1.0))
    assert [event.final for event in rig.events.texts] == [False, False, True]
    answer = handle.future.result(0)
    assert answer.region_id == 1
    assert answer.texts[Task.LABEL, Language.EN].text == "label-en-r1s100 w w"
    assert answer.texts[Task.LABEL, Language.EN].stamp_ns == ns(1.0)


def test_texts_known_so_far_are_in_later_frames():
    rig = stepped()
    rig.engine.submit_frame(make_frame(1.0))
    rig.request(click())
    rig.settle()
    rig.frame(1.1)
    assert rig.events.frames[0].regions[0].texts == {}
    assert [text.text for text in rig.events.frames[1].regions[0].texts.values()] == ["label-en-r1s100 w w"]


def test_one_encoder_pass_and_one_batch_each_for_tracking_and_new_prompts():
    rig = stepped()
    rig.engine.submit_frame(make_frame(1.0))
    for x in (10, 20, 30):
        rig.request(click(x), tasks=())
    rig.turn()
    assert rig.model.calls == [("encode", 1), ("segment", 3)]
    rig.model.calls.clear()
    rig.engine.submit_frame(make_frame(1.1))
    for x in (40, 50):
        rig.request(click(x), tasks=())
    rig.turn()
    assert rig.model.calls == [("encode", 1), ("track", 3), ("segment", 2)]
    assert rig.reported_ids == [[1, 2, 3], [1, 2, 3, 4, 5]]


def test_texts_of_a_frame_are_one_batch_with_one_prefill_for_each_region():
    rig = stepped()
    rig.engine.submit_frame(make_frame(1.0))
    handles = [rig.request(click(x), **ALL_TEXTS) for x in (10, 30)]
    rig.settle()
    (batch,) = rig.model.batches
    assert len(batch) == 8
    assert [text.prompt_id == batch[0].prompt_id for text in batch] == [True] * 4 + [False] * 4
    assert len({text.prompt_id for text in batch}) == 2
    assert rig.model.prompts == {}  # released once the texts have started
    assert rig.model.sizes("embedded_stride2") == [2]
    for handle in handles:
        assert list(handle.future.result(0).texts) == [
            (task, language) for language in (Language.EN, Language.ZH) for task in (Task.LABEL, Task.BRIEF)
        ]


def test_two_requests_for_one_region_share_its_embeddings():
    rig = stepped()
    rig.frame(1.0)
    region_id = rig.region().region_id
    first = rig.request(region_id=region_id, tasks=(Task.LABEL,))
    second = rig.request(region_id=region_id, tasks=(Task.DETAIL,))
    rig.settle()
    (batch,) = rig.model.batches
    assert batch[0].prompt_id == batch[1].prompt_id
    assert (first.future.done(), second.future.done()) == (True, True)


def test_frames_between_turns_are_dropped_and_counted():
    rig = stepped()
    for k in range(5):
        rig.engine.submit_frame(make_frame(1.0 + k))
    rig.settle()
    assert [result.stamp_ns for result in rig.events.frames] == [ns(5.0)]
    (camera,) = rig.engine.statistics().cameras
    assert (camera.received, camera.processed, camera.dropped) == (5, 1, 4)


def test_generation_delays_a_frame_by_at_most_one_step():
    rig = stepped()
    rig.model.words = 40
    rig.frame(1.0)
    rig.request(click(), tasks=(Task.DETAIL,))
    rig.turn()
    seen_steps = []
    for k in range(20):
        rig.frame(1.1 + k * 0.1)
        seen_steps.append(rig.model.steps)
    assert len(rig.events.frames) == 1 + 1 + 20
    assert seen_steps == list(range(2, 22))  # one step after each frame: neither starves the other


def test_one_stamp_of_the_far_future_removes_no_lost_region():
    rig = stepped(lost_timeout_s=1.0)
    rig.frame(1.0)
    rig.region()
    for stamp_s in (1.1, 1e6, 1.2, 1.3):
        rig.frame(stamp_s, 0)
    assert rig.reported_ids[-1] == [1]
    for stamp_s in (1.9, 2.2, 2.3):
        rig.frame(stamp_s, 0)
    assert rig.reported_ids[-1] == []


def test_a_lost_region_keeps_its_id_and_memory_and_is_found_again():
    rig = stepped(lost_timeout_s=1.0)
    rig.frame(1.0)
    rig.region()
    for stamp_s, shade in ((1.2, 0), (1.6, 0), (2.0, 80)):
        rig.frame(stamp_s, shade)
    lost, still_lost, found = (result.regions[0] for result in rig.events.frames[-3:])
    assert (lost.state, found.state) == (RegionState.LOST, RegionState.TRACKED)
    assert lost.box_xyxy.tolist() == [0, 0, 0, 0]
    assert lost.mask.shape == (0, 0)
    assert lost.presence_score == pytest.approx(0.05)
    assert still_lost.last_visible_ns == ns(1.0)
    assert (found.region_id, found.last_visible_ns, found.created_ns) == (1, ns(2.0), ns(1.0))
    statistics = rig.engine.statistics().cameras[0]
    assert (statistics.regions_tracked, statistics.regions_lost) == (1, 0)


def test_a_region_lost_too_long_is_removed_with_a_warning_and_its_requests_fail():
    rig = stepped(lost_timeout_s=1.0)
    rig.model.words = 100
    rig.frame(1.0)
    rig.region()
    handle = rig.request(region_id=1)
    rig.turn()
    rig.frame(2.0, 0)
    rig.frame(3.0, 0)
    assert rig.reported_ids[-1] == [1]  # the limit itself is not beyond it
    rig.frame(3.1, 0)
    assert rig.reported_ids[-1] == []
    assert "region 1 was out of view for 1.1 s" in rig.events.warnings[-1][1]
    assert isinstance(error_of(handle), CancelledError)
    assert isinstance(error_of(rig.request(region_id=1)), InputError)


@pytest.mark.parametrize(
    ("presence", "pixels", "score", "prompted", "state"),
    [
        (0.49, True, 0.8, False, "LOST"),
        (0.5, True, 0.8, False, "TRACKED"),
        (0.9, False, 0.8, False, "LOST"),
        (float("nan"), True, 0.8, False, "LOST"),
        (0.9, True, 0.14, False, "LOST"),
        (0.9, True, 0.15, False, "TRACKED"),
        (0.9, True, 0.01, True, "TRACKED"),
        (0.9, False, 0.8, True, "LOST"),
        (0.49, True, 0.8, True, "LOST"),
    ],
)
def test_what_counts_as_lost(presence, pixels, score, prompted, state):
    found = FakeObservation(1, 0, np.full((4, 6), pixels), score, presence)
    seen = TrackObservation(found, 0, "", 0.0, prompted)
    track = Track(1, FakeMemory(1), 0, seen, deque())
    track.observe(seen)
    assert track.state.name == state
    assert track.snapshot().mask.size == (24 if state == "TRACKED" else 0)


def test_the_lost_timeout_restarts_if_stamps_jump_back():
    rig = stepped(lost_timeout_s=1.0)
    rig.frame(100.0)
    rig.region()
    rig.frame(100.5, 0)
    for stamp_s in (5.0, 6.0):
        rig.frame(stamp_s, 0)
        assert rig.reported_ids[-1] == [1]
    rig.frame(6.1, 0)
    assert rig.reported_ids[-1] == []


def test_a_camera_that_changes_resolution_keeps_its_regions():
    rig = stepped()
    rig.frame(1.0, size=(40, 60))
    rig.region(box(30, 20, 60, 40))
    rig.frame(1.1, size=(80, 120))
    (region,) = rig.events.frames[-1].regions
    assert rig.events.frames[-1].size == (80, 120)
    assert region.box_xyxy.tolist() == [60, 40, 120, 80]


def test_stamps_that_jump_back_keep_regions_and_forget_the_history():
    rig = stepped()
    for stamp_s in (100.0, 100.1):
        rig.frame(stamp_s)
    rig.region()
    rig.frame(5.0)
    assert rig.reported_ids[-1] == [1]
    assert "jumped back" in rig.events.warnings[-1][1]
    assert "newer than the newest" in str(error_of(rig.request(click(), stamp_ns=ns(100.1))))
    rig.frame(5.1)
    assert len(rig.events.warnings) == 1


def test_a_frame_out_of_order_is_dropped_and_counted():
    rig = stepped()
    rig.frame(1.2)
    rig.frame(1.3, 103)
    handle = rig.engine.caption_clip(
        "front", PromptRequest(click()), duration_s=0.2, language=Language.EN, on_progress=lambda *_: None
    )
    rig.frame(1.4)
    rig.clock.now_s += 0.1
    rig.frame(1.3 + 1e-3)
    assert rig.engine.statistics().cameras[0].age_s == pytest.approx(0.1)
    rig.frame(1.5)
    rig.frame(1.5)  # the same stamp again
    for stamp_s in (1.6, 1.7):
        rig.frame(stamp_s)
    rig.settle()
    shown_s = [each.stamp_ns / 1e9 for each in rig.events.frames]
    assert shown_s == pytest.approx([1.2, 1.3, 1.4, 1.5, 1.5, 1.6, 1.7])
    (camera,) = rig.engine.statistics().cameras
    assert (camera.received, camera.processed, camera.dropped) == (8, 7, 1)
    assert (rig.events.warnings, handle.future.result(0).cut_short) == ([], "")


def test_a_prompt_finds_a_frame_that_came_out_of_order():
    rig = stepped(stamp_tolerance_s=0.0)
    for stamp_s, shade in ((1.0, 100), (1.2, 102), (1.1, 101), (1.3, 103)):
        rig.frame(stamp_s, shade)
    handle = rig.request(click(), stamp_ns=ns(1.1))
    rig.settle()
    assert handle.future.result(0).texts[Task.LABEL, Language.EN].text.startswith("label-en-r1s101")


@pytest.mark.parametrize("stamps_s", [np.arange(0, 0.8, 0.1), [0.0, 0.5]])
def test_a_short_recording_played_in_a_loop_goes_on(stamps_s):
    rig = stepped()
    for _ in range(8):
        for stamp_s in stamps_s:
            rig.frame(10.0 + stamp_s)
    (camera,) = rig.engine.statistics().cameras
    messages = [message for _, message in rig.events.warnings]
    assert messages and all("jumped back" in message for message in messages)
    assert camera.dropped <= 5 * (len(messages) + 1)  # before each, at most 5 frames


def test_a_step_back_of_a_second_starts_over_at_once():
    rig = stepped()
    for stamp_s in (10.0, 9.0, 9.1):
        rig.frame(stamp_s)
    assert [each.stamp_ns for each in rig.events.frames] == [ns(10.0), ns(9.0), ns(9.1)]


def test_frames_out_of_order_are_not_gaps():
    counter = GapCounter()
    numbers = np.arange(400)
    numbers[40::10], numbers[41::10] = numbers[41::10].copy(), numbers[40::10].copy()
    for number in numbers[numbers != 205]:  # one that never comes
        counter.add(int(number) * 33_333_333)
    assert counter.missed == 1


def test_cameras_take_turns_whatever_their_rates():
    rig = stepped("a", "b", "c")
    for round_ in range(4):
        for camera in "abc":
            rig.engine.submit_frame(make_frame(round_, camera=camera))
        for _ in range(3):
            rig.engine.submit_frame(make_frame(round_ + 0.5, camera="a"))  # camera a always has a new frame
            rig.turn()
    order = [result.camera for result in rig.events.frames]
    assert order == ["a", "b", "c"] * 4


def test_a_camera_flooded_with_prompts_does_not_starve_the_others():
    rig = stepped("a", "b", max_queued_requests=1000)
    for camera in "ab":
        rig.frame(1.0, camera=camera)
    for k in range(4):
        rig.engine.submit_frame(make_frame(1.0 + k, camera="a"))
    for k in range(20):
        rig.request(click(), "a", tasks=(), stamp_ns=ns(1.0 + k % 4))
    rig.engine.submit_frame(make_frame(2.0, camera="b"))
    rig.turn()
    rig.turn()
    assert rig.events.frames[-1].camera == "b"


def test_each_camera_has_its_own_regions():
    rig = stepped("a", "b")
    for camera in "ab":
        rig.frame(1.0, camera=camera)
        assert rig.region(camera=camera).region_id == 1
    rig.engine.remove_region("a", 1)
    rig.frame(1.1, camera="b")
    assert rig.reported_ids[-1] == [1]
    with pytest.raises(InputError, match=r"unknown camera 'c'; available: a, b"):
        rig.engine.submit_frame(make_frame(1.0, camera="c"))
    with pytest.raises(InputError, match="unknown camera 'c'; available: a, b"):
        rig.request(click(), "c")


def test_masks_are_cropped_to_their_box_and_own_their_memory():
    rig = stepped()
    rig.frame(1.0)
    region = rig.region(box(10, 10, 20, 30))
    assert region.mask.base is None
    assert region.mask.dtype == np.bool_
    assert region.mask.shape == (20, 10)


def test_an_engine_goes_on_with_the_region_ids_of_the_one_before():
    ids = {}
    for first in (1, 3):
        rig = stepped("a", "b", region_ids=ids)
        for camera in "ab":
            rig.frame(1.0, camera=camera)
            assert [rig.region(click(x), camera).region_id for x in (10, 30)] == [first, first + 1]
        rig.engine.close()
    rig = stepped()
    rig.frame(1.0)
    assert rig.region().region_id == 1
