"""Boxes and masks in the picture plane: mask → box, cropped mask ↔ full mask, intersection over union.

Coordinates are `(x, y)` pixels, x right, y down. A box is (x1, y1, x2, y2) with x2 and y2 exclusive.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Box = NDArray[np.float32]  # (4,) x1, y1, x2, y2
Mask = NDArray[np.bool_]  # (H, W)
CropBox = tuple[float, float, float, float]  # x1, y1, x2, y2 as fractions of a picture's width and height


def crop_mask(mask: Mask) -> tuple[Box, Mask]:
    """(H, W) bool → its tight box and the mask cropped to it, a copy.

    An empty mask gives a box of zeros and a (0, 0) mask.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return np.zeros(4, np.float32), np.zeros((0, 0), np.bool_)
    y1, y2, x1, x2 = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    return np.array([x1, y1, x2, y2], np.float32), mask[y1:y2, x1:x2].copy()


def full_mask(box_xyxy: Iterable[float], cropped: Mask, size: Sequence[int]) -> Mask:
    """The inverse of `crop_mask`: the cropped mask at its place in a picture of (height, width) pixels."""
    mask = np.zeros((size[0], size[1]), np.bool_)
    x1, y1, x2, y2 = (int(side) for side in box_xyxy)
    mask[y1:y2, x1:x2] = cropped
    return mask


def mask_iou(a: Mask, b: Mask) -> float:
    """Intersection over union of two masks of one size, 0..1; 1 if both are empty."""
    union = np.count_nonzero(a | b)
    return float(np.count_nonzero(a & b) / union) if union else 1.0


def box_iou(a: Iterable[float], b: Iterable[float]) -> float:
    """Intersection over union of two boxes, 0..1."""
    ax1, ay1, ax2, ay2 = map(float, a)
    bx1, by1, bx2, by2 = map(float, b)
    overlap = max(min(ax2, bx2) - max(ax1, bx1), 0.0) * max(min(ay2, by2) - max(ay1, by1), 0.0)
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - overlap
    return overlap / union if union > 0 else 0.0
