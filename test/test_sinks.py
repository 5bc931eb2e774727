"""A sink: a slow subscriber costs the model's thread nothing, and no caption is lost or reordered."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from pam_ros.nodes import sink as sink_module
from pam_ros.nodes.sink import Sink


class Gate:
    """A `publish` that blocks while closed; `published` has what came through."""

    def __init__(self) -> None:
        self.published: list[object] = []
        self.entered = threading.Event()
        self._open = threading.Event()

    def __call__(self, item: object) -> None:
        self.entered.set()
        assert self._open.wait(20.0), "the gate was not opened"
        self.published.append(item)

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open()


def wait_until(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    until_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until_s, "it did not happen in time"
        time.sleep(0.001)


def blocked_sink(gate: Gate, reports: list[str], *, capacity: int = 1) -> Sink[object]:
    """A sink whose thread is inside `publish` with the item "first"."""
    sink: Sink[object] = Sink("~/topic", gate, reports.append, capacity=capacity)
    sink.offer("first")
    assert gate.entered.wait(10.0)
    return sink


def test_offering_returns_at_once_and_only_the_newest_picture_waits(gate: Gate) -> None:
    reports: list[str] = []
    sink = blocked_sink(gate, reports)
    begun_s = time.monotonic()
    for number in range(1000):
        sink.offer(number)
        assert sink.waiting == 1
    assert time.monotonic() - begun_s < 2.0
    gate.open()
    wait_until(lambda: len(gate.published) == 2)
    assert gate.published == ["first", 999]
    assert (sink.superseded, sink.dropped, reports) == (999, 0, [])


def test_a_growing_text_is_replaced_in_its_place(gate: Gate) -> None:
    sink = blocked_sink(gate, [], capacity=10)
    for item, key in (("a", 1), ("b", 2), ("a b", 1), ("b c", 2), ("a b c", 1), ("d", 3)):
        sink.offer(item, key)
    assert sink.waiting == 3
    gate.open()
    wait_until(lambda: len(gate.published) == 4)
    assert gate.published == ["first", "a b c", "b c", "d"]


def test_a_full_queue_drops_its_oldest_item_counts_it_and_says_so_once(gate: Gate) -> None:
    reports: list[str] = []
    sink = blocked_sink(gate, reports, capacity=3)
    for number in range(10):
        sink.offer(number, key=number)
        assert sink.waiting <= 3
    assert sink.dropped == 7
    assert len(reports) == 1
    assert "~/topic" in reports[0]
    gate.open()
    wait_until(lambda: len(gate.published) == 4)
    assert gate.published == ["first", 7, 8, 9]


def test_closing_publishes_what_waits_and_takes_nothing_more(gate: Gate) -> None:
    sink = blocked_sink(gate, [], capacity=5)
    for number in range(4):
        sink.offer(number, key=number)
    sink.close()
    sink.offer("too late", key="too late")
    gate.open()
    assert sink.join()
    assert gate.published == ["first", 0, 1, 2, 3]
    assert sink.dropped == 0


def test_a_publisher_that_never_returns_does_not_hold_up_the_end(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink_module, "DRAIN_S", 0.2)
    reports: list[str] = []
    sink = blocked_sink(gate, reports, capacity=5)
    sink.offer("never published", key="later")
    sink.close()
    begun_s = time.monotonic()
    assert not sink.join()
    assert 0.1 < time.monotonic() - begun_s < 2.0
    assert sink.dropped == 1
    assert "1 messages were lost" in reports[0]


def test_an_item_that_cannot_be_published_is_reported_and_the_next_one_goes_out() -> None:
    reports: list[str] = []
    published: list[int] = []

    def publish(item: int) -> None:
        if item == 0:
            raise RuntimeError("no memory")
        published.append(item)

    sink = Sink("~/topic", publish, reports.append, capacity=2)
    sink.offer(0, key=0)
    sink.offer(1, key=1)
    wait_until(lambda: published == [1])
    assert reports == ["~/topic could not be published: RuntimeError: no memory"]
    sink.close()
    assert sink.join()
