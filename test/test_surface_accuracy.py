"""Positions and sizes from depth with sensor noise and predicted masks, against the visible surface."""

from __future__ import annotations

from functools import cache

import numpy as np

from pam_ros.evaluation.cases import Findings
from pam_ros.evaluation.surfaces import GOOD_MASK, SurfaceError, evaluate_surfaces, surface_errors
from pam_ros.model.interface import PerceptionModel
from pam_ros.model.loading.checkpoint import load_model
from pam_ros.model.loading.options import LoadOptions

SEEDS = range(9_000_000, 9_000_012)


@cache
def tiny() -> PerceptionModel:
    return load_model(LoadOptions("pam-tiny", device="cpu"))


@cache
def errors(*, true_masks: bool) -> list[SurfaceError]:
    """Of all objects."""
    return surface_errors(None if true_masks else tiny(), SEEDS)


def right(found: list[SurfaceError]) -> dict[str, float]:
    """Fraction of each figure within 1 cm + 1 %."""
    return {figure: float(np.mean([error.right[figure] for error in found])) for figure in found[0].right}


def test_positions_and_sizes_of_true_masks_are_right() -> None:
    found = errors(true_masks=True)
    assert len(found) > 30
    shares = right(found)
    assert shares["position"] >= 0.98, shares
    assert min(shares["size_x"], shares["size_y"]) >= 0.97, shares
    assert shares["size_z"] >= 0.9, shares
    assert shares["sensed_size_z"] >= 0.93, shares
    assert np.median([error.position_m for error in found]) < 0.002


def test_positions_and_sizes_of_good_predicted_masks_are_right() -> None:
    found = [error for error in errors(true_masks=False) if error.mask_iou >= GOOD_MASK]
    assert len(found) > 25
    shares = right(found)
    assert shares["position"] >= 0.98, shares
    assert right(errors(true_masks=False))["position"] >= 0.85
    assert np.median([error.position_m for error in found]) < 0.005
    assert min(shares["size_x"], shares["size_y"]) >= 0.9, shares
    assert shares["size_z"] >= 0.85, shares


def test_the_evaluation_counts_what_is_right() -> None:
    findings = Findings()
    evaluate_surfaces(tiny(), SEEDS[:1], findings)
    scores = findings.scores()
    for suffix, true_masks in (("", False), ("_true_mask", True)):
        found = [each for each in errors(true_masks=true_masks) if each.name.startswith(f"image {SEEDS[0]} ")]
        for figure, share in right(found).items():
            assert scores[f"surface_{figure}{suffix}"] == share
