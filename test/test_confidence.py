"""Confidences: token probabilities, familiarity, calibration files and their fit, the reliability curve."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pam_ros.errors import CheckpointError, DatasetError
from pam_ros.evaluation.calibration import (
    LEAST_PICTURES,
    Evidence,
    calibrate,
    degraded,
    fit_logistic,
    names_of_ontology,
    pictures_in,
)
from pam_ros.evaluation.calibration import main as calibrate_folder
from pam_ros.evaluation.cases import Findings, JudgedLabel
from pam_ros.evaluation.confidence import add_confidence, calibration_error, reliability, texts_agree
from pam_ros.media import write_image
from pam_ros.model.interface import TextRequest
from pam_ros.model.text.confidence import (
    CONFIDENCE,
    FAMILIARITY,
    ConfidenceModel,
    Curve,
    Familiarity,
    features_of,
)
from pam_ros.records import Language, Task

EN, ZH = Language.EN, Language.ZH
LABEL = TextRequest(Task.LABEL, EN)


def test_without_calibration_a_confidence_is_the_raw_probability_of_the_tokens() -> None:
    raw = ConfidenceModel()
    tokens = [math.log(0.9), math.log(0.5)]
    assert not raw.calibrated and raw.min_confidence == 0.5
    assert raw.of(LABEL, tokens, None) == pytest.approx(0.45)  # a label: of the whole text
    assert raw.of(replace(LABEL, task=Task.DETAIL), tokens, None) == pytest.approx(
        0.45**0.5
    )  # mean of a token
    assert raw.of(LABEL, [], None) is None and raw.of(LABEL, [math.nan], None) is None
    assert raw.looks([torch.zeros(20, 4)]) is None


def test_features_are_the_mean_visual_and_the_mean_semantic_token() -> None:
    visual, semantic = torch.full((3, 2), 1.0), torch.tensor([[2.0, 4.0], [4.0, 8.0]])
    separator = torch.full((1, 2), 99.0)
    embeddings = torch.cat([visual, separator, semantic, separator])
    assert features_of(embeddings, 2).tolist() == [1.0, 1.0, 3.0, 6.0]


def test_familiarity_measures_in_standard_deviations_within_and_beside_the_known() -> None:
    known = Familiarity(
        mean=torch.tensor([1.0, 0.0, 0.0]),
        directions=torch.tensor([[0.5, 0.0, 0.0]]),  # deviation 2 along the first axis
        rest=torch.tensor(0.1),
        linear=torch.tensor([0.0, 0.0, 3.0]),
        semantic_tokens=1,
    )
    within, beside, linear = known(torch.tensor([7.0, 0.3, 0.4])).tolist()
    assert math.exp(within) == pytest.approx(3.0)
    assert math.exp(beside) == pytest.approx(5.0, rel=1e-4)
    assert linear == pytest.approx(1.2)


def calibrated() -> ConfidenceModel:
    familiarity = Familiarity(torch.zeros(4), torch.eye(4)[:2], torch.tensor(1.0), torch.ones(4), 1)
    curve = Curve(bias=1.0, odds=0.5, within=-1.0, beside=-0.25, linear=0.125, mask=0.5)
    return ConfidenceModel({Task.LABEL: curve}, familiarity, min_confidence=0.6)


def test_a_calibrated_confidence_falls_with_doubt_and_with_strangeness() -> None:
    model = calibrated()
    request = replace(LABEL, mask_score=0.5)

    def sure(least: float, looks: list[float], mask_score: float = 0.5) -> float:
        found = model.of(replace(request, mask_score=mask_score), [math.log(least)], torch.tensor(looks))
        assert found is not None
        return found

    assert sure(0.5, [0.0, 0.0, 0.0]) == pytest.approx(1 / (1 + math.exp(-1.0)))
    assert sure(0.9, [0.0, 0.0, 0.0]) == pytest.approx(1 / (1 + math.exp(-1.0 - 0.5 * math.log(9))))
    assert sure(0.9, [2.0, 0.0, 0.0]) < sure(0.9, [0.0, 0.0, 0.0]) < sure(0.9, [0.0, 0.0, 4.0])
    assert sure(0.9, [0.0, 0.0, 0.0], 0.1) < sure(0.9, [0.0, 0.0, 0.0], 0.9)


def test_a_calibration_is_read_as_written(tmp_path: Path) -> None:
    model = calibrated()
    model.write(tmp_path, {"by": "a test"})
    again = ConfidenceModel.read(tmp_path)
    assert again.calibrated and again.curves == model.curves and again.min_confidence == 0.6
    frames = [torch.rand(8, 2)]
    first, second = model.looks(frames), again.looks(frames)
    assert first is not None and second is not None
    torch.testing.assert_close(first, second)
    assert not ConfidenceModel.read(tmp_path / "elsewhere").calibrated


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"min_confidence": 2}',
        '{"min_confidence": NaN}',
        '{"curves": {"sing": {}}}',
        "[" * 99_999,
    ],
)
def test_a_broken_calibration_is_one_sentence(tmp_path: Path, content: str) -> None:
    calibrated().write(tmp_path, {})
    (tmp_path / CONFIDENCE).write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"delete both"):
        ConfidenceModel.read(tmp_path)


def test_a_calibration_without_its_numbers_is_refused(tmp_path: Path) -> None:
    calibrated().write(tmp_path, {})
    (tmp_path / FAMILIARITY).write_bytes(b"PK\x03\x04")
    with pytest.raises(CheckpointError, match=r"familiarity\.npz"):
        ConfidenceModel.read(tmp_path)


@pytest.mark.parametrize("part", ["rest", "directions"])
def test_zeros_that_would_divide_are_refused(tmp_path: Path, part: str) -> None:
    model = calibrated()
    assert model.familiarity is not None
    getattr(model.familiarity, part).view(-1)[:4] = 0
    model.write(tmp_path, {})
    with pytest.raises(CheckpointError, match="or zeros"):
        ConfidenceModel.read(tmp_path)


# ---- fitting


def test_the_fit_finds_the_logistic_function_that_made_the_data() -> None:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(20_000, 2))
    odds = 0.5 + inputs @ [1.5, -2.0]
    right = rng.random(len(odds)) < 1 / (1 + np.exp(-odds))
    found = fit_logistic(inputs, right, np.ones(len(odds)), ridge=1e-3)
    assert found == pytest.approx([0.5, 1.5, -2.0], abs=0.08)


def test_calibration_tells_strangers_from_the_known_on_pictures_it_was_not_fitted_on() -> None:
    rng = np.random.default_rng(1)
    evidence = []
    for picture in range(60):
        known = picture < 30
        for task in (Task.LABEL, Task.EXPLAIN, Task.BRIEF, Task.DETAIL):
            for _ in range(6):
                right = known and bool(rng.random() < 0.9)
                features = torch.from_numpy(rng.normal(0.0 if known else 1.5, 1.0, 12)).float()
                least = float(rng.uniform(0.9, 1.0) if right else rng.uniform(0.2, 0.95))
                evidence.append(Evidence(picture, task, EN, known, right, least, 0.8, features))
    model, figures = calibrate(evidence, semantic_tokens=1)
    assert figures["right_above"] == pytest.approx(0.9, abs=0.01)
    assert figures["right_of_above"] > 0.95 and figures["strangers_below"] > 0.95
    assert 0 < model.min_confidence < 1 and set(model.curves) == {
        Task.LABEL,
        Task.EXPLAIN,
        Task.BRIEF,
        Task.DETAIL,
    }


def test_degraded_pictures_keep_their_size_and_colours() -> None:
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[..., 0] = 200
    for seed in range(6):
        worse = degraded(picture, np.random.default_rng(seed))
        assert worse.shape == picture.shape and worse.dtype == np.uint8
        assert worse[..., 0].mean() > 120 > 60 > worse[..., 2].mean()


def test_the_names_of_the_simulator() -> None:
    names = names_of_ontology()
    assert names.named("A red kettle stands there.", EN) == names.named("一把红色的水壶", ZH) == "kettle"
    assert names.beginning("A mug.", EN, "scissors") == "A pair of scissors"
    assert names.beginning("A mug.", EN, "bread") == "A loaf of bread"
    assert names.beginning("A mug.", EN, "leaf") == "Leaves"


# ---- evaluation


def test_the_reliability_curve_and_its_error() -> None:
    labels = [JudgedLabel(0.95, False, True)] * 9 + [JudgedLabel(0.95, False, False)]
    labels += [JudgedLabel(0.35, True, True), JudgedLabel(0.25, True, False), JudgedLabel(None, False, True)]
    curve = reliability(labels)
    assert [(each.confidence, each.right, each.count) for each in curve] == [
        (pytest.approx(0.25), 0.0, 1),
        (pytest.approx(0.35), 1.0, 1),
        (pytest.approx(0.95), 0.9, 10),
    ]
    assert calibration_error(curve) == pytest.approx((0.25 + 0.65 + 10 * 0.05) / 12)
    findings = Findings(labels=labels)
    add_confidence(findings)
    assert findings.scores() == pytest.approx({
        "label_calibration_error": 1.4 / 12, "sure_labels_right": 0.9, "right_labels_sure": 0.9,
    })  # fmt: skip


def test_labels_without_confidence_have_no_figures_and_a_reason() -> None:
    findings = Findings(labels=[JudgedLabel(None, False, True)])
    add_confidence(findings)
    assert set(findings.scores().values()) == {None}
    assert "does not say how sure" in findings.missing[0].why


def test_texts_agree_if_all_name_the_same_thing_first() -> None:
    texts = {(Task.LABEL, EN): "kettle", (Task.LABEL, ZH): "水壶", (Task.EXPLAIN, EN): "A kettle on a mug."}
    assert texts_agree(texts) and texts_agree(texts | {(Task.BRIEF, EN): "Something."})
    assert not texts_agree(texts | {(Task.BRIEF, EN): "A mug on a table."})


# ---- the command


def test_pictures_of_strangers_are_checked_before_the_work_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DatasetError, match="no folder"):
        pictures_in(tmp_path / "none", print)
    for number in range(LEAST_PICTURES - 1):
        write_image(tmp_path / f"{number}.png", np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(SystemExit, match="2"):
        calibrate_folder([str(tmp_path), "--strangers", str(tmp_path)])
    said = capsys.readouterr()
    assert f"has {LEAST_PICTURES - 1} images; at least {LEAST_PICTURES} are needed" in said.err
    assert "left out: cannot read image" in said.out
    write_image(tmp_path / "last.png", np.zeros((8, 8, 3), np.uint8))
    assert len(pictures_in(tmp_path, print)) == LEAST_PICTURES
    with pytest.raises(SystemExit, match="2"):
        calibrate_folder([str(tmp_path), "--strangers", str(tmp_path), "--images", "3"])
    assert "--images is 3" in capsys.readouterr().err
