"""Where a mask spills onto what is beside its object, from depth: across a jump, or on a table or wall."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pam_ros.geometry import Mask

_EDGE_PX = 2  # as deep as depth at a mask's edge is mixed with the surroundings'
_EDGE = np.ones((2 * _EDGE_PX + 1, 2 * _EDGE_PX + 1), np.uint8)
_NEAR_PX = 8  # around a mask
# Other surfaces. One begins where depth changes by more levels than this from a pixel to the next but one.
_SURFACE_LEVELS = 8
_LEAST_OTHER_PX, _MOST_OTHER = 4, 0.12  # of a mask, on another surface; on all of them, at most as much
_OTHERS_EDGE = np.ones((7, 7), np.uint8)  # as wide is the jump around a surface
# Jumps. Depth is compared in grey levels of log(1 + depth in metres): 5 of them are 1 cm + 1 % of the depth.
_LEVELS, _MIDDLE = 500.0, 128
_SEED_FRACTION, _LEAST_SEED_PX = 0.1, 3.0  # as far inside the mask (of its area's square root) is the object
_OUTSIDE_PX = 3.0  # farther outside are the surroundings
_EDGE_LEVELS = 8  # a mask's edge separates as a jump of so many levels does
_BESIDE_PX = 9  # side of the square in which spilled pixels are compared with both sides
_LEAST_JUMP = 10.0  # levels between spilled pixels and the object
_RIM_PX = 4.0  # deep, a spilled part may be any part of a mask
_FAR_LEVELS = 30  # behind the object, only surroundings are beside the mask, too
_MOST_FAR, _MOST_BEYOND = 0.25, 0.06  # of a mask, in a deeper part: so far behind the object, and nearer
# Planes. A mask reaches onto what touches the object by this part of its area's square root, at least so far.
_BAND_FRACTION, _LEAST_BAND_PX = 0.15, 4.0
_MOST_SPILLED = 0.2  # of a mask, onto one plane
_MOST_PLANES, _PLANE_TRIALS, _PLANE_POINTS, _LEAST_PLANE_POINTS = 2, 60, 800, 30
_PLANE_FRACTION = 0.2  # of what is beside a mask, for a plane that counts
_ON_PLANE = 0.006  # 1/m
# A pixel within so many standard deviations of the noise, which is at least so much (1/m), is on the plane.
_PLANE_NOISES, _LEAST_PLANE_NOISE = 2.0, 0.0015


@dataclass(frozen=True, slots=True)
class _Plane:
    """1 / depth of a plane is linear in the rays: (x/z, y/z, 1) @ coefficients.

    Attributes:
        coefficients: (3,), 1/m.
        noise: standard deviation of the pixels on it, 1/m.
    """

    coefficients: NDArray[np.float64]
    noise: float


def spilled(mask: Mask, depth_m: NDArray[np.float32], measured: Mask, rays: NDArray[np.float32]) -> Mask:
    """(H, W) bool: pixels of the mask that show its surroundings.

    Args:
        mask: (H, W) bool, with the surroundings: some pixels around the mask belong to the picture.
        depth_m: (H, W) float32, metres; 0 where `measured` is False.
        rays: (H, W, 2) x/z and y/z of each pixel.
    """
    # The planes need wide surroundings, the rest some pixels: their borders must lie outside the mask.
    planes = _planes(depth_m, measured & (cv2.dilate(mask.astype(np.uint8), _EDGE) == 0), rays)
    left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
    near = tuple(
        slice(max(first - _NEAR_PX, 0), first + size + _NEAR_PX)
        for first, size in ((top, height), (left, width))
    )
    found = _other_surfaces(mask, depth_m, measured, rays, planes)
    mask, depth_m, measured, rays = mask[near], depth_m[near], measured[near], rays[near]
    inside_px = _inside_px(mask)
    beyond = found[near] | _beyond_jumps(mask, depth_m, measured, inside_px)
    if found.any():  # what the other surfaces' edges have left
        mask = mask & ~beyond
        inside_px = _inside_px(mask)
        beyond |= _beyond_jumps(mask, depth_m, measured, inside_px)
    found[near] = beyond | _on_planes(mask & ~beyond, depth_m, measured, rays, inside_px, planes)
    return found


def nearest(there: Mask) -> NDArray[np.int64]:
    """(H, W): the flat index of the nearest pixel that is True, for each pixel."""
    _, labels = cv2.distanceTransformWithLabels(
        (~there).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    index = np.zeros(int(labels.max()) + 1, np.int64)
    index[labels[there]] = np.flatnonzero(there)
    return np.asarray(index[labels])


def _inside_px(mask: Mask) -> NDArray[np.float32]:
    """How far inside the mask a pixel is; the picture's border is an edge, too."""
    wider = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT)
    return np.asarray(cv2.distanceTransform(wider, cv2.DIST_L2, 3)[1:-1, 1:-1])


