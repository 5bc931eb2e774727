"""The camera's images: `image`, or `image/compressed`, to the engine; only the newest counts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from rclpy.node import Node
from sensor_msgs.msg import CompressedImage, Image

from pam_ros.errors import PamError
from pam_ros.nodes.conversions import stamp_ns
from pam_ros.nodes.images import ImageReader
from pam_ros.nodes.inputs.image_watch import ImageWatch
from pam_ros.nodes.link import EngineLink
from pam_ros.nodes.requests import MAX_NAME, check_length
from pam_ros.nodes.throttled_log import ThrottledLog
from pam_ros.nodes.topics import listen, topic_beside
from pam_ros.records import Frame

# After a callback, rclpy's executor computes for most of a millisecond and would hold Python's lock just when
# the worker and the outputs want it. So it waits until the masks are published.
HAND_OVER_S = 0.002

Message = TypeVar("Message", Image, CompressedImage)


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """An image as it went to the engine, without its pixels; `size` is (height, width)."""

    stamp_ns: int
    frame_id: str
    size: tuple[int, int]


class CameraInput:
    """One subscription of one camera.

    Attributes:
        base_topic: the raw image topic, after remapping, whether it is subscribed to or not.
        topic: the topic subscribed to.
        rejected: number of images that could not be read.
        newest: the image that went to the engine last; None before the first.
        watch: counts what did not arrive.
    """

    def __init__(
        self, node: Node, *, camera: str, prefix: str, compressed: bool, link: EngineLink, log: ThrottledLog
    ) -> None:
        """`prefix` goes before the topic's name: "" or "<camera>/"."""
        self.rejected = 0
        self.newest: ImageInfo | None = None
        self._node = node
        self._camera = camera
        self._link = link
        self._log = log
        self._pictures = ImageReader(lambda line: log.inform_once(f"{self.topic}: {line}"))
        self.base_topic: str = node.resolve_topic_name(f"{prefix}image")
        self.topic: str = self.base_topic
        # Depth 1: an image that waits in a queue is stale when it is read.
        if compressed:
            self.topic = topic_beside(node, f"{prefix}image/compressed", self.base_topic, "/compressed")
            listen(
                node,
                log,
                CompressedImage,
                self.topic,
                self._on_compressed,
                depth=1,
                best_effort=True,
                large=True,
            )
        else:
            listen(node, log, Image, f"{prefix}image", self._on_image, depth=1, best_effort=True, large=True)
        self.watch = ImageWatch(node, topic=self.topic, compressed=compressed)

    def check(self) -> None:
        """Called periodically: warns if no images arrive, unless none are needed yet."""
        if self._link.active or self._link.starting:
            self.watch.check()

    def clear(self) -> None:
        """The engine was stopped: the camera may change."""
        self._pictures.forget()

    def _on_image(self, message: Image) -> None:
        self._submit(message, self._pictures.from_image)

    def _on_compressed(self, message: CompressedImage) -> None:
        self._submit(message, self._pictures.from_compressed)

    def _submit(self, message: Message, picture_from: Callable[[Message], NDArray[np.uint8]]) -> None:
        arrived_s = time.monotonic()
        with self._counting():
            image_ns = stamp_ns(message.header.stamp)
        loading = not self._link.active and self._link.starting
        self.watch.arrived(0 if loading else image_ns)  # a process that loads a model is too busy to judge
        if loading:
            self._log.inform_once("receiving images; they are processed once autostart has loaded the model")
            return
        engine = self._link.engine  # raises before the image is converted
        with self._counting():
            check_length("frame_id", message.header.frame_id, MAX_NAME)
            picture = picture_from(message)
        if image_ns == 0:
            image_ns = self._arrival_ns()
        frame = Frame(image=picture, stamp_ns=image_ns, frame_id=message.header.frame_id, camera=self._camera)
        engine.submit_frame(frame, arrived_s)
        self.newest = ImageInfo(image_ns, frame.frame_id, frame.size)
        time.sleep(HAND_OVER_S)

    @contextmanager
    def _counting(self) -> Iterator[None]:
        """Counts an image that cannot be read."""
        try:
            yield
        except PamError:
            self.rejected += 1
            raise

    def _arrival_ns(self) -> int:
        """The time now, for an image without a stamp; this machine's while simulated time stands at zero."""
        now_ns = int(self._node.get_clock().now().nanoseconds)
        clock = (
            "arrival time" if now_ns else "this machine's time, as use_sim_time is set but no /clock arrives"
        )
        self._log.warn_once(
            f"images on {self.topic} have zero stamps, so stamped prompts match only approximately; "
            f"using {clock}"
        )
        return now_ns or time.time_ns()
