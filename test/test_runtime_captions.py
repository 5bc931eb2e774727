"""Streaming captions: sampled clips, carry-over, one clip at a time, captions on request."""

from dataclasses import replace

import pytest
from fakes import FakeModel
from stepped_engine import captions, click, error_of, make_frame, ns, play, stepped, streaming_rig

from pam_ros.errors import (
    CancelledError,
    CapacityError,
    InferenceError,
    UnknownRegionError,
)
from pam_ros.records import Language


def test_the_next_clip_starts_with_the_carried_frame_at_stride_2_and_the_previous_caption():
    rig = streaming_rig()
    play(rig, [(1.5, 105), (2.0, 110), (2.5, 115), (3.0, 120), (3.5, 125), (4.0, 130)])
    assert captions(rig) == [
        "clip-en-r1f100c105c110<none",
        "clip-en-r1f110c115c120<clip-en-r1f100c105c110",
        "clip-en-r1f120c125c130<clip-en-r1f110c115c120",
    ]
    second = rig.events.captions[1]
    assert (second.clip_start_ns, second.clip_end_ns) == (ns(2.0), ns(3.0))
    assert [event.sequence for event in rig.events.captions] == [0, 1, 2]
    assert (second.frame_count, second.frame_id, second.language) == (3, "optical", Language.EN)


def test_without_carry_over_only_the_caption_is_carried():
    rig = streaming_rig(carry_over=False)
    play(rig, [(1.5, 105), (2.0, 110), (2.5, 115), (3.0, 120), (3.5, 125)])
    assert captions(rig) == ["clip-en-r1f100c105c110<none", "clip-en-r1f115c120c125<clip-en-r1f100c105c110"]


def test_embeddings_are_computed_once_for_each_sampled_frame_and_batched():
    rig = streaming_rig(clip_frames=3)
    rig.region(click(10))
    rig.model.calls.clear()
    for stamp_s in (1.1, 1.5, 1.6):
        rig.frame(stamp_s)
    assert [call for call in rig.model.calls if call[0].startswith("embedded")] == [
        ("embedded_stride2", 1),  # 1.1: the second region's first frame
        ("embedded_stride4", 1),  # 1.5: the first region's; the second's next instant is 1.6
        ("embedded_stride4", 1),
    ]


def test_clips_that_end_together_are_one_batch_apart_from_the_texts_of_images():
    rig = stepped(streaming=True, caption_period_s=1.0, clip_frames=2)
    rig.model.words = 1
    rig.engine.submit_frame(make_frame(1.0))
    for x in (10, 40):
        rig.request(click(x), tasks=())
    rig.settle()
    rig.engine.submit_frame(make_frame(2.0))
    rig.request(region_id=1)
    rig.settle()
    assert [len(batch) for batch in rig.model.batches] == [1, 2]
    assert len(captions(rig)) == 2


@pytest.mark.parametrize("count", range(2, 17))
def test_clips_of_any_length_up_to_sixteen(count):
    rig = streaming_rig(period_s=15.0, clip_frames=16)
    # The frame of the prompt, `count - 2` between, and the one that ends the clip.
    shades = [100 + k for k in range(1, count - 1)]
    play(rig, [(1.0 + k, shade) for k, shade in enumerate(shades, start=1)])
    play(rig, [(16.0, 150)])
    (event,) = rig.events.captions
    assert event.frame_count == count
    assert event.text.startswith("clip-en-r1f100" + "".join(f"c{shade}" for shade in shades))


def test_a_lost_region_is_captioned_until_it_times_out():
    rig = streaming_rig(lost_timeout_s=2.2)
    play(rig, [(1.5, 105), (2.0, 0)])  # shade 0: it is not in view
    assert captions(rig) == ["clip-en-r1f100c105c0<none"]
    play(rig, [(2.5, 0), (3.0, 0)])
    assert captions(rig)[1:] == ["clip-en-r1f0c0c0<clip-en-r1f100c105c0"]
    play(rig, [(3.5, 0), (4.0, 145)])  # it returns
    assert captions(rig)[2:] == ["clip-en-r1f0c0c145<clip-en-r1f0c0c0"]
    play(rig, [(4.5, 0), (5.0, 0), (6.0, 0), (7.0, 0)])
    *clips, summary = rig.events.captions
    assert [caption.clip_end_ns for caption in clips][3:] == [5_000_000_000, 6_000_000_000]
    assert (summary.summary, summary.clip_start_ns, summary.clip_end_ns) == (True, 10**9, 6 * 10**9)


