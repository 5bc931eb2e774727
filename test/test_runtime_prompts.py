"""Prompts: matched to their frame, refining, describing, detections, own images, removal, bad input."""

from dataclasses import replace

import numpy as np
import pytest
from stepped_engine import ALL_TEXTS, box, click, error_of, make_frame, ns, picture, stepped

from pam_ros.errors import (
    CancelledError,
    CapacityError,
    ImageError,
    InferenceError,
    NoFrameError,
    NothingFoundError,
    PromptError,
    StaleFrameError,
    UnknownRegionError,
)
from pam_ros.records import Language, RegionState, Task
from pam_ros.runtime import inbox

# ---- which frame


def test_the_newest_frame_is_used_again_if_no_other_arrives():
    rig = stepped()
    rig.frame(1.0)
    rig.clock.now_s += 60
    handle = rig.request(click(), tasks=())
    rig.clock.now_s += 0.5
    rig.turn()
    assert handle.future.result(0).created_ns == ns(1.0)
    assert rig.reported_ids == [[], [1]]
    assert rig.events.frames[1].stamp_ns == ns(1.0)
    assert rig.events.frames[1].latency_s == pytest.approx(0.5)
    assert rig.engine.statistics().cameras[0].processed == 1


def test_clicks_on_one_frame_cost_one_encoder_pass():
    rig = stepped()
    rig.frame(1.0)
    for x in (10, 20, 30):
        rig.region(click(x))
    assert rig.model.count("encode") == 1


def test_a_stamped_prompt_is_segmented_on_its_frame_and_tracked_to_the_newest():
    rig = stepped()
    rig.frame(0.9)
    rig.region(click(10))
    for k, shade in enumerate((101, 102, 103, 104)):
        rig.frame(1.0 + k / 10, shade)
    rig.model.calls.clear()
    handle = rig.request(click(40), stamp_ns=ns(1.11))  # within the tolerance of 1.1
    rig.engine.submit_frame(make_frame(1.4, 105))
    rig.settle()
    assert rig.model.calls[:4] == [("encode", 1), ("segment", 1), ("encode", 1), ("track", 2)]
    assert rig.reported_ids[-1] == [1, 2]
    assert rig.events.frames[-1].stamp_ns == ns(1.4)
    reported = rig.events.frames[-1].regions[1]
    assert (reported.created_ns, reported.last_visible_ns) == (ns(1.1), ns(1.4))
    answer = handle.future.result(0)
    assert (answer.created_ns, answer.last_visible_ns) == (ns(1.1), ns(1.1))
    assert answer.texts[Task.LABEL, Language.EN].text.startswith("label-en-r2s102")  # the frame of the click
    assert answer.texts[Task.LABEL, Language.EN].stamp_ns == ns(1.1)


def test_a_caller_learns_of_its_frame_before_the_texts():
    rig = stepped()
    for k in range(3):
        rig.frame(1.0 + k / 10)
    stamped, newest = rig.request(click(40), stamp_ns=ns(1.1)), rig.request(click(10))
    assert not stamped.framed.done()
    rig.turn()
    assert (stamped.done, stamped.framed.result(0)) == (False, ns(1.1))
    rig.settle()
    assert (newest.done, newest.framed.result(0)) == (True, ns(1.2))
    refused = rig.request(region_id=99)
    assert isinstance(error_of(refused), UnknownRegionError)
    assert refused.framed.result(0) is None


def test_a_stamped_prompt_needs_no_further_frame_to_be_tracked_to_the_newest():
    rig = stepped()
    for k in range(3):
        rig.frame(1.0 + k / 10, 100 + k)
    rig.region(click(10))
    rig.model.calls.clear()
    rig.region(click(40), stamp_ns=ns(1.0))
    assert rig.model.calls == [
        ("encode", 1),
        ("segment", 1),
        ("track", 1),
    ]  # the other region is already in the newest frame
    assert rig.reported_ids[-1] == [1, 2]
    assert rig.events.frames[-1].stamp_ns == ns(1.2)
    assert rig.events.frames[-1].regions[1].last_visible_ns == ns(1.2)


