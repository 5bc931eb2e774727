"""Points and pixels of a camera, against OpenCV and closed forms."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from pam_ros.errors import GeometryError, ImageError
from pam_ros.geometry import pixel_of, pixel_rays, project, quaternion_of, rotation_matrix, undistort
from pam_ros.records import CameraModel, DepthImage, Lens

SIZE = (480, 640)
MATRIX = np.array([[520.0, 0, 330.2], [0, 515.0, 236.7], [0, 0, 1]])
PLUMB_BOB = (-0.28, 0.09, 0.0012, -0.0007, -0.012)
RATIONAL = (0.42, -2.6, 0.0008, -0.0003, 1.5, 0.3, -2.4, 1.45)
EQUIDISTANT = (-0.02, 0.006, -0.004, 0.0008)


def camera(lens: Lens = Lens.PLUMB_BOB, coefficients: tuple[float, ...] = ()) -> CameraModel:
    """Of 640 x 480 pixels."""
    return CameraModel(
        SIZE, MATRIX[0, 0], MATRIX[1, 1], MATRIX[0, 2], MATRIX[1, 2], lens=lens, coefficients=coefficients
    )


LENSES = [
    pytest.param(Lens.PLUMB_BOB, PLUMB_BOB, id="plumb_bob"),
    pytest.param(Lens.RATIONAL, RATIONAL, id="rational"),
    pytest.param(Lens.EQUIDISTANT, EQUIDISTANT, id="equidistant"),
]


def points_in_view() -> np.ndarray:
    """(N, 3) metres, all inside the picture of the undistorted camera."""
    x, y = np.meshgrid(np.linspace(-0.5, 0.5, 7), np.linspace(-0.35, 0.35, 5))
    z = 0.5 + np.abs(x) * 3
    return np.column_stack([(x * z).ravel(), (y * z).ravel(), z.ravel()])


def distorted(
    x: np.ndarray, y: np.ndarray, lens: Lens, k: tuple[float, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """The lens models' published formulas, on rays x/z and y/z."""
    r2 = x * x + y * y
    if lens is Lens.EQUIDISTANT:
        r = np.sqrt(r2)
        angle = np.arctan(r)
        stretch = angle * (1 + sum(each * angle ** (2 * i + 2) for i, each in enumerate(k)))
        scale = np.divide(stretch, r, out=np.ones_like(r), where=r > 0)
        return x * scale, y * scale
    k1, k2, p1, p2, k3, *more = k
    k4, k5, k6 = more or (0, 0, 0)
    radial = (1 + k1 * r2 + k2 * r2**2 + k3 * r2**3) / (1 + k4 * r2 + k5 * r2**2 + k6 * r2**3)
    return (
        x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
        y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y,
    )


@pytest.mark.parametrize(("lens", "coefficients"), LENSES)
def test_projection_follows_the_published_formulas(lens: Lens, coefficients: tuple[float, ...]) -> None:
    points = points_in_view()
    x, y = distorted(points[:, 0] / points[:, 2], points[:, 1] / points[:, 2], lens, coefficients)
    expected = np.column_stack([MATRIX[0, 0] * x + MATRIX[0, 2], MATRIX[1, 1] * y + MATRIX[1, 2]])
    assert np.abs(project(camera(lens, coefficients), points) - expected).max() < 1e-6


@pytest.mark.parametrize(("lens", "coefficients"), LENSES)
def test_pixels_become_the_rays_that_they_came_from(lens: Lens, coefficients: tuple[float, ...]) -> None:
    model, points = camera(lens, coefficients), points_in_view()
    rays = undistort(model, project(model, points))
    assert np.abs(rays - points[:, :2] / points[:, 2:]).max() < 1e-6
    grid = pixel_rays(model)
    assert grid.shape == (*SIZE, 2)
    depth = 1.7
    point = [*(grid[100, 200] * depth).tolist(), depth]
    assert pixel_of(model, point) == pytest.approx((200, 100), abs=1e-3)


def test_without_distortion_a_pixel_is_a_division() -> None:
    assert pixel_of(camera(), (0.1, -0.2, 0.8)) == pytest.approx((520 / 8 + 330.2, -515 / 4 + 236.7))


def test_a_lens_model_that_folds_back_shows_nothing() -> None:
    model = camera(Lens.PLUMB_BOB, (-0.35, 0.0, 0.0, 0.0, 0.0))
    far = np.array([[1.64, 0.0, 1.0]])  # OpenCV's polynomial comes back to the middle of the picture
    raw = cv2.projectPoints(far, np.zeros(3), np.zeros(3), MATRIX, np.array(model.coefficients))[0].ravel()
    assert 0 < raw[0] < 640
    assert np.isnan(project(model, far)).all()
    with pytest.raises(GeometryError, match="far outside the 640x480 image"):
        pixel_of(model, far[0].tolist())


def test_the_picture_begins_half_a_pixel_before_its_first_centre() -> None:
    model = CameraModel((10, 20), 10.0, 10.0, 0.0, 0.0)
    assert pixel_of(model, (-0.04, 0.0, 1.0)) == (0.0, 0.0)
    assert pixel_of(model, (1.94, 0.94, 1.0)) == (19.0, 9.0)
    with pytest.raises(GeometryError, match=r"at pixel \(-1, 0\), outside the 20x10 image"):
        pixel_of(model, (-0.06, 0.0, 1.0))


@pytest.mark.parametrize("z", [0.0, -1.0])
def test_points_at_or_behind_the_camera_have_no_pixel(z: float) -> None:
    assert np.isnan(project(camera(), np.array([[0.1, 0.1, z]]))).all()
    with pytest.raises(GeometryError, match="behind the camera"):
        pixel_of(camera(), (0.1, 0.1, z))


def test_bad_cameras_and_depth_are_refused() -> None:
    with pytest.raises(GeometryError, match="not valid"):
        CameraModel(SIZE, 0.0, 500.0, 320.0, 240.0)
    with pytest.raises(GeometryError, match="not valid"):
        CameraModel(SIZE, 500.0, 500.0, float("nan"), 240.0)
    with pytest.raises(GeometryError, match="equidistant has 5 coefficients; allowed: 0, 4"):
        CameraModel(SIZE, 500.0, 500.0, 320.0, 240.0, Lens.EQUIDISTANT, (0.1,) * 5)
    with pytest.raises(ImageError, match="float32"):
        DepthImage(np.zeros((4, 6)), 0)


def test_rotations_and_quaternions_are_inverse() -> None:
    rng = np.random.default_rng(0)
    for vector in [np.zeros(3), np.array([np.pi, 0, 0]), *rng.normal(0, 1.5, (20, 3))]:
        rotation = cv2.Rodrigues(vector)[0]
        quaternion = quaternion_of(rotation)
        assert np.linalg.norm(quaternion) == pytest.approx(1)
        assert np.abs(rotation_matrix(quaternion) - rotation).max() < 1e-9
