"""Summaries: the captions of a stream as one text, in order, without repetitions; when they are made."""

from __future__ import annotations

from dataclasses import replace

import pytest
from stepped_engine import captions, ns, play, streaming_rig, summaries

from pam_ros.records import Language
from pam_ros.runtime.summary import MOST_CAPTIONS, summarise

EN, ZH = Language.EN, Language.ZH


@pytest.mark.parametrize(
    ("told", "language", "expected"),
    [
        ([], EN, ""),
        (["", "  "], EN, ""),
        (["The red mug falls."], EN, "The red mug falls."),
        # A state that goes on, in the same words, in others, and with a word that says so.
        (["The red mug does not move."] * 3, EN, "The red mug does not move."),
        (
            ["The red mug does not move.", "As before, the mug remains still.", "Still, it stays there."],
            EN,
            "The red mug does not move.",
        ),
        (["红色的杯子没有移动。", "杯子仍然保持不动。", "杯子依旧没有移动。"], ZH, "红色的杯子没有移动。"),
        # An event that crosses a decode timestamp.
        (
            ["The red mug slides and then is lifted.", "Then the mug is lifted and then falls."],
            EN,
            "The red mug slides and then is lifted and then falls.",
        ),
        (
            ["红色的杯子滑动，然后被拿起。", "杯子接着被拿起，然后落下。"],
            ZH,
            "红色的杯子滑动，然后被拿起，然后落下。",
        ),
        (
            ["The red mug moves leftward.", "Then the mug moves leftward.", "Next, the mug falls."],
            EN,
            "The red mug moves leftward. Next, the mug falls.",
        ),
        # What happens again is included again; so are different directions.
        (
            ["The mug is lifted.", "Then the mug is put down.", "Then the mug is lifted."],
            EN,
            "The mug is lifted. Then the mug is put down. Then the mug is lifted.",
        ),
        (
            ["The mug slides to the left.", "Then the mug slides to the right."],
            EN,
            "The mug slides to the left. Then the mug slides to the right.",
        ),
        (
            ["The mug rests and then is lifted.", "Then the mug rests."],
            EN,
            "The mug rests and then is lifted. Then the mug rests.",
        ),
        # Captions of several sentences, as large models write them.
        (
            [
                "A man in a red coat walks along the street. He carries a black bag.",
                "The man continues to walk on. He carries the black bag. He looks at his phone.",
            ],
            EN,
            "A man in a red coat walks along the street. He carries a black bag. He looks at his phone.",
        ),
    ],
)  # fmt: skip
def test_captions_become_one_text_without_repetitions(told: list[str], language: Language, expected: str):
    assert summarise(told, language) == expected


def test_a_stream_is_summed_up_after_its_last_caption():
    rig = streaming_rig()
    play(rig, [(1.5, 105), (2.0, 110), (2.5, 115)])
    rig.engine.end_stream("front")
    rig.settle()
    (summary,) = summaries(rig)
    *clips, last = rig.events.captions
    assert last is summary
    finals = [event for event in clips if event.final]
    assert len(finals) == 2
    assert summary.text == summarise([event.text for event in finals], EN)
    assert (summary.clip_start_ns, summary.clip_end_ns) == (ns(1.0), ns(2.5))
    assert summary.sequence == finals[-1].sequence + 1
    assert summary.frame_count == sum(event.frame_count for event in finals)
    play(rig, [(3.0, 120), (3.5, 125), (4.0, 130)])  # the stream goes on
    rig.engine.end_stream("front")
    rig.settle()
    assert summaries(rig)[1].clip_start_ns >= ns(2.5)


@pytest.mark.parametrize("how", ["removed", "switched off"])
def test_a_region_or_a_stream_that_ends_is_summed_up_once(how: str):
    rig = streaming_rig()
    play(rig, [(1.5, 105), (2.0, 110)])
    assert summaries(rig) == []
    if how == "removed":
        rig.engine.clear_regions("front")
        rig.settle()
    else:
        rig.engine.options = replace(rig.engine.options, streaming=False)
    play(rig, [(2.5, 115), (3.0, 120)])
    assert [event.text for event in summaries(rig)] == captions(rig)


def test_switching_off_sums_up_even_after_caption_now():
    rig = streaming_rig()
    play(rig, [(1.5, 105), (2.0, 110)])
    rig.engine.caption_now("front", 1, EN)
    rig.settle()
    rig.engine.options = replace(rig.engine.options, streaming=False)
    play(rig, [(2.5, 115), (3.0, 120)])
    assert [event.text for event in summaries(rig)] == [summarise(captions(rig), EN)]


def test_a_jump_back_sums_up_what_was_before():
    rig = streaming_rig()
    play(rig, [(1.5, 105), (2.0, 110), (0.5, 50)])
    assert [event.clip_end_ns for event in summaries(rig)] == [ns(2.0)]
    play(rig, [(1.0, 55), (1.5, 60)])
    rig.engine.clear_regions("front")
    rig.settle()
    assert [event.clip_start_ns for event in summaries(rig)] == [ns(1.0), ns(0.5)]


def test_without_captions_there_is_no_summary():
    rig = streaming_rig()
    play(rig, [(1.5, 105)])
    rig.engine.clear_regions("front")
    rig.settle()
    assert summaries(rig) == []


def test_captions_in_another_language_begin_another_summary():
    rig = streaming_rig()
    play(rig, [(1.5, 105), (2.0, 110)])
    rig.engine.options = replace(rig.engine.options, caption_language=ZH)
    play(rig, [(2.5, 115), (3.0, 120)])
    rig.engine.end_stream("front")
    rig.settle()
    (summary,) = summaries(rig)
    assert (summary.language, summary.text) == (ZH, captions(rig)[-1])


def test_a_summary_is_bounded():
    rig = streaming_rig(period_s=0.2, clip_frames=2)
    play(rig, [(1.0 + 0.1 * i, 100 + i % 100) for i in range(1, 2 * MOST_CAPTIONS + 41)])
    rig.engine.clear_regions("front")
    rig.settle()
    (summary,) = summaries(rig)
    told = captions(rig)
    assert len(told) > MOST_CAPTIONS
    assert summary.text == summarise([told[0], *told[len(told) - MOST_CAPTIONS + 1 :]], EN)
