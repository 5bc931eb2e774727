"""The texts of one region name one thing; unsure texts and empty places say so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fakes import FakeModel, FakeText
from stepped_engine import captions, click, error_of, make_frame, play, stepped, streaming_rig

from pam_ros.errors import CheckpointError, NothingFoundError
from pam_ros.model.text.names import ObjectNames, Thing
from pam_ros.records import Language, RegionState, Task, Text
from pam_ros.runtime.requests import PromptRequest

EN, ZH = Language.EN, Language.ZH


def thing(english: str, chinese: str, article: str = "a", counter: str = "个", noun: str = "") -> Thing:
    return Thing({EN: (english,), ZH: (chinese,)}, noun or english, article, counter)


NAMES = ObjectNames(
    {
        "mug": thing("mug", "马克杯"),
        "bowl": thing("bowl", "碗", counter="只"),
        "apple": thing("apple", "苹果"),
        "scissors": thing("scissors", "剪刀", "a pair of", "把"),
        "leaf": thing("leaves", "叶子", "", "丛"),
        "bread": thing("bread", "面包", counter="条", noun="loaf of bread"),
    }
)


@pytest.mark.parametrize(
    ("text", "key", "beginning"),
    [
        ("A red mug on the table.", "bowl", "A red bowl"),
        ("A red mug on the table.", "mug", None),
        ("A ceramic mug.", "scissors", "A pair of ceramic scissors"),
        ("This is a pair of red scissors.", "apple", "This is a red apple"),
        ("The picture shows a mug.", "apple", "The picture shows an apple"),
        ("Green leaves of a mug.", "bowl", "A green bowl"),
        ("A green bowl.", "leaf", "Green leaves"),
        ("Then the mug is pushed.", "scissors", "Then the scissors"),
        ("It is old. A mug stands there.", "bread", "It is old. A loaf of bread"),
        ("Mugs are cups.", "bowl", "A bowl"),
        ("Nothing that it knows.", "mug", None),
        ("smug", "bowl", None),
    ],
)
def test_a_text_begins_again_with_the_right_name(text: str, key: str, beginning: str | None) -> None:
    assert NAMES.beginning(text, EN, key) == beginning


def test_chinese_measure_words_follow_the_name() -> None:
    assert NAMES.beginning("一个红色的马克杯放在桌上。", ZH, "scissors") == "一把红色的剪刀"
    assert NAMES.beginning("马克杯是杯子。", ZH, "bowl") == "碗"


def test_names_are_read_as_written_and_bad_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "names.json"
    NAMES.write(path)
    assert ObjectNames.read(path).things == NAMES.things
    for content in ("[]", '{"mug": {"en": "mug"}}', '{"mug": 1}', "[" * 100_000, "\xff"):
        path.write_text(content, encoding="latin-1")
        with pytest.raises(CheckpointError, match=r"names\.json"):
            ObjectNames.read(path)


class Answers:
    """What the model says, by task and language; a text with a beginning goes on from it."""

    def __init__(self, **texts: tuple[str, float | None]) -> None:
        self.texts = texts
        self.begun: list[str] = []

    def __call__(self, text: FakeText) -> tuple[str, float | None]:
        said, sure = self.texts[f"{text.task.value}_{text.language.value}"]
        if text.request.beginning:
            self.begun.append(text.request.beginning)
            return f"{text.request.beginning}, again.", sure
        return said, sure


def answered(
    answers: Answers, tasks: tuple[Task, ...], languages: tuple[Language, ...], **options: Any
) -> Any:
    rig = stepped(model=FakeModel(known=NAMES, says=answers), **options)
    rig.frame(1.0)
    handle = rig.request(click(), tasks=tasks, languages=languages)
    rig.settle()
    return handle.future.result(0).texts, rig


def test_the_surest_label_decides_and_the_other_texts_follow() -> None:
    answers = Answers(
        label_en=("mug", 0.4),
        label_zh=("碗", 0.8),
        explain_en=("A mug is a cup.", 0.9),
        explain_zh=("碗是碗。", 0.7),
    )
    texts, rig = answered(answers, (Task.LABEL, Task.EXPLAIN), (EN, ZH))
    assert {key: (text.text, text.confidence) for key, text in texts.items()} == {
        (Task.LABEL, EN): ("bowl", 0.8),
        (Task.LABEL, ZH): ("碗", 0.8),
        (Task.EXPLAIN, EN): ("A bowl, again.", 0.8),  # no text is surer than the label
        (Task.EXPLAIN, ZH): ("碗是碗。", 0.7),
    }
    assert answers.begun == ["A bowl"]
    finals = [(event.task, event.language, event.text) for event in rig.events.texts if event.final]
    assert len(finals) == 4 and (Task.EXPLAIN, EN, "A bowl, again.") in finals
    assert not rig.model.prompts, "a prompt was not released"


def test_texts_follow_a_label_that_is_known_already_and_clips_do_too() -> None:
    answers = Answers(
        label_en=("mug", 0.9), brief_en=("A bowl on a table.", 0.95), clip_en=("The bowl falls.", 0.5)
    )
    rig = streaming_rig(model=FakeModel(known=NAMES, says=answers))
    for tasks in ((Task.LABEL,), (Task.BRIEF,)):
        handle = rig.request(region_id=1, tasks=tasks)
        rig.settle()
    assert handle.future.result(0).texts[Task.BRIEF, EN].text == "A mug, again."
    play(rig, [(1.5, 110), (2.0, 120)])
    assert captions(rig)[-1] == "The mug, again."
    assert [event.confidence for event in rig.events.captions if event.final][-1] == 0.5
    assert not rig.engine._flow._queue._waiting and rig.engine._flow._queue.generating == 0


def guided(clip: float, **options: Any) -> Any:
    """A model that calls the region a mug, and a bowl in its captions."""
    answers = Answers(label_en=("mug", 0.4), clip_en=("The bowl falls.", clip))
    rig = stepped(model=FakeModel(known=NAMES, says=answers), caption_period_s=1.0, clip_frames=3, **options)
    rig.frame(1.0)
    return rig


def test_a_region_that_will_be_captioned_gets_a_label_though_nobody_asked() -> None:
    rig = guided(0.9, streaming=True)
    handle = rig.request(click(), tasks=())
    rig.turn()
    assert not handle.future.result(0).texts, "the request waits for a text that it did not ask for"
    play(rig, [(1.5, 110), (2.0, 120), (2.5, 130)])
    (caption,) = [event for event in rig.events.captions if event.final]
    assert (caption.text, caption.confidence) == ("The mug, again.", 0.4)
    assert [event.text for event in rig.events.texts if event.final] == ["mug"]


def test_a_recorded_clip_follows_a_label_that_nobody_asked_for() -> None:
    rig = guided(0.9)
    content = PromptRequest(click(), ())
    handle = rig.engine.caption_clip("front", content, 1.0, EN, lambda recorded_s, text: None)
    rig.turn()
    play(rig, [(1.5, 110), (2.0, 120), (2.5, 130)])
    caption = handle.future.result(0)
    assert (caption.text, caption.confidence, caption.unsure) == ("The mug, again.", 0.4, True)


@pytest.mark.parametrize("known", [True, False])
def test_a_caption_before_any_label_is_unsure(known: bool) -> None:
    rig = guided(0.99, min_confidence=0.3)
    rig.request(click(), tasks=(Task.LABEL,) if known else ())
    rig.settle()
    handle = rig.engine.caption_now("front", 1, EN)
    play(rig, [(1.5, 110)])
    assert handle.future.result(0).unsure is not known


def test_without_a_list_of_names_texts_stay_as_they_are() -> None:
    answers = Answers(label_en=("mug", 0.9), explain_en=("A bowl.", 0.9))
    rig = stepped()
    rig.model.says = answers
    rig.frame(1.0)
    handle = rig.request(click(), tasks=(Task.LABEL, Task.EXPLAIN))
    rig.settle()
    assert handle.future.result(0).texts[Task.EXPLAIN, EN].text == "A bowl." and not answers.begun


def test_a_failure_while_a_text_is_generated_again_fails_that_request_only() -> None:
    answers = Answers(label_en=("mug", 0.9), explain_en=("A bowl.", 0.9))
    rig = stepped(model=FakeModel(known=NAMES, says=answers))

    def fault(call: str, details: Any) -> None:
        if call == "generate" and any(text.request.beginning for text in details):
            raise RuntimeError("broken")

    rig.model.fault = fault
    rig.frame(1.0)
    handle = rig.request(click(), tasks=(Task.LABEL, Task.EXPLAIN))
    rig.settle()
    assert "broken" in str(error_of(handle))
    rig.model.fault = None
    assert rig.region(click(5)).region_id == 2


@pytest.mark.parametrize(("bar", "unsure"), [(0.0, True), (0.3, False), (0.41, True)])
def test_a_label_below_the_bar_is_unsure(bar: float, unsure: bool) -> None:
    """0: the model's own bar, which is 0.5 here."""
    texts, rig = answered(Answers(label_en=("mug", 0.4)), (Task.LABEL,), (EN,), min_confidence=bar)
    label = texts[Task.LABEL, EN]
    assert (label.text, label.unsure, label.shown) == ("mug", unsure, "mug?" if unsure else "mug")
    assert rig.events.texts[-1].unsure == unsure
    assert rig.engine._flow._cameras["front"].regions[1].snapshot().name == label.shown


