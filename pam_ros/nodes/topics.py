"""Publishers and subscriptions; parameters (`qos_overrides.…`) can override their quality of service."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable
from typing import TypeVar

from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSDurabilityPolicy, QoSProfile, QoSReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions

from pam_ros.errors import PamError
from pam_ros.nodes.throttled_log import ThrottledLog

M = TypeVar("M")


def advertise(node: Node, kind: type, topic: str, *, depth: int, latched: bool = False) -> Publisher:
    """A reliable publisher; `latched` gives subscribers that come later the newest message."""
    profile = QoSProfile(depth=depth)  # made anew each time: rclpy writes overrides into it
    if latched:
        profile.durability = QoSDurabilityPolicy.TRANSIENT_LOCAL
    options = QoSOverridingOptions.with_default_policies()
    return node.create_publisher(kind, topic, profile, qos_overriding_options=options)


def guarded(log: ThrottledLog, name: str, callback: Callable[[M], None]) -> Callable[[M], None]:
    """The callback, with its exceptions as lines in the log: one that leaves it would end the executor."""

    @functools.wraps(callback)
    def call(message: M) -> None:
        try:
            callback(message)
        except PamError as error:
            log.warn(f"{name} ignored: {error}")
        except Exception as error:
            log.warn(f"{name} failed: {type(error).__name__}: {error}\n{traceback.format_exc()}")

    return call


def listen(
    node: Node,
    log: ThrottledLog,
    kind: type[M],
    topic: str,
    callback: Callable[[M], None],
    *,
    depth: int,
    best_effort: bool = False,
    latched: bool = False,
    matched: Callable[[], None] | None = None,
) -> None:
    """Subscribes; an exception of the callback becomes a line in the log and goes no further.

    `latched` also gets the newest message of publishers that were there before; `matched` is called whenever
    a publisher comes or goes.
    """
    name = node.resolve_topic_name(topic)
    profile = QoSProfile(depth=depth)
    if best_effort:
        profile.reliability = QoSReliabilityPolicy.BEST_EFFORT
    if latched:
        profile.durability = QoSDurabilityPolicy.TRANSIENT_LOCAL
    options = QoSOverridingOptions.with_default_policies()
    on_match = None if matched is None else guarded(log, name, lambda _: matched())
    node.create_subscription(
        kind,
        topic,
        guarded(log, name, callback),
        profile,
        qos_overriding_options=options,
        event_callbacks=SubscriptionEventCallbacks(matched=on_match),
    )


def topic_beside(node: Node, name: str, topic: str, suffix: str) -> str:
    """`topic` + `suffix`, as image tools name what belongs to an image; `name` if that is remapped itself."""
    if node.resolve_topic_name(name) != node.resolve_topic_name(name, only_expand=True):
        return name
    return topic + suffix
