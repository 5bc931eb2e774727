"""Real processes over real DDS: starts a node, talks to it as a robot would, and checks how it ends.

Every test's processes get a domain of their own and stay on this machine.
"""

from __future__ import annotations

import array
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import Point
from rclpy.qos import QoSDurabilityPolicy, QoSProfile, QoSReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image
from vision_msgs.msg import Point2D

from pam_ros.msg import Prompt, RegionArray
from pam_ros.nodes.dds_profile import use_image_profile
from pam_ros.nodes.tools.client import Client
from pam_ros.nodes.tools.processes import WAIT_TIMEOUT_S as TIMEOUT_S
from pam_ros.nodes.tools.processes import Process, Processes, wait_until

FAKE_NODE = (str(Path(__file__).with_name("fake_node.py")),)
REAL_NODE = ("-m", "pam_ros.nodes.main")
FAKE_ACTIVE = ("model:=fake", "autostart:=true")
LATCHED = QoSProfile(depth=1, durability=QoSDurabilityPolicy.TRANSIENT_LOCAL)
_SENSOR = QoSProfile(depth=1, reliability=QoSReliabilityPolicy.BEST_EFFORT)
_ENVIRONMENT = {
    "PYTHONUNBUFFERED": "1",
    "RCUTILS_LOGGING_USE_STDOUT": "1",
    "RCUTILS_COLORIZED_OUTPUT": "0",
    "OMP_NUM_THREADS": "1",
}

use_image_profile()  # before the first context: the sender of images needs it, too


@dataclass
class Diagnostics:
    """The messages on `/diagnostics`."""

    messages: list[DiagnosticArray]

    @classmethod
    def of(cls, client: Client) -> Diagnostics:
        """Starts to listen."""
        return cls(client.collect(DiagnosticArray, "/diagnostics"))

    def wait_for(
        self, name: str, condition: Callable[[DiagnosticStatus], bool], timeout_s: float = TIMEOUT_S
    ) -> DiagnosticStatus:
        """The first status from now on whose name holds `name` and that meets the condition."""
        seen = len(self.messages)
        return wait_until(
            lambda: next(
                (
                    status
                    for message in self.messages[seen:]
                    for status in message.status
                    if name in status.name and condition(status)
                ),
                None,
            ),
            lambda: f"such a status of {name!r}; the last message: {self.messages[-1:]}",
            timeout_s,
        )

    @staticmethod
    def values(status: DiagnosticStatus) -> dict[str, str]:
        return {pair.key: pair.value for pair in status.values}


class Camera:
    """Plays pictures on an image topic from its own thread, with the stamps of the clock."""

    def __init__(
        self,
        robot: Client,
        topic: str = "/image",
        *,
        rate_hz: float = 20.0,
        size: tuple[int, int] = (48, 64),
        compressed: bool = False,
        shade: int = 100,
        frame_id: str = "camera_optical",
        dies: bool = False,
        block_xyxy: tuple[int, int, int, int] | None = None,
    ) -> None:
        """`size` is (height, width) in pixels; pictures have one `shade`, which the fake model's texts name.
        `dies`: its publisher is destroyed at the end. `block_xyxy`: place of a red block.
        """
        self._kind = CompressedImage if compressed else Image
        self._publisher = robot.publisher(self._kind, topic, _SENSOR)
        self._robot, self._topic, self._dies = robot, topic, dies
        self._period_s = 1.0 / rate_hz
        self.size, self.shade, self.frame_id, self._block_xyxy = size, shade, frame_id, block_xyxy
        self.sent_ns: list[int] = []  # stamps
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Camera:
        self._thread.start()
        wait_until(lambda: len(self.sent_ns) > 1, "the first images")
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        if self._dies:
            self._robot.drop_publisher(self._topic)

    def send(self, stamp_ns: int | None = None) -> int:
        """Sends one picture; its stamp."""
        stamp_ns = time.time_ns() if stamp_ns is None else stamp_ns
        pixels = np.full((*self.size, 3), self.shade, np.uint8)
        if self._block_xyxy is not None:
            x1, y1, x2, y2 = self._block_xyxy
            pixels[y1:y2, x1:x2] = (200, 30, 30)
        message = jpeg_of(pixels) if self._kind is CompressedImage else image_of(pixels)
        message.header.frame_id = self.frame_id
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp_ns, 10**9)
        self._publisher.publish(message)
        self.sent_ns.append(stamp_ns)
        return stamp_ns

    def _run(self) -> None:
        while not self._stopping.wait(self._period_s):
            self.send()


def image_of(pixels: np.ndarray, encoding: str = "") -> Image:
    """(H, W, 3) RGB or (H, W) mono8 pixels → message with a zero stamp."""
    return Image(
        height=pixels.shape[0],
        width=pixels.shape[1],
        encoding=encoding or ("rgb8" if pixels.ndim == 3 else "mono8"),
        step=pixels[0].nbytes,
        data=array.array("B", pixels.tobytes()),
    )


def jpeg_of(pixels: np.ndarray) -> CompressedImage:
    """(H, W, 3) RGB pixels → message with a zero stamp."""
    data = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1]
    return CompressedImage(format="rgb8; jpeg compressed bgr8", data=array.array("B", data.tobytes()))


def click(x: float, y: float, **fields: Any) -> Prompt:
    """A prompt of one positive click."""
    return Prompt(points=[Point2D(x=float(x), y=float(y))], **fields)


def mouse(x: float, y: float) -> Point:
    """As rqt_image_view sends it."""
    return Point(x=float(x), y=float(y))


def stamp_of(message: Any) -> int:
    """Nanoseconds of a message's header."""
    return int(message.header.stamp.sec * 10**9 + message.header.stamp.nanosec)


def new_frames(messages: list[RegionArray], since: int = 0) -> list[RegionArray]:
    """Without the repetitions that a finished text causes."""
    return list({stamp_of(message): message for message in messages[since:]}.values())


@contextmanager
def pam(
    *parameters: str, script: Sequence[str] = FAKE_NODE, arguments: Sequence[str] = ()
) -> Iterator[tuple[Client, Process]]:
    """Starts `pam_node` with these parameters (`name:=value`) and a robot's client; ends both."""
    # Not in the checkout, where a folder could be taken for the package.
    with tempfile.TemporaryDirectory() as folder, Processes(Path(folder), _ENVIRONMENT) as processes:
        pairs = [part for parameter in parameters for part in ("-p", parameter)]
        process = processes.start("node", script, ros_arguments=[*arguments, *pairs], log=True)
        with Client("robot", processes.domain) as robot:
            yield robot, process
        process.kill()