def test_a_clip_of_one_frame_carries_nothing():
    rig = streaming_rig(clip_frames=1)
    play(rig, [(1.5, 105), (2.0, 110), (2.5, 115), (3.0, 120), (3.5, 125)])
    assert captions(rig) == ["clip-en-r1f100<none", "clip-en-r1f115<clip-en-r1f100"]


def test_captions_in_another_language_do_not_continue_the_previous_one():
    rig = streaming_rig()
    play(rig, [(1.5, 105), (2.0, 110)])
    rig.engine.options = replace(rig.engine.options, caption_language=Language.ZH)
    play(rig, [(2.5, 115), (3.0, 120), (3.5, 125), (4.0, 130)])
    first, second = captions(rig)[1:]
    assert first == "clip-zh-r1f110c115c120<none"
    assert second == "clip-zh-r1f120c125c130<clip-zh-r1f110c115c120"


def test_streaming_can_be_switched_while_running():
    rig = stepped(caption_period_s=1.0, clip_frames=2)
    rig.model.words = 1
    rig.frame(1.0, 100)
    rig.region()
    play(rig, [(2.0, 110), (3.0, 120)])
    assert rig.model.count("embedded_stride2") == 0  # no clip is recorded
    rig.engine.options = replace(rig.engine.options, streaming=True)
    play(rig, [(4.0, 130), (5.0, 140)])
    assert captions(rig) == ["clip-en-r1f130c140<none"]
    rig.engine.options = replace(rig.engine.options, streaming=False)
    play(rig, [(6.0, 150), (7.0, 160)])
    assert len(captions(rig)) == 1


def test_slow_generation_skips_clips_and_queues_at_most_one():
    rig = streaming_rig()
    rig.model.stepping.clear()
    for k in range(2, 14):
        rig.frame(k / 2, 100 + k)  # clips end at 2, 3, 4, 5, 6
    assert len(rig.model.batches) == 1
    rig.model.stepping.set()
    rig.settle()
    assert [event.sequence for event in rig.events.captions] == [0, 4]
    assert rig.events.captions[1].clip_end_ns == ns(6.0)
    assert captions(rig)[1].endswith("<clip-en-r1f100c103c104")  # as known when it starts
    skipped = [message for _, message in rig.events.warnings if "skipped caption" in message]
    assert [message.split("caption ")[1].split(",")[0] for message in skipped] == ["1", "2", "3"]
    assert len(rig.model.prompts) == 1  # of the clip that is recorded


def test_a_queued_clip_is_replaced_by_a_newer_one():
    rig = streaming_rig()
    rig.model.stepping.clear()
    for x in (10, 20, 30, 40):  # all places taken
        rig.request(click(x))
        rig.turn()
    assert rig.engine.statistics().generating == 4
    for k in range(2, 10):
        rig.frame(k / 2, 100 + k)
    rig.model.stepping.set()
    rig.settle()
    of_first = [event for event in rig.events.captions if event.region_id == 1]
    assert [(event.sequence, event.clip_end_ns) for event in of_first] == [(2, ns(4.0))]


def test_stamps_that_jump_back_restart_clips_and_captions():
    rig = streaming_rig()
    play(rig, [(1.5, 105), (2.0, 110), (2.5, 115)])
    play(rig, [(0.5, 50), (1.0, 55), (1.5, 60)])
    assert captions(rig)[1:] == ["clip-en-r1f50c55c60<none"]


def test_a_caption_from_before_a_jump_back_is_not_continued():
    rig = streaming_rig()
    rig.model.stepping.clear()
    for stamp_s, shade in [(1.5, 105), (2.0, 110), (0.5, 50)]:
        rig.frame(stamp_s, shade)
    rig.model.stepping.set()
    rig.settle()
    play(rig, [(1.0, 55), (1.5, 60)])
    assert captions(rig) == ["clip-en-r1f100c105c110<none", "clip-en-r1f50c55c60<none"]


def test_a_frame_whose_embeddings_fail_is_left_out_of_its_clip():
    rig = streaming_rig()

    def fault(name, details):
        if name == "embedded_stride4" and details[0].shade == 105:
            raise RuntimeError("no embeddings")

    rig.model.fault = fault
    play(rig, [(1.5, 105), (2.0, 110)])
    assert captions(rig) == ["clip-en-r1f100c110<none"]


