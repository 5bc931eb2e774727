"""The frames of one region between two decode timestamps, sampled at planned instants, bounded."""

from __future__ import annotations

from dataclasses import dataclass

from pam_ros.model.interface import FIRST_FRAME_STRIDE, LATER_FRAME_STRIDE, RegionEmbeddings
from pam_ros.runtime.tracks import TrackObservation

# Frames come a little early as often as a little late. A frame this much before its planned instant still
# counts as being there; else a camera that runs at the sampling rate would lose every other frame to jitter.
EARLY_NS = 20_000_000


@dataclass(frozen=True, slots=True, eq=False)
class ClipFrame:
    """One frame of a clip, ready for the language model."""

    stamp_ns: int
    frame_id: str
    arrived_s: float  # seconds of the runtime's clock
    embeddings: RegionEmbeddings

    @classmethod
    def of(cls, observation: TrackObservation, embeddings: RegionEmbeddings) -> ClipFrame:
        """A frame the region was looked for in, with its embeddings."""
        return cls(observation.stamp_ns, observation.frame_id, observation.arrived_s, embeddings)


class ClipBuffer:
    """Says which frames enter the clip and when it ends.

    The planned instants are `start + k * period / (max_frames - 1)`, k = 0 … max_frames - 1: the first is
    the clip's start, the last the decode timestamp. The first frame at or after an instant enters; an instant
    that no frame came for is left out, so a clip has 1 … max_frames frames (or none where the model failed).
    """

    def __init__(
        self, *, start_ns: int, period_s: float, max_frames: int, carried: ClipFrame | None = None
    ) -> None:
        """`carried` is the previous clip's last frame at fine density; it stands at the first instant."""
        self._start_ns = start_ns
        self._period_ns = round(period_s * 1e9)
        self._max_frames = max_frames
        self._spacing_ns = self._period_ns / max(max_frames - 1, 1)
        self._early_ns = min(EARLY_NS, self._spacing_ns / 4)
        self._next = 0  # index of the next planned instant
        self.frames: list[ClipFrame] = []
        self.new_frames = 0  # of them not carried over
        self.in_view = False  # in one of these at least
        self.last: TrackObservation | None = None  # the newest of them; None if that one was carried
        if carried is not None:
            self.frames.append(carried)
            self._next = 1

    @property
    def start_ns(self) -> int:
        """Stamp the plan starts at."""
        return self._start_ns

    @property
    def has_room(self) -> bool:
        """True while one more frame may enter."""
        return len(self.frames) < self._max_frames

    @property
    def next_stride(self) -> int:
        """Pixel-shuffle stride of the next frame to enter: a clip's first frame keeps more visual tokens."""
        return LATER_FRAME_STRIDE if self.frames else FIRST_FRAME_STRIDE

    def wants(self, stamp_ns: int) -> bool:
        """True where a frame of this stamp should enter."""
        if self._next >= self._max_frames:
            return False
        return stamp_ns >= self._start_ns + self._next * self._spacing_ns - self._early_ns

    def ends(self, stamp_ns: int) -> bool:
        """True where this stamp has reached the decode timestamp."""
        return stamp_ns >= self._start_ns + self._period_ns - self._early_ns

    def add(self, observation: TrackObservation, embeddings: RegionEmbeddings) -> None:
        """Lets a frame enter; instants it is late for are left out."""
        assert self.has_room
        self.frames.append(ClipFrame.of(observation, embeddings))
        self.new_frames += 1
        self.in_view |= observation.in_view
        self.last = observation
        passed_ns = observation.stamp_ns - self._start_ns + self._early_ns
        self._next = max(self._next + 1, int(passed_ns // self._spacing_ns) + 1)
