"""A bounded queue and the thread that empties it: publishing never holds the thread that computes."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Item = TypeVar("Item")

DRAIN_S = 2.0  # how long a closed sink may keep publishing its queue


class Sink(Generic[Item]):
    """Passes every item offered to `publish`, in order, on a thread of its own.

    A newer item of the same key replaces one that still waits, in its place: of images only the newest is
    published, and of a growing text only its newest state. If the queue is full, its oldest item is dropped.

    Attributes:
        superseded: number of items that a newer one replaced before their turn.
        dropped: number of items that were lost; the first loss is reported.
    """

    def __init__(
        self, name: str, publish: Callable[[Item], None], report: Callable[[str], None], *, capacity: int = 1
    ) -> None:
        """`name` appears in reports and names the thread; `report` gets failures and losses, for the log."""
        self.superseded = 0
        self.dropped = 0
        self._name = name
        self._publish = publish
        self._report = report
        self._capacity = capacity
        self._waiting: OrderedDict[Hashable, Item] = OrderedDict()
        self._changed = threading.Condition()
        self._closed_s: float | None = None  # when it was closed, seconds of the monotonic clock
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Number of items in the queue."""
        return len(self._waiting)

    def offer(self, item: Item, key: Hashable = None) -> None:
        """Queues an item and returns immediately. Ignored once closed."""
        lost = 0
        with self._changed:
            if self._closed_s is not None:
                return
            if key in self._waiting:
                self.superseded += 1
            elif len(self._waiting) >= self._capacity:
                self._waiting.popitem(last=False)
                lost = 1
            self._waiting[key] = item
            self._changed.notify()
        self._lose(lost, "its subscribers or this machine are too slow")

    def discard(self) -> None:
        """Empties the queue without publishing."""
        with self._changed:
            self._waiting.clear()

    def close(self) -> None:
        """Accepts nothing more; publishes what is queued, for at most DRAIN_S. Returns immediately."""
        with self._changed:
            if self._closed_s is None:
                self._closed_s = time.monotonic()
            self._changed.notify()

    def join(self) -> bool:
        """Waits for the end of the thread, at most DRAIN_S from `close` on. False if it still publishes."""
        assert self._closed_s is not None, "a sink is closed before it is joined"
        self._thread.join(max(self._closed_s + DRAIN_S - time.monotonic(), 0.0))
        with self._changed:
            left = len(self._waiting)
            self._waiting.clear()
        self._lose(left, f"{DRAIN_S:g} s were not enough to publish them before the end")
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (item := self._next()) is not None:
            try:
                self._publish(item[0])
            except Exception as error:  # one item that cannot be published must not end the thread
                self._report(f"{self._name} could not be published: {type(error).__name__}: {error}")

    def _next(self) -> tuple[Item] | None:
        """Waits for the next item; None once closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed_s is not None)
            return (self._waiting.popitem(last=False)[1],) if self._waiting else None

    def _lose(self, count: int, why: str) -> None:
        if count:
            self.dropped += count
            if self.dropped == count:
                self._report(
                    f"{self._name}: {count} messages were lost: {why}; later losses are only counted"
                )
