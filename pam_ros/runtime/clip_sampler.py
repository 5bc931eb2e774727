"""Which frames of a stream enter a clip, and when it ends: one rule for node, files and evaluation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# Frames come a little early as often as a little late. A frame this much before its planned instant still
# counts as on time; else a camera that runs at the sampling rate would lose every other frame to jitter.
EARLY_NS = 20_000_000


def planned_instants(start: float, period: float, max_frames: int) -> NDArray[np.float64]:
    """The instants at which a clip wants a frame, in the unit of `start` and `period`.

    `start + k * period / (max_frames - 1)` for k = 0 … max_frames - 1: the first is the clip's start, the
    last its decode timestamp.
    """
    steps = np.arange(max_frames, dtype=np.float64)
    return np.asarray(start + steps * (period / max(max_frames - 1, 1)))


class ClipSampler:
    """Takes the first frame at or after each planned instant; an instant without a frame is left out.

    So a clip has 1 … max_frames frames, and may have fewer than planned if the camera is slow.
    """

    def __init__(self, *, start_ns: int, period_s: float, max_frames: int, carried: bool = False) -> None:
        """`carried`: the previous clip's last frame stands at the first instant (carry-over)."""
        self.start_ns = start_ns
        self._period_ns = max(round(period_s * 1e9), 1)
        self._max_frames = max_frames
        self._spacing_ns = self._period_ns / max(max_frames - 1, 1)
        self._early_ns = min(EARLY_NS, self._spacing_ns / 4)
        self._next = int(carried)  # index of the next planned instant

    def wants(self, stamp_ns: int) -> bool:
        """True if a frame of this stamp should enter the clip."""
        if self._next >= self._max_frames:
            return False
        return stamp_ns >= self.start_ns + self._next * self._spacing_ns - self._early_ns

    def take(self, stamp_ns: int) -> None:
        """A frame of this stamp entered; instants it is late for are left out."""
        passed_ns = stamp_ns - self.start_ns + self._early_ns
        self._next = max(self._next + 1, int(passed_ns // self._spacing_ns) + 1)

    def planned(self, stamp_ns: int) -> int:
        """How many frames were planned up to this stamp: 1 … max_frames."""
        passed_ns = stamp_ns - self.start_ns + self._early_ns
        return min(self._max_frames, max(0, int(passed_ns // self._spacing_ns)) + 1)

    def ends(self, stamp_ns: int) -> bool:
        """True if this stamp has reached the decode timestamp."""
        return stamp_ns >= self.start_ns + self._period_ns - self._early_ns


def decode_stamps(stamps_ns: Sequence[int], period_s: float, max_frames: int) -> list[int]:
    """The stamps at which the rolling clips of a stream end, if every frame is seen."""
    ends: list[int] = []
    sampler = ClipSampler(start_ns=stamps_ns[0], period_s=period_s, max_frames=max_frames)
    for stamp_ns in stamps_ns[1:]:
        if sampler.ends(stamp_ns):
            ends.append(stamp_ns)
            sampler = ClipSampler(start_ns=stamp_ns, period_s=period_s, max_frames=max_frames)
    return ends
