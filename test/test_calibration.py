"""camera_info → the camera of the images as they are published: binning, regions of interest, P."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

pytest.importorskip("pam_ros.msg", reason="needs the built ROS interfaces")

from sensor_msgs.msg import CameraInfo, RegionOfInterest

from pam_ros.errors import GeometryError
from pam_ros.geometry import project
from pam_ros.nodes.inputs.calibration import camera_model
from pam_ros.records import Lens

MATRIX = np.array([[900.0, 0, 650.3], [0, 890.0, 355.1], [0, 0, 1]])
RECTIFIED = np.array([[700.0, 0, 640.0, 0], [0, 700.0, 360.0, 0], [0, 0, 1, 0]])
LENSES = {
    "plumb_bob": [-0.3, 0.1, 0.001, -0.002, -0.01],
    "rational_polynomial": [0.4, -2.5, 0.0008, -0.0003, 1.4, 0.3, -2.3, 1.35],
    "equidistant": [-0.02, 0.005, -0.003, 0.0007],
}
POINTS = np.array([[0.1, -0.2, 1.0], [-0.5, 0.3, 1.2], [0.0, 0.0, 3.0], [1.0, 0.5, 2.0]])


def message(**fields: object) -> CameraInfo:
    """Of a camera of 1280 x 720 pixels."""
    given = {
        "height": 720,
        "width": 1280,
        "distortion_model": "plumb_bob",
        "d": LENSES["plumb_bob"],
        "k": MATRIX.ravel(),
        "p": RECTIFIED.ravel(),
    }
    return CameraInfo(**(given | fields))


def opencv_pixels(model: str) -> np.ndarray:
    """Pixels of the full resolution."""
    distort = cv2.fisheye.projectPoints if model == "equidistant" else cv2.projectPoints
    none = np.zeros(3)
    return distort(POINTS[:, None], none, none, MATRIX, np.array(LENSES[model]))[0].reshape(-1, 2)


@pytest.mark.parametrize("model", LENSES)
@pytest.mark.parametrize(
    ("binning", "roi", "size"),
    [
        pytest.param((0, 0), (0, 0, 0, 0), (720, 1280), id="whole"),
        pytest.param((2, 3), (0, 0, 0, 0), (240, 640), id="binned"),
        pytest.param((0, 0), (200, 100, 800, 500), (500, 800), id="region of interest"),
        pytest.param((2, 2), (200, 100, 800, 500), (250, 400), id="both"),
    ],
)
def test_pixels_follow_binning_and_region_of_interest(
    model: str, binning: tuple[int, int], roi: tuple[int, ...], size: tuple[int, int]
) -> None:
    x, y, width, height = roi
    camera = camera_model(
        message(
            distortion_model=model,
            d=LENSES[model],
            binning_x=binning[0],
            binning_y=binning[1],
            roi=RegionOfInterest(x_offset=x, y_offset=y, width=width, height=height),
        ),
        size,
        rectified=False,
    )
    expected = (opencv_pixels(model) - (x, y)) / np.maximum(binning, 1)
    assert np.abs(project(camera, POINTS) - expected).max() < 1e-6


def test_rectified_images_have_p_and_no_distortion() -> None:
    camera = camera_model(message(), (720, 1280), rectified=True)
    expected = POINTS[:, :2] / POINTS[:, 2:] * 700 + (640, 360)
    assert np.abs(project(camera, POINTS) - expected).max() < 1e-9


@pytest.mark.parametrize("model", ["", "plumb_bob", "who knows"])
def test_without_distortion_the_model_does_not_matter(model: str) -> None:
    camera = camera_model(message(distortion_model=model, d=[0.0] * 5), (720, 1280), rectified=False)
    assert (camera.lens, camera.coefficients) == (Lens.PLUMB_BOB, ())


@pytest.mark.parametrize(
    ("fields", "size", "words"),
    [
        ({"k": np.zeros(9)}, (720, 1280), "K has no focal length; calibrate it"),
        (
            {},
            (480, 640),
            "for images of 1280x720 pixels, these have 640x480; publish the camera_info of this",
        ),
        ({"distortion_model": "omni"}, (720, 1280), "unknown distortion model 'omni'; allowed: plumb_bob"),
        ({"d": [0.1, 0.2]}, (720, 1280), "plumb_bob has 2 coefficients; allowed: 0, 4, 5"),
        ({"d": [float("nan")] * 5}, (720, 1280), "not valid"),
    ],
)
def test_a_calibration_that_does_not_fit_is_refused(
    fields: dict[str, object], size: tuple[int, int], words: str
) -> None:
    with pytest.raises(GeometryError, match=words):
        camera_model(message(**fields), size, rectified=False)