def test_a_prompt_on_the_last_processed_frame_costs_no_second_encoder_pass():
    rig = stepped()
    rig.frame(1.0)
    rig.region(click(10))
    rig.model.calls.clear()
    handle = rig.request(click(40), stamp_ns=ns(1.0), tasks=())
    rig.engine.submit_frame(make_frame(1.1))
    rig.settle()
    assert rig.model.count("encode") == 1  # 1.1 only
    assert handle.future.result(0).created_ns == ns(1.0)


def test_prompts_find_frames_that_were_dropped():
    rig = stepped()
    for k in range(5):
        rig.engine.submit_frame(make_frame(1.0 + k / 10, 100 + k))
    handle = rig.request(click(), stamp_ns=ns(1.2))
    rig.settle()
    assert handle.future.result(0).texts[Task.LABEL, Language.EN].text.startswith("label-en-r1s102")


def test_prompts_on_earlier_frames_take_one_turn_each():
    rig = stepped()
    for k in range(6):
        rig.frame(1.0 + k / 10, 100 + k)
    handles = [rig.request(click(5 + 8 * k), tasks=(), stamp_ns=ns(1.0 + k / 10)) for k in range(5)]
    rig.engine.submit_frame(make_frame(1.6))
    rig.turn()
    assert [handle.future.done() for handle in handles] == [True] + [False] * 4
    assert rig.model.count("encode") == 2
    rig.settle()
    assert all(handle.future.done() for handle in handles)
    assert rig.reported_ids[-1] == [1, 2, 3, 4, 5]


def test_stamps_outside_the_history():
    rig = stepped(frame_history=3)
    assert isinstance(error_of(rig.request(click(), stamp_ns=ns(1.0))), NoFrameError)
    for k in range(6):
        rig.frame(1.0 + k)
    error = error_of(rig.request(click(), stamp_ns=ns(1.0)))
    assert isinstance(error, StaleFrameError)
    assert "5.000 s older than the newest" in str(error)
    assert "covers only 2.000 s (3 frames)" in str(error)
    assert "newer than the newest frame" in str(error_of(rig.request(click(), stamp_ns=ns(7.0))))
    between = error_of(rig.request(click(), stamp_ns=ns(4.6)))
    assert isinstance(between, StaleFrameError)
    assert "0.400 s away from the nearest frame" in str(between)
    assert not rig.turn()


def test_the_history_can_be_shortened_while_running():
    rig = stepped(frame_history=10)
    for k in range(5):
        rig.frame(1.0 + k)
    rig.engine.options = replace(rig.engine.options, frame_history=2)
    assert isinstance(error_of(rig.request(click(), stamp_ns=ns(3.0))), StaleFrameError)
    assert not rig.request(click(), stamp_ns=ns(4.0)).future.done()


def test_the_history_is_bounded_in_bytes():
    rig = stepped(frame_history=10, frame_history_mib=1)
    for k in range(5):
        rig.frame(1.0 + k, size=(400, 300))  # 0.34 MiB
    assert not rig.request(click(), stamp_ns=ns(4.0)).future.done()
    error = error_of(rig.request(click(), stamp_ns=ns(2.0)))
    assert "covers only 1.000 s (2 frames); send prompts sooner or raise frames.history_mib" in str(error)
    rig.frame(6.0, size=(1000, 1000))  # the newest stays, whatever its size
    history = rig.engine._inbox._cameras["front"].history
    assert [frame.stamp_ns for frame in history._frames] == [ns(6.0)]
    assert history._bytes == 3_000_000
    rig.frame(0.5)  # time starts over
    assert history._bytes == history.newest.image.nbytes


def test_own_images_that_wait_are_bounded_in_bytes(monkeypatch):
    monkeypatch.setattr(inbox, "MAX_IMAGE_BYTES", 100_000)
    rig = stepped()
    big = make_frame(0, size=(200, 300)).image  # 180,000 bytes: alone it may wait
    handles = [rig.request(click(), image=big), rig.request(click(), image=make_frame(0).image)]
    assert not handles[0].future.done()
    assert isinstance(error_of(handles[1]), CapacityError)
    rig.settle()
    assert handles[0].future.result(0).texts
    assert not rig.request(click(), image=make_frame(0).image).future.done()


