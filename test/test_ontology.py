"""The ontology is complete, and the judge understands every text that is written from it."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from pam_ros.records import IMAGE_TASKS, Language, Task
from pam_ros.simulator.assets.catalogue import BUILDERS, CATEGORIES
from pam_ros.simulator.assets.materials import COLOURS, FINISHES
from pam_ros.simulator.ontology import ontology
from pam_ros.simulator.texts.captions import clip_caption, describe
from pam_ros.simulator.texts.facts import Facts, Mention
from pam_ros.simulator.texts.judge import judge

EN, ZH = Language.EN, Language.ZH


def _some_facts(category: str) -> list[Facts]:
    entry = ontology().entries[category]
    if entry.kind == "part":
        return [
            Facts(category, "part", colour="black", whole=Mention("kettle", "red")),
            Facts(category, "part", whole=Mention("scissors", "")),
        ]
    if entry.kind == "region":
        return [
            Facts(
                category, "region", surface="wood", carries=(Mention("mug", "blue"), Mention("hammer", ""))
            ),
            Facts(category, "region", colour="white"),
        ]
    material, colours = entry.looks[0]
    return [
        Facts(category, "object", colour=colours[0], material=material, place=("table", "wood")),
        Facts(
            category,
            "object",
            handle_colour="red",
            place=("shelf", ""),
            lies=True,
            cut_off=True,
            size="small",
        ),
        Facts(
            category,
            "object",
            colour=colours[-1],
            material=material,
            place=("stove", ""),
            neighbour=Mention("mug", "white"),
            relation="left",
            parts=(("handle", "black"), ("lid", "")),
            size="large",
        ),
    ]


def _has_chinese(text: str) -> bool:
    return any("\u4e00" <= letter <= "\u9fff" for letter in text)


def test_it_covers_every_rendered_category() -> None:
    known = ontology()
    assert len(CATEGORIES) >= 45
    assert set(BUILDERS) | {"gripper"} == {entry.id for entry in known.of_kind("object")}
    for entry in known.entries.values():
        assert entry.function in known.functions
        for material, colours in entry.looks:
            assert material in FINISHES and ("materials", material) in known.words
            assert all(colour in COLOURS and ("colours", colour) in known.words for colour in colours)
    for pair in known.pairs:
        assert {pair.first, pair.second} <= set(known.entries)


@pytest.mark.parametrize("language", list(Language))
def test_names_are_unique_and_in_their_language(language: Language) -> None:
    names = [name for entry in ontology().entries.values() for name in entry.names[language]]
    assert len(names) == len(set(names))
    assert all(_has_chinese(name) == (language is ZH) for name in names)
    phrases = [
        phrase
        for function in ontology().functions.values()
        for phrase in (
            function.chinese if language is ZH else [form for forms in function.english for form in forms]
        )
    ]
    assert len(phrases) == len(set(phrases))


@pytest.mark.parametrize("category", list(ontology().entries))
def test_the_judge_understands_every_text(category: str) -> None:
    entry = ontology().entries[category]
    rng = np.random.default_rng(len(category))
    for facts, task, language, _ in product(_some_facts(category), IMAGE_TASKS, Language, range(3)):
        text = describe(facts, task, language, rng)
        verdict = judge(text, language)
        assert verdict.category == category, text
        if task is Task.EXPLAIN:
            assert verdict.function == entry.function, text
        _check_wording(text, language, task)


def _check_wording(text: str, language: Language, task: Task) -> None:
    assert text and text == text.strip()
    assert not set("{}[]|_") & set(text), text
    assert "  " not in text and " ." not in text and " ," not in text and "None" not in text, text
    if language is EN:
        assert not _has_chinese(text)
        for vowel in "aeiou":
            assert f" a {vowel}" not in text.lower(), text
        if task is not Task.LABEL:
            assert text[0].isupper() and text.endswith("."), text
    else:
        assert _has_chinese(text) and text.isascii() is False and "的的" not in text and "色色" not in text, (
            text
        )
        if task is not Task.LABEL:
            assert text.endswith("。") and "。。" not in text and "，，" not in text, text


@pytest.mark.parametrize("category", ["kettle", "scissors", "bread"])
def test_the_judge_understands_every_event(category: str) -> None:
    rng = np.random.default_rng(3)
    facts = Facts(category, "object", colour="red", material="metal")
    events = list(ontology().events)
    for event, language, previous in product(events, Language, ((), ("still",), ("lifted",))):
        text = clip_caption(facts, [event], previous, language, rng)
        assert judge(text, language).events == (event,), text
        assert judge(text, language).category == category, text
        _check_wording(text, language, Task.CLIP)
    for first, second in zip(events, events[1:], strict=False):
        text = clip_caption(facts, [first, second], (), EN, rng)
        assert judge(text, EN).events == (first, second), text


def test_the_judge_knows_synonyms_and_nothing_else() -> None:
    assert judge("Two skillets.", EN).category == "frying_pan"
    assert judge("一个杯子", ZH).category == "mug"
    assert judge("a giraffe", EN).category is None
    assert judge("The kettle dances.", EN).events == ()
    assert judge("", ZH).category is None
    assert judge("洒水壶", ZH).category == "watering_can"  # not the kettle, whose name is a part of it


def test_details_mention_an_unusual_size() -> None:
    rng = np.random.default_rng(0)
    facts = Facts("mug", "object", colour="red", place=("table", ""), size="small")
    words = {"small for its kind", "smaller than usual", "比普通的马克杯小", "尺寸偏小"}
    texts = " ".join(describe(facts, Task.DETAIL, language, rng) for language in Language for _ in range(30))
    assert {word for word in words if word in texts} == words
    usual = replace(facts, size="")
    assert not any("small" in describe(usual, Task.DETAIL, EN, rng) for _ in range(30))


def test_a_clip_caption_needs_its_own_function() -> None:
    with pytest.raises(ValueError, match="clip_caption"):
        describe(Facts("kettle", "object"), Task.CLIP, EN, np.random.default_rng(0))
