"""The topics one camera's results go out on. Called on the engine's worker thread, so nothing here waits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSDurabilityPolicy, QoSProfile
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from vision_msgs.msg import Detection2DArray, LabelInfo

from pam_ros.msg import RegionArray, StreamingCaption
from pam_ros.nodes.conversions import (
    LARGEST_LABEL,
    caption_message,
    detections_message,
    label_image,
    label_info,
    region_array,
    region_name,
    time_message,
)
from pam_ros.nodes.images import image_message
from pam_ros.nodes.outputs.overlay import OverlayPublisher
from pam_ros.nodes.parameters import PerceptionSettings
from pam_ros.nodes.throttled_log import ThrottledLog
from pam_ros.records import Region, Task, Text
from pam_ros.runtime.events import CaptionEvent, FrameResult, TextEvent


class Outputs:
    """`~/regions`, `~/label_image`, `~/label_info`, `~/detections`, `~/streaming_captions`, `~/overlay`.

    Label image, detections and overlay are made only when somebody subscribes.
    """

    def __init__(self, node: Node, log: ThrottledLog, settings: Callable[[], PerceptionSettings]) -> None:
        def publisher(kind: type, topic: str, qos: QoSProfile) -> Publisher:
            options = QoSOverridingOptions.with_default_policies()
            return node.create_publisher(kind, topic, qos, qos_overriding_options=options)

        latched = QoSProfile(depth=1, durability=QoSDurabilityPolicy.TRANSIENT_LOCAL)
        self._regions = publisher(RegionArray, "~/regions", QoSProfile(depth=5))
        self._label_image = publisher(Image, "~/label_image", QoSProfile(depth=1))
        self._label_info = publisher(LabelInfo, "~/label_info", latched)
        self._detections = publisher(Detection2DArray, "~/detections", QoSProfile(depth=5))
        self._captions = publisher(StreamingCaption, "~/streaming_captions", QoSProfile(depth=50))
        self._overlay = OverlayPublisher(node, log, settings)
        self._log = log
        self._newest: FrameResult | None = None
        self._named: tuple[tuple[int, str], ...] = ()  # what the latched label info says
        self._words: dict[int, str] = {}  # region id → the newest caption or growing text, for the overlay

    @property
    def frame_id(self) -> str:
        """Of the newest result; empty before the first."""
        return self._newest.frame_id if self._newest is not None else ""

    def on_frame(self, result: FrameResult) -> None:
        """Publishes the masks of one frame."""
        self._newest = result
        self._words = {region.region_id: self._words.get(region.region_id, "") for region in result.regions}
        header = Header(stamp=time_message(result.stamp_ns), frame_id=result.frame_id)
        self._regions.publish(region_array(result, header))
        self._publish_names(result.regions, header)
        if self._detections.get_subscription_count():
            self._detections.publish(detections_message(result.regions, header))
        if self._label_image.get_subscription_count():
            self._label_image.publish(
                image_message(label_image(result.regions, result.size), "16UC1", header)
            )
        if result.regions and result.regions[-1].region_id > LARGEST_LABEL:
            self._log.warn_once(f"regions with ids above {LARGEST_LABEL} are not in ~/label_image")
        self._draw()

    def on_text(self, event: TextEvent) -> None:
        """Shows a growing text on the overlay; a finished one sends the newest regions again, now with it.

        Without this the text of a region on a camera that stands still (one image, a paused bag) would never
        reach the topics.
        """
        if event.region_id in self._words and event.task is not Task.LABEL:  # which stands there as the name
            self._words[event.region_id] = event.text
        if not event.final or self._newest is None:
            return
        self.on_frame(
            replace(self._newest, regions=tuple(_with_text(it, event) for it in self._newest.regions))
        )

    def on_caption(self, event: CaptionEvent) -> None:
        """Publishes a growing or finished caption; a finished one has the overlay drawn again, with it."""
        if event.region_id in self._words:
            self._words[event.region_id] = event.text
        self._captions.publish(caption_message(event))
        if event.final:
            self._draw()

    def _draw(self) -> None:
        if self._newest is not None and self._overlay.wanted:
            self._overlay.offer(self._newest, dict(self._words))

    def clear(self) -> None:
        """Forgets the regions: the engine was stopped."""
        if self._newest is not None:
            header = Header(stamp=time_message(self._newest.stamp_ns), frame_id=self._newest.frame_id)
            self._publish_names((), header)
        self._newest = None
        self._words = {}

    def stop(self) -> None:
        """Ends the overlay's thread."""
        self._overlay.stop()

    def _publish_names(self, regions: tuple[Region, ...], header: Header) -> None:
        named = tuple((region.region_id, region_name(region)) for region in regions if region_name(region))
        if named != self._named:
            self._named = named
            self._label_info.publish(label_info(regions, header))


def _with_text(region: Region, event: TextEvent) -> Region:
    if region.region_id != event.region_id:
        return region
    text = Text(text=event.text, stamp_ns=event.stamp_ns)
    return replace(region, texts={**region.texts, (event.task, event.language): text})
