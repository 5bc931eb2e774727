"""The camera's depth: `depth`, or `depth/compressedDepth`; the newest messages wait until they are needed."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from rclpy.node import Node
from sensor_msgs.msg import CompressedImage, Image

from pam_ros.nodes.conversions import stamp_ns
from pam_ros.nodes.images import depth_from_compressed, depth_from_image
from pam_ros.nodes.throttled_log import ThrottledLog
from pam_ros.nodes.topics import listen, topic_beside
from pam_ros.records import DepthImage

HISTORY = 30  # messages kept; as many as frames (`frames.history`)
_MOST_BYTES = 256 << 20  # of these messages
WAIT_S = 0.1  # for the depth of an image that came first
_RATED = 5  # messages that tell how often depth comes
_SILENT_S = 1.0  # a stream that has been silent for so long is not waited for


class DepthInput:
    """One subscription of one camera. A message is converted when it is asked for, once.

    Attributes:
        topic: the topic subscribed to.
    """

    def __init__(
        self,
        node: Node,
        *,
        prefix: str,
        compressed: bool,
        tolerance_s: Callable[[], float],
        log: ThrottledLog,
    ) -> None:
        """`tolerance_s` gives the largest difference between the stamps of an image and its depth."""
        self._node = node
        self._tolerance_s = tolerance_s
        self._changed = threading.Condition()
        self._messages: deque[tuple[int, Image | CompressedImage]] = deque(maxlen=HISTORY)
        self._arrived_s = -_SILENT_S  # steady
        self._reading = threading.Lock()
        self._converted: DepthImage | None = None  # the one asked for last
        self.topic: str = node.resolve_topic_name(f"{prefix}depth")
        if compressed:
            self.topic = topic_beside(node, f"{prefix}depth/compressedDepth", self.topic, "/compressedDepth")
            listen(node, log, CompressedImage, self.topic, self._take, depth=1, best_effort=True, large=True)
        else:
            listen(node, log, Image, f"{prefix}depth", self._take, depth=1, best_effort=True, large=True)

    @property
    def arrived(self) -> bool:
        """Whether any depth has arrived."""
        return bool(self._messages)

    def at(self, image_ns: int) -> DepthImage | None:
        """The depth image nearest to an image's stamp; None if there is none within the tolerance.

        Waits, at most WAIT_S, for a stream that has not reached the stamp yet, unless it is further behind:
        not for ROS callbacks. Raises ImageError if the message cannot be read.
        """
        with self._changed:
            if self._due(image_ns):
                self._changed.wait_for(lambda: self._reached(image_ns), WAIT_S)
            if not self._messages:
                return None
            depth_ns, message = nearest(self._messages, image_ns)
        if abs(depth_ns - image_ns) > self._tolerance_s() * 1e9:
            return None
        with self._reading:  # not under the other lock, for which the executor waits
            if self._converted is None or self._converted.stamp_ns != depth_ns:
                self._converted = DepthImage(depth_metres(message), depth_ns, message.header.frame_id)
            return self._converted

    def missing(self, image_ns: int) -> str:
        """Why there is no depth for an image, and what to do; empty if nobody publishes depth."""
        if not self._node.count_publishers(self.topic):
            return ""
        with self._changed:
            stamps = [depth_ns for depth_ns, _ in self._messages]
        if not stamps:
            return (
                f"{self.topic} is published, but no message arrives; large ones need larger socket buffers, "
                f"or, if sent reliably, qos_overrides.{self.topic}.subscription.reliability:=reliable"
            )
        off_s = min(abs(each - image_ns) for each in stamps) / 1e9
        if stamps[-1] < image_ns:
            return (
                f"{self.topic} is {off_s:.3f} s behind the images, but the node waits {WAIT_S:g} s at most; "
                "publish it sooner, synchronise the two streams, or raise depth.stamp_tolerance_s"
            )
        return (
            f"the nearest message on {self.topic} is {off_s:.3f} s away from the image; "
            "synchronise the two streams, or raise depth.stamp_tolerance_s"
        )

    def _due(self, image_ns: int) -> bool:
        """Whether the next message may be the image's, and comes in time if it is as late as the last one.

        Depth may come for every tenth image only. Waiting in vain for each image would hold up the outputs.
        """
        stamps = [depth_ns for depth_ns, _ in self._messages][-_RATED:]
        gaps = [(later - earlier) / 1e9 for earlier, later in pairwise(stamps)]
        if not gaps:
            return True
        ahead_s, gap_s = (image_ns - stamps[-1]) / 1e9, min(gaps)
        comes_in_s = ahead_s - (time.monotonic() - self._arrived_s)
        return ahead_s >= gap_s - self._tolerance_s() and comes_in_s <= WAIT_S + gap_s

    def _reached(self, image_ns: int) -> bool:
        silent = time.monotonic() - self._arrived_s >= _SILENT_S
        return silent or any(depth_ns >= image_ns for depth_ns, _ in self._messages)

    def _take(self, message: Image | CompressedImage) -> None:
        depth_ns = stamp_ns(message.header.stamp)
        with self._changed:
            if self._messages and depth_ns < self._messages[-1][0]:
                self._messages.clear()  # time started over
            self._messages.append((depth_ns, message))
            while len(self._messages) > 1 and sum(len(it.data) for _, it in self._messages) > _MOST_BYTES:
                self._messages.popleft()
            self._arrived_s = time.monotonic()
            self._changed.notify_all()


def nearest(
    messages: Iterable[tuple[int, Image | CompressedImage]], image_ns: int
) -> tuple[int, Image | CompressedImage]:
    """Of messages with their stamps, the one nearest to an image's stamp. There must be one."""
    return min(messages, key=lambda each: abs(each[0] - image_ns))


def depth_metres(message: Image | CompressedImage) -> NDArray[np.float32]:
    """(H, W) metres; 0 and NaN mean not measured. Raises ImageError if the message cannot be read."""
    return depth_from_image(message) if isinstance(message, Image) else depth_from_compressed(message)
