"""Clicks in space, `clicked_point` and `clicked_point_negative`, become clicks in the newest image."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from functools import partial

import numpy as np
from geometry_msgs.msg import PointStamped
from rclpy.clock import Clock, ClockType
from rclpy.node import Node

from pam_ros.errors import CapacityError, GeometryError, NoFrameError, TransformError
from pam_ros.geometry import pixel_of
from pam_ros.nodes.inputs.calibration import CalibrationInput
from pam_ros.nodes.inputs.camera import CameraInput, ImageInfo
from pam_ros.nodes.inputs.prompts import PromptInputs
from pam_ros.nodes.inputs.transforms import Transforms, listen_to_transforms
from pam_ros.nodes.link import EngineLink
from pam_ros.nodes.throttled_log import ThrottledLog
from pam_ros.nodes.topics import guarded, listen

_DEPTH = 10  # messages that may wait for the executor, and clicks that may wait for their transform
_RETRY_S = 0.05
WAIT_S = 1.0  # for the transform at an image's time: it often comes later than the image


@dataclass(frozen=True, slots=True)
class _Click:
    topic: str
    point: PointStamped
    positive: bool
    image: ImageInfo  # the newest one when it was clicked
    until_s: float  # steady


class PointInputs:
    """The topics of clicks in space of one camera.

    A point means the image that is the newest when the point arrives: it is brought into the camera's frame
    at that image's stamp, and to a pixel of it. The point's own stamp does not count, as RViz stamps the
    moment of the click.
    """

    def __init__(
        self,
        node: Node,
        *,
        prefix: str,
        images: CameraInput,
        calibration: CalibrationInput,
        prompts: PromptInputs,
        link: EngineLink,
        log: ThrottledLog,
    ) -> None:
        """`prefix` goes before the topics' names: "" or "<camera>/"."""
        self._node = node
        self._images = images
        self._calibration = calibration
        self._prompts = prompts
        self._link = link
        self._log = log
        self._transforms: Transforms | None = None
        self._waiting: deque[_Click] = deque()
        # A steady clock: simulated time may stand still.
        self._timer = node.create_timer(_RETRY_S, self._retry, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self._timer.cancel()
        for name, positive in (("clicked_point", True), ("clicked_point_negative", False)):
            topic = node.resolve_topic_name(f"{prefix}{name}")
            on_point = partial(self._on_point, topic, positive)
            listen(node, log, PointStamped, f"{prefix}{name}", on_point, depth=_DEPTH, matched=self._listen)

    def _listen(self) -> None:
        """Listens to transforms once clicks have a publisher: the first click needs them."""
        self._transforms = self._transforms or listen_to_transforms(self._node, self._log)

    def _on_point(self, topic: str, positive: bool, message: PointStamped) -> None:
        _ = self._link.engine  # raises while the manager is not active: images are not read then
        if self._images.newest is None:
            raise NoFrameError(f"no image has arrived on {self._images.topic} yet; start the camera")
        if len(self._waiting) == _DEPTH:
            raise CapacityError(f"{_DEPTH} clicks are waiting for transforms already; click again later")
        self._try(_Click(topic, message, positive, self._images.newest, time.monotonic() + WAIT_S))
        if self._waiting:
            self._timer.reset()

    def _try(self, click: _Click) -> None:
        """Sends the click to the engine, or lets it wait."""
        if not self._prompted(click):
            self._waiting.append(click)

    def _retry(self) -> None:
        for _ in range(len(self._waiting)):
            click = self._waiting.popleft()
            guarded(self._log, click.topic, self._try)(click)
        if not self._waiting:
            self._timer.cancel()

    def _prompted(self, click: _Click) -> bool:
        """Sends the click to the engine; False if its transform may still come. Raises a PamError."""
        try:
            x, y = self._pixel(click.point, click.image)
        except TransformError:
            if time.monotonic() < click.until_s:
                return False
            raise
        self._prompts.click(x, y, positive=click.positive, image_ns=click.image.stamp_ns)
        return True

    def _pixel(self, message: PointStamped, image: ImageInfo) -> tuple[float, float]:
        """x and y in the image."""
        source, target = message.header.frame_id.lstrip("/"), image.frame_id.lstrip("/")
        if not source or not target:
            which = "the point" if not source else f"the image on {self._images.topic}"
            raise GeometryError(f"{which} has no frame_id; its publisher must set it")
        camera = self._calibration.model(image.size)
        point = np.array([message.point.x, message.point.y, message.point.z])
        if source != target:
            self._listen()  # some middleware does not tell when a publisher comes
            assert self._transforms is not None
            transform = self._transforms.lookup(target, source, image.stamp_ns)
            point = transform.rotation @ point + transform.translation_m
        return pixel_of(camera, point.tolist())
