"""The camera's calibration: `camera_info` → CameraModel of the images as they are published."""

from __future__ import annotations

from rclpy.node import Node
from sensor_msgs.msg import CameraInfo

from pam_ros.errors import GeometryError
from pam_ros.nodes.throttled_log import ThrottledLog
from pam_ros.nodes.topics import listen, topic_beside
from pam_ros.records import CameraModel, Lens

_MAX_BYTES = 1 << 16  # of a message; one has about 400


class CalibrationInput:
    """The newest `camera_info` of one camera.

    Attributes:
        topic: the topic subscribed to: beside the image topic, as camera drivers publish it, unless remapped.
    """

    def __init__(
        self, node: Node, *, prefix: str, image_topic: str, rectified: bool, log: ThrottledLog
    ) -> None:
        """`prefix` goes before the topic's name: "" or "<camera>/". `rectified`: see `camera_model`."""
        self._rectified = rectified
        self._newest: CameraInfo | None = None
        name = topic_beside(node, f"{prefix}camera_info", image_topic.rpartition("/")[0], "/camera_info")
        self.topic: str = node.resolve_topic_name(name)
        listen(
            node,
            log,
            CameraInfo,
            name,
            self._take,
            depth=1,
            best_effort=True,
            max_bytes=lambda: _MAX_BYTES,
        )

    def model(self, size: tuple[int, int]) -> CameraModel:
        """The model of images of this (height, width). Raises GeometryError if there is none for them."""
        message = self._newest  # read once: another thread may replace it
        if message is None:
            raise GeometryError(
                f"no calibration has arrived on {self.topic}; publish camera_info there, or remap camera_info"
            )
        try:
            return camera_model(message, size, rectified=self._rectified)
        except GeometryError as error:
            raise GeometryError(f"{self.topic}: {error}") from None

    def _take(self, message: CameraInfo) -> None:
        self._newest = message


def camera_model(message: CameraInfo, size: tuple[int, int], *, rectified: bool) -> CameraModel:
    """CameraInfo → the model of images of `size` (height, width), which region of interest and binning gave.

    Args:
        rectified: the images are rectified: P holds and there is no distortion. Otherwise K and D hold.

    K and P describe the full resolution: a pixel of the image is (full - offset) / binning, as image_geometry
    has it. Raises GeometryError if the calibration is missing, unknown, or for another size.
    """
    matrix = message.p if rectified else message.k
    row = 4 if rectified else 3
    if not matrix[0] or not matrix[row + 1]:
        raise GeometryError(
            f"the camera is not calibrated: {'P' if rectified else 'K'} has no focal length; calibrate it"
        )
    binning_x, binning_y = max(message.binning_x, 1), max(message.binning_y, 1)
    roi = message.roi
    whole = not roi.width or not roi.height  # as CameraInfo defines it
    full = (message.height, message.width) if whole else (roi.height, roi.width)
    expected = full[0] // binning_y, full[1] // binning_x
    if expected != size:
        raise GeometryError(
            f"the calibration is for images of {expected[1]}x{expected[0]} pixels, these have "
            f"{size[1]}x{size[0]}; publish the camera_info of this image"
        )
    coefficients = () if rectified or not any(message.d) else tuple(message.d)
    try:
        lens = Lens(message.distortion_model) if coefficients else Lens.PLUMB_BOB
    except ValueError:
        raise GeometryError(
            f"unknown distortion model {message.distortion_model!r}; "
            f"allowed: {', '.join(lens.value for lens in Lens)}"
        ) from None
    return CameraModel(
        size=size,
        fx=matrix[0] / binning_x,
        fy=matrix[row + 1] / binning_y,
        cx=(matrix[2] - (0 if whole else roi.x_offset)) / binning_x,
        cy=(matrix[row + 2] - (0 if whole else roi.y_offset)) / binning_y,
        lens=lens,
        coefficients=coefficients,
    )
