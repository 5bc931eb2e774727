"""Hands on finished captions of each region in order of their sequence; they may overtake each other."""

from __future__ import annotations

import time
from collections.abc import Callable

from pam_ros.msg import StreamingCaption

HOLD_S = 30.0  # a caption waits this long for one before it, which may have been skipped


class CaptionOrder:
    """Holds captions until those before them have come. Captions of a single instant are left out."""

    def __init__(
        self, hand_on: Callable[[StreamingCaption], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`clock` returns steady seconds."""
        self._hand_on, self._clock = hand_on, clock
        self._next: dict[int, int] = {}  # region id → sequence that comes next
        self._held: dict[tuple[int, int], tuple[StreamingCaption, float]] = {}
        self._growing: set[tuple[int, int]] = set()

    @property
    def growing(self) -> bool:
        """True while a caption is not finished."""
        return bool(self._growing)

    def next_of(self, region_id: int) -> int:
        """The region's captions before this sequence were handed on, or given up."""
        return self._next.get(region_id, 0)

    def take(self, message: StreamingCaption) -> None:
        """A caption grew, or is finished."""
        key = (message.region_id, message.sequence)
        if not message.final:
            self._growing.add(key)
            return
        self._growing.discard(key)
        self._held[key] = (message, self._clock())
        self.release()

    def release(self, everything: bool = False) -> None:
        """Hands on what need not wait any longer; with `everything`, all that is held."""
        now_s = self._clock()
        for key in sorted(self._held):
            message, since_s = self._held[key]
            region_id, sequence = key
            if everything or sequence <= self.next_of(region_id) or now_s - since_s > HOLD_S:
                del self._held[key]
                self._next[region_id] = max(self.next_of(region_id), sequence + 1)
                if message.clip_start != message.clip_end:
                    self._hand_on(message)
