"""Boxes and masks in the image, rotations, and points and pixels of a camera.

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
from pam_ros.records import CameraModel, Lens

Box = NDArray[np.float32]  # (4,) x1, y1, x2, y2
Mask = NDArray[np.bool_]  # (H, W)
CropBox = tuple[float, float, float, float]  # x1, y1, x2, y2 as fractions of an image's width and height

_CAMERAS = 4  # whose rays are kept
_UNDISTORT_ITERATIONS = 100


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
    """The inverse of `crop_mask`: the cropped mask at its place in an image of (height, width) pixels."""
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
    """(N, 3) points in the optical frame → (N, 2) pixels, also outside the image.

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
    # A lens model holds near the image only: far outside, its polynomial can turn back into the image.
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
    # The centre of the first pixel is 0: the image begins half a pixel before it.
    if not (-0.5 <= x < width - 0.5 and -0.5 <= y < height - 0.5):
        at = "far outside" if np.isnan(x) else f"at pixel ({x:.0f}, {y:.0f}), outside"
        raise GeometryError(f"{where} is {at} the {width}x{height} image; click on what the camera sees")
    return min(max(x, 0.0), width - 1.0), min(max(y, 0.0), height - 1.0)


def _opencv(camera: CameraModel) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Camera matrix and coefficients, as OpenCV takes them."""
    matrix = np.array([[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]])
    return matrix, np.array(camera.coefficients or (0.0,) * 4)
