"""`~/overlay` and `~/overlay/compressed`: drawn on a thread of its own, and only when somebody subscribes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from pam_ros.nodes.conversions import region_name, time_message
from pam_ros.nodes.images import image_message, jpeg_message
from pam_ros.nodes.parameters import PerceptionSettings
from pam_ros.nodes.throttled_log import ThrottledLog
from pam_ros.runtime.events import FrameResult
from pam_ros.runtime.overlay import draw_overlay, font_hint


class OverlayPublisher:
    """Draws the newest result offered; what it has no time for is skipped."""

    def __init__(self, node: Node, log: ThrottledLog, settings: Callable[[], PerceptionSettings]) -> None:
        qos, overridable = QoSProfile(depth=1), QoSOverridingOptions.with_default_policies()
        self._raw = node.create_publisher(Image, "~/overlay", qos, qos_overriding_options=overridable)
        self._compressed = node.create_publisher(
            CompressedImage, "~/overlay/compressed", qos, qos_overriding_options=overridable
        )
        self._log = log
        self._settings = settings
        self._offered = threading.Condition()
        self._newest: tuple[FrameResult, Mapping[int, str]] | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="overlay", daemon=True)
        self._thread.start()

    @property
    def wanted(self) -> bool:
        """Whether anybody looks."""
        return bool(self._raw.get_subscription_count() or self._compressed.get_subscription_count())

    def offer(self, result: FrameResult, captions: Mapping[int, str]) -> None:
        """Takes a result to draw; returns at once."""
        with self._offered:
            self._newest = (result, captions)
            self._offered.notify()

    def stop(self) -> None:
        """Ends the thread."""
        with self._offered:
            self._stopping = True
            self._offered.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._offered:
                self._offered.wait_for(lambda: self._newest is not None or self._stopping)
                if self._stopping or self._newest is None:
                    return
                (result, captions), self._newest = self._newest, None
            try:
                self._publish(result, captions)
            except Exception as error:  # a picture lost must not end the thread
                self._log.warn(f"the overlay could not be drawn: {type(error).__name__}: {error}")

    def _publish(self, result: FrameResult, captions: Mapping[int, str]) -> None:
        settings = self._settings()
        hint = font_hint([*captions.values(), *map(region_name, result.regions)], settings.overlay)
        if hint and settings.overlay.texts:
            self._log.warn_once(hint)
        picture = draw_overlay(result.image, result.regions, captions=captions, style=settings.overlay)
        header = Header(stamp=time_message(result.stamp_ns), frame_id=result.frame_id)
        if self._raw.get_subscription_count():
            self._raw.publish(image_message(picture, "rgb8", header))
        if self._compressed.get_subscription_count():
            self._compressed.publish(jpeg_message(picture, settings.jpeg_quality, header))
