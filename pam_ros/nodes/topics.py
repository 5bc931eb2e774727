"""Publishers and subscriptions; parameters (`qos_overrides.…`) can override their quality of service."""

from __future__ import annotations

import functools
import math
import time
import traceback
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from rclpy.clock import Clock, ClockType
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSDurabilityPolicy, QoSProfile, QoSReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.serialization import deserialize_message
from rclpy.subscription import Subscription

from pam_ros.errors import CapacityError, InputError, PamError
from pam_ros.nodes.throttled_log import ThrottledLog

M = TypeVar("M")
_ADVICE = "; check its publisher, and that both sides have one version of the message"
_RENEWAL_S = 1.0  # how soon a subscription is made anew
_BURST_S = 0.2  # of reading at once
_SHARE = 1 / 3  # of the time, in the long run


def advertise(node: Node, kind: type, topic: str, *, depth: int, latched: bool = False) -> Publisher:
    """A reliable publisher; `latched` gives subscribers that come later the newest message."""
    profile = QoSProfile(depth=depth)  # a new one each time: rclpy writes overrides into it
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
    large: bool = False,
    max_bytes: Callable[[], int] | None = None,
    matched: Callable[[], None] | None = None,
) -> None:
    """Subscribes; an exception of the callback becomes a line in the log and is not raised further.

    `best_effort` also hears reliable publishers; `latched` also gets the newest message of publishers that
    were there before; `matched` is called whenever a publisher comes or goes. `large`, for messages as large
    as images: subscribes anew when a publisher has gone, see `_Renewed`. `max_bytes`, for messages of
    many small fields: a larger message is refused before it is read, and reading is rationed.
    """
    name = node.resolve_topic_name(topic)
    take: Callable[[Any], None] = callback
    if max_bytes is not None:
        take = _BoundedReader(kind, callback, max_bytes)
    take = guarded(log, name, take)

    def subscribe(on_match: Callable[[Any], None] | None) -> Subscription:
        profile = QoSProfile(depth=depth)  # a new one each time: rclpy writes overrides into it
        if best_effort:
            profile.reliability = QoSReliabilityPolicy.BEST_EFFORT
        if latched:
            profile.durability = QoSDurabilityPolicy.TRANSIENT_LOCAL
        return node.create_subscription(
            kind,
            topic,
            take,
            profile,
            raw=max_bytes is not None,
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
            event_callbacks=SubscriptionEventCallbacks(matched=on_match),
        )

    if large:
        _Renewed(node, lambda on_match: subscribe(guarded(log, name, on_match)))
    else:
        subscribe(None if matched is None else guarded(log, name, lambda _: matched()))


class _Renewed:
    """A subscription that is made anew when a publisher has gone.

    Fast DDS keeps what a best-effort subscription has received of a message whose publisher goes meanwhile,
    until the subscription goes, too: an image for each camera that is killed.
    """

    def __init__(self, node: Node, subscribe: Callable[[Callable[[Any], None]], Subscription]) -> None:
        self._node = node
        self._subscribe = subscribe
        self._left = False
        self._subscription = subscribe(self._on_match)
        # A steady clock: simulated time may stand still. Not in the event's callback, which belongs to it.
        node.create_timer(_RENEWAL_S, self._renew, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def _on_match(self, status: Any) -> None:
        self._left |= status.current_count_change < status.total_count_change  # several changes are one event

    def _renew(self) -> None:
        if self._left:
            self._left = False
            old, self._subscription = self._subscription, self._subscribe(self._on_match)
            self._node.destroy_subscription(old)


class _BoundedReader(Generic[M]):
    """Reads serialised messages, but no larger ones than `max_bytes`, and for a share of the time at most.

    Reading holds the interpreter; without these bounds a flood of messages would hold up services. A burst
    is read at once.
    """

    def __init__(self, kind: type[M], callback: Callable[[M], None], max_bytes: Callable[[], int]) -> None:
        self._kind = kind
        self._callback = callback
        self._max_bytes = max_bytes
        self._spent_s = 0.0  # of the burst, as of `_read_s` on the monotonic clock
        self._read_s = -math.inf

    def __call__(self, data: bytes) -> None:
        most, now_s = self._max_bytes(), time.monotonic()
        if len(data) > most:
            raise InputError(f"the message has {len(data)} bytes; at most {most} are allowed")
        self._spent_s = max(self._spent_s - _SHARE * (now_s - self._read_s), 0.0)
        self._read_s = now_s
        if self._spent_s > _BURST_S:
            raise CapacityError("messages come faster than they can be read; send fewer or smaller ones")
        start_s = time.thread_time()  # a busy machine makes no message expensive
        try:
            self._callback(read_message(data, self._kind, _ADVICE))
        finally:
            self._spent_s += time.thread_time() - start_s


def read_message(data: bytes, kind: type[M], advice: str = "") -> M:
    """A serialised message → the message.

    Raises InputError, which ends with `advice`, if the data hold no message of this kind.
    """
    try:
        message: M = deserialize_message(data, kind)
    except Exception as error:  # RMWError, a class of rclpy's extension module; strings raise others
        raise InputError(
            f"the message is corrupted: its {len(data)} bytes are not a {kind.__name__}{advice}"
        ) from error
    return message


def topic_beside(node: Node, name: str, topic: str, suffix: str) -> str:
    """`topic` + `suffix`, as image tools name what belongs to an image; `name` if that is remapped itself."""
    if node.resolve_topic_name(name) != node.resolve_topic_name(name, only_expand=True):
        return name
    return topic + suffix
