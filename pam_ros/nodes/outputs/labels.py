"""`~/label_image` and `~/label_info`: a region id for every pixel, and the names of those ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rclpy.node import Node
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from vision_msgs.msg import LabelInfo

from pam_ros.nodes.conversions import LARGEST_LABEL, label_image, label_info
from pam_ros.nodes.images import image_message
from pam_ros.nodes.outputs.snapshot import Snapshot
from pam_ros.nodes.sink import Sink
from pam_ros.nodes.throttled_log import ThrottledLog
from pam_ros.nodes.topics import advertise
from pam_ros.runtime.events import FrameResult


@dataclass(frozen=True, slots=True)
class _Labels:
    """What to publish; `result` is None if only the names change."""

    header: Header
    names: Mapping[int, str]
    result: FrameResult | None


class LabelsOutput:
    """The image is made only for subscribers; the names are latched and published when they change."""

    def __init__(self, node: Node, log: ThrottledLog) -> None:
        self._image = advertise(node, Image, "~/label_image", depth=1)
        self._info = advertise(node, LabelInfo, "~/label_info", depth=1, latched=True)
        self.publishers = (self._image,)  # the names are latched
        self._offered: Mapping[int, str] = {}  # the newest names
        self._published: Mapping[int, str] = {}  # names in the latched message
        self._log = log
        self._newest_header = Header()
        self.sink = Sink("~/label_image", self._publish, log.warn)

    def on_frame(self, snapshot: Snapshot) -> None:
        """Queues the labels; only the newest frame's are published."""
        self._newest_header = snapshot.header
        if snapshot.names != self._offered or self._image.get_subscription_count():
            self._offered = snapshot.names
            self.sink.offer(_Labels(snapshot.header, snapshot.names, snapshot.result))

    def clear(self) -> None:
        """The regions are gone: no name is valid any more."""
        self._offered = {}
        self.sink.offer(_Labels(self._newest_header, {}, None))

    def _publish(self, labels: _Labels) -> None:
        if labels.names != self._published:
            self._info.publish(label_info(labels.names, labels.header))
            self._published = labels.names
        if labels.result is None:
            return
        regions = labels.result.regions
        if self._image.get_subscription_count():
            pixels = label_image(regions, labels.result.size)
            self._image.publish(image_message(pixels, "16UC1", labels.header))
        if regions and regions[-1].region_id > LARGEST_LABEL:
            self._log.warn_once(f"~/label_image (16 bit) omits regions with ids above {LARGEST_LABEL}")