def test_how_texts_are_shown() -> None:
    assert Text("mug", 0, 0.873).sure_text == "mug 87%"
    assert Text("cutting board", 0, 0.2, unsure=True).sure_text == "cutting board? 20%"
    assert Text("A mug.", 0, unsure=True).shown == "A mug?"
    assert Text("mug", 0).sure_text == "mug"


@pytest.mark.parametrize(
    ("mask_score", "shade", "score"), [(0.0002, 100, "0.0002"), (0.9, 0, "0.05"), (0.019, 100, "0.019")]
)
def test_a_prompt_that_finds_nothing_gets_no_label(mask_score: float, shade: int, score: str) -> None:
    """A poor mask, or nothing in view (a black frame): an error that says so, and no region."""
    rig = stepped()
    rig.model.mask_score = mask_score
    rig.frame(1.0, shade)
    handle = rig.request(click())
    rig.settle()
    error = error_of(handle)
    assert isinstance(error, NothingFoundError) and str(error) == f"nothing found there (score {score})"
    assert not rig.engine._flow._cameras["front"].regions and not rig.model.batches
    rig.model.mask_score = 0.02
    rig.engine.submit_frame(make_frame(2.0))
    region = rig.region(click())
    assert region.region_id == 2 and region.state is RegionState.TRACKED
