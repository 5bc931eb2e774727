"""The metrics of texts: right texts score 1, wrong ones 0, examples worked by hand their values."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes import FakeText
from PIL import Image
from scripted_model import ScriptedModel, region_of

from pam_ros.datasets.schema import Kind, PictureFile, Sample
from pam_ros.errors import InputError
from pam_ros.evaluation.cases import Findings
from pam_ros.evaluation.texts import LetterSimilarity, evaluate_texts, open_similarity, semantic_iou
from pam_ros.evaluation.wording import Wording, add_wordings, cider, meteor, rouge_l, tokens
from pam_ros.records import Language, Task

EN, ZH = Language.EN, Language.ZH


# ---- wording: known values


def test_tokens_are_words_and_chinese_characters() -> None:
    assert tokens("A red Mug, 2 cm.") == ["a", "red", "mug", "2", "cm"]
    assert tokens("一个红色的杯子。") == list("一个红色的杯子")


def test_rouge_l_by_hand() -> None:
    # Longest common subsequence "the cat the mat" of 4: precision 4/5, recall 4/6; beta 1.2.
    precision, recall, beta = 4 / 5, 4 / 6, 1.2
    expected = (1 + beta**2) * precision * recall / (recall + beta**2 * precision)
    assert rouge_l("The cat on the mat", ["the cat sat near the mat"]) == pytest.approx(
        (1 + beta**2) * (4 / 5) * (4 / 6) / (4 / 6 + beta**2 * 4 / 5)
    )
    assert rouge_l("The cat on the mat", ["a dog", "the cat sat near the mat"]) == pytest.approx(expected)
    assert rouge_l("red mug", ["blue bowl"]) == 0
    assert rouge_l("", ["blue bowl"]) == 0
    assert rouge_l("红色的杯子", ["红色的杯子。"]) == 1


def test_meteor_by_hand() -> None:
    # All three words match in one chunk: F 1, penalty 0.5 * (1/3)^3.
    assert meteor("the red mug", ["the red mug"]) == pytest.approx(1 - 0.5 / 27)
    # Two of three words match in one chunk: P = R = 2/3, so F = 2/3; penalty 0.5 * (1/2)^3.
    assert meteor("the red mug", ["the red bowl"]) == pytest.approx(2 / 3 * (1 - 0.5 / 8))
    assert meteor("mugs slide", ["mug slides"]) == meteor("mug slides", ["mug slides"])  # by stem
    assert meteor("cup", ["mug"]) == 0  # no synonyms: WordNet is not used
    assert meteor("", ["mug"]) == 0
    assert meteor("红杯子", ["红杯子"]) == pytest.approx(1 - 0.5 / 27)


def test_cider_by_hand() -> None:
    # Every word is in one of two references: all weights are equal, and n-grams of 1..4 words agree fully.
    assert cider(["a b c d", "e f g h"], [["a b c d"], ["e f g h"]]) == pytest.approx([10, 10])
    # "a b x y": 2 of 4 words, 1 of 3 pairs (the others unknown, so as rare), no longer n-grams.
    found = cider(["a b x y", "e f g h"], [["a b c d"], ["e f g h"]])
    assert found == pytest.approx([10 * (2 / 4 + 1 / 3) / 4, 10])
    # Two more words: length 3 pairs against 5, a factor of exp(-2² / (2 * 6²)).
    longer = cider(["a b c d x y", "e f g h"], [["a b c d"], ["e f g h"]])[0]
    shared = [n / math.sqrt(n * (n + 2)) for n in (4, 3, 2, 1)]
    assert longer == pytest.approx(10 * sum(shared) / 4 * math.exp(-(2**2) / (2 * 6**2)))
    assert cider(["e f g h", "a b c d"], [["a b c d"], ["e f g h"]]) == [0, 0]
    assert cider(["红色的杯", "一个大碗"], [["红色的杯"], ["一个大碗"]]) == pytest.approx([10, 10])
    assert cider([], []) == []


def test_totals_are_over_image_tasks_and_clips_stand_apart() -> None:
    findings = Findings()
    same, other = ("a red mug stands here",), ("the blue bowl is there now",)
    add_wordings(
        [
            Wording("1", Task.BRIEF, EN, same[0], same),
            Wording("2", Task.BRIEF, EN, other[0], other),
            Wording("3", Task.DETAIL, EN, same[0], other),
            Wording("4", Task.CLIP, EN, same[0], other),
        ],
        findings,
    )
    scores = findings.scores()
    assert scores["rouge_l_brief_en"] == 1 and scores["rouge_l_detail_en"] == 0
    assert scores["rouge_l_clip_en"] == 0
    assert scores["rouge_l_en"] == pytest.approx(2 / 3) and findings.counts()["rouge_l_en"] == 3


# ---- labels


def test_semantic_iou_by_hand() -> None:
    assert semantic_iou("frying pan", "pan") == 1 / 2
    assert semantic_iou("Mug.", "mug") == 1
    assert semantic_iou("mug", "bowl") == 0
    assert semantic_iou("咖啡机", "咖啡") == 2 / 3
    assert semantic_iou("", "") == 0


def test_similarity_of_letters() -> None:
    same = LetterSimilarity()
    assert same("Mug", "mug") == pytest.approx(1) and same("马克杯", "马克杯") == pytest.approx(1)
    assert 0 < same("coffee mug", "mug") < 1
    assert same("mug", "bowl") == 0 and same("", "mug") < 0.5
    assert open_similarity().name == "letters"


def test_a_missing_embedding_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--embedder|cannot be loaded"):
        open_similarity(str(tmp_path / "none"))


# ---- texts of pictures


@pytest.fixture
def picture(tmp_path: Path) -> Sample:
    """Three objects and a table."""
    path = tmp_path / "picture.png"
    Image.fromarray(np.full((24, 32, 3), 90, np.uint8)).save(path)
    regions = [region_of(name, i) for i, name in enumerate(("mug", "hammer", "kettle"), 1)]
    regions.append(region_of("table", 4, Kind.BACKGROUND))
    return Sample("image 1", (PictureFile(path),), tuple(regions))


def texts_found(picture: Sample, shift: int) -> tuple[Findings, ScriptedModel]:
    """Every object gets the texts of the object `shift` places on; the table gets its own."""

    def answer(region: int, request: FakeText) -> str:
        place = (region - 1 + shift) % 3 if region <= 3 else 3
        return picture.regions[place].texts[request.task, request.language][1]

    model = ScriptedModel()
    model.answer = answer
    findings = Findings()
    evaluate_texts(model, [picture], findings)
    return findings, model


def test_right_texts_score_1(picture: Sample) -> None:
    findings, model = texts_found(picture, 0)
    scores = findings.scores()
    for key in ("label_accuracy_en", "label_accuracy_zh", "function_accuracy", "function_accuracy_zh"):
        assert scores[key] == 1 and findings.counts()[key] == 3, key
        assert scores[f"{key}_background"] == 1 and findings.counts()[f"{key}_background"] == 1
    for key in ("semantic_similarity", "semantic_iou", "semantic_iou_zh"):
        assert scores[key] == pytest.approx(1)
    for language in Language:
        for task in ("brief", "detail", "explain"):
            assert scores[f"rouge_l_{task}_{language.value}"] == pytest.approx(1)
            assert scores[f"meteor_{task}_{language.value}"] > 0.95
        assert scores[f"cider_{language.value}"] > 3
    # Parts and background are not asked for captions: 3 objects by 4 tasks, the table by 2; two languages.
    assert len(model.asked) == 2 * (3 * 4 + 2)


def test_texts_of_the_wrong_object_score_0(picture: Sample) -> None:
    findings, _ = texts_found(picture, 1)
    scores = findings.scores()
    for key in ("label_accuracy_en", "label_accuracy_zh", "function_accuracy", "function_accuracy_zh"):
        assert scores[key] == 0, key
    assert scores["semantic_iou"] == 0 and scores["semantic_similarity"] < 0.2
    right, _ = texts_found(picture, 0)
    for key, score in right.scores().items():
        if key.startswith(("rouge", "meteor", "cider")):
            assert scores[key] < score, key
    assert (
        findings.of("label_accuracy_en")[0].truth == "mug"
        and findings.of("label_accuracy_en")[0].found == "hammer"
    )
    assert findings.cases[0].picture is not None and findings.cases[0].picture().shape[2] == 3


def test_without_known_ids_labels_are_compared_and_functions_missing(picture: Sample) -> None:
    plain = [
        replace(region, category="", function="", kind=Kind.UNKNOWN, texts={(Task.LABEL, EN): (label,)})
        for region, label in zip(picture.regions, ("Odd thing", "mug", "x", "y"), strict=True)
    ]
    said = ("odd thing.", "cup", "", "y")
    model = ScriptedModel(answer=lambda region, request: said[region - 1])
    findings = Findings()
    evaluate_texts(model, [replace(picture, regions=tuple(plain))], findings)
    assert findings.scores()["label_accuracy_en"] == 1 / 2
    assert findings.scores()["function_accuracy"] is None and findings.scores()["label_accuracy_zh"] is None
    assert {request.task for request in model.asked} == {Task.LABEL}