def _other_surfaces(
    mask: Mask,
    depth: NDArray[np.float32],
    measured: Mask,
    rays: NDArray[np.float32],
    planes: Iterable[_Plane],
) -> Mask:
    """Pixels of surfaces that lie beside the mask for the most part: something before the object, or behind.

    Jumps of the depth separate the surfaces. Planes are left out: objects stand on them without a jump.
    """
    levels = cv2.medianBlur(_levels(depth.ravel()[nearest(measured)], mask), 5)
    jumps = cv2.morphologyEx(levels, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > _SURFACE_LEVELS
    on_planes = np.zeros_like(mask)
    for plane in planes:
        on_planes |= measured & _near_plane(plane, depth, measured, rays)
    smooth = ~jumps & (cv2.medianBlur(on_planes.astype(np.uint8), 5) == 0)
    count, labels = cv2.connectedComponents(smooth.astype(np.uint8), connectivity=4)
    inside = np.bincount(labels[mask & smooth], minlength=count)
    outside = np.bincount(labels[~mask & smooth], minlength=count)
    area = np.count_nonzero(mask)
    other = (outside >= inside) & (inside >= _LEAST_OTHER_PX) & (inside <= _MOST_OTHER * area)
    other[inside.argmax()] = False  # the object
    if not other.any():
        return np.zeros_like(mask)
    # A jump's own pixels belong to the nearest surface.
    close = cv2.dilate(other[labels].astype(np.uint8), _OTHERS_EDGE) > 0
    found = mask & close & other[labels.ravel()[nearest(smooth)]]
    return found if np.count_nonzero(found) <= _MOST_OTHER * area else np.zeros_like(mask)


def _beyond_jumps(
    mask: Mask, depth: NDArray[np.float32], measured: Mask, inside_px: NDArray[np.float32]
) -> Mask:
    """Parts of the mask that a jump of the depth separates from the object, not from what is beside it.

    A watershed (Meyer, 1992) between the mask's inside and its outside finds them: both are flooded over
    the steps of the depth, of which the mask's edge is one. Floods meet on a jump near the edge, or on the
    edge. A part is spilled if it differs from the object more than from what is beside the mask.
    """
    area = np.count_nonzero(mask)
    seed_px = min(max(_SEED_FRACTION * np.sqrt(area), _LEAST_SEED_PX), 0.5 * float(inside_px.max()))
    outside_px = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 3)
    sides = (inside_px > seed_px) + np.int32(2) * (outside_px > _OUTSIDE_PX)
    levels = _levels(depth.ravel()[nearest(measured)], sides == 1)
    smooth = cv2.medianBlur(levels, 5)  # no flying pixels
    cv2.watershed(np.dstack([smooth, mask * np.uint8(_EDGE_LEVELS), np.zeros_like(levels)]), sides)
    beyond, kept = mask & (sides == 2), mask & (sides == 1)
    count, labels = cv2.connectedComponents(beyond.astype(np.uint8), connectivity=8)
    if count == 1:
        return np.zeros_like(mask)
    # The mean difference of each part from what is beside the mask, and from the object; NaN: not near it.
    parts = labels[beyond]
    with np.errstate(invalid="ignore"):
        to_outside, to_kept = (
            np.bincount(parts[near], off[near], count) / np.bincount(parts[near], minlength=count)
            for off, near in (_difference(levels, beyond, side) for side in (~mask, kept))
        )
    pixels = np.bincount(parts, minlength=count).clip(1)
    behind = np.bincount(parts, levels[beyond], count) / pixels - _MIDDLE
    to_kept = np.where(np.isnan(to_kept), np.abs(behind), to_kept)
    deep = np.bincount(parts[inside_px[beyond] > _RIM_PX], minlength=count) > 0
    small = pixels <= np.where(behind > _FAR_LEVELS, _MOST_FAR, _MOST_BEYOND) * area
    return np.asarray(((to_outside + _LEAST_JUMP < to_kept) & (small | ~deep))[labels] & beyond)


