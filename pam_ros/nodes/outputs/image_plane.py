"""The camera's image as a surface in space, so that RViz has something to click on without depth.

A grid of coloured triangles, not one textured quad: the grid's corners lie on the undistorted rays of their
pixels, so that a click gives the right pixel of a lens with distortion, too. And RViz adds a texture, or a
texture unit, at every update of a textured marker and never removes it (checked in its source, Humble to
Rolling), while it replaces colours.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from geometry_msgs.msg import Point
from numpy.typing import NDArray
from std_msgs.msg import ColorRGBA
from visualization_msgs.msg import Marker

from pam_ros.geometry import undistort
from pam_ros.records import CameraModel

CELLS = 6400  # at most; a message has 240 bytes for each
_STEEPEST = 4.0  # tangent of the angle from the axis, beyond which a plane shows nothing useful


@dataclass(frozen=True, slots=True, eq=False)
class ImagePlane:
    """The plane's cells.

    Attributes:
        shape: (rows, columns) of the grid.
        corners_m: (rows + 1, columns + 1, 3) float64, in the optical frame, metres.
        used: (rows, columns) bool, False for cells too far from the axis.
    """

    shape: tuple[int, int]
    corners_m: NDArray[np.float64]
    used: NDArray[np.bool_]


@functools.lru_cache(maxsize=4)
def image_plane(camera: CameraModel, distance_m: float) -> ImagePlane:
    """Divides the image into nearly square cells, all at `distance_m` along the optical axis."""
    height, width = camera.size
    columns = max(1, min(width, round(math.sqrt(CELLS * width / height))))
    rows = max(1, min(height, CELLS // columns))
    # The centre of the first pixel is 0: the image begins half a pixel before it.
    x, y = np.linspace(-0.5, width - 0.5, columns + 1), np.linspace(-0.5, height - 0.5, rows + 1)
    rays = undistort(camera, np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2))
    rays = rays.reshape(rows + 1, columns + 1, 2)
    seen = np.isfinite(rays).all(axis=2) & (np.hypot(rays[..., 0], rays[..., 1]) < _STEEPEST)
    corners = np.concatenate([rays, np.ones((*rays.shape[:2], 1))], axis=2) * distance_m
    used = seen[:-1, :-1] & seen[1:, :-1] & seen[:-1, 1:] & seen[1:, 1:]
    return ImagePlane((rows, columns), corners, used)


def plane_marker(image: NDArray[np.uint8], camera: CameraModel, distance_m: float) -> Marker:
    """A TRIANGLE_LIST of two triangles a cell; without header, namespace and lifetime.

    `image`: (H, W, 3) uint8 RGB of the camera's size.
    """
    plane = image_plane(camera, distance_m)
    rows, columns = plane.shape
    small = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA)
    around = np.pad(small.reshape(rows, columns, 3).astype(np.float64), ((1, 1), (1, 1), (0, 0)), "edge")
    corners = (around[:-1, :-1] + around[1:, :-1] + around[:-1, 1:] + around[1:, 1:]) / (4 * 255.0)
    colours = np.array(
        [ColorRGBA(r=r, g=g, b=b, a=1.0) for r, g, b in corners.reshape(-1, 3).tolist()], dtype=object
    ).reshape(corners.shape[:2])
    marker = Marker(type=Marker.TRIANGLE_LIST, points=_triangles(camera, distance_m))
    marker.scale.x = marker.scale.y = marker.scale.z = 1.0
    marker.color = ColorRGBA(r=1.0, g=1.0, b=1.0, a=1.0)
    # One colour for each point, as visualization_msgs wants it: RViz would take one for each triangle, too,
    # Foxglove does not.
    marker.colors = _of_triangles(colours, plane.used).tolist()
    return marker


@functools.lru_cache(maxsize=4)
def _triangles(camera: CameraModel, distance_m: float) -> list[Point]:
    """Three points a triangle, two triangles a cell; the same list for every image."""
    plane = image_plane(camera, distance_m)
    points = _of_triangles(plane.corners_m, plane.used)
    return [Point(x=x, y=y, z=z) for x, y, z in points.tolist()]


def _of_triangles(corners: NDArray[Any], used: NDArray[np.bool_]) -> NDArray[Any]:
    """(rows + 1, columns + 1, …) of the grid's corners → (6 a used cell, …) of the triangles' points."""
    around = [corners[:-1, :-1], corners[1:, :-1], corners[1:, 1:], corners[:-1, 1:]]  # counter-clockwise
    cells = np.stack([corner[used] for corner in around], axis=1)  # (N, 4, …)
    return cells[:, [0, 1, 2, 0, 2, 3]].reshape(-1, *corners.shape[2:])
