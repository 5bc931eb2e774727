"""Surfaces from depth: known shapes with noise, flying pixels, holes and masks that are a little wrong."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from pam_ros.geometry import crop_mask, pixel_rays, project
from pam_ros.oriented_box import smallest_box
from pam_ros.records import CameraModel, Lens, VisibleSurface
from pam_ros.simulator.depth_noise import sensor_depth
from pam_ros.visible_surface import measure_surface

SIZE = (240, 320)
FOCAL_PX = 300.0
CAMERA = CameraModel(SIZE, FOCAL_PX, FOCAL_PX, 159.5, 119.5)
WALL_M = 1.6


def board(z: float = 1.0, width: float = 0.2, height: float = 0.1, x: float = 0.05) -> tuple[np.ndarray, ...]:
    """Depth of a board before a wall, and its mask."""
    points = pixel_rays(CAMERA) * z
    mask = (np.abs(points[..., 0] - x) < width / 2) & (np.abs(points[..., 1]) < height / 2)
    return np.where(mask, z, WALL_M).astype(np.float32), mask


def measured(depth: np.ndarray, mask: np.ndarray, camera: CameraModel = CAMERA) -> VisibleSurface:
    """The surface behind a mask of the whole picture."""
    surface = measure_surface(camera, depth, *crop_mask(mask))
    assert surface is not None
    return surface


def box_depth(half: np.ndarray, rotation: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Depth of a box in every pixel, infinite beside it: each ray against three pairs of planes."""
    rays = np.dstack([pixel_rays(CAMERA), np.ones(SIZE)]) @ rotation
    start = rotation.T @ -centre
    with np.errstate(divide="ignore"):
        near, far = np.sort([(-half - start) / rays, (half - start) / rays], axis=0)
    first, last = near.max(axis=2), far.min(axis=2)
    return np.where(first < last, first, np.inf)


def test_a_flat_board_is_measured_exactly() -> None:
    surface = measured(*board())
    assert np.abs(surface.position_m - (0.05, 0, 1.0)).max() < 0.002
    assert np.abs(surface.size_m - (0.2, 0.1, 0)).max() < 0.005  # a pixel is 3 mm wide there
    assert surface.box is not None
    assert np.abs(surface.box.size_m - (0.2, 0.1, 0)).max() < 0.005


def test_noise_flying_pixels_and_holes_hardly_move_it() -> None:
    depth, mask = board()
    noisy = sensor_depth(depth, FOCAL_PX, np.random.default_rng(1))
    rim = mask & (cv2.erode(mask.astype(np.uint8), np.ones((3, 3))) == 0)
    assert (np.abs(noisy - 1.0)[rim & (noisy > 0)] > 0.1).mean() > 0.2, "the noise has no flying pixels"
    surface = measured(noisy, mask)
    assert np.linalg.norm(surface.position_m - (0.05, 0, 1.0)) < 0.006
    assert np.abs(surface.size_m - (0.2, 0.1, 0)).max() < 0.02


@pytest.mark.parametrize("grow", [3, -3], ids=["too large", "too small"])
def test_a_mask_that_is_a_little_wrong_hardly_moves_it(grow: int) -> None:
    depth, mask = board()
    change = cv2.dilate if grow > 0 else cv2.erode
    wrong = change(mask.astype(np.uint8), np.ones((2 * abs(grow) + 1,) * 2)) > 0
    surface = measured(depth, wrong)
    assert np.linalg.norm(surface.position_m - (0.05, 0, 1.0)) < 0.005
    assert surface.size_m[2] < 0.01, "the wall behind was counted"
    assert abs(surface.size_m[0] - 0.2) < 0.025


