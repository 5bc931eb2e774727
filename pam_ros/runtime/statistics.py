"""Frame rates, dropped frames, latencies and tokens per second."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

MISSING_ABOVE = 0.1  # fraction of the frames that do not arrive, before a warning
_INTERVALS = 100  # between frames, from which the period is measured
_FEWEST_INTERVALS = 20
_STEADY, _JITTER = 12, 1.8  # so many intervals that differ by less than this factor are a rate
_PAUSE_NS = 2_000_000_000  # a longer gap is a pause of the camera
_LATE_NS = 1_000_000_000  # a longer step back is a new beginning
_MOST_LATE = 5  # frames in a row; more are a new beginning too, a short step back


@dataclass(frozen=True, slots=True)
class CameraStatistics:
    """One camera, since the engine was made.

    Attributes:
        received, processed, dropped: frames; a frame replaced by a newer one before its turn is dropped, and
            one that comes after a newer one, see `StampOrder`.
        rate_hz: processed frames per second, smoothed over about two seconds.
        regions_tracked, regions_lost: regions at the last processed frame.
        mask_latency_s: from a frame's arrival to its masks, smoothed, seconds; 0 before the first.
        last_stamp_ns: stamp of the newest frame received; None before the first.
        age_s: seconds since the newest frame arrived; infinity before the first.
    """

    camera: str
    received: int
    processed: int
    dropped: int
    rate_hz: float
    regions_tracked: int
    regions_lost: int
    mask_latency_s: float
    last_stamp_ns: int | None
    age_s: float


@dataclass(frozen=True, slots=True)
class EngineStatistics:
    """All cameras and the language model.

    Attributes:
        generating: texts being generated now.
        queued: requests that wait.
        tokens_per_s: of all texts together, smoothed over about two seconds.
        text_latency_s: from a request to its last text, smoothed, seconds; 0 before the first.
        text_problem: why no text can be generated now; empty if texts can be generated.
    """

    cameras: tuple[CameraStatistics, ...]
    generating: int
    queued: int
    tokens_per_s: float
    text_latency_s: float
    text_problem: str


class RateMeter:
    """Events per second, older events weighing exponentially less. One thread adds, any thread reads."""

    def __init__(self, *, smoothing_s: float = 2.0) -> None:
        self._smoothing_s = smoothing_s
        self._state: tuple[float, float, float] | None = (
            None  # weighted count, its time, time of the first event
        )

    def add(self, now_s: float, count: int = 1) -> None:
        """Counts events that happened at `now_s`, seconds of a steady clock."""
        if self._state is None:
            self._state = (0.0, now_s, now_s)
        weighted, then_s, first_s = self._state
        self._state = (weighted * math.exp((then_s - now_s) / self._smoothing_s) + count, now_s, first_s)

    def rate_hz(self, now_s: float) -> float:
        """Events per second as of `now_s`; falls towards 0 when no more come."""
        if self._state is None:
            return 0.0
        weighted, then_s, first_s = self._state
        # Before a whole smoothing time has passed, only the part of the window that has been seen counts.
        window_s = self._smoothing_s * -math.expm1(-max(now_s - first_s, 1e-3) / self._smoothing_s)
        return weighted * math.exp((then_s - now_s) / self._smoothing_s) / window_s


class StampOrder:
    """Tells a frame that comes late, after newer ones, from time that starts over.

    Attributes:
        newest_ns: stamp of the newest frame since time started over; None before the first.
    """

    def __init__(self) -> None:
        self.newest_ns: int | None = None
        self._late = 0  # frames since a newer one came

    def is_late(self, stamp_ns: int) -> bool:
        """A frame came; whether it is late. Frames of equal stamps are not."""
        if self.newest_ns is None or stamp_ns > self.newest_ns:
            self._late = 0
        elif stamp_ns < self.newest_ns:
            self._late += 1
            if self.newest_ns - stamp_ns < _LATE_NS and self._late <= _MOST_LATE:
                return True
            self._late = 0
        self.newest_ns = stamp_ns
        return False


class GapCounter:
    """Counts frames that did not arrive: a gap in the stamps of several periods lacks all but one of them.

    The period is the median of the short ones among the recent intervals. It is right as long as a quarter of
    the frames follow the one before them; a loss of exactly every second frame looks like half the rate.
    Gaps are counted some frames later, as a run of equal intervals means that the camera's rate has changed.

    Attributes:
        missed: frames that did not arrive, ever.
    """

    def __init__(self) -> None:
        self.missed = 0
        self._order = StampOrder()
        self._newest_ns: deque[int] = deque()  # intervals that are not counted yet
        self._intervals_ns: deque[int] = deque(maxlen=_INTERVALS)
        self._gaps: deque[int] = deque(maxlen=_INTERVALS)  # frames missing in each of the recent intervals

    def add(self, stamp_ns: int) -> None:
        """A frame came."""
        before_ns = self._order.newest_ns
        interval_ns = 0 if before_ns is None else stamp_ns - before_ns
        if self._order.is_late(stamp_ns):
            self._divide(-interval_ns)
            return
        if interval_ns < 0:  # time started over, perhaps at another rate
            self._newest_ns.clear()
            self._intervals_ns.clear()
            self._gaps.clear()
        if not 0 < interval_ns < _PAUSE_NS:
            return
        self._newest_ns.append(interval_ns)
        if len(self._newest_ns) <= _STEADY:
            return
        while len(self._newest_ns) > _STEADY:
            self._count(self._newest_ns.popleft())
        steady = max(self._newest_ns) < _JITTER * min(self._newest_ns)
        if steady and not self._is_period(_median(self._newest_ns)):
            self._intervals_ns.clear()
            self._intervals_ns.extend(self._newest_ns)

    def _divide(self, ago_ns: int) -> None:
        """A late frame divides the interval that it belongs into, unless that is counted already."""
        for place in reversed(range(len(self._newest_ns))):
            if ago_ns < (interval_ns := self._newest_ns[place]):
                if ago_ns:
                    self._newest_ns[place] = interval_ns - ago_ns
                    self._newest_ns.insert(place + 1, ago_ns)
                return
            ago_ns -= interval_ns

    def _count(self, interval_ns: int) -> None:
        if len(self._intervals_ns) >= _FEWEST_INTERVALS:
            self._gaps.append(max(round(interval_ns / self._period_ns()) - 1, 0))
            self.missed += self._gaps[-1]
        self._intervals_ns.append(interval_ns)

    def _is_period(self, interval_ns: int) -> bool:
        period_ns = self._period_ns()
        return period_ns < _JITTER * interval_ns and interval_ns < _JITTER * period_ns

    def _period_ns(self) -> int:
        # Frames that come in pairs, one right after the other, do not have the period of the pair.
        least_ns = sum(self._intervals_ns) / len(self._intervals_ns) / 8
        intervals_ns = sorted(each for each in self._intervals_ns if each > least_ns)
        shortest_ns = intervals_ns[len(intervals_ns) // 10]
        return _median([each for each in intervals_ns if shortest_ns <= each < 1.5 * shortest_ns])

    @property
    def missing_fraction(self) -> float:
        """Fraction of the recent frames that did not arrive; 0 before enough came to tell."""
        missing = sum(self._gaps)
        return missing / (missing + len(self._gaps)) if len(self._gaps) >= _FEWEST_INTERVALS else 0.0


def _median(values: Iterable[int]) -> int:
    ordered = sorted(values)
    return ordered[len(ordered) // 2]


class Recent:
    """The last values. One thread adds, any thread reads."""

    def __init__(self, *, size: int = 100) -> None:
        self._values: deque[float] = deque(maxlen=size)

    def add(self, value: float) -> None:
        """Adds a value; the oldest gives way."""
        self._values.append(value)

    @property
    def median(self) -> float:
        """Their median; 0 before the first."""
        values = sorted(self._values.copy())
        return values[len(values) // 2] if values else 0.0


class Smoothed:
    """A mean in which each new value weighs a tenth."""

    def __init__(self) -> None:
        self.value: float | None = None

    def add(self, value: float) -> None:
        """Adds a value."""
        self.value = value if self.value is None else 0.9 * self.value + 0.1 * value