def test_a_failed_caption_is_a_warning_and_the_next_one_succeeds():
    rig = streaming_rig()

    def fault(name, details):
        if name == "step" and rig.model.steps == 2:
            raise RuntimeError("no words")

    rig.model.fault = fault
    play(rig, [(1.5, 105), (2.0, 110)])
    assert "region 1 gets no caption" in rig.events.warnings[-1][1]
    play(rig, [(2.5, 115), (3.0, 120)])
    assert captions(rig) == ["clip-en-r1f110c115c120<none"]


def test_a_region_removed_between_two_captions_gets_neither():
    rig = streaming_rig()
    rig.model.stepping.clear()
    for k in range(3, 7):
        rig.frame(k / 2, 100 + k)  # the clip of 2.0 is being captioned, that of 3.0 waits
    rig.engine.remove_region("front", 1)
    rig.model.stepping.set()
    rig.settle()
    assert captions(rig) == []
    assert len(rig.model.batches) == 1


def test_a_replaced_clip_keeps_its_place_in_the_queue():
    rig = streaming_rig()
    rig.model.stepping.clear()
    for _ in range(4):  # all places taken
        rig.request(region_id=1)
        rig.turn()
    rig.frame(2.0, 120)  # the clip waits,
    behind = rig.request(region_id=1)  # this behind it,
    rig.turn()
    rig.frame(3.0, 130)  # and a newer clip takes the place of the first
    rig.model.stepping.set()
    rig.settle()
    assert [batch[0].task.value for batch in rig.model.batches[4:]] == ["clip", "label"]
    assert behind.future.done()
    assert [event.clip_end_ns for event in rig.events.captions] == [ns(3.0)]


# ---- caption_now


def test_caption_now_ends_the_clip_and_starts_the_next():
    rig = streaming_rig(period_s=4.0, clip_frames=5)
    play(rig, [(2.0, 110), (2.5, 115)])  # 2.5 is the newest frame, but not a planned instant
    handle = rig.engine.caption_now("front", 1, Language.EN)
    rig.settle()
    event = handle.future.result(0)
    assert event.text == "clip-en-r1f100c110c115<none"
    assert (event.final, event.clip_end_ns, event.sequence) == (True, ns(2.5), 0)
    assert rig.events.captions == [event]
    play(rig, [(3.5, 120), (4.5, 130), (5.5, 140), (6.5, 150)])
    assert captions(rig)[1:] == ["clip-en-r1f115c120c130c140c150<clip-en-r1f100c110c115"]


def test_caption_now_without_streaming_starts_with_one_frame_and_records_from_then_on():
    rig = stepped(caption_period_s=4.0, clip_frames=5)
    rig.model.words = 1
    rig.frame(1.0, 100)
    rig.region()
    first = rig.engine.caption_now("front", 1, Language.ZH)
    rig.settle()
    assert first.future.result(0).text == "clip-zh-r1f100<none"
    play(rig, [(2.0, 110), (3.0, 120)])
    second = rig.engine.caption_now("front", 1, Language.ZH)
    rig.settle()
    assert second.future.result(0).text == "clip-zh-r1f100c110c120<clip-zh-r1f100"
    play(rig, [(7.0, 130), (8.0, 140)])  # the period passed: a new clip, but no caption
    assert len(captions(rig)) == 2
    third = rig.engine.caption_now("front", 1, Language.ZH)
    rig.settle()
    assert third.future.result(0).text.startswith("clip-zh-r1f130c140<")


def test_a_minute_after_caption_now_nothing_is_recorded_any_more():
    rig = stepped(caption_period_s=4.0, clip_frames=5)
    rig.model.words = 1
    rig.frame(1.0, 100)
    rig.region()
    rig.engine.caption_now("front", 1, Language.EN)
    rig.settle()
    play(rig, [(61.0, 110)])
    recorded = rig.model.count("embedded_stride2")
    play(rig, [(61.1, 120), (65.1, 130)])
    assert rig.model.count("embedded_stride2") == recorded
    late = rig.engine.caption_now("front", 1, Language.EN)
    rig.settle()
    assert late.future.result(0).frame_count == 1


def test_two_caption_now_requests_at_once():
    rig = streaming_rig()
    play(rig, [(1.5, 105)])
    handles = [rig.engine.caption_now("front", 1, Language.EN) for _ in range(2)]
    rig.settle()
    texts = [handle.future.result(0).text for handle in handles]
    assert [text.split("<")[0] for text in texts] == ["clip-en-r1f100c105", "clip-en-r1f105"]
    assert [handle.future.result(0).sequence for handle in handles] == [0, 1]