# ---- which region


def test_refining_a_region_keeps_its_id_memory_and_texts():
    rig = stepped()
    rig.frame(1.0)
    rig.request(click(10, 10))
    rig.settle()
    refined = rig.region(click(40, 30), region_id=1)
    assert refined.region_id == 1
    assert refined.box_xyxy.tolist() == [36, 26, 44, 34]
    assert rig.model.memories == 1
    assert (Task.LABEL, Language.EN) in refined.texts
    assert rig.reported_ids[-1] == [1]


def test_refining_on_a_new_frame_tracks_there_first():
    rig = stepped()
    rig.frame(1.0)
    rig.region()
    rig.model.calls.clear()
    rig.engine.submit_frame(make_frame(1.1))
    rig.request(click(40, 30), region_id=1, tasks=())
    rig.turn()
    assert [name for name, _ in rig.model.calls] == ["encode", "track", "segment"]
    assert rig.events.frames[-1].regions[0].box_xyxy.tolist() == [36, 26, 44, 34]


def test_refining_on_an_earlier_frame_tracks_on_from_there():
    rig = stepped()
    for k in range(3):
        rig.frame(1.0 + k / 10, 100 + k)
    rig.region(click(10))
    rig.model.calls.clear()
    refined = rig.region(click(40, 30), region_id=1, stamp_ns=ns(1.0))
    assert rig.model.calls == [("encode", 1), ("track", 1), ("segment", 1), ("track", 1)]
    shades = rig.engine._flow._cameras["front"].regions[1].memory.shades
    assert shades == [102, 100, 100, 102]  # prompted, tracked, refined, tracked
    assert refined.last_visible_ns == ns(1.0)
    reported = rig.events.frames[-1].regions[0]
    assert (reported.last_visible_ns, reported.box_xyxy.tolist()) == (ns(1.2), [36, 26, 44, 34])


def refuse_refinement(rig, score, prompt, **more):
    """Refines region 1 while the model's masks score so, or (0) its object is not in view."""
    rig.model.mask_score, rig.model.hidden = (0.9, {1}) if score == 0 else (score, set())
    handle = rig.request(prompt, region_id=1, tasks=(), **more)
    rig.settle()
    rig.model.mask_score, rig.model.hidden = 0.9, set()
    return error_of(handle)


@pytest.mark.parametrize("score", [0, 0.01])
@pytest.mark.parametrize("prompt", [click(40, 30), box(30, 20, 50, 38)])
def test_a_refused_refinement_leaves_its_region_as_it_was(prompt, score):
    rig = stepped()
    rig.frame(1.0)
    before = rig.region(box(10, 10, 20, 30))
    memory = rig.engine._flow._cameras["front"].regions[1].memory
    frames, shades = len(rig.events.frames), list(memory.shades)
    assert isinstance(refuse_refinement(rig, score, prompt), NothingFoundError)
    assert (len(rig.events.frames), memory.shades) == (frames, shades)
    described = rig.request(region_id=1, tasks=())
    rig.frame(1.1)
    for region in (described.future.result(0), rig.events.frames[-1].regions[0]):
        assert (region.state, region.mask_score) == (RegionState.TRACKED, before.mask_score)
        assert region.box_xyxy.tolist() == [10, 10, 20, 30]


def test_a_refinement_refused_on_an_earlier_frame_leaves_its_region_in_the_newest():
    rig = stepped()
    for k in range(3):
        rig.frame(1.0 + k / 10, 100 + k)
    rig.region(box(10, 10, 20, 30))
    memory = rig.engine._flow._cameras["front"].regions[1].memory
    assert isinstance(refuse_refinement(rig, 0.01, click(40, 30), stamp_ns=ns(1.0)), NothingFoundError)
    assert memory.shades == [102]
    rig.frame(1.3, 103)
    assert memory.shades == [102, 103]
    assert rig.events.frames[-1].regions[0].box_xyxy.tolist() == [10, 10, 20, 30]


