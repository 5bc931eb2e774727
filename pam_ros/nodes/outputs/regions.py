"""`~/regions`, `~/detections`, `~/detections_3d`: a frame's regions, in our messages and in vision_msgs."""

from __future__ import annotations

import time
from typing import Any

from rclpy.node import Node
from vision_msgs.msg import Detection2DArray, Detection3DArray

from pam_ros.msg import RegionArray
from pam_ros.nodes.conversions import detections_3d_message, detections_message, region_array
from pam_ros.nodes.outputs.snapshot import Snapshot
from pam_ros.nodes.sink import Sink
from pam_ros.nodes.surfaces import Surfaces
from pam_ros.nodes.throttled_log import ThrottledLog
from pam_ros.nodes.topics import advertise
from pam_ros.runtime.statistics import Recent

_DEPTH = 5  # frames that may wait for a slow subscriber, in the sink and in the publisher


class _FrameOutput:
    """A topic with one message for every frame."""

    def __init__(
        self, node: Node, log: ThrottledLog, kind: type, topic: str, *, always: bool = False
    ) -> None:
        """`always`: published with or without subscribers. Without subscribers its thread sleeps."""
        self._always = always
        self._publisher = advertise(node, kind, topic, depth=_DEPTH)
        self.publishers = (self._publisher,)
        self.sink = Sink(topic, self._publish, log.warn, capacity=_DEPTH)

    def on_frame(self, snapshot: Snapshot) -> None:
        """Queues a frame; a text about a frame that still waits is published with it."""
        if self._always or self._publisher.get_subscription_count():
            self.sink.offer(snapshot, key=snapshot.result.stamp_ns)

    def clear(self) -> None:
        """The regions are gone."""
        self.sink.discard()

    def _publish(self, snapshot: Snapshot) -> None:
        self._publisher.publish(self._message(snapshot))

    def _message(self, snapshot: Snapshot) -> Any:
        raise NotImplementedError


class RegionsOutput(_FrameOutput):
    """`~/regions`. Recorders may match late, so it is always published.

    `latency_s`: from an image's callback to its published regions.
    """

    def __init__(self, node: Node, log: ThrottledLog, surfaces: Surfaces) -> None:
        self._surfaces = surfaces
        self.latency_s = Recent()
        super().__init__(node, log, RegionArray, "~/regions", always=True)

    def _publish(self, snapshot: Snapshot) -> None:
        super()._publish(snapshot)
        if snapshot.result.arrived_s is not None:
            self.latency_s.add(time.monotonic() - snapshot.result.arrived_s)

    def _message(self, snapshot: Snapshot) -> RegionArray:
        return region_array(self._surfaces.of_frame(snapshot.result), snapshot.header)


class DetectionsOutput(_FrameOutput):
    """`~/detections`."""

    def __init__(self, node: Node, log: ThrottledLog) -> None:
        super().__init__(node, log, Detection2DArray, "~/detections")

    def _message(self, snapshot: Snapshot) -> Detection2DArray:
        return detections_message(snapshot.result.regions, snapshot.names, snapshot.header)


class Detections3DOutput(_FrameOutput):
    """`~/detections_3d`; empty without depth."""

    def __init__(self, node: Node, log: ThrottledLog, surfaces: Surfaces) -> None:
        self._surfaces = surfaces
        super().__init__(node, log, Detection3DArray, "~/detections_3d")

    def _message(self, snapshot: Snapshot) -> Detection3DArray:
        regions = self._surfaces.of_frame(snapshot.result).regions
        return detections_3d_message(regions, snapshot.names, snapshot.header)
