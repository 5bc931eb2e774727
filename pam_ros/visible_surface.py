"""The surface that a camera sees behind a mask: centroid, extent and box, from depth.

Points are metres in the camera's optical frame: x right, y down, z forward.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from pam_ros.geometry import Mask, pixel_rays
from pam_ros.records import CameraModel, OrientedBox, VisibleSurface

_SQUARE = np.ones((3, 3), np.uint8)
_FEWEST_PIXELS = 10  # with depth, for a surface
_EDGE_PX = 2  # as deep as depth at a mask's edge is not trusted without its neighbours
_CORE_FRACTION = 0.35  # of the mask's depth that must be left without its edge; a thin object is all edge
_MOST_PIXELS = 20_000  # of a region's box; of a larger one, every second, third, … row and column is read
_BOX_POINTS = 4000  # of a surface, for its box
_DIRECTIONS = 128  # in which the outermost points of a surface are looked for
_BOX_TURNS = 8  # about all three axes, at most
# Neighbouring pixels of one surface differ by less than this part of a metre, and this part of their depth.
_STEP_M, _STEP_FRACTION = 0.01, 0.01
_FARTHER_STEPS = 3.0  # a pixel so many steps behind the surface shows the background
_SMOOTH_PX = 0.8  # standard deviation
_OUTLIERS = 0.001  # of the pixels, at either end of an extent
# What lies beside a mask is looked at as far as this part of the square root of its area, at least so far.
_MARGIN, _LEAST_MARGIN_PX = 0.2, 8
_BAND_PX = 6  # as deep as a mask reaches onto what is behind the object
_APART_STEPS = 3.0  # as far apart are the depths of two sides of an edge
_CORE_REACH_PX = 8  # the core's depth says nothing about pixels farther from it
# As deep as a mask reaches onto what touches the object: this part of the square root of its area, at least.
_BAND_FRACTION, _LEAST_BAND_PX = 0.15, 4.0
_MOST_SPILLED = 0.2  # of a mask, onto one plane
_MOST_PLANES, _PLANE_TRIALS, _PLANE_POINTS, _LEAST_PLANE_POINTS = 2, 60, 1200, 30
_PLANE_FRACTION = 0.2  # of what is beside a mask, for a plane that counts
_ON_PLANE = 0.006  # 1/m
# A pixel within so many standard deviations of the noise, which is at least so much (1/m), is on the plane.
_PLANE_NOISES, _LEAST_PLANE_NOISE = 2.5, 0.0015


def measure_surface(
    camera: CameraModel, depth_m: NDArray[np.float32], box_xyxy: Iterable[float], mask: Mask
) -> VisibleSurface | None:
    """The surface behind a mask that is cropped to its box; None if depth was measured on too little of it.

    Depth near a mask's edge is mixed with the background's, and masks spill onto what is beside the object:
    pixels that show these surroundings are left out, see `_spilled`. A surface
    begins at its inner pixels and grows outwards over depth that continues it. Pixels of the mask that it
    does not reach (holes, flying pixels) get the depth of the nearest one that it reaches, unless theirs is
    background: extents would otherwise shrink by the mask's edge.

    Args:
        depth_m: (H, W) float32 of the camera's size, metres; 0 or not finite = not measured.
        mask: (y2 - y1, x2 - x1) bool.
    """
    around, mask = _with_margin(box_xyxy, mask, depth_m.shape)
    rays, depth = pixel_rays(camera)[around], depth_m[around]
    measured = np.isfinite(depth) & (depth > 0)
    depth = np.where(measured, depth, 0)
    core = _core(mask, np.where(mask, depth, 0), mask & measured, rays)
    if np.count_nonzero(core) < _FEWEST_PIXELS:
        return None
    spilled = _spilled(mask, depth, measured, core, rays)
    if np.count_nonzero(core & ~spilled) >= _FEWEST_PIXELS:
        core, mask = core & ~spilled, mask & ~spilled
    valid = mask & measured
    reached = _grown(core, np.where(valid, depth, 0), valid)
    smooth = _blurred(np.where(reached, depth, 0)) / np.maximum(_blurred(reached), 1e-6)
    nearest = _nearest(reached)
    surface = smooth.ravel()[nearest]
    background = valid & ~reached & (depth - surface > _FARTHER_STEPS * _step(surface))
    shown = mask & ~background
    z = surface[shown].astype(np.float64)
    points = np.column_stack([rays[shown] * z[:, None], z])
    low, high = ends(points)
    return VisibleSurface(points.mean(axis=0), high - low, smallest_box(points))


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


def ends(points: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(N, 3) points → both ends along each axis, (3,) each, without the outermost thousandth."""
    low, high = np.quantile(points, [_OUTLIERS, 1 - _OUTLIERS], axis=0)
    return low, high


