"""The pace of a recording that is played as a camera: its own time, or slower if the other side is slower."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

PATIENCE_S = 60.0  # a frame or caption that takes longer is not waited for
LOOK_S = 0.005  # how often a waiting thread looks again
MOST_UNANSWERED = 100  # frames; the oldest are given up


class Pace:
    """Says when the next frame may be sent. Thread-safe.

    With `follow`, not before the frame before was answered, nor while a caption lags behind by more than
    `max_lag_s` of the recording: then every frame is seen, whatever the machine, and no clip is skipped.
    """

    def __init__(
        self,
        *,
        rate: float = 1.0,
        follow: bool = True,
        max_lag_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`rate`: 1 is the recording's own speed. `clock` returns steady seconds."""
        self.follow = follow
        self._rate, self._max_lag_ns, self._clock = rate, round(max_lag_s * 1e9), clock
        self._lock = threading.Lock()
        self._begun = False
        self._reset(0, 0)

    def begin(self, base_ns: int, from_ns: int = 0) -> None:
        """The recording plays from its time `from_ns` on, now; `base_ns` is the stamp of its time 0."""
        with self._lock:
            self._begun = True
            self._reset(base_ns, from_ns)

    def _reset(self, base_ns: int, from_ns: int) -> None:
        self._base_ns, self._from_ns = base_ns, from_ns
        self._start_s = self._sent_s = self._answered_s = self._clock()
        self._first_ns = self._last_ns = base_ns + from_ns
        self._unanswered: dict[int, None] = {}  # stamps, oldest first
        self._captions: dict[tuple[int, int], tuple[int, float]] = {}  # (region, sequence) → clip end, since
        self.frames_sent = self.frames_seen = 0

    # --- the sender's side

    def due(self, time_ns: int) -> bool:
        """True if the frame at this time of the recording may be sent now."""
        with self._lock:
            return self._wait_s(time_ns) <= 0.0

    def wait_s(self, time_ns: int) -> float:
        """Seconds until a frame at this time of the recording may be sent, at least; 0 = now."""
        with self._lock:
            return max(0.0, self._wait_s(time_ns))

    def sent(self, stamp_ns: int) -> None:
        """A frame of this stamp is being sent."""
        with self._lock:
            while len(self._unanswered) >= MOST_UNANSWERED:
                del self._unanswered[next(iter(self._unanswered))]
            self._unanswered[stamp_ns] = None
            self._last_ns, self._sent_s = stamp_ns, self._clock()
            self.frames_sent += 1

    @property
    def answered(self) -> bool:
        """True if nothing is waited for: the newest frame was answered, or no answers are expected."""
        with self._lock:
            return not self._waits()

    # --- the other side

    def saw(self, stamp_ns: int, region_ids: Iterable[int]) -> None:
        """The frame of this stamp, with these regions, was processed; captions of others will not come."""
        with self._lock:
            here = set(region_ids)
            self._captions = {key: each for key, each in self._captions.items() if key[0] in here}
            if stamp_ns in self._unanswered:
                del self._unanswered[stamp_ns]
                self._answered_s = self._clock()
                self.frames_seen += 1

    def caption(self, key: tuple[int, int], end_ns: int, *, final: bool) -> None:
        """A caption grew, or is finished; `key`: region id and sequence, `end_ns`: where its clip ends."""
        with self._lock:
            if final:
                self._captions.pop(key, None)
            else:
                self._captions[key] = (end_ns, self._clock())

    def caption_failed(self) -> None:
        """A caption may have ended without being finished: none is waited for until it grows again."""
        with self._lock:
            self._captions.clear()

    def report(self) -> str:
        """Frames seen and sent, and the speed with `follow`. Empty before the second frame that plays."""
        with self._lock:
            if self.frames_sent < 2 or not self._begun:
                return ""
            seen = f"{self.frames_seen} of {self.frames_sent} frames were seen"
            if not self.follow:
                return seen
            played_s = (self._last_ns - self._first_ns) / 1e9
            took_s = max(self._answered_s - self._start_s, 1e-3)
            return f"{seen}; {played_s:.1f} s of video took {took_s:.1f} s ({played_s / took_s:.2f}x)"

    # --- under the lock

    def _wait_s(self, time_ns: int) -> float:
        left_s = self._start_s + (time_ns - self._from_ns) / 1e9 / self._rate - self._clock()
        held = self._waits() or self._lags(self._base_ns + time_ns)
        return max(left_s, LOOK_S) if held else left_s

    def _waits(self) -> bool:
        return self.follow and bool(self._unanswered) and self._clock() - self._sent_s <= PATIENCE_S

    def _lags(self, stamp_ns: int) -> bool:
        now_s = self._clock()
        return self.follow and any(
            stamp_ns - end_ns > self._max_lag_ns and now_s - since_s <= PATIENCE_S
            for end_ns, since_s in self._captions.values()
        )
