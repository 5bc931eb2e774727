"""The shipped pam-tiny on the small test set: as good as it was when its weights were made.

What is asked for is a little below what was measured, since machines round differently. The aims and the
figures of other scenes stand in models/pam-tiny/README.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch

from pam_ros.evaluation.cases import Findings
from pam_ros.evaluation.judges import open_judge
from pam_ros.evaluation.masks import evaluate_masks
from pam_ros.evaluation.samples import Samples, read_folder
from pam_ros.evaluation.stream import evaluate_stream
from pam_ros.evaluation.texts import evaluate_texts, open_similarity
from pam_ros.evaluation.video import evaluate_video
from pam_ros.model.checkpoint import load_model
from pam_ros.model.pam import Pam
from pam_ros.records import Language

SMALL_SET = Path(__file__).parent / "data" / "scenes"
DESCRIBED, FILMED = 16, 4  # of its 32 pictures and 8 videos, where an answer takes long


@pytest.fixture(scope="module")
def model() -> Iterator[Pam]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield load_model("pam-tiny", device="cpu")
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def samples() -> Samples:
    return read_folder(SMALL_SET)


def check(findings: Findings, least: Mapping[str, float]) -> None:
    scores = findings.scores()
    found = {metric: scores[metric] for metric in least}
    assert all((found[metric] or 0.0) >= bar for metric, bar in least.items()), (found, least)


def test_masks(model: Pam, samples: Samples) -> None:
    findings = Findings()
    evaluate_masks(model, samples.images, findings)
    check(findings, {"mask_iou_box": 0.82, "mask_iou_click": 0.76})  # 0.837, 0.777


def test_tracking(model: Pam, samples: Samples) -> None:
    findings = Findings()
    evaluate_video(model, samples.videos[:FILMED], findings)
    check(findings, {"jf_video": 0.86, "recovery_rate": 0.9})


def test_texts(model: Pam, samples: Samples) -> None:
    findings = Findings()
    evaluate_texts(model, samples.images[:DESCRIBED], findings, similarity=open_similarity(None))
    check(findings, {"label_accuracy_en": 0.7, "label_accuracy_zh": 0.73, "function_accuracy": 0.68})


def test_streaming_captions(model: Pam, samples: Samples) -> None:
    findings = Findings()
    evaluate_stream(model, samples.videos[:FILMED], findings, open_judge(), languages=[Language.EN])
    check(findings, {"event_accuracy": 0.5})