def test_caption_now_reuses_embeddings_of_a_text_of_the_same_frame():
    rig = stepped()
    rig.frame(1.0)
    rig.region()
    rig.request(region_id=1)
    rig.engine.caption_now("front", 1, Language.EN)
    rig.turn()
    assert rig.model.sizes("embedded_stride2") == [1]


def test_caption_now_of_a_lost_region_describes_what_was_observed():
    rig = stepped()
    rig.model.words = 1
    rig.frame(1.0, 100)
    rig.region()
    rig.frame(1.1, 0)
    handle = rig.engine.caption_now("front", 1, Language.EN)
    rig.settle()
    assert handle.future.result(0).text == "clip-en-r1f100<none"
    rig.frame(1.2, 0)
    handle = rig.engine.caption_now("front", 1, Language.EN)
    rig.settle()
    assert handle.future.result(0).text == "clip-en-r1f100c0<clip-en-r1f100"  # now with the frame without it


def test_caption_now_reports_its_errors():
    rig = stepped(max_queued_requests=2)
    rig.frame(1.0)
    assert isinstance(error_of(rig.engine.caption_now("front", 1, Language.EN)), UnknownRegionError)
    rig.region()
    handles = [rig.engine.caption_now("front", 1, Language.EN) for _ in range(3)]
    assert isinstance(error_of(handles[2]), CapacityError)

    def fault(name, details):
        if name == "embedded_stride2":
            raise RuntimeError("no embeddings")

    rig.model.fault = fault
    rig.settle()
    assert isinstance(error_of(handles[0]), InferenceError)


def test_caption_now_can_be_cancelled_during_generation():
    rig = stepped(model=FakeModel(words=1000))
    rig.frame(1.0)
    rig.region()
    handle = rig.engine.caption_now("front", 1, Language.EN)
    for _ in range(4):
        rig.turn()
    assert rig.engine.statistics().generating == 1
    handle.cancel()
    rig.turn()
    assert rig.engine.statistics().generating == 0
    assert isinstance(error_of(handle), CancelledError)


# ---- clips that are too thin


def thin(rig, index=-1):
    event = rig.events.captions[index]
    return event.frame_count, event.clip_too_thin


def test_a_clip_of_few_of_its_planned_frames_is_marked():
    rig = streaming_rig(period_s=15.0, clip_frames=16)
    play(rig, [(8.0, 110), (16.0, 120)])
    assert thin(rig) == (3, True)
    assert rig.events.captions[-1].shown == f"{captions(rig)[-1]} (from 3 frames only)"
    play(rig, [(20.0, 130), (24.0, 140), (31.0, 150)])
    assert thin(rig) == (4, False)  # a quarter, the bound
    assert rig.events.captions[-1].shown == captions(rig)[-1]


def test_the_bound_is_an_option():
    rig = streaming_rig(period_s=15.0, clip_frames=16, clip_least_fraction=0.1)
    play(rig, [(8.0, 110), (16.0, 120)])
    assert thin(rig) == (3, False)


def test_a_short_clip_is_judged_by_its_own_length():
    rig = streaming_rig(period_s=15.0, clip_frames=16)
    play(rig, [(2.0, 110)])
    rig.engine.caption_now("front", 1, Language.EN)
    rig.settle()
    assert thin(rig) == (2, False)
    rig.engine.caption_now("front", 1, Language.ZH)  # nothing new was seen
    rig.settle()
    assert thin(rig) == (1, True)
    assert rig.events.captions[-1].shown.endswith("（仅依据1帧）")


def test_a_summary_of_a_thin_clip_is_marked():
    rig = streaming_rig(period_s=15.0, clip_frames=16)
    play(rig, [(8.0, 110), (16.0, 120)])
    rig.engine.end_stream("front")
    rig.settle()
    assert rig.events.captions[-1].summary
    assert thin(rig) == (3, True)


def test_what_is_left_after_a_decode_timestamp_is_not_captioned_if_it_is_an_instant():
    rig = streaming_rig(carry_over=False)
    play(rig, [(1.5, 105), (2.0, 110), (2.5, 115)])
    rig.engine.end_stream("front")
    rig.settle()
    assert [event.summary for event in rig.events.captions] == [False, True]