def _levels(depth: NDArray[np.float32], of: Mask) -> NDArray[np.uint8]:
    """Depth as grey levels; the middle one is the median of a surface."""
    levels = _LEVELS * np.log1p(depth)
    levels += _MIDDLE - np.median(levels[of][::8])
    return np.asarray(np.clip(levels, 0, 255).astype(np.uint8))


def _difference(
    levels: NDArray[np.uint8], of: Mask, side: Mask
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """(N,) each: how many levels pixels are from the mean of a side near them, and whether it is near."""
    square = (_BESIDE_PX, _BESIDE_PX)
    share = cv2.blur(side.astype(np.float32), square, borderType=cv2.BORDER_CONSTANT)[of]
    total = cv2.blur((side * levels).astype(np.float32), square, borderType=cv2.BORDER_CONSTANT)[of]
    return np.abs(total / np.maximum(share, 1e-6) - levels[of]), share > 0.05


def _on_planes(
    mask: Mask,
    depth: NDArray[np.float32],
    measured: Mask,
    rays: NDArray[np.float32],
    inside_px: NDArray[np.float32],
    planes: Iterable[_Plane],
) -> Mask:
    """Pixels near the mask's edge that lie on a plane of its surroundings: the table below, a wall behind."""
    on_planes, left = np.zeros_like(mask), mask & measured
    touching = max(_BAND_FRACTION * np.sqrt(np.count_nonzero(mask)), _LEAST_BAND_PX)
    for plane in planes:
        on = left & _near_plane(plane, depth, measured, rays)
        _, labels = cv2.connectedComponents(on.astype(np.uint8), connectivity=8)
        from_edge = np.unique(labels[on & (inside_px <= _EDGE_PX)])
        cut = on & np.isin(labels, from_edge) & (inside_px <= touching)
        # Of something flat that lies on the plane, nearly everything is as near to it as its noise.
        if np.count_nonzero(cut) <= _MOST_SPILLED * np.count_nonzero(mask):
            on_planes, left = on_planes | cut, left & ~cut
    # Noise leaves specks between spilled pixels.
    share = cv2.blur(on_planes.astype(np.float32), (5, 5)) > 0.5 * cv2.blur(mask.astype(np.float32), (5, 5))
    return np.asarray(on_planes | (mask & share & (inside_px <= touching)))


def _near_plane(plane: _Plane, depth: NDArray[np.float32], measured: Mask, rays: NDArray[np.float32]) -> Mask:
    """Which pixels are as near to a plane as its noise; without a meaning where nothing was measured."""
    across, down, ahead = plane.coefficients.astype(np.float32)
    off = rays[..., 0] * across + rays[..., 1] * down + ahead - 1 / np.where(measured, depth, 1)
    return np.asarray(np.abs(off) < max(_PLANE_NOISES * plane.noise, _LEAST_PLANE_NOISE))


def _planes(depth: NDArray[np.float32], beside: Mask, rays: NDArray[np.float32]) -> list[_Plane]:
    """The planes that most of the surroundings lie on.

    In 1 / depth, a stereo camera's noise is alike everywhere. RANSAC (Fischler and Bolles, 1981) finds them.
    """
    rng = np.random.default_rng(0)  # the same answer for the same depth
    at = np.flatnonzero(beside)
    if len(at) > _PLANE_POINTS:
        at = at[rng.integers(len(at), size=_PLANE_POINTS)]
    seen = np.column_stack([rays.reshape(-1, 2)[at], np.ones(len(at))]).astype(np.float64)  # (N, 3)
    inverse = 1 / depth.ravel()[at].astype(np.float64)
    needed = max(_LEAST_PLANE_POINTS, int(_PLANE_FRACTION * len(at)))
    planes: list[_Plane] = []
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
        noise = 1.4826 * float(np.median(off[off < _ON_PLANE]))  # of a normal distribution
        planes.append(_Plane(plane, noise))
        seen, inverse = seen[off >= 2 * _ON_PLANE], inverse[off >= 2 * _ON_PLANE]
    return planes
