"""Results of an evaluation: one case per answer, their means, and numbers that are not means of cases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Draw = Callable[[], NDArray[np.uint8]]  # () → (H, W, 3) uint8 RGB


@dataclass(frozen=True, slots=True)
class Case:
    """One judged answer.

    Attributes:
        metric: the metric's key in the JSON, e.g. "label_accuracy_en".
        sample: the region that was asked about, e.g. "image 7000001 region 3".
        score: higher is better; a metric's value is the mean over its cases.
        truth, found: the right answer and the model's, as displayed; "" if pixels show it.
        picture: draws the case, for the few that a page shows; it must keep no pixels itself.
    """

    metric: str
    sample: str
    score: float
    truth: str = ""
    found: str = ""
    picture: Draw | None = None


@dataclass(frozen=True, slots=True)
class Number:
    """A metric that is not a mean of cases, e.g. frames per second, from `samples` answers."""

    metric: str
    value: float
    samples: int


@dataclass(frozen=True, slots=True)
class Missing:
    """A metric without a value, and why."""

    metric: str
    why: str


@dataclass(frozen=True, slots=True)
class JudgedLabel:
    """One label: its confidence (None: not known), whether it is called unsure, and whether it is right."""

    confidence: float | None
    unsure: bool
    right: bool


@dataclass(slots=True)
class Findings:
    """Collects cases, numbers and judged labels. Not thread-safe."""

    cases: list[Case] = field(default_factory=list)
    numbers: list[Number] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)
    labels: list[JudgedLabel] = field(default_factory=list)

    def add(self, case: Case) -> None:
        """Adds a case. Raises ValueError for a score that is not finite."""
        if not np.isfinite(case.score):
            raise ValueError(f"{case.metric}, {case.sample}: the score is {case.score}; it must be finite")
        self.cases.append(case)

    def put(self, metric: str, value: float, samples: int) -> None:
        """Adds a metric that is not a mean of cases; it replaces the mean if there are cases, too."""
        if not np.isfinite(value):
            raise ValueError(f"{metric} is {value}; it must be finite")
        self.numbers.append(Number(metric, float(value), samples))

    def lack(self, metric: str, why: str) -> None:
        """Records why a metric has no value; ignored if it has one."""
        self.missing.append(Missing(metric, why))

    def merge(self, other: Findings) -> None:
        """Adds the results of another part of the evaluation."""
        self.cases += other.cases
        self.numbers += other.numbers
        self.missing += other.missing
        self.labels += other.labels

    def of(self, metric: str) -> list[Case]:
        """The cases of a metric, worst first; equal ones in their order."""
        return sorted((case for case in self.cases if case.metric == metric), key=lambda case: case.score)

    def scores(self) -> dict[str, float | None]:
        """Value by metric in the order of first mention; None if it is missing."""
        values: dict[str, list[float]] = {}
        for case in self.cases:
            values.setdefault(case.metric, []).append(case.score)
        found: dict[str, float | None] = {metric: float(np.mean(each)) for metric, each in values.items()}
        found |= {number.metric: number.value for number in self.numbers}
        return found | {each.metric: None for each in self.missing if each.metric not in found}

    def counts(self) -> dict[str, int]:
        """Number of answers behind each metric; 0 if it is missing."""
        counts = dict.fromkeys(self.scores(), 0)
        for case in self.cases:
            counts[case.metric] += 1
        return counts | {number.metric: number.samples for number in self.numbers}
