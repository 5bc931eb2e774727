"""How far confidences can be trusted: calibration of labels, and agreement of a region's texts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pam_ros.evaluation.cases import Findings, JudgedLabel
from pam_ros.records import Language, Task
from pam_ros.simulator.texts.judge import judge

BINS = 10  # of equal width


@dataclass(frozen=True, slots=True)
class Bin:
    """Labels whose confidence lies in one interval; a point of the reliability curve.

    Attributes:
        confidence: their mean.
        right: fraction that is right.
        count: number of them.
    """

    confidence: float
    right: float
    count: int


def reliability(labels: Iterable[JudgedLabel]) -> list[Bin]:
    """The reliability curve: bins of equal width over 0..1, without empty bins and unknown confidences."""
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(BINS)]
    for label in labels:
        if label.confidence is not None:
            bins[min(int(label.confidence * BINS), BINS - 1)].append((label.confidence, label.right))
    return [
        Bin(sum(sure for sure, _ in each) / len(each), sum(right for _, right in each) / len(each), len(each))
        for each in bins
        if each
    ]


def calibration_error(curve: Sequence[Bin]) -> float:
    """Expected calibration error (Guo et al., 2017): mean distance of confidence and fraction right."""
    total = sum(each.count for each in curve)
    return sum(each.count * abs(each.confidence - each.right) for each in curve) / total


def add_confidence(findings: Findings) -> None:
    """Adds the metrics of all judged labels.

    - `label_calibration_error`: see `calibration_error`.
    - `sure_labels_right`: of the labels that are called sure, the fraction that is right.
    - `right_labels_sure`: of the right labels, the fraction that is called sure.
    """
    labels = [label for label in findings.labels if label.confidence is not None]
    why = "the model does not say how sure its labels are" if findings.labels else "no labels"
    if labels:
        findings.put("label_calibration_error", calibration_error(reliability(labels)), len(labels))
    sure = [label for label in labels if not label.unsure]
    right = [label for label in labels if label.right]
    if sure:
        findings.put("sure_labels_right", sum(label.right for label in sure) / len(sure), len(sure))
    if right:
        findings.put("right_labels_sure", sum(not label.unsure for label in right) / len(right), len(right))
    for metric in ("label_calibration_error", "sure_labels_right", "right_labels_sure"):
        findings.lack(metric, why)


def texts_agree(texts: Mapping[tuple[Task, Language], str]) -> bool:
    """Whether all texts of a region name the same thing first; texts that name nothing are left out."""
    named = {judge(text, language).category for (_, language), text in texts.items()}
    return len(named - {None}) <= 1
