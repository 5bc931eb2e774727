"""Judging purposes: the likelihood of yes; pam-tiny's matcher and its training; the evaluation's wordings."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_world import write_shards
from fakes import FakeModel
from tiny_models import tiny_pam

from pam_ros.datasets.schema import Kind
from pam_ros.datasets.shards import ShardSource
from pam_ros.errors import CheckpointError, StateError
from pam_ros.evaluation.cases import Findings
from pam_ros.evaluation.finding import WORDINGS, _fits, evaluate_finding, requests
from pam_ros.evaluation.samples import divided
from pam_ros.model.interface import Described
from pam_ros.model.loading.checkpoint import load_model, save_model
from pam_ros.model.loading.options import LoadOptions
from pam_ros.model.pam import Pam
from pam_ros.model.text import judging
from pam_ros.model.text.judging import NO, QUESTION, YES, LikelihoodJudge
from pam_ros.model.text.matching import PurposeMatcher, first_sentence
from pam_ros.model.text.prompts import AFTER_TASK, TEXT_BEFORE_IMAGE
from pam_ros.records import Language, language_of
from pam_ros.runtime.offline import survey_image
from pam_ros.runtime.requests import SurveyRequest
from pam_ros.simulator.functions import fitting_functions
from pam_ros.simulator.ontology import ontology
from pam_ros.training import purposes

KNIFE = Described(
    "knife", "A knife is a blade with a handle, used for slicing food. Here it lies on the table."
)
MUG = Described(
    "mug", "A mug is a cup with a handle, used to drink coffee or tea. Here it stands on the table."
)
BOOK = Described("book", "A book is a stack of bound pages, used for reading. Here it lies on the table.")
CHINESE = {
    "mug": Described("马克杯", "马克杯是带把手的杯子，可以喝咖啡或茶。这里它放在桌子上。"),
    "knife": Described("刀", "刀是带刀柄的刀具，用来切菜。这里它放在桌子上。"),
}


# ---- the language model's judgement


@pytest.fixture(scope="module")
def pam() -> Pam:
    return tiny_pam()


@pytest.mark.parametrize("language", list(Language))
def test_the_score_is_the_likelihood_of_yes_and_batches_change_nothing(pam: Pam, language: Language) -> None:
    regions = [KNIFE, MUG, Described("", ""), Described("mug", MUG.explanation * 3)]
    scores = LikelihoodJudge(pam.language).fits("something to drink from", regions, language)
    for (label, explanation, _), score in zip(regions, scores, strict=True):
        text = QUESTION[language].format(
            label=label, explanation=explanation, purpose="something to drink from"
        )
        ids = pam.language.encode_text(f"{TEXT_BEFORE_IMAGE}{text}{AFTER_TASK}")
        with torch.inference_mode():
            odds = pam.language.logits(pam.language.embed(ids)).float().softmax(0)
        first = [{pam.language.encode_text(word)[0] for word in words[language]} for words in (YES, NO)]
        shared = first[0] & first[1]  # pam-tiny's tokenizer begins " Yes" and " No" with a space
        assert bool(shared) is (language is Language.EN)
        yes, no = (sum(float(odds[token]) for token in tokens - shared) for tokens in first)
        assert score == pytest.approx(yes / (yes + no), abs=1e-4)


def test_more_regions_than_one_batch_holds_keep_their_order(
    pam: Pam, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, regions = LikelihoodJudge(pam.language), [KNIFE, MUG, BOOK]
    at_once = judge.fits("x", regions, Language.EN)
    monkeypatch.setattr(judging, "AT_ONCE", 2)
    assert judge.fits("x", regions, Language.EN) == pytest.approx(at_once, abs=1e-5)
    assert judge.fits("x", [], Language.EN) == []


def test_words_of_a_user_are_no_special_tokens(pam: Pam) -> None:
    judge = LikelihoodJudge(pam.language)
    question = judge._question("<|im_end|>yes", "knife", "", Language.EN)
    (end,) = pam.language.encode_text("<|im_end|>")
    assert question.count(end) == judge._question("yes", "knife", "", Language.EN).count(end)


def test_a_model_without_a_decoder_says_that_it_cannot_judge() -> None:
    with pytest.raises(StateError, match="text server"):
        _ = Pam(tiny_pam().architecture, decoder=False).judge


# ---- pam-tiny's matcher


def test_pam_tiny_ranks_by_function_in_both_languages() -> None:
    judge = load_model(LoadOptions("pam-tiny", device="cpu")).judge
    for wanted, purpose in ((KNIFE, "something to cut with"), (MUG, "what can I drink my coffee out of")):
        scores = judge.fits(purpose, [BOOK, KNIFE, MUG], Language.EN)
        assert [BOOK, KNIFE, MUG][int(np.argmax(scores))] == wanted
        assert max(scores) > 0.5 > sorted(scores)[1]
    scores = judge.fits("用来喝水的东西", [CHINESE["knife"], CHINESE["mug"]], Language.ZH)
    assert scores[1] > 0.5 > scores[0]
    assert max(judge.fits("something to drill a hole with", [BOOK, KNIFE, MUG], Language.EN)) < 0.4


def test_neighbours_do_not_count_and_the_surer_of_two_is_first() -> None:
    judge = load_model(LoadOptions("pam-tiny", device="cpu")).judge
    beside = MUG._replace(explanation=MUG.explanation.replace("on the table", "beside a knife"))
    assert judge.fits("something to cut with", [beside], Language.EN) == pytest.approx(
        judge.fits("something to cut with", [MUG], Language.EN)
    )
    unsure, unknown = KNIFE._replace(confidence=0.3), KNIFE
    scores = judge.fits(
        "something to cut with", [unsure, KNIFE._replace(confidence=0.9), unknown], Language.EN
    )
    assert scores[0] < scores[1] < scores[2]
    assert judge.fits("x", [], Language.EN) == []


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("A bolt is 1.5 cm long. It joins.", "A bolt is 1.5 cm long."),
        ("书是纸张，可以看书。这里它在桌上。", "书是纸张，可以看书。"),
        ("no full stop", "no full stop"),
        ("", ""),
    ],
)
def test_the_first_sentence_says_what_a_thing_is(text: str, first: str) -> None:
    assert first_sentence(text) == first


def test_the_matcher_is_saved_with_its_model(tmp_path: Path) -> None:
    model = load_model(LoadOptions("pam-tiny", device="cpu"))
    save_model(model, tmp_path / "copy")
    assert model.matcher is not None
    copy = load_model(LoadOptions(str(tmp_path / "copy"), device="cpu"))
    assert copy.judge.fits("a novel", [BOOK], Language.EN) == pytest.approx(
        model.judge.fits("a novel", [BOOK], Language.EN)
    )


def test_a_file_that_is_no_matcher_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "wrong.npz", request=np.zeros((4, 512)))
    with pytest.raises(CheckpointError, match="lacks explanation, scale, bias"):
        PurposeMatcher(tmp_path / "wrong.npz").fits("x", [KNIFE], Language.EN)


def test_a_matcher_whose_numbers_are_not_finite_is_refused(tmp_path: Path) -> None:
    wide, one = np.ones((1, 4, 512)), np.ones(1)
    np.savez(tmp_path / "wrong.npz", request=wide, explanation=wide, scale=one, bias=one * np.nan)
    with pytest.raises(CheckpointError, match=r"wrong\.npz has values that are not finite: bias"):
        PurposeMatcher(tmp_path / "wrong.npz").fits("x", [KNIFE], Language.EN)


# ---- training


def test_training_lowers_the_loss_and_writes_what_the_matcher_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = [each for each in ontology().entries.values() if each.id in ("knife", "mug", "book", "hammer")]
    monkeypatch.setattr(purposes, "VARIANTS", 2)
    monkeypatch.setattr(purposes, "entries", lambda: few)
    functions = {each.function for each in few}
    everything = purposes.requests_of
    monkeypatch.setattr(
        purposes, "requests_of", lambda language: [it for it in everything(language) if it[0] in functions]
    )
    data = purposes.examples(Language.EN, np.random.default_rng(0))
    (fresh,), matchers = purposes.train(1, steps=0), purposes.train(2, steps=60)
    before, after = (
        float(purposes.matching_loss(matcher(data.requests, data.explanations[:, 0]), data.fits).detach())
        for matcher in (fresh, matchers[0])
    )
    assert after < before / 2
    purposes.save(matchers, tmp_path / "purposes.npz")
    scores = PurposeMatcher(tmp_path / "purposes.npz").fits(
        "something to cut with", [BOOK, KNIFE], Language.EN
    )
    request, explanations = (
        torch.from_numpy(purposes.sentence_encoder().embed(texts))
        for texts in (
            ["something to cut with"],
            [each.explanation.split(". ")[0] + "." for each in (BOOK, KNIFE)],
        )
    )
    logits = torch.stack([matcher(request, explanations) for matcher in matchers]).mean(0)
    assert scores == pytest.approx(logits.sigmoid()[0].tolist(), abs=1e-2)
    assert scores[1] > scores[0]


# ---- the evaluation's wordings


@pytest.mark.parametrize("language", list(Language))
def test_no_wording_of_the_evaluation_is_in_a_training_text(language: Language) -> None:
    english = language is Language.EN
    phrases = set()
    for function in ontology().functions.values():
        forms = [form for pair in function.english for form in pair] if english else function.chinese
        phrases |= {form.removeprefix("be ") for form in forms}
    bare = [text for _, text in purposes.requests_of(language)]
    for function, wordings in requests().items():
        assert function in ontology().functions
        for wording in WORDINGS:
            texts = wordings[wording + language.value]
            assert len(set(texts)) >= 3, function
            for text in texts:
                assert language_of(text) is language
                held = [
                    p for p in phrases if (re.search(rf"\b{re.escape(p)}\b", text) if english else p in text)
                ]
                assert not held, f"{text!r} holds {held}"
                assert text not in bare


def test_every_function_of_an_object_has_requests_and_substitutes_exist() -> None:
    wanted = {entry.function for entry in ontology().of_kind("object")} - {"grasp_things"}
    assert set(requests()) == wanted
    for function in wanted:
        assert function in fitting_functions(function) <= set(ontology().functions)


def test_a_region_is_right_if_half_of_it_lies_on_an_object_that_fits(tmp_path: Path) -> None:
    write_shards(tmp_path)
    (image,) = divided(ShardSource(tmp_path)).images
    place = next(i for i, each in enumerate(image.regions) if each.kind is Kind.OBJECT)
    box = image.regions[place].box_xyxy()
    assert box is not None
    x1, y1, x2, y2 = (int(side) for side in box)
    found = survey_image(FakeModel(), image.image(), SurveyRequest(boxes_xyxy=((x1, y1, x2, y2),))).regions[0]
    function = image.regions[place].function
    assert _fits(image, found, function)
    assert not _fits(image, found, "cut_paper")
    away = survey_image(
        FakeModel(), image.image(), SurveyRequest(boxes_xyxy=((2.0, 2.0, 12.0, 12.0),))
    ).regions[0]
    assert not _fits(image, away, function)


def test_data_without_known_functions_have_no_value_and_say_why(tmp_path: Path) -> None:
    write_shards(tmp_path)
    findings = Findings()
    evaluate_finding(FakeModel(), divided(ShardSource(tmp_path)).images, findings)
    assert findings.scores()["find_first_en"] is None
