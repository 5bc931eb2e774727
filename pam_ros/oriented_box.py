"""A small box of any orientation around points, and the extent of points without their outermost ones."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from pam_ros.records import OrientedBox

_OUTLIERS = 0.001  # of the points, at either end of an extent
_BOX_POINTS = 2000  # of a surface, for its box
_DIRECTIONS = 128  # in which the outermost points of a surface are looked for
_BOX_TURNS = 8  # about all three axes, at most


def ends(points: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(N, 3) points → both ends along each axis, (3,) each, without the outermost thousandth."""
    # As numpy.quantile, but sorting float32 is eight times as fast.
    ordered = np.sort(np.ascontiguousarray(points.T, np.float32), axis=1).astype(np.float64)
    first, part = divmod(_OUTLIERS * (len(points) - 1), 1)
    at, after = int(first), min(int(first) + 1, len(points) - 1)
    low = ordered[:, at] * (1 - part) + ordered[:, after] * part
    high = ordered[:, -1 - at] * (1 - part) + ordered[:, -1 - after] * part
    return low, high


def smallest_box(points_m: NDArray[np.floating]) -> OrientedBox:
    """(N, 3) points, metres → a small box around them.

    From the principal axes, and from the camera's, a box is turned about one of its axes after another to the
    smallest area, until none makes it smaller. It ends where `ends` says.
    """
    points = points_m[:: max(len(points_m) // _BOX_POINTS, 1)].astype(np.float64)
    _, principal = np.linalg.eigh(np.cov(points.T))
    turned = points @ principal
    low, high = ends(turned)
    outermost = _outermost(points[((turned >= low) & (turned <= high)).all(axis=1)])
    _, axes = min((_shrunk(outermost, axes) for axes in (principal, np.eye(3))), key=lambda box: box[0])
    low, high = ends(points @ axes)
    order = np.argsort(low - high)
    ordered = axes[:, order]
    ordered[:, 2] *= np.linalg.det(ordered)  # a rotation, no mirror image
    return OrientedBox(axes @ (low + high) / 2, (high - low)[order], ordered)


def _outermost(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """The points that are outermost in any of many directions: a box around them holds nearly all others."""
    steps = np.arange(_DIRECTIONS) + 0.5
    height, turn = 1 - steps / _DIRECTIONS, np.pi * (1 + 5**0.5) * steps  # a spiral over half the sphere
    ring = np.sqrt(1 - height**2)
    along = np.column_stack([ring * np.cos(turn), ring * np.sin(turn), height]) @ points.T
    return np.asarray(points[np.unique([*along.argmin(axis=1), *along.argmax(axis=1)])])


def _shrunk(points: NDArray[np.float64], axes: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """Volume and axes (3, 3) of the box that turning about its axes leads to."""
    best = _volume(points, axes), axes
    for _ in range(_BOX_TURNS):
        before = best[0]
        for fixed in range(3):
            normal, flat = best[1][:, fixed], np.delete(best[1], fixed, axis=1)
            turn = np.radians(cv2.minAreaRect((points @ flat).astype(np.float32))[2])
            along, across = np.cos(turn), np.sin(turn)
            turned = np.column_stack([normal, flat @ np.array([[along, -across], [across, along]])])
            best = min(best, (_volume(points, turned), turned), key=lambda box: box[0])
        if best[0] > 0.99 * before:
            break
    return best


def _volume(points: NDArray[np.float64], axes: NDArray[np.float64]) -> float:
    return float(np.prod(np.maximum(np.ptp(points @ axes, axis=0), 1e-3)))  # a board has a volume, too