def test_a_refinement_that_fails_on_an_earlier_frame_leaves_its_region_in_the_newest():
    rig = stepped()
    for k in range(3):
        rig.frame(1.0 + k / 10, 100 + k)
    rig.region()
    memory = rig.engine._flow._cameras["front"].regions[1].memory

    def fail(call, details):
        if call == "segment":
            raise ValueError("no")

    rig.model.fault = fail
    handle = rig.request(click(40, 30), region_id=1, stamp_ns=ns(1.0), tasks=())
    rig.settle()
    assert isinstance(error_of(handle), InferenceError)
    assert memory.shades == [102]


def test_two_clicks_on_one_region_at_once_are_applied_one_after_the_other():
    rig = stepped()
    rig.frame(1.0)
    rig.region()
    rig.model.calls.clear()
    handles = [rig.request(click(x, 30), region_id=1, tasks=()) for x in (20, 40)]
    new = rig.request(click(50, 10), tasks=())
    rig.turn()
    assert rig.model.sizes("segment") == [2, 1]
    assert [handle.future.result(0).box_xyxy[0] for handle in handles] == [16, 36]
    assert new.future.result(0).region_id == 2


def test_describing_a_region_needs_no_new_frame():
    rig = stepped()
    rig.frame(1.0, 100)
    rig.region()
    rig.frame(1.1, 111)
    rig.model.calls.clear()
    handle = rig.request(region_id=1, tasks=(Task.EXPLAIN,))
    rig.settle()
    assert handle.future.result(0).texts[Task.EXPLAIN, Language.EN].text.startswith("explain-en-r1s111")
    assert not {"encode", "segment", "track"} & {name for name, _ in rig.model.calls}
    assert len(rig.events.frames) == 3  # nothing new to show
    without_texts = rig.request(region_id=1, tasks=())
    rig.turn()
    assert without_texts.future.result(0).region_id == 1


def test_answers_list_the_requested_texts_first():
    rig = stepped()
    rig.frame(1.0)
    rig.request(click(), tasks=(Task.LABEL,))
    rig.settle()
    handle = rig.request(region_id=1, tasks=(Task.BRIEF,))
    rig.settle()
    assert [task for task, _ in handle.future.result(0).texts] == [Task.BRIEF, Task.LABEL]


def test_a_lost_region_is_described_as_last_observed():
    rig = stepped()
    rig.frame(1.0, 100)
    rig.region()
    rig.frame(1.1, 0)
    handle = rig.request(region_id=1)
    rig.settle()
    answer = handle.future.result(0)
    assert answer.state is RegionState.LOST
    assert answer.texts[Task.LABEL, Language.EN].text.startswith("label-en-r1s100")
    assert answer.texts[Task.LABEL, Language.EN].stamp_ns == ns(1.0)


def test_removal_during_generation_fails_the_request_and_ends_its_texts():
    rig = stepped()
    rig.model.words = 1000
    rig.frame(1.0)
    handle = rig.request(click(), **ALL_TEXTS)
    other = rig.request(click(10))
    for _ in range(5):
        rig.turn()
    rig.engine.remove_region("front", 1)
    rig.turn()
    assert isinstance(error_of(handle), CancelledError)
    assert "region 1 was removed" in str(error_of(handle))
    assert rig.engine.statistics().generating == 1  # the other goes on
    rig.events.texts.clear()
    rig.turn()
    assert {event.region_id for event in rig.events.texts} == {2}
    rig.engine.remove_region("front", 2)
    rig.settle()
    assert other.future.done()
    assert rig.engine.statistics().generating == 0


