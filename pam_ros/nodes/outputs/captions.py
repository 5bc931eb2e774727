"""`~/streaming_captions`: rolling captions as they grow, and their final texts."""

from __future__ import annotations

from rclpy.node import Node

from pam_ros.msg import StreamingCaption
from pam_ros.nodes.conversions import caption_message
from pam_ros.nodes.sink import Sink
from pam_ros.nodes.throttled_log import ThrottledLog
from pam_ros.nodes.topics import advertise
from pam_ros.runtime.events import CaptionEvent

_CAPACITY = 1024  # captions that may wait: 64 of each of 16 regions


class CaptionsOutput:
    """A growing text that still waits is replaced by its newer state; every final text is published."""

    def __init__(self, node: Node, log: ThrottledLog) -> None:
        self._publisher = advertise(node, StreamingCaption, "~/streaming_captions", depth=50)
        self.sink = Sink("~/streaming_captions", self._publish, log.warn, capacity=_CAPACITY)

    def on_caption(self, event: CaptionEvent) -> None:
        """Queues a growing or finished caption."""
        self.sink.offer(event, key=(event.region_id, event.sequence))

    def _publish(self, event: CaptionEvent) -> None:
        self._publisher.publish(caption_message(event))
