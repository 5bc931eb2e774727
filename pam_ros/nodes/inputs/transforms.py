"""Transforms of the robot, by tf2_ros or, without it, by a listener of its own to `/tf` and `/tf_static`."""

from __future__ import annotations

import functools
from typing import Any, Protocol

import numpy as np
from rclpy.node import Node
from rclpy.time import Time

from pam_ros.errors import PamError
from pam_ros.geometry import rotation_matrix
from pam_ros.nodes.conversions import stamp_ns
from pam_ros.nodes.inputs.transform_buffer import (
    CACHE_S,
    Transform,
    TransformBuffer,
    TransformProblem,
    transform_error,
)
from pam_ros.nodes.throttled_log import ThrottledLog
from pam_ros.nodes.topics import listen

_DEPTH = 100  # messages that may wait, as in tf2_ros
_MAX_BYTES = 1 << 18  # of a message; a transform has about 100


class Transforms(Protocol):
    """What is known of the robot's frames."""

    def lookup(self, target: str, source: str, stamp_ns: int) -> Transform:
        """The transform that maps points of `source` into `target` at that time. Raises TransformError."""


def listen_to_transforms(node: Node, log: ThrottledLog) -> Transforms:
    """Subscribes to `/tf` and `/tf_static`; call it when transforms are needed, as they can be many."""
    try:
        import tf2_ros
    except ImportError:
        return ListenedTransforms(node, log)
    return Tf2Transforms(node, tf2_ros)


class Tf2Transforms:
    """Through tf2_ros. It ignores what is 10 s older than a frame's newest pose; here, time starts over."""

    def __init__(self, node: Node, tf2_ros: Any) -> None:
        self._tf2 = tf2_ros
        self._buffer = tf2_ros.Buffer()
        self._newest_ns: dict[str, int] = {}  # stamp of each moving frame
        self._insert, self._buffer.set_transform = self._buffer.set_transform, self._take
        self._listener = tf2_ros.TransformListener(self._buffer, node, spin_thread=False)

    def lookup(self, target: str, source: str, stamp_ns: int) -> Transform:
        """See `Transforms`."""
        target, source = target.lstrip("/"), source.lstrip("/")
        try:
            found = self._buffer.lookup_transform(target, source, Time(nanoseconds=stamp_ns)).transform
        except self._tf2.TransformException as error:
            problem = {
                self._tf2.LookupException: TransformProblem.UNKNOWN,
                self._tf2.ConnectivityException: TransformProblem.UNCONNECTED,
            }.get(type(error), TransformProblem.WRONG_TIME)
            raise transform_error(target, source, problem, str(error).rstrip(".")) from None
        turn, shift = found.rotation, found.translation
        return Transform(
            rotation_matrix((turn.x, turn.y, turn.z, turn.w)), np.array((shift.x, shift.y, shift.z))
        )

    def _take(self, message: Any, authority: str) -> None:
        """Called by the listener. Static transforms outlive `clear`."""
        frame, at_ns = message.child_frame_id, stamp_ns(message.header.stamp)
        if at_ns < self._newest_ns.get(frame, at_ns) - CACHE_S * 1e9:
            self._buffer.clear()
            self._newest_ns.clear()
        self._newest_ns[frame] = max(at_ns, self._newest_ns.get(frame, at_ns))
        self._insert(message, authority)


class ListenedTransforms:
    """Through a buffer of this package."""

    def __init__(self, node: Node, log: ThrottledLog) -> None:
        from tf2_msgs.msg import TFMessage  # where tf2_ros is missing, pam_ros brings it

        self._log = log
        self._buffer = TransformBuffer()
        for topic, static in (("/tf", False), ("/tf_static", True)):
            take = functools.partial(self._take, static=static)
            listen(
                node,
                log,
                TFMessage,
                topic,
                take,
                depth=_DEPTH,
                latched=static,
                max_bytes=lambda: _MAX_BYTES,
            )

    def lookup(self, target: str, source: str, stamp_ns: int) -> Transform:
        """See `Transforms`."""
        return self._buffer.lookup(target, source, stamp_ns)

    def _take(self, message: Any, static: bool) -> None:
        for each in message.transforms:
            turn, shift = each.transform.rotation, each.transform.translation
            try:
                self._buffer.insert(
                    parent=each.header.frame_id,
                    child=each.child_frame_id,
                    stamp_ns=stamp_ns(each.header.stamp),
                    quaternion_xyzw=(turn.x, turn.y, turn.z, turn.w),
                    translation_m=(shift.x, shift.y, shift.z),
                    static=static,
                )
            except PamError as error:
                self._log.warn(f"{'/tf_static' if static else '/tf'} ignored: {error}")
