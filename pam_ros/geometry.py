"""Boxes and masks in the picture, points and pixels of a camera, and surfaces from depth.

Coordinates are `(x, y)` pixels, x right, y down. A box is (x1, y1, x2, y2) with x2 and y2 exclusive. Points
are metres in the camera's optical frame: x right, y down, z forward.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from pam_ros.errors import GeometryError
from pam_ros.records import CameraModel, Lens, OrientedBox, VisibleSurface

Box = NDArray[np.float32]  # (4,) x1, y1, x2, y2
Mask = NDArray[np.bool_]  # (H, W)
CropBox = tuple[float, float, float, float]  # x1, y1, x2, y2 as fractions of a picture's width and height

_CAMERAS = 4  # whose rays are kept
_UNDISTORT_ITERATIONS = 100
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


def crop_mask(mask: Mask) -> tuple[Box, Mask]:
    """(H, W) bool → its tight box and the mask cropped to it, a copy.

    An empty mask gives a box of zeros and a (0, 0) mask.
    """
    rows = np.flatnonzero(mask.any(1))
    if not len(rows):
        return np.zeros(4, np.float32), np.zeros((0, 0), np.bool_)
    band = mask[rows[0] : rows[-1] + 1]
    columns = np.flatnonzero(band.any(0))
    x1, x2 = columns[0], columns[-1] + 1
    return np.array([x1, rows[0], x2, rows[-1] + 1], np.float32), band[:, x1:x2].copy()


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


def box_ious(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """(N, 4) and (M, 4) boxes → (N, M) intersections over unions, 0..1."""
    first, second = np.asarray(a, np.float64)[:, None], np.asarray(b, np.float64)[None]
    corner = np.maximum(first[..., :2], second[..., :2])
    overlap = (np.minimum(first[..., 2:], second[..., 2:]) - corner).clip(0).prod(-1)
    areas = (first[..., 2:] - first[..., :2]).prod(-1) + (second[..., 2:] - second[..., :2]).prod(-1)
    union = areas - overlap
    ious: NDArray[np.float64] = np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)
    return ious


def distinct_boxes(boxes: NDArray[np.float32], max_iou: float) -> list[int]:
    """Places of the (N, 4) boxes that overlap none before them by more than `max_iou`, in order."""
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    open_, kept = np.ones(len(boxes), np.bool_), []
    for place, box in enumerate(boxes):
        if open_[place]:
            kept.append(place)
            open_ &= box_ious(box[None], boxes)[0] <= max_iou
    return kept


# --- rotations


def rotation_matrix(quaternion_xyzw: Iterable[float]) -> NDArray[np.float64]:
    """Unit quaternion (x, y, z, w) → (3, 3) rotation."""
    x, y, z, w = quaternion_xyzw
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def quaternion_of(rotation: NDArray[np.float64]) -> tuple[float, float, float, float]:
    """(3, 3) rotation → unit quaternion (x, y, z, w), w not negative."""
    vector = cv2.Rodrigues(np.asarray(rotation, np.float64))[0].ravel()
    angle = float(np.linalg.norm(vector))
    x, y, z = (vector / angle * np.sin(angle / 2) if angle else vector).tolist()
    return x, y, z, float(np.cos(angle / 2))


# --- the camera


def project(camera: CameraModel, points_m: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, 3) points in the optical frame → (N, 2) pixels, also outside the picture.

    NaN for points at or behind the camera, and for those so far outside that the lens model folds them back.
    """
    points = np.asarray(points_m, np.float64).reshape(-1, 3)
    pixels = np.full((len(points), 2), np.nan)
    front = np.isfinite(points).all(axis=1) & (points[:, 2] > 1e-6)
    if not front.any():
        return pixels
    none = np.zeros(3)
    if camera.lens is Lens.EQUIDISTANT:
        found = cv2.fisheye.projectPoints(points[front, None], none, none, *_opencv(camera))[0]
    else:
        found = cv2.projectPoints(points[front, None], none, none, *_opencv(camera))[0]
    pixels[front] = found.reshape(-1, 2)
    # A lens model holds near the picture only: far outside, its polynomial can turn back into the picture.
    rays = points[front, :2] / points[front, 2:]
    fits = np.abs(undistort(camera, pixels[front]) - rays).max(axis=1) < 1e-3 * (1 + np.abs(rays).max(axis=1))
    pixels[np.flatnonzero(front)[~fits]] = np.nan
    return pixels


