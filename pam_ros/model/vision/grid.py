"""Everything in view: a grid of points over the frame, and which masks found there are kept (as in SAM).

Segment Anything (Kirillov et al., 2023), section 5 and appendix B: candidates are filtered by their predicted
IoU, stability and area; of overlapping boxes the best stays (non-maximum suppression). There are no crops.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pam_ros.geometry import distinct_boxes


@dataclass(frozen=True, slots=True)
class Candidates:
    """Masks found at points, M of them, as far as the filters need them.

    Attributes:
        boxes_xyxy: (M, 4) float32 tight boxes, pixels of the frame, x2 and y2 exclusive; zeros if empty.
        ious: (M) float32 the model's own estimates of the masks' IoU.
        stabilities: (M) float32, 0..1: IoU of the mask cut one logit above its threshold and one below it.
        areas: (M) float32, fractions of the frame.
    """

    boxes_xyxy: NDArray[np.float32]
    ious: NDArray[np.float32]
    stabilities: NDArray[np.float32]
    areas: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class GridFilter:
    """Which candidates are kept; the ranges are in `EngineOptions`, whose `all_…` options these are."""

    min_iou: float
    min_stability: float
    max_box_iou: float
    min_area: float
    max_area: float


def grid_points(size: tuple[int, int], per_side: int) -> NDArray[np.float32]:
    """Points on a frame of `size` (height, width), pixels: (per_side², 2) float32 (x, y), each cell's centre.

    Coarse to fine: however early a search ends, its points cover the whole frame evenly.
    """
    height, width = size
    index = np.arange(per_side)
    order = np.array(sorted(range(per_side), key=_reversed_bits))  # 0, 4, 2, 6, 1, …
    rank = np.empty(per_side, np.int64)
    rank[order] = index
    rows, columns = np.meshgrid(index, index, indexing="ij")
    turn = np.argsort(np.maximum(rank[rows], rank[columns]).ravel(), kind="stable")
    centres = (np.stack([columns.ravel(), rows.ravel()], axis=1)[turn] + 0.5) / per_side
    points: NDArray[np.float32] = (centres * [width, height] - 0.5).astype(np.float32)
    return points.clip(0, [width - 1, height - 1]).astype(np.float32)


def kept_boxes(candidates: list[Candidates], rule: GridFilter) -> NDArray[np.float32]:
    """Boxes (K, 4) of the candidates that pass every filter, highest IoU estimate first."""
    if not candidates:
        return np.zeros((0, 4), np.float32)
    boxes = np.concatenate([each.boxes_xyxy for each in candidates])
    ious = np.concatenate([each.ious for each in candidates])
    stabilities = np.concatenate([each.stabilities for each in candidates])
    areas = np.concatenate([each.areas for each in candidates])
    passed = (ious >= rule.min_iou) & (stabilities >= rule.min_stability)
    passed &= (areas >= rule.min_area) & (areas <= rule.max_area) & (boxes[:, 2] > boxes[:, 0])
    order = np.array(sorted(np.flatnonzero(passed), key=lambda i: -float(ious[i] * stabilities[i])), np.int64)
    result: NDArray[np.float32] = boxes[order][distinct_boxes(boxes[order], rule.max_box_iou)]
    return result


def _reversed_bits(number: int) -> int:
    return int(f"{int(number):010b}"[::-1], 2)