def smallest_box(points_m: NDArray[np.float64]) -> OrientedBox:
    """(N, 3) points, metres → a small box around them.

    From the principal axes, and from the camera's, a box is turned about one of its axes after another to the
    smallest area, until none makes it smaller. It ends where `ends` says.
    """
    points = points_m[:: max(len(points_m) // _BOX_POINTS, 1)]
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
            side = flat @ np.array([np.cos(turn), np.sin(turn)])
            turned = np.column_stack([side, np.cross(normal, side), normal])
            best = min(best, (_volume(points, turned), turned), key=lambda box: box[0])
        if best[0] > 0.99 * before:
            break
    return best


def _volume(points: NDArray[np.float64], axes: NDArray[np.float64]) -> float:
    return float(np.prod(np.maximum(np.ptp(points @ axes, axis=0), 1e-3)))  # a board has a volume, too


def _core(mask: Mask, depth: NDArray[np.float32], valid: Mask, rays: NDArray[np.float32]) -> Mask:
    """Where the surface begins: measured pixels away from the mask's edge, without those of another place."""
    core = valid
    padded = np.pad(mask, 1).astype(np.uint8)
    for edge in range(_EDGE_PX, 0, -1):
        inner = valid & (cv2.erode(padded, _SQUARE, iterations=edge)[1:-1, 1:-1] > 0)
        if np.count_nonzero(inner) >= max(2 * _FEWEST_PIXELS, _CORE_FRACTION * np.count_nonzero(valid)):
            core = inner
            break
    if not core.any():
        return core
    middle = np.median(depth[core])
    # Hardly an object reaches farther back than it is wide.
    reach = middle * float(np.ptp(rays[[0, 0, -1, -1], [0, -1, 0, -1]], axis=0).max())
    return core & (np.abs(depth - middle) <= max(reach, 5 * _STEP_M))


def _spilled(
    mask: Mask, depth: NDArray[np.float32], measured: Mask, core: Mask, rays: NDArray[np.float32]
) -> Mask:
    """Pixels near the mask's edge that show its surroundings: the table below, a wall, what is behind."""
    beside = measured & (cv2.dilate(mask.astype(np.uint8), _SQUARE, iterations=_EDGE_PX) == 0)
    inside_px = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
    spilled = _behind(mask & measured & (inside_px <= _BAND_PX), depth, core, beside)
    left = mask & measured & ~spilled
    touching = max(_BAND_FRACTION * np.sqrt(np.count_nonzero(mask)), _LEAST_BAND_PX)
    for plane, noise in _planes(depth, beside, rays):
        off = np.abs(1 / np.where(measured, depth, 1) - rays @ plane[:2] - plane[2])
        on = left & (off < max(_PLANE_NOISES * noise, _LEAST_PLANE_NOISE))
        _, labels = cv2.connectedComponents(on.astype(np.uint8), connectivity=8)
        from_edge = np.unique(labels[on & (inside_px <= _EDGE_PX)])
        cut = on & np.isin(labels, from_edge) & (inside_px <= touching)
        # Of something flat that lies on the plane, nearly everything is as near to it as its noise.
        if np.count_nonzero(cut) <= _MOST_SPILLED * np.count_nonzero(mask):
            spilled, left = spilled | cut, left & ~cut
    # Noise leaves specks between spilled pixels.
    share = cv2.blur(spilled.astype(np.float32), (5, 5)) > 0.5 * cv2.blur(mask.astype(np.float32), (5, 5))
    return np.asarray(spilled | (mask & share & (inside_px <= touching)))


def _behind(band: Mask, depth: NDArray[np.float32], core: Mask, beside: Mask) -> Mask:
    """Pixels of the band whose depth is nearer to that of the surroundings than to the core's."""
    smooth = cv2.medianBlur(depth, 3)
    surroundings = beside & (np.abs(smooth - depth) < _step(depth))  # no flying pixels
    if not surroundings.any():
        return np.zeros_like(band)
    outer, inner = depth.ravel()[_nearest(surroundings)], smooth.ravel()[_nearest(core)]
    to_core_px = cv2.distanceTransform((~core).astype(np.uint8), cv2.DIST_L2, 3)
    apart = np.abs(outer - inner) > _APART_STEPS * _step(depth)
    nearer = np.abs(depth - outer) < np.abs(depth - inner)
    return np.asarray(band & (to_core_px <= _CORE_REACH_PX) & apart & nearer)


def _planes(
    depth: NDArray[np.float32], beside: Mask, rays: NDArray[np.float32]
) -> list[tuple[NDArray[np.float64], float]]:
    """The planes that most of the surroundings lie on: coefficients (3,), and the noise about them, in 1/m.

    1 / depth of a plane is linear in the rays, and there a stereo camera's noise is alike everywhere. The
    planes are found by RANSAC (Fischler and Bolles, 1981).
    """
    rng = np.random.default_rng(0)  # the same answer for the same depth
    at = np.flatnonzero(beside)
    at = at[rng.permutation(len(at))[:_PLANE_POINTS]]
    seen = np.column_stack([rays.reshape(-1, 2)[at], np.ones(len(at))]).astype(np.float64)  # (N, 3)
    inverse = 1 / depth.ravel()[at].astype(np.float64)
    needed = max(_LEAST_PLANE_POINTS, int(_PLANE_FRACTION * len(at)))
    planes: list[tuple[NDArray[np.float64], float]] = []
    while len(planes) < _MOST_PLANES and len(seen) >= needed:
        triples = rng.integers(len(seen), size=(_PLANE_TRIALS, 3))
        volumes = np.abs(np.linalg.det(seen[triples]))
        triples = triples[volumes > 1e-9]  # (T, 3)
        if not len(triples):
            break
        tried = np.linalg.solve(seen[triples], inverse[triples][..., None])[..., 0]  # (T, 3)
        votes = np.count_nonzero(np.abs(tried @ seen.T - inverse) < _ON_PLANE, axis=1)
        plane = tried[votes.argmax()]
        if votes.max() < needed:
            break
        for _ in range(2):
            on = np.abs(seen @ plane - inverse) < _ON_PLANE
            plane = np.linalg.lstsq(seen[on], inverse[on], rcond=None)[0]
        off = np.abs(seen @ plane - inverse)
        planes.append((plane, 1.4826 * float(np.median(off[off < _ON_PLANE]))))  # of a normal distribution
        seen, inverse = seen[off >= 2 * _ON_PLANE], inverse[off >= 2 * _ON_PLANE]
    return planes


def _grown(core: Mask, depth: NDArray[np.float32], valid: Mask) -> Mask:
    """The core and every measured pixel that continues it, ring by ring."""
    reached = core
    for _ in range(sum(core.shape)):
        count = cv2.blur(reached.astype(np.float32), (3, 3), borderType=cv2.BORDER_CONSTANT)
        total = cv2.blur(np.where(reached, depth, 0), (3, 3), borderType=cv2.BORDER_CONSTANT)
        beside = total / np.maximum(count, 1e-6)
        ring = valid & ~reached & (count > 0.05) & (np.abs(depth - beside) < _step(depth))
        if not ring.any():
            break
        reached = reached | ring
    return reached


def _step(depth: NDArray[np.float32]) -> NDArray[np.float32]:
    return _STEP_M + _STEP_FRACTION * depth


def _blurred(values: NDArray[np.float32] | Mask) -> NDArray[np.float32]:
    return np.asarray(cv2.GaussianBlur(values.astype(np.float32), (0, 0), _SMOOTH_PX), np.float32)


def _nearest(reached: Mask) -> NDArray[np.int64]:
    """(H, W): the flat index of the nearest reached pixel, for each pixel."""
    _, labels = cv2.distanceTransformWithLabels(
        (~reached).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    index = np.zeros(int(labels.max()) + 1, np.int64)
    index[labels[reached]] = np.flatnonzero(reached)
    return np.asarray(index[labels])
