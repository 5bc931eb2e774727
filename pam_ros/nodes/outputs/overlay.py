"""`~/overlay` and `~/overlay/compressed`: the regions drawn over the image, made only for subscribers."""

from __future__ import annotations

from collections.abc import Callable

from rclpy.node import Node
from sensor_msgs.msg import CompressedImage, Image

from pam_ros.nodes.images import image_message, jpeg_message
from pam_ros.nodes.outputs.snapshot import Snapshot
from pam_ros.nodes.parameters import PerceptionSettings
from pam_ros.nodes.sink import Sink
from pam_ros.nodes.throttled_log import ThrottledLog
from pam_ros.nodes.topics import advertise
from pam_ros.runtime.overlay import draw_overlay, font_hint


class OverlayOutput:
    """Draws the newest image; older ones that still wait are skipped."""

    def __init__(self, node: Node, log: ThrottledLog, settings: Callable[[], PerceptionSettings]) -> None:
        self._raw = advertise(node, Image, "~/overlay", depth=1)
        self._compressed = advertise(node, CompressedImage, "~/overlay/compressed", depth=1)
        self.publishers = (self._raw, self._compressed)
        self._log = log
        self._settings = settings
        self.sink = Sink("~/overlay", self._publish, log.warn)

    def on_frame(self, snapshot: Snapshot) -> None:
        """Queues an image to draw."""
        if self._raw.get_subscription_count() or self._compressed.get_subscription_count():
            self.sink.offer(snapshot)

    def clear(self) -> None:
        """The regions are gone."""
        self.sink.discard()

    def _publish(self, snapshot: Snapshot) -> None:
        settings, result = self._settings(), snapshot.result
        newest = {region_id: captions[0] for region_id, captions in snapshot.captions.items() if captions}
        texts = {region_id: caption.text for region_id, caption in newest.items()}
        hint = font_hint([*texts.values(), *snapshot.names.values()], settings.overlay)
        if hint and settings.overlay.texts:
            self._log.warn_once(hint)
        picture = draw_overlay(
            result.image,
            result.regions,
            captions=texts,
            growing={region_id for region_id, caption in newest.items() if not caption.final},
            last_seen=snapshot.last_seen,
            style=settings.overlay,
            mark=result.mark,
        )
        if self._raw.get_subscription_count():
            self._raw.publish(image_message(picture, "rgb8", snapshot.header))
        if self._compressed.get_subscription_count():
            self._compressed.publish(jpeg_message(picture, settings.jpeg_quality, snapshot.header))
