"""The surface that a camera sees behind a mask: centroid, extent and box, from depth.

Points are metres in the camera's optical frame: x right, y down, z forward.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from pam_ros.geometry import Mask, pixel_rays
from pam_ros.oriented_box import ends, smallest_box
from pam_ros.records import CameraModel, VisibleSurface
from pam_ros.spilled_mask import nearest, spilled

_FEWEST_PIXELS = 10  # with depth, for a surface
_MOST_PIXELS = 20_000  # of a region's box; of a larger one, every second, third, … row and column is read
# What lies beside a mask is looked at as far as this part of the square root of its area, at least so far.
_MARGIN, _LEAST_MARGIN_PX = 0.2, 8
# Neighbouring pixels of one surface differ by less than this part of a metre, and this part of their depth.
_STEP_M, _STEP_FRACTION = 0.01, 0.01
_FEWEST_ALIKE = 3  # of the eight neighbours, for depth that is trusted
_RIM_STEPS = 2.0  # as far may a pixel's depth lie off the mean of the depth farther inside
_PLANE_PX = 1.5  # standard deviation of the weights in a fit
_LEAST_SPREAD = 0.1  # square pixels, added to that of the pixels in a fit: few of them give no slope
_LEAST_WEIGHT = 0.02  # of a fit, for a depth; elsewhere, the nearest one is taken
_FARTHEST_M = 20.0


def measure_surface(
    camera: CameraModel, depth_m: NDArray[np.float32], box_xyxy: Iterable[float], mask: Mask
) -> VisibleSurface | None:
    """The surface behind a mask that is cropped to its box; None if depth was measured on too little of it.

    Masks spill onto what is beside the object: `spilled` finds these pixels, which are left out. Every other
    pixel gets the depth of a plane through trusted depth around it. This takes noise out of the extents, and
    reaches into holes and to the mask's edge, where depth is mixed with the background's.

    Args:
        depth_m: (H, W) float32 of the camera's size, metres; 0 or not finite = not measured.
        mask: (y2 - y1, x2 - x1) bool.
    """
    around, mask = _with_margin(box_xyxy, mask, depth_m.shape)
    rays, depth = pixel_rays(camera)[around], depth_m[around]
    measured = np.isfinite(depth) & (depth > 0)
    if np.count_nonzero(mask & measured) < _FEWEST_PIXELS:
        return None
    depth = np.where(measured, depth, 0)
    shown = mask & ~spilled(mask, depth, measured, rays)
    if np.count_nonzero(shown & measured) < _FEWEST_PIXELS:
        shown = mask
    left, top, width, height = cv2.boundingRect(shown.astype(np.uint8))
    inside = slice(top, top + height), slice(left, left + width)
    z = _smooth(depth[inside], shown[inside], measured[inside])[shown[inside]]
    points = np.stack([rays[..., 0][shown] * z, rays[..., 1][shown] * z, z])  # (3, N): a row is read at once
    low, high = ends(points.T)
    return VisibleSurface(points.mean(axis=1, dtype=np.float64), high - low, smallest_box(points.T))


def _with_margin(
    box_xyxy: Iterable[float], mask: Mask, size: Sequence[int]
) -> tuple[tuple[slice, slice], Mask]:
    """Rows and columns of a picture of (height, width) around a box, and the mask there."""
    x1, y1, x2, y2 = (int(side) for side in box_xyxy)
    margin = max(int(_MARGIN * np.sqrt(np.count_nonzero(mask))), _LEAST_MARGIN_PX)
    top, left = max(y1 - margin, 0), max(x1 - margin, 0)
    bottom, right = min(y2 + margin, size[0]), min(x2 + margin, size[1])
    wider = np.pad(mask, ((y1 - top, bottom - y2), (x1 - left, right - x2)))
    step = max(int(np.sqrt(mask.size / _MOST_PIXELS)), 1)
    return (slice(top, bottom, step), slice(left, right, step)), wider[::step, ::step]


def _smooth(depth: NDArray[np.float32], shown: Mask, measured: Mask) -> NDArray[np.float32]:
    """(H, W): depth of the planes through trusted depth around each pixel of `shown`.

    A pixel is trusted if some neighbours have the same depth, which a flying pixel lacks, and if its depth is
    near to the mean of what is farther inside: at the mask's edge, a sensor sees the background, too.
    """
    valid = shown & measured
    trusted = valid & (_alike(depth, valid) >= _FEWEST_ALIKE)
    if np.count_nonzero(trusted) < _FEWEST_PIXELS:
        trusted = valid
    inner = trusted & (cv2.erode(shown.astype(np.uint8), np.ones((3, 3), np.uint8), borderValue=0) > 0)
    weight = _blurred(inner.astype(np.float32))
    inside = np.maximum(weight, 1e-6) / np.maximum(_blurred(_inverse(depth, inner)), 1e-6)
    off = (weight > _LEAST_WEIGHT) & (np.abs(inside - depth) > _RIM_STEPS * _step(depth))
    if np.count_nonzero(trusted & ~off) >= _FEWEST_PIXELS:
        trusted = trusted & ~off
    plane, weight = _planes(depth, trusted)
    fitted = weight > _LEAST_WEIGHT
    if not fitted[shown].all():
        plane = plane.ravel()[nearest(fitted & shown)]
    return plane


def _alike(depth: NDArray[np.float32], valid: Mask) -> NDArray[np.uint8]:
    """(H, W): how many of the eight neighbours of a valid pixel are valid, too, and have its depth."""
    depth, step = np.where(valid, depth, -_FARTHEST_M), _step(depth)
    count = np.zeros(depth.shape, np.uint8)
    ahead, behind, both = slice(1, None), slice(None, -1), slice(None)
    for one, other in (
        ((both, ahead), (both, behind)),
        ((ahead, both), (behind, both)),
        ((ahead, ahead), (behind, behind)),
        ((ahead, behind), (behind, ahead)),
    ):
        alike = np.abs(depth[one] - depth[other]) < step[one]
        count[one] += alike
        count[other] += alike
    return count


def _planes(depth: NDArray[np.float32], trusted: Mask) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(H, W) depth of the plane that fits trusted pixels around each pixel best, and their weight, 0..1.

    A local linear regression (Cleveland, 1979) of 1 / depth: there, a plane is linear in the pixels.
    """
    weights = trusted.astype(np.float32)
    inverse = _inverse(depth, trusted)
    rows, columns = (np.arange(size, dtype=np.float32) - np.float32(size / 2) for size in depth.shape)
    rows = rows[:, None]
    total = _blurred(weights)
    least = np.maximum(total, np.float32(1e-9))

    def mean(values: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(_blurred(values) / least)

    x, y, q = mean(weights * columns), mean(weights * rows), mean(inverse)
    xx = mean(weights * columns**2) - x * x + _LEAST_SPREAD
    yy = mean(weights * rows**2) - y * y + _LEAST_SPREAD
    xy = mean(weights * columns * rows) - x * y
    xq, yq = mean(inverse * columns) - x * q, mean(inverse * rows) - y * q
    slopes = (xq * yy - yq * xy) * (columns - x) + (yq * xx - xq * xy) * (rows - y)
    fit = q + slopes / np.maximum(xx * yy - xy * xy, 1e-6)
    return np.asarray(1 / np.maximum(fit, 1 / _FARTHEST_M), np.float32), total


def _inverse(depth: NDArray[np.float32], of: Mask) -> NDArray[np.float32]:
    """1 / depth of some pixels, 0 elsewhere."""
    return np.asarray(of / np.where(of, depth, np.float32(1)))


def _step(depth: NDArray[np.float32]) -> NDArray[np.float32]:
    return _STEP_M + _STEP_FRACTION * depth


def _blurred(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(cv2.GaussianBlur(values, (0, 0), _PLANE_PX, borderType=cv2.BORDER_CONSTANT))