def test_a_removed_region_is_gone_from_the_next_frame_and_its_id_is_not_reused():
    rig = stepped()
    rig.frame(1.0)
    rig.region()
    rig.engine.submit_frame(make_frame(1.1))
    rig.engine.remove_region("front", 1)
    with pytest.raises(UnknownRegionError, match=r"has no region 1; existing regions: none"):
        rig.engine.remove_region("front", 1)
    pending = rig.request(region_id=1)
    rig.turn()
    assert rig.reported_ids[-1] == []
    assert isinstance(error_of(pending), UnknownRegionError)
    assert rig.region().region_id == 2
    assert rig.region(click(10)).region_id == 3
    assert rig.engine.clear_regions("front") == 2
    assert rig.engine.clear_regions("front") == 0
    rig.frame(1.2)
    assert rig.reported_ids[-1] == []
    assert rig.region().region_id == 4


def test_a_removed_region_is_withdrawn_while_the_camera_stands_still():
    rig = stepped()
    rig.frame(1.0)
    for x in (10, 30, 50):
        rig.region(click(x))
    frames = len(rig.events.frames)
    rig.engine.remove_region("front", 2)
    rig.settle()
    assert rig.reported_ids[frames:] == [[1, 3]]
    assert (rig.events.frames[-1].stamp_ns, rig.events.frames[-1].arrived_s) == (ns(1.0), None)
    rig.engine.clear_regions("front")
    rig.settle()
    assert rig.reported_ids[frames:] == [[1, 3], []]
    rig.settle()
    assert rig.engine.statistics().cameras[0].processed == 1
    assert len(rig.reported_ids) == frames + 2


def test_queued_requests_fail_if_their_region_is_removed():
    rig = stepped()
    rig.frame(1.0)
    rig.region()
    handles = [rig.request(region_id=1), rig.request(click(), region_id=1)]
    handles.append(rig.engine.caption_now("front", 1, Language.EN))
    rig.engine.remove_region("front", 1)
    rig.settle()
    assert [type(error_of(handle)) for handle in handles] == [CancelledError] * 3


def test_removal_while_its_frame_is_processed():
    rig = stepped()
    rig.frame(1.0)
    rig.region()

    def remove(call, details):
        if call == "track":
            rig.engine.remove_region("front", 1)
            rig.model.fault = None

    rig.model.fault = remove
    rig.frame(1.1)
    assert rig.reported_ids[-1] == []


def test_a_request_cancelled_before_its_turn_does_nothing():
    rig = stepped()
    rig.frame(1.0)
    handle = rig.request(click())
    handle.cancel()
    handle.cancel()
    rig.settle()
    assert isinstance(error_of(handle), CancelledError)
    assert rig.model.calls == []
    assert rig.reported_ids == [[]]


# ---- requests with an image of their own


def test_a_request_with_an_image_is_neither_tracked_nor_reported():
    rig = stepped()
    handle = rig.request(box(5, 5, 25, 15), image=picture(77, (20, 30)), stamp_ns=ns(9.0), **ALL_TEXTS)
    rig.settle()
    answer = handle.future.result(0)
    assert (answer.region_id, answer.created_ns, answer.last_visible_ns) == (0, ns(9.0), ns(9.0))
    assert answer.box_xyxy.tolist() == [5, 5, 25, 15]
    assert answer.texts[Task.LABEL, Language.ZH].text.startswith("label-zh-r1s77")
    assert len(answer.texts) == 4
    assert rig.events.order == []
    rig.frame(1.0)
    assert rig.reported_ids == [[]]


def test_requests_with_images_do_not_wait_for_a_busy_camera():
    rig = stepped()
    handle = rig.request(click(), image=picture(), tasks=())
    rig.frame(1.0)
    assert handle.future.done()


def test_bad_requests_with_images_are_refused():
    rig = stepped()
    outside = rig.request(click(500, 5), image=picture(), tasks=())
    bad = np.zeros((4, 4), np.uint8)
    errors = [
        error_of(rig.request(click(), image=bad)),
        error_of(rig.request(None, image=picture())),
        error_of(rig.request(click(), image=picture(), region_id=3)),
    ]
    assert [type(error) for error in errors] == [ImageError, PromptError, PromptError]
    rig.settle()
    assert "outside the 60x40 image" in str(error_of(outside))