def on_a_table(half: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Depth of a box 1 m away on a table that the camera looks down on, and its mask."""
    tilt = np.radians(35)
    rotation = np.array(
        [[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]]
    )  # of the table's axes, y down
    centre = np.array([0.0, 0.0, 1.0])
    box = box_depth(np.array(half), rotation, centre)
    down = (np.dstack([pixel_rays(CAMERA), np.ones(SIZE)]) @ rotation)[..., 1]
    table = np.where(down > 1e-3, (half[1] + (rotation.T @ centre)[1]) / np.maximum(down, 1e-3), np.inf)
    depth = np.minimum(np.minimum(box, table), 4.0).astype(np.float32)
    return depth, np.isfinite(box) & (box <= table)


def test_a_mask_that_spills_onto_the_table_keeps_the_size() -> None:
    depth, mask = on_a_table((0.06, 0.05, 0.06))
    right = measured(depth, mask)
    noisy = sensor_depth(depth, FOCAL_PX, np.random.default_rng(2))
    rows = np.flatnonzero(mask.any(axis=1))
    wrong = mask.copy()
    for row in range(rows[-1] - 6, rows[-1] + 3):  # a tongue 14 pixels = 4.5 cm to the left, where it stands
        columns = np.flatnonzero(mask[min(row, rows[-1])])
        wrong[row, columns[0] - 14 : columns[0] + 20] = True
    surface = measured(noisy, wrong)
    assert np.abs(surface.size_m - right.size_m).max() < 0.02
    assert np.linalg.norm(surface.position_m - right.position_m) < 0.01


def test_something_flat_on_the_table_stays_whole() -> None:
    depth, mask = on_a_table((0.08, 0.002, 0.05))
    surface = measured(sensor_depth(depth, FOCAL_PX, np.random.default_rng(3)), mask)
    assert abs(surface.size_m[0] - 0.16) < 0.01
    assert np.linalg.norm(surface.position_m - (0, 0, 1.0)) < 0.01


def test_a_mask_that_spills_onto_a_neighbour_keeps_the_size() -> None:
    depth, mask = board()
    depth[:, 195:240] = 1.12  # its edge is behind the board's
    depth[mask] = 1.0
    right = measured(depth, mask)
    wrong = mask.copy()
    wrong[114:126, 204:216] = True  # 8 pixels = 3 cm of the neighbour
    assert measured(depth, wrong).size_m[2] < 0.005
    surface = measured(sensor_depth(depth, FOCAL_PX, np.random.default_rng(4)), wrong)
    assert np.abs(surface.size_m - right.size_m).max() < 0.02


@pytest.mark.parametrize("other_m", [0.85, 1.2], ids=["before it", "behind it"])
def test_a_mask_that_spills_far_onto_something_else_keeps_the_size(other_m: float) -> None:
    """The spill is as deep as the mask's inside, so that no flood from its outside reaches it."""
    depth, mask = board(width=0.4, height=0.3)
    depth[60:130, 215:300] = other_m
    mask &= depth == 1.0
    right = measured(depth, mask)
    wrong = mask.copy()
    wrong[70:120, 215:238] = True  # a tenth of it, and 9 pixels deep
    surface = measured(sensor_depth(depth, FOCAL_PX, np.random.default_rng(9)), wrong)
    assert np.abs(surface.size_m - right.size_m).max() < 0.02
    assert np.linalg.norm(surface.position_m - right.position_m) < 0.01


def test_a_separate_piece_of_a_mask_on_something_else_is_left_out() -> None:
    depth, mask = board()
    right = measured(depth, mask)
    across = np.linspace(-0.9, 0.9, 90, dtype=np.float32)
    depth[60:95, 170:260] = 1.4 - 0.2 * np.sqrt(1 - across**2)  # a can
    depth[mask] = 1.0
    wrong = mask.copy()
    wrong[74:90, 180:195] = True
    surface = measured(sensor_depth(depth, FOCAL_PX, np.random.default_rng(10)), wrong)
    assert np.abs(surface.size_m - right.size_m).max() < 0.02


def test_a_mask_that_spills_far_onto_the_wall_keeps_the_size() -> None:
    depth, mask = board(width=0.4, height=0.3)
    right = measured(depth, mask)
    wrong = mask | np.roll(mask, (8, 8), (0, 1))  # an eighth of it shows the wall, 8 pixels = 4 cm wide
    surface = measured(sensor_depth(depth, FOCAL_PX, np.random.default_rng(7)), wrong)
    assert np.abs(surface.size_m - right.size_m).max() < 0.02
    assert np.linalg.norm(surface.position_m - right.position_m) < 0.01


def test_a_part_that_something_nearer_cuts_off_stays() -> None:
    depth, mask = np.full(SIZE, WALL_M, np.float32), np.zeros(SIZE, np.bool_)
    mask[90:150, 170:240] = mask[118:122, 100:150] = True
    depth[mask] = 1.0
    depth[80:160, 150:170] = 0.6
    points = np.dstack([pixel_rays(CAMERA) * depth[..., None], depth])[mask]
    surface = measured(sensor_depth(depth, FOCAL_PX, np.random.default_rng(8)), mask)
    assert np.abs(surface.size_m - np.ptp(points, axis=0)).max() < 0.02


def test_a_part_before_the_object_stays() -> None:
    """A thin handle 6 cm before the board reaches beyond it, over a background that is far away."""
    depth, mask = board()
    depth[110:114, 170:230] = 0.94
    mask[110:114, 170:230] = True
    points = np.dstack([pixel_rays(CAMERA) * depth[..., None], depth])[mask]
    for each in (depth, sensor_depth(depth, FOCAL_PX, np.random.default_rng(5))):
        assert np.abs(measured(each, mask).size_m - np.ptp(points, axis=0)).max() < 0.02


@pytest.mark.parametrize("seed", range(3))
def test_noise_hardly_adds_to_the_extent_of_a_plane(seed: int) -> None:
    """At 2 m, depth itself spreads over 8 cm."""
    _, mask = board(z=2.0, width=0.5, height=0.4, x=0.0)
    noisy = sensor_depth(np.where(mask, 2.0, 3.0).astype(np.float32), FOCAL_PX, np.random.default_rng(seed))
    core = cv2.erode(mask.astype(np.uint8), np.ones((9, 9))) > 0
    spread = np.ptp(np.quantile(noisy[core & (noisy > 0)], [0.001, 0.999]))
    assert spread > 0.08, "the noise is too small to test anything"
    assert measured(noisy, mask).size_m[2] < 0.7 * spread


def test_depth_reaches_the_edge_of_a_slanted_board() -> None:
    """The mask's rim has no depth of its own, only flying pixels."""
    _, mask = board()
    slanted = (1.0 / (1.0 + 1.5 * pixel_rays(CAMERA)[..., 0])).astype(np.float32)  # 56 degrees
    points = np.dstack([pixel_rays(CAMERA) * slanted[..., None], slanted])[mask]
    rim = mask & (cv2.erode(mask.astype(np.uint8), np.ones((3, 3))) == 0)
    depth = np.where(mask, slanted, WALL_M).astype(np.float32)
    depth[rim] = np.random.default_rng(6).uniform(1.0, WALL_M, np.count_nonzero(rim))
    assert np.abs(measured(depth, mask).size_m - np.ptp(points, axis=0)).max() < 0.005


def test_a_hole_in_the_depth_does_not_shift_it() -> None:
    depth, mask = board()
    depth[:, 180:] = 0  # the sensor sees nothing of the right half
    surface = measured(depth, mask)
    assert np.abs(surface.position_m - (0.05, 0, 1.0)).max() < 0.005
    depth[:, 150:] = np.nan
    assert np.abs(measured(depth, mask).position_m - (0.05, 0, 1.0)).max() < 0.005


def test_too_little_depth_is_no_surface() -> None:
    depth, mask = board()
    depth[mask] = 0
    assert measure_surface(CAMERA, depth, *crop_mask(mask)) is None
    depth[120, 160:165] = 1.0
    assert measure_surface(CAMERA, depth, *crop_mask(mask)) is None
    assert measure_surface(CAMERA, depth, np.zeros(4, np.float32), np.zeros((0, 0), np.bool_)) is None


def test_a_thin_object_is_measured_along_its_whole_length() -> None:
    """A handle, and a shaft of two pixels: no depth of it is away from the mask's edge."""
    depth = np.full(SIZE, WALL_M, np.float32)
    mask = np.zeros(SIZE, np.bool_)
    mask[110:130, 60:120] = mask[119:121, 120:240] = True
    depth[mask] = np.broadcast_to(np.linspace(0.8, 1.1, SIZE[1], dtype=np.float32), SIZE)[mask]
    points = np.dstack([pixel_rays(CAMERA) * depth[..., None], depth])[mask]
    surface = measured(depth, mask)
    assert np.linalg.norm(surface.position_m - points.mean(axis=0)) < 0.01
    assert np.abs(surface.size_m - np.ptp(points, axis=0)).max() < 0.02


@pytest.mark.parametrize("turn", [(0.5, 0.6, 0.1), (-0.6, -0.5, 0.3), (0.0, 0.0, 0.5)])
def test_the_box_of_a_box_has_its_edges(turn: tuple[float, ...]) -> None:
    half, centre = np.array([0.12, 0.08, 0.06]), np.array([0.05, -0.03, 0.9])
    rotation = cv2.Rodrigues(np.array(turn))[0]
    depth = box_depth(half, rotation, centre)
    mask = np.isfinite(depth)
    points = np.dstack([pixel_rays(CAMERA) * depth[..., None], depth])[mask]
    surface = measured(np.where(mask, depth, WALL_M).astype(np.float32), mask)
    assert np.linalg.norm(surface.position_m - points.mean(axis=0)) < 0.01
    assert surface.box is not None
    assert np.linalg.det(surface.box.axes) == pytest.approx(1)
    assert (np.diff(surface.box.size_m) <= 0).all()
    if turn[:2] == (0.0, 0.0):  # one face only
        assert np.abs(surface.box.size_m[:2] - 2 * half[:2]).max() < 0.02
        return
    # Three faces span the box: no corner is farther outside it than two pixels.
    corners = half * np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, -1).T @ rotation.T + centre
    inside = (corners - surface.box.centre_m) @ surface.box.axes
    seen = np.sort((np.abs(inside) - surface.box.size_m / 2).max(axis=1))[:7]  # the eighth is hidden
    assert seen.max() < 0.02
    assert np.prod(surface.box.size_m) < 1.3 * np.prod(2 * half)


def test_the_smallest_box_leaves_single_outliers_out() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(-1, 1, (4000, 3)) * (0.3, 0.1, 0.05)
    points[0] = (5, 5, 5)
    box = smallest_box(points)
    assert np.abs(box.size_m - (0.6, 0.2, 0.1)).max() < 0.05


def test_a_distorted_camera_measures_the_same() -> None:
    lens = CameraModel(SIZE, FOCAL_PX, FOCAL_PX, 159.5, 119.5, Lens.EQUIDISTANT, (-0.03, 0.01, 0.0, 0.0))
    corners = np.array([[x, y, 1.0] for x in (0.2, 0.4) for y in (-0.05, 0.05)])
    hull = cv2.convexHull(project(lens, corners).astype(np.float32)).round().astype(np.int32)
    mask = cv2.fillConvexPoly(np.zeros(SIZE, np.uint8), hull, 1) > 0
    surface = measured(np.where(mask, 1.0, WALL_M).astype(np.float32), mask, lens)
    assert np.abs(surface.position_m - (0.3, 0, 1.0)).max() < 0.005
    assert np.abs(surface.size_m - (0.2, 0.1, 0)).max() < 0.01
