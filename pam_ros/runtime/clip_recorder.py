"""`caption_clip`: a caller watches one region for a while, then hears what happened to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pam_ros.errors import NoFrameError, PamError
from pam_ros.runtime.caption_job import CaptionJob
from pam_ros.runtime.clip_buffer import ClipBuffer
from pam_ros.runtime.embedding_plan import EmbeddingPlan
from pam_ros.runtime.events import CaptionEvent
from pam_ros.runtime.generation_queue import EventReporter, GenerationQueue
from pam_ros.runtime.options import EngineOptions
from pam_ros.runtime.requests import ClipRequest
from pam_ros.runtime.tracks import Track, TrackObservation

STALL_S = 5.0  # a watch ends when its camera's time stands still for this long, wall clock


@dataclass(slots=True, eq=False)
class _Recording:
    """One watch under way; its clip is its own and starts with the first frame after acceptance."""

    camera: str
    track: Track
    request: ClipRequest
    accepted_s: float  # seconds of the runtime's clock
    clip: ClipBuffer | None = None
    recorded_s: float = 0.0


@dataclass(slots=True, eq=False)
class RecordingStep:
    """What one frame means for one watch: the observation that enters its clip, and whether it ends."""

    watch: _Recording
    clip: ClipBuffer
    enters: TrackObservation | None
    ends: bool


class ClipRecorder:
    """Owned by the worker; `count` may be read from any thread."""

    def __init__(self, *, queue: GenerationQueue, reporter: EventReporter, options: EngineOptions) -> None:
        self.options = options
        self._queue = queue
        self._reporter = reporter
        self._watches: list[_Recording] = []

    @property
    def count(self) -> int:
        """ClipRecorder under way."""
        return len(self._watches)

    def add(self, camera: str, track: Track, request: ClipRequest) -> None:
        """ClipRecorder from the next new frame on, which is the one at hand while `plan` has not run for it."""
        self._watches.append(_Recording(camera, track, request, self._reporter.clock()))

    def plan(self, camera: str, stamp_ns: int, plan: EmbeddingPlan) -> list[RecordingStep]:
        """Finds out which watches the camera's newest frame enters or ends; requests `plan` for their embeddings."""
        steps = [self._step(watch, stamp_ns) for watch in self._open(lambda watch: watch.camera == camera)]
        for step in steps:
            if step.enters is not None:
                plan.want(step.enters, stride=step.clip.next_stride)
        return steps

    def settle(self, stamp_ns: int, steps: list[RecordingStep], plan: EmbeddingPlan, group: object) -> None:
        """Lets frames enter, reports how far the watches are, and captions those that end."""
        for step in steps:
            watch = step.watch
            if step.enters is not None:
                plan.enter(step.clip, step.enters)
            watch.recorded_s = (stamp_ns - step.clip.start_ns) / 1e9
            self._report(watch, "")
            if step.ends:
                self._end(watch, group, f"it was not in view in the {watch.recorded_s:.1f} s it was watched")

    def check_stalls(self, advanced_s: Callable[[str], float]) -> None:
        """Ends watches whose camera stands still. `advanced_s` says when a camera's time last moved."""
        now_s = self._reporter.clock()
        for watch in self._open(lambda watch: True):
            still_s = now_s - max(advanced_s(watch.camera), watch.accepted_s)
            if still_s > STALL_S:
                self._end(watch, object(), f"no new frame came for {still_s:.1f} s")

    def restart(self, camera: str) -> None:
        """The camera's stamps jumped back: its watches end with what they have."""
        for watch in self._open(lambda watch: watch.camera == camera and watch.clip is not None):
            self._end(watch, object(), "the camera's stamps jumped back before it was seen")

    def forget(self, track: Track, error: PamError) -> None:
        """The region is gone, and with it its watches."""
        for watch in self._open(lambda watch: watch.track is track):
            self._watches.remove(watch)
            watch.request.handle.fail(error)

    def clear(self) -> None:
        """All regions are gone; who waits has been told."""
        self._watches.clear()

    def _open(self, chosen: Callable[[_Recording], bool]) -> list[_Recording]:
        self._watches = [watch for watch in self._watches if not watch.request.handle.done]
        return [watch for watch in self._watches if chosen(watch)]

    def _step(self, watch: _Recording, stamp_ns: int) -> RecordingStep:
        clip = watch.clip
        if clip is None:
            duration_s, max_frames = watch.request.duration_s, self.options.clip_frames
            clip = watch.clip = ClipBuffer(start_ns=stamp_ns, period_s=duration_s, max_frames=max_frames)
        looked = watch.track.observed_at(stamp_ns) if clip.wants(stamp_ns) else None
        return RecordingStep(watch, clip, looked, clip.ends(stamp_ns))

    def _report(self, watch: _Recording, text: str) -> None:
        self._reporter.listener.on_progress(lambda: watch.request.on_progress(watch.recorded_s, text))

    def _end(self, watch: _Recording, group: object, why_empty: str) -> None:
        self._watches.remove(watch)
        frames = tuple(watch.clip.frames) if watch.clip is not None and watch.clip.in_view else ()
        if not frames:
            region = f"region {watch.track.region_id} of camera {watch.camera!r}"
            watch.request.handle.fail(NoFrameError(f"there is no clip of {region}: {why_empty}"))
            return

        def deliver(event: CaptionEvent) -> None:
            self._report(watch, event.text)

        self._queue.submit(
            CaptionJob(
                camera=watch.camera,
                region_id=watch.track.region_id,
                group=group,
                frames=frames,
                language=watch.request.language,
                sequence=0,
                max_new_tokens=self.options.max_new_tokens,
                reporter=self._reporter,
                deliver=deliver,
                handle=watch.request.handle,
            )
        )
