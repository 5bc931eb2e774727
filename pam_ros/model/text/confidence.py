"""How sure a text is: the probability that it is right, from its tokens, the region's looks and its mask.

A language model is certain also of what it says about things that it has never seen. So a calibrated model
compares a region's embeddings with those of the regions that it was calibrated on (`Familiarity`). The
evidence becomes a probability by a logistic function (Platt, 1999) that `evaluation.calibration` fits.

Letters: L embeddings of a region in a frame, H width, F features, D directions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pam_ros.errors import CheckpointError
from pam_ros.model.interface import TextRequest
from pam_ros.model.schema import PERCEIVER, short
from pam_ros.records import Task

CONFIDENCE, FAMILIARITY = "confidence.json", "familiarity.npz"
PARTS = ("mean", "directions", "rest", "linear")  # of `Familiarity`, in its file
UNCALIBRATED_BAR = 0.5  # of a model without calibration
LEAST = 1e-4  # probabilities are taken to be at least so far from 0 and 1


class Familiarity:
    """How much a region looks like those that the model is calibrated on, in three numbers.

    Features are the mean visual and the mean semantic token. They are compared in their principal
    directions, each in its own standard deviation (Mahalanobis distance); what lies in no direction is
    measured as a whole. A third number is linear: it tells the known from images of other things.
    """

    def __init__(
        self, mean: Tensor, directions: Tensor, rest: Tensor, linear: Tensor, semantic_tokens: int
    ) -> None:
        """`mean`, `linear` (F,), `directions` (D, F) in inverse standard deviations, `rest` () beside."""
        self.mean, self.directions, self.rest, self.linear = mean, directions, rest, linear
        self.semantic_tokens = semantic_tokens

    def features_of(self, embeddings: Tensor) -> Tensor:
        """Embeddings (L, H) of a region in a frame → (F,) float32."""
        return features_of(embeddings, self.semantic_tokens)

    def __call__(self, features: Tensor) -> Tensor:
        """(…, F) → (…, 3): log distances within and beside the directions, and the linear number."""
        away = features - self.mean
        inside = away @ self.directions.T
        explained = (inside / self.directions.norm(dim=1)).square().sum(-1)
        beside = (away.square().sum(-1) - explained).clamp(min=0).sqrt() / self.rest
        distances = torch.stack([inside.square().mean(-1).sqrt(), beside], -1).clamp(min=1e-3).log()
        return torch.cat([distances, (away @ self.linear)[..., None]], -1)

    def to(self, device: torch.device) -> Familiarity:
        """On another device."""
        mean, directions, rest, linear = (getattr(self, name).to(device) for name in PARTS)
        return Familiarity(mean, directions, rest, linear, self.semantic_tokens)


def features_of(embeddings: Tensor, semantic_tokens: int) -> Tensor:
    """Embeddings (L, H): visual tokens, separator, semantic tokens, separator → their means (2H,) float32."""
    end = len(embeddings) - 1
    visual = embeddings[: end - semantic_tokens - 1]
    return torch.cat([visual.float().mean(0), embeddings[end - semantic_tokens : end].float().mean(0)])


@dataclass(frozen=True, slots=True)
class Curve:
    """Evidence → probability that a text of one task is right: 1 / (1 + exp(-weights · evidence - bias)).

    Attributes:
        odds: weight of the log odds of the least likely token.
        within, beside, linear: weights of what `Familiarity` says.
        mask: weight of the log odds of the mask score.
    """

    bias: float
    odds: float
    within: float = 0.0
    beside: float = 0.0
    linear: float = 0.0
    mask: float = 0.0

    def __call__(self, least: float, looks: Sequence[float], mask_score: float | None) -> float:
        """`least`: probability of the least likely token; `looks`: what `Familiarity` says, () without."""
        logit = self.bias + self.odds * log_odds(least)
        for weight, value in zip((self.within, self.beside, self.linear), looks, strict=False):
            logit += weight * value
        if mask_score is not None:
            logit += self.mask * log_odds(mask_score)
        return 1 / (1 + math.exp(-min(max(logit, -30.0), 30.0)))


def log_odds(probability: float) -> float:
    """log(p / (1 - p)), bounded."""
    kept = min(max(probability, LEAST), 1 - LEAST)
    return math.log(kept / (1 - kept))


class ConfidenceModel:
    """Confidences of a model's texts; without calibration they are raw probabilities of tokens."""

    def __init__(
        self,
        curves: Mapping[Task, Curve] | None = None,
        familiarity: Familiarity | None = None,
        *,
        min_confidence: float = UNCALIBRATED_BAR,
    ) -> None:
        """`min_confidence`: texts that are less sure are called unsure."""
        self.curves, self.familiarity = dict(curves or {}), familiarity
        self.min_confidence = min_confidence

    @property
    def calibrated(self) -> bool:
        """Whether confidences are calibrated."""
        return bool(self.curves)

    def looks(self, frames: Sequence[Tensor]) -> Tensor | None:
        """Embeddings (L, H) of a region in each frame → (3,), on their device, without waiting for it.

        Of a clip, only the first frame has the density that the model is calibrated on. None without
        calibration.
        """
        if self.familiarity is None or not frames:
            return None
        if self.familiarity.mean.device != frames[0].device:
            self.familiarity = self.familiarity.to(frames[0].device)
        return self.familiarity(self.familiarity.features_of(frames[0]))

    def of(
        self, request: TextRequest, log_probabilities: Sequence[float], looks: Tensor | None
    ) -> float | None:
        """The probability that a finished text is right, 0..1; None for a text without tokens.

        Args:
            log_probabilities: of the tokens that were generated, without the stop token.
            looks: of the text's region, see `looks`.
        """
        if not log_probabilities or not all(math.isfinite(each) for each in log_probabilities):
            return None
        curve = self.curves.get(request.task)
        if curve is None:
            whole = request.task is Task.LABEL  # a long text has many tokens, each of them likely
            total = sum(log_probabilities)
            return math.exp(total if whole else total / len(log_probabilities))
        seen = () if looks is None else looks.tolist()
        return curve(math.exp(min(log_probabilities)), seen, request.mask_score)

    @classmethod
    def read(cls, folder: Path) -> ConfidenceModel:
        """A model folder's calibration; uncalibrated without one. Raises CheckpointError if it is broken."""
        path = folder / CONFIDENCE
        if not path.is_file():
            return cls()
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            curves = {Task.parse(name): Curve(**_numbers(each)) for name, each in content["curves"].items()}
            bar = _numbers({"min_confidence": content["min_confidence"]})["min_confidence"]
            with np.load(folder / FAMILIARITY, allow_pickle=False) as file:
                parts = {name: torch.from_numpy(file[name].astype(np.float32)) for name in PARTS}
            familiarity = Familiarity(**parts, semantic_tokens=int(content["semantic_tokens"]))
            if (
                not 0 <= bar <= 1
                or not 0 <= familiarity.semantic_tokens <= PERCEIVER["semantic_tokens"].high
                or not all(getattr(familiarity, name).isfinite().all() for name in PARTS)
                or familiarity.directions.shape[1:] != familiarity.mean.shape
                or familiarity.linear.shape != familiarity.mean.shape
                or not familiarity.rest > 0
                or not familiarity.directions.norm(dim=1).all()  # both divide
            ):
                raise ValueError(
                    f"min_confidence {bar}, semantic_tokens {familiarity.semantic_tokens}, "
                    f"directions {tuple(familiarity.directions.shape)}, numbers that are not finite, or zeros"
                )
        except Exception as error:  # untrusted files can break anything
            raise CheckpointError(
                f"{path} and {FAMILIARITY} are not a calibration ({type(error).__name__}: {short(error)}); "
                "delete both to use the model uncalibrated"
            ) from error
        return cls(curves, familiarity, min_confidence=bar)

    def write(self, folder: Path, made: Mapping[str, Any]) -> None:
        """Writes the calibration into a model folder. `made`: a description of how it was made."""
        assert self.familiarity is not None, "nothing was calibrated"
        content = {
            "min_confidence": self.min_confidence,
            "semantic_tokens": self.familiarity.semantic_tokens,
            "curves": {
                task.value: {name: round(value, 4) for name, value in asdict(curve).items()}
                for task, curve in self.curves.items()
            },
            "made": dict(made),
        }
        (folder / CONFIDENCE).write_text(
            json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        parts = {name: getattr(self.familiarity, name).cpu().numpy().astype(np.float16) for name in PARTS}
        np.savez(folder / FAMILIARITY, **parts)


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{name} must be a number, not {value!r}")
    return {name: float(value) for name, value in values.items()}
