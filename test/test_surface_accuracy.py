"""Positions and sizes from depth with sensor noise and predicted masks, against the visible surface."""

from __future__ import annotations

from functools import cache

import numpy as np

from pam_ros.evaluation.surfaces import GOOD_MASK, SurfaceError, line, surface_errors
from pam_ros.model.loading.checkpoint import load_model
from pam_ros.model.loading.options import LoadOptions

SEEDS = range(9_000_000, 9_000_012)


@cache
def errors(model: str) -> list[SurfaceError]:
    """Of all objects; "" stands for true masks."""
    return surface_errors(load_model(LoadOptions(model, device="cpu")) if model else None, SEEDS)


def right(found: list[SurfaceError]) -> float:
    """Fraction of the positions within 1 cm + 1 %."""
    return float(np.mean([error.position_is_right for error in found]))


def test_positions_and_sizes_of_true_masks_are_right() -> None:
    found = errors("")
    assert len(found) > 30
    assert right(found) >= 0.95
    assert (np.mean([error.size_is_right for error in found], axis=0) >= (0.95, 0.95, 0.85)).all(), line(
        "", found
    )
    assert np.median([error.position_m for error in found]) < 0.002


def test_positions_and_sizes_of_good_predicted_masks_are_right() -> None:
    found = [error for error in errors("pam-tiny") if error.mask_iou >= GOOD_MASK]
    assert len(found) > 25
    assert right(found) >= 0.98, line("", found)
    assert right(errors("pam-tiny")) >= 0.85
    assert np.median([error.position_m for error in found]) < 0.005
    sizes = np.mean([error.size_is_right for error in found], axis=0)
    assert (sizes >= (0.85, 0.9, 0.75)).all(), line("", found)
