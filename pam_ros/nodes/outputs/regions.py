"""`~/regions`, `~/detections`, `~/detections_3d`: a frame's regions, in our messages and in vision_msgs."""

from __future__ import annotations

from rclpy.node import Node
from vision_msgs.msg import Detection2DArray, Detection3DArray

from pam_ros.msg import RegionArray
from pam_ros.nodes.conversions import detections_3d_message, detections_message, region_array
from pam_ros.nodes.outputs.snapshot import Snapshot
from pam_ros.nodes.sink import Sink
from pam_ros.nodes.surfaces import Surfaces
from pam_ros.nodes.throttled_log import ThrottledLog
from pam_ros.nodes.topics import advertise

_DEPTH = 5  # frames that may wait for a slow subscriber, in the sink and in the publisher


class RegionsOutput:
    """`~/regions`, published whether anybody subscribes or not: recorders may match late."""

    def __init__(self, node: Node, log: ThrottledLog, surfaces: Surfaces) -> None:
        self._surfaces = surfaces
        self._publisher = advertise(node, RegionArray, "~/regions", depth=_DEPTH)
        self.sink = Sink("~/regions", self._publish, log.warn, capacity=_DEPTH)

    def on_frame(self, snapshot: Snapshot) -> None:
        """Queues the regions; a text about a frame that still waits is published with it."""
        self.sink.offer(snapshot, key=snapshot.result.stamp_ns)

    def clear(self) -> None:
        """The regions are gone."""
        self.sink.discard()

    def _publish(self, snapshot: Snapshot) -> None:
        result = self._surfaces.of_frame(snapshot.result)
        self._publisher.publish(region_array(result, snapshot.header))


class DetectionsOutput:
    """`~/detections`, made only for subscribers."""

    def __init__(self, node: Node, log: ThrottledLog) -> None:
        self._publisher = advertise(node, Detection2DArray, "~/detections", depth=_DEPTH)
        self.sink = Sink("~/detections", self._publish, log.warn, capacity=_DEPTH)

    def on_frame(self, snapshot: Snapshot) -> None:
        """Queues the detections."""
        self.sink.offer(snapshot, key=snapshot.result.stamp_ns)

    def clear(self) -> None:
        """The regions are gone."""
        self.sink.discard()

    def _publish(self, snapshot: Snapshot) -> None:
        if self._publisher.get_subscription_count():
            self._publisher.publish(
                detections_message(snapshot.result.regions, snapshot.names, snapshot.header)
            )


class Detections3DOutput:
    """`~/detections_3d`, made only for subscribers; empty without depth."""

    def __init__(self, node: Node, log: ThrottledLog, surfaces: Surfaces) -> None:
        self._surfaces = surfaces
        self._publisher = advertise(node, Detection3DArray, "~/detections_3d", depth=_DEPTH)
        self.sink = Sink("~/detections_3d", self._publish, log.warn, capacity=_DEPTH)

    def on_frame(self, snapshot: Snapshot) -> None:
        """Queues the detections."""
        self.sink.offer(snapshot, key=snapshot.result.stamp_ns)

    def clear(self) -> None:
        """The regions are gone."""
        self.sink.discard()

    def _publish(self, snapshot: Snapshot) -> None:
        if self._publisher.get_subscription_count():
            regions = self._surfaces.of_frame(snapshot.result).regions
            self._publisher.publish(detections_3d_message(regions, snapshot.names, snapshot.header))
