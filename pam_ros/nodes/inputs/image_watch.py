"""Whether a camera's images arrive; if not, the ROS graph says why."""

from __future__ import annotations

import time
from collections.abc import Iterable

from rclpy.node import Node
from rclpy.qos import QoSReliabilityPolicy
from rclpy.topic_endpoint_info import TopicEndpointInfo

from pam_ros.nodes.throttled_log import ThrottledLog
from pam_ros.runtime.statistics import MISSING_ABOVE, GapCounter

SILENT_S = 5.0  # without an image, before a warning
_MOST_TOPICS = 8  # named in a warning
_IMAGE, _COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"


class ImageWatch:
    """Watches one image topic; warns once when images do not arrive or get lost, and again after a recovery.

    Its logger is a child of the node's, "images", so that `--log-level pam.images:=error` silences it for a
    camera that pauses on purpose.

    Attributes:
        gaps: counts the images that did not arrive.
    """

    def __init__(self, node: Node, *, topic: str, compressed: bool) -> None:
        self.gaps = GapCounter()
        self._node = node
        self._logger = node.get_logger().get_child("images")
        self._log = ThrottledLog(self._logger)
        self._topic = topic
        self._kind, self._other_kind = (_COMPRESSED, _IMAGE) if compressed else (_IMAGE, _COMPRESSED)
        self._arrived_s = time.monotonic()  # of the newest image, or when the watch began
        self._any = False  # whether an image has come
        self._silent = self._losing = False  # as reported last

    def arrived(self, stamp_ns: int) -> None:
        """An image came, readable or not; a zero stamp is not counted."""
        self._arrived_s, self._any = time.monotonic(), True
        if self._silent:
            self._silent = False
            self._logger.info(f"images arrive on {self._topic}")
        if stamp_ns:
            self.gaps.add(stamp_ns)

    def check(self) -> None:
        """Called periodically: warns if images do not arrive or get lost."""
        if not self._silent and time.monotonic() - self._arrived_s > SILENT_S:
            self._silent = True
            silence = f"no image has arrived on {self._topic} for {SILENT_S:g} s"
            if self._any and not self._node.count_publishers(self._topic):
                self._log.warn(f"{silence}: its publisher has gone; start the camera again")
            else:
                self._log.warn(
                    f"{silence}: {self._reason()}. {self._others()}; remap `image` to the right one: "
                    "-r image:=TOPIC, or image:=TOPIC for pam.launch.py"
                )
        losing = not self._silent and self.gaps.missing_fraction > MISSING_ABOVE
        if losing and not self._losing:
            self._log.warn(
                f"{self.gaps.missing_fraction:.0%} of the images on {self._topic} do not arrive, as gaps in "
                "their stamps show; docs/transport.md says why and what helps"
            )
        self._losing = losing

    def _reason(self) -> str:
        publishers = self._node.get_publishers_info_by_topic(self._topic)
        kinds = {publisher.topic_type for publisher in publishers}
        if not publishers:
            return "nobody publishes it"
        if self._kind not in kinds:
            advice = ""
            if self._other_kind in kinds:
                transport = "compressed" if self._kind == _IMAGE else "raw"
                advice = f" (image_transport:={transport} with the base topic reads those)"
            return f"it is published as {', '.join(sorted(kinds))}, this node reads {self._kind}{advice}"
        if not any(self._hears(publisher) for publisher in publishers):
            return "its publishers are best effort, but qos_overrides ask for reliable ones"
        senders = f"{len(publishers)} publisher{'s' * (len(publishers) > 1)}"
        return f"it has {senders}, but nothing is sent, or everything gets lost (docs/transport.md)"

    def _hears(self, publisher: TopicEndpointInfo) -> bool:
        best_effort = QoSReliabilityPolicy.BEST_EFFORT
        own = [
            each.qos_profile.reliability
            for each in self._node.get_subscriptions_info_by_topic(self._topic)
            if each.node_name == self._node.get_name()
        ]
        return best_effort in own or publisher.qos_profile.reliability != best_effort

    def _others(self) -> str:
        """The image topics that exist, without those of this package's nodes."""
        topics = [
            f"{topic} ({kind}, {reliability})"
            for topic, kinds in self._node.get_topic_names_and_types()
            for kind in kinds
            if kind in (_IMAGE, _COMPRESSED)
            if (reliability := _reliabilities(self._foreign(topic)))
        ]
        if not topics:
            return "There are no image topics"
        left_out = f" and {len(topics) - _MOST_TOPICS} more" if len(topics) > _MOST_TOPICS else ""
        return f"Image topics here: {', '.join(topics[:_MOST_TOPICS])}{left_out}"

    def _foreign(self, topic: str) -> list[TopicEndpointInfo]:
        own = self._node.get_name()
        return [it for it in self._node.get_publishers_info_by_topic(topic) if it.node_name != own]


def _reliabilities(publishers: Iterable[TopicEndpointInfo]) -> str:
    names = {publisher.qos_profile.reliability.name.lower().replace("_", " ") for publisher in publishers}
    return " and ".join(sorted(names))
