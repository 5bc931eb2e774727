"""Inputs without DDS: depth waits briefly and holds up nobody; reading floods is rationed, bursts are not."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pam_ros.msg", reason="needs the built ROS interfaces")

from rclpy.serialization import serialize_message
from ros_harness import image_of
from sensor_msgs.msg import CameraInfo, Image

from pam_ros.errors import CapacityError, InputError
from pam_ros.nodes import topics
from pam_ros.nodes.inputs import depth as depth_module
from pam_ros.nodes.inputs.depth import DepthInput
from pam_ros.records import DepthImage


class Node:
    """What a depth input needs of rclpy's node."""

    def resolve_topic_name(self, name: str) -> str:
        return f"/{name}"


class Clock:
    """Seconds, which a test advances."""

    now_s = 100.0
    cpu_s = 5.0

    def monotonic(self) -> float:
        return self.now_s

    def thread_time(self) -> float:
        return self.cpu_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


# ---- depth


@pytest.fixture
def depth(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> DepthInput:
    monkeypatch.setattr(depth_module, "listen", lambda *_, **__: None)
    monkeypatch.setattr(depth_module, "time", clock)
    return DepthInput(Node(), prefix="", compressed=False, tolerance_s=lambda: 0.01, log=None)  # type: ignore[arg-type]


def depth_message(stamp_ns: int) -> Image:
    message = image_of(np.full((4, 6), 1500, np.uint16), "16UC1")
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp_ns, 10**9)
    return message


def test_depth_that_comes_for_some_images_only_is_not_waited_for_each_time(
    depth: DepthInput, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    def wait_for(condition: Callable[[], bool], timeout_s: float) -> bool:
        waits.append(timeout_s)
        clock.now_s += 0.0 if condition() else timeout_s
        return condition()

    monkeypatch.setattr(depth._changed, "wait_for", wait_for)
    waited_s, found = [], 0
    for i in range(60):  # 2 s of images at 30 Hz, every tenth with depth
        stamp_ns = 10**9 + i * 33_000_000
        if i % 10 == 0:
            depth._take(depth_message(stamp_ns))
        before_s = clock.now_s
        found += depth.at(stamp_ns) is not None
        waited_s.append(clock.now_s - before_s)
        clock.now_s = max(clock.now_s, 100.0 + i * 0.033)
    assert found == 6
    assert sum(waited_s[10:]) == 0.0  # before, it is not known how often depth comes
    waits.clear()
    depth.at(10**9 + 60 * 33_000_000)
    assert waits, "the next depth is due"


def test_depth_that_comes_after_its_image_is_waited_for_although_the_one_before_was_lost(
    depth: DepthInput, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    coming: list[int] = []

    def wait_for(condition: Callable[[], bool], timeout_s: float) -> bool:
        for stamp_ns in coming:  # within the time
            depth._take(depth_message(stamp_ns))
        coming.clear()
        clock.now_s += 0.0 if condition() else timeout_s
        return condition()

    monkeypatch.setattr(depth._changed, "wait_for", wait_for)
    found = []
    for i in range(30):
        stamp_ns = 10**9 + i * 200_000_000
        if i != 12:  # one is lost
            coming.append(stamp_ns)
        found.append(depth.at(stamp_ns) is not None)
        clock.now_s = 100.0 + i * 0.2
    assert [i for i, each in enumerate(found) if not each] == [12]


@pytest.mark.parametrize(("late", "found_most"), [(3, True), (10, False)])
def test_depth_that_cannot_come_in_time_is_not_waited_for(
    late: int, found_most: bool, depth: DepthInput, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Depth of 30 Hz that comes `late` images after its own."""
    taken = 0

    def let_pass(until_s: float) -> None:
        nonlocal taken
        while 100.0 + (taken + late) * 0.033 <= until_s:
            clock.now_s = 100.0 + (taken + late) * 0.033
            depth._take(depth_message(10**9 + taken * 33_000_000))
            taken += 1
        clock.now_s = max(clock.now_s, until_s)

    def wait_for(condition: Callable[[], bool], timeout_s: float) -> bool:
        end_s = clock.now_s + timeout_s
        while not condition() and clock.now_s < end_s:
            let_pass(clock.now_s + 0.001)
        return condition()

    monkeypatch.setattr(depth._changed, "wait_for", wait_for)
    found = 0
    for i in range(90):
        let_pass(100.0 + i * 0.033)
        held_s = clock.now_s - (100.0 + i * 0.033)
        found += depth.at(10**9 + i * 33_000_000) is not None
    assert (found > 80) == found_most
    assert held_s < 0.12, "the queue of images grows"


def test_depth_that_is_late_says_by_how_much(depth: DepthInput, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Node, "count_publishers", lambda self, topic: 1, raising=False)
    depth._take(depth_message(10**9))
    assert depth.missing(1_300_000_000).startswith(
        "/depth is 0.300 s behind the images, but the node waits 0.1 s"
    )
    assert depth.missing(900_000_000).startswith("the nearest message on /depth is 0.100 s away")


def test_images_arrive_while_depth_is_decoded(depth: DepthInput, monkeypatch: pytest.MonkeyPatch) -> None:
    decoding, go_on = threading.Event(), threading.Event()

    def decode(message: Image) -> np.ndarray:
        decoding.set()
        assert go_on.wait(10.0)
        return np.ones((4, 6), np.float32)

    monkeypatch.setattr(depth_module, "depth_metres", decode)
    depth._take(depth_message(10**9))
    found: list[DepthImage | None] = []
    thread = threading.Thread(target=lambda: found.append(depth.at(10**9)))
    thread.start()
    try:
        assert decoding.wait(10.0)
        taken = threading.Thread(target=depth._take, args=(depth_message(2 * 10**9),), daemon=True)
        taken.start()
        taken.join(10.0)
        assert not taken.is_alive()
    finally:
        go_on.set()
        thread.join()
    assert found[0] is not None
    assert found[0].stamp_ns == 10**9


# ---- bounded reading


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> Callable[..., None]:
    """Reads a message that takes `cost_s` of this thread and `wall_s` by the clock; raises what it raises."""
    monkeypatch.setattr(topics, "time", clock)
    cost: dict[str, float] = {}

    def take(message: Any) -> None:
        clock.cpu_s += cost["cpu"]
        clock.now_s += cost["wall"]

    reader = topics._BoundedReader(CameraInfo, take, lambda: 1000)
    data = serialize_message(CameraInfo())

    def read(cost_s: float, wall_s: float | None = None, data: bytes = data) -> None:
        cost.update(cpu=cost_s, wall=cost_s if wall_s is None else wall_s)
        reader(data)

    return read


def test_a_burst_of_expensive_messages_is_read(read: Callable[..., None]) -> None:
    for _ in range(4):
        read(0.04)


def test_a_slow_machine_refuses_nothing(read: Callable[..., None]) -> None:
    for _ in range(50):
        read(0.001, wall_s=0.5)


def test_a_flood_gets_a_third_of_the_time(read: Callable[..., None], clock: Clock) -> None:
    begin_s, taken = clock.now_s, 0
    while clock.now_s < begin_s + 30.0:
        try:
            read(0.05)
            taken += 1
        except CapacityError:
            clock.now_s += 0.005
    assert 0.25 <= taken * 0.05 / 30.0 <= 0.36


def test_too_large_a_message_is_not_read(read: Callable[..., None]) -> None:
    with pytest.raises(InputError, match="the message has 1001 bytes; at most 1000 are allowed"):
        read(0.0, data=bytes(1001))