def undistort(camera: CameraModel, pixels: NDArray[np.floating]) -> NDArray[np.float64]:
    """(N, 2) pixels → (N, 2) rays: x/z and y/z of the points that they show. The inverse of `project`."""
    source = np.asarray(pixels, np.float64).reshape(-1, 1, 2)
    matrix, coefficients = _opencv(camera)
    end = (cv2.TERM_CRITERIA_COUNT + cv2.TERM_CRITERIA_EPS, _UNDISTORT_ITERATIONS, 1e-10)
    if camera.lens is Lens.EQUIDISTANT:
        rays = cv2.fisheye.undistortPoints(source, matrix, coefficients, criteria=end)
    else:
        rays = cv2.undistortPointsIter(source, matrix, coefficients, None, None, end)
    return np.asarray(rays, np.float64).reshape(-1, 2)


@functools.lru_cache(maxsize=_CAMERAS)
def pixel_rays(camera: CameraModel) -> NDArray[np.float32]:
    """(H, W, 2) float32: x/z and y/z of what each pixel shows. Kept for the cameras used last; read only."""
    height, width = camera.size
    pixels = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1)
    rays = undistort(camera, pixels.reshape(-1, 2)).reshape(height, width, 2).astype(np.float32)
    rays.flags.writeable = False
    return rays


def pixel_of(camera: CameraModel, point_m: Sequence[float]) -> tuple[float, float]:
    """A point in the optical frame, metres → its pixel. Raises GeometryError if it has none."""
    where = f"the point ({', '.join(f'{value:.2f}' for value in point_m)}) m in the camera's frame"
    if not np.isfinite(point_m).all():
        raise GeometryError(f"{where} is not finite; click on something that RViz draws")
    if point_m[2] <= 1e-6:
        raise GeometryError(f"{where} is behind the camera; click on what the camera sees")
    (pixel,) = project(camera, np.asarray([point_m], np.float64))
    height, width = camera.size
    x, y = pixel.tolist()
    # The centre of the first pixel is 0: the picture begins half a pixel before it.
    if not (-0.5 <= x < width - 0.5 and -0.5 <= y < height - 0.5):
        at = "far outside" if np.isnan(x) else f"at pixel ({x:.0f}, {y:.0f}), outside"
        raise GeometryError(f"{where} is {at} the {width}x{height} picture; click on what the camera sees")
    return min(max(x, 0.0), width - 1.0), min(max(y, 0.0), height - 1.0)


def _opencv(camera: CameraModel) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Camera matrix and coefficients, as OpenCV takes them."""
    matrix = np.array([[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]])
    return matrix, np.array(camera.coefficients or (0.0,) * 4)


# --- depth


def measure_surface(
    camera: CameraModel, depth_m: NDArray[np.float32], box_xyxy: Iterable[float], mask: Mask
) -> VisibleSurface | None:
    """The surface behind a mask that is cropped to its box; None if depth was measured on too little of it.

    Depth near a mask's edge is mixed with the background's, and masks are a pixel or two off. So a surface
    begins at its inner pixels and grows outwards over depth that continues it. Pixels of the mask that it
    does not reach (holes, flying pixels) get the depth of the nearest one that it reaches, unless theirs is
    background: extents would otherwise shrink by the mask's edge.

    Args:
        depth_m: (H, W) float32 of the camera's size, metres; 0 or not finite = not measured.
        mask: (y2 - y1, x2 - x1) bool.
    """
    x1, y1, x2, y2 = (int(side) for side in box_xyxy)
    step = max(int(np.sqrt(mask.size / _MOST_PIXELS)), 1)
    rows, columns = slice(y1, y2, step), slice(x1, x2, step)
    mask, depth, rays = mask[::step, ::step], depth_m[rows, columns], pixel_rays(camera)[rows, columns]
    valid = mask & np.isfinite(depth) & (depth > 0)
    depth = np.where(valid, depth, 0)
    core = _core(mask, depth, valid, rays)
    if np.count_nonzero(core) < _FEWEST_PIXELS:
        return None
    reached = _grown(core, depth, valid)
    smooth = _blurred(np.where(reached, depth, 0)) / np.maximum(_blurred(reached), 1e-6)
    nearest = _nearest(reached)
    surface = smooth.ravel()[nearest]
    background = valid & ~reached & (depth - surface > _FARTHER_STEPS * _step(surface))
    shown = mask & ~background
    z = surface[shown].astype(np.float64)
    points = np.column_stack([rays[shown] * z[:, None], z])
    low, high = ends(points)
    return VisibleSurface(points.mean(axis=0), high - low, smallest_box(points))


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
