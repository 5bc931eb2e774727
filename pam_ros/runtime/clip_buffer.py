"""The frames of one region between two decode timestamps: sampled by `ClipSampler`, bounded."""

from __future__ import annotations

from dataclasses import dataclass

from pam_ros.errors import PamError
from pam_ros.model.interface import FIRST_FRAME_STRIDE, LATER_FRAME_STRIDE
from pam_ros.runtime.clip_prompts import ClipPrompt
from pam_ros.runtime.clip_sampler import ClipSampler
from pam_ros.runtime.embedding_plan import EmbeddedFrame, EmbeddingPlan
from pam_ros.runtime.tracks import TrackObservation


@dataclass(frozen=True, slots=True, eq=False)
class ClipFrame:
    """One frame of a clip, ready for the text generator."""

    stamp_ns: int
    frame_id: str
    arrived_s: float  # seconds of the runtime's clock
    embedded: EmbeddedFrame

    @classmethod
    def of(cls, observation: TrackObservation, embedded: EmbeddedFrame) -> ClipFrame:
        """A frame in which the region was observed, with its embeddings."""
        return cls(observation.stamp_ns, observation.frame_id, observation.arrived_s, embedded)


class ClipBuffer:
    """Collects a clip's frames. If the model fails on frames they are missing; it may then be empty."""

    def __init__(
        self,
        *,
        start_ns: int,
        period_s: float,
        max_frames: int,
        prompt: ClipPrompt | None = None,
        carried: ClipFrame | None = None,
    ) -> None:
        """`carried`: the previous clip's last frame at first-frame density; the new clip's first.

        `prompt` is extended by every frame that enters.
        """
        self.prompt = prompt
        if carried is not None and prompt is not None:
            prompt.extend(carried.embedded)
        self.frames: list[ClipFrame] = [] if carried is None else [carried]
        self.new_frames = 0  # number of frames that were not carried over
        self.in_view = False  # in one of the new frames at least
        self.last: TrackObservation | None = None  # the newest of the new frames
        self._max_frames = max_frames
        self._sampler = ClipSampler(
            start_ns=start_ns, period_s=period_s, max_frames=max_frames, carried=carried is not None
        )

    @property
    def start_ns(self) -> int:
        """Stamp at which the clip starts."""
        return self._sampler.start_ns

    @property
    def has_room(self) -> bool:
        """True while one more frame may enter."""
        return len(self.frames) < self._max_frames

    @property
    def next_stride(self) -> int:
        """Pixel-shuffle stride of the next frame: a clip's first frame keeps more visual tokens."""
        return LATER_FRAME_STRIDE if self.frames else FIRST_FRAME_STRIDE

    def wants(self, stamp_ns: int) -> bool:
        """True if a frame of this stamp should enter."""
        return self._sampler.wants(stamp_ns)

    def ends(self, stamp_ns: int) -> bool:
        """True if this stamp has reached the decode timestamp."""
        return self._sampler.ends(stamp_ns)

    def too_thin(self, end_ns: int, least_fraction: float) -> bool:
        """True if a caption of what was recorded up to `end_ns` cannot be trusted.

        That is a clip of one frame, if more were wanted, or of less than this fraction of the planned frames.
        """
        count = len(self.frames)
        return (count == 1 < self._max_frames) or count < least_fraction * self._sampler.planned(end_ns)

    def add(self, observation: TrackObservation, plan: EmbeddingPlan) -> PamError | None:
        """Adds an observation with the embeddings that `plan` computed; without them, returns why."""
        assert self.has_room
        embedded = plan.embedded(observation, stride=self.next_stride)
        if isinstance(embedded, PamError):
            return embedded
        self.frames.append(ClipFrame.of(observation, embedded))
        if self.prompt is not None:
            self.prompt.extend(embedded)
        self.new_frames += 1
        self.in_view |= observation.in_view
        self.last = observation
        self._sampler.take(observation.stamp_ns)
        return None
