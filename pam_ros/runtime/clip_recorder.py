"""`caption_clip`: records a clip of one region for a caller, then captions it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from pam_ros.errors import NoFrameError, PamError
from pam_ros.runtime.caption_job import CaptionJob
from pam_ros.runtime.clip_buffer import ClipBuffer
from pam_ros.runtime.embedding_plan import EmbeddingPlan
from pam_ros.runtime.events import CaptionEvent
from pam_ros.runtime.failures import FaultLog
from pam_ros.runtime.generation_queue import EventReporter, GenerationQueue
from pam_ros.runtime.options import EngineOptions
from pam_ros.runtime.requests import ClipRequest
from pam_ros.runtime.tracks import Track, TrackObservation

STALL_S = 5.0  # a recording ends if its camera's time does not move for this long, wall clock
JUMP_S = 5.0  # and if it moves ahead by more between two frames
SLOW = 3.0  # both are at least so many times as long as the time between the last two frames


@dataclass(frozen=True, slots=True)
class _Seen:
    """A camera's newest frame: when it was processed, its stamp, and both times since the frame before."""

    at_s: float
    stamp_ns: int
    waited_s: float = 0.0
    ahead_s: float = 0.0

    def next(self, at_s: float, stamp_ns: int) -> _Seen:
        return _Seen(at_s, stamp_ns, at_s - self.at_s, (stamp_ns - self.stamp_ns) / 1e9)


@dataclass(slots=True, eq=False)
class _Recording:
    """One recording under way. Its clip starts with the first frame after the request was accepted."""

    camera: str
    track: Track
    request: ClipRequest
    accepted_s: float  # seconds of the runtime's clock
    clip: ClipBuffer | None = None
    recorded_s: float = 0.0
    newest_ns: int | None = None  # stamp of the newest frame since the start


@dataclass(slots=True, eq=False)
class RecordingStep:
    """What one frame means for one recording: the observation that enters its clip, and whether it ends."""

    recording: _Recording
    clip: ClipBuffer
    enters: TrackObservation | None
    ends: bool


class ClipRecorder:
    """Owned by the worker; `count` may be read from any thread."""

    def __init__(
        self, *, queue: GenerationQueue, reporter: EventReporter, faults: FaultLog, options: EngineOptions
    ) -> None:
        self.options = options
        self._faults = faults
        self._queue = queue
        self._reporter = reporter
        self._recordings: list[_Recording] = []
        self._seen: dict[str, _Seen] = {}  # by camera
        queue.clip_prompts.add_holder(
            lambda: (each.clip.prompt for each in self._recordings if each.clip is not None)
        )

    @property
    def count(self) -> int:
        """Recordings under way."""
        return len(self._recordings)

    def add(self, camera: str, track: Track, request: ClipRequest) -> None:
        """Records from the next new frame on, which is the current one if `plan` has not run for it."""
        self._recordings.append(_Recording(camera, track, request, self._reporter.clock()))

    def plan(self, camera: str, stamp_ns: int, plan: EmbeddingPlan) -> list[RecordingStep]:
        """Finds the recordings that the camera's newest frame enters or ends; asks `plan` for embeddings."""
        steps = []
        now_s = self._reporter.clock()
        before = self._seen.get(camera, _Seen(now_s, stamp_ns))
        self._seen[camera] = before.next(now_s, stamp_ns)
        for recording in self._open(lambda each: each.camera == camera):
            ahead_s = 0.0 if recording.newest_ns is None else (stamp_ns - recording.newest_ns) / 1e9
            if ahead_s > max(JUMP_S, SLOW * before.ahead_s):
                self._cut_short(recording, f"the camera's time jumped ahead by {ahead_s:.1f} s")
                continue
            step = self._faults.attempt("recording a clip", partial(self._step, recording, stamp_ns))
            if isinstance(step, PamError):
                self._fail(recording, step)
                continue
            if step.enters is not None:
                plan.want(step.enters, stride=step.clip.next_stride)
            steps.append(step)
        return steps

    def settle(self, stamp_ns: int, steps: list[RecordingStep], plan: EmbeddingPlan, batch: int) -> None:
        """Lets frames enter, reports progress, and captions the clips that end."""
        for step in steps:
            failure = self._faults.attempt(
                "recording a clip", partial(self._settle, step, stamp_ns, plan, batch)
            )
            if isinstance(failure, PamError):
                self._fail(step.recording, failure)

    def check_stalls(self, advanced_s: Callable[[str], float]) -> None:
        """Ends recordings whose camera stands still. `advanced_s`: when a camera's time last moved."""
        now_s = self._reporter.clock()
        for recording in self._open(lambda each: True):
            seen = self._seen.get(recording.camera, _Seen(-math.inf, 0))
            still_s = now_s - max(advanced_s(recording.camera), recording.accepted_s)
            if still_s <= max(STALL_S, SLOW * seen.waited_s):
                continue
            if now_s - seen.at_s < 0.5 * still_s:  # a frame is processed some time after it has arrived
                self._cut_short(recording, f"the camera's time stood still for {still_s:.1f} s")
            else:
                self._cut_short(recording, f"no image arrived for {still_s:.1f} s")

    def restart(self, camera: str) -> None:
        """The camera's stamps jumped back: its recordings end with what they have."""
        for recording in self._open(lambda each: each.camera == camera and each.clip is not None):
            self._cut_short(recording, "the camera's stamps jumped back")

    def forget(self, camera: str, region_id: int, error: PamError) -> None:
        """The region is gone, and its recordings with it."""
        for recording in self._open(lambda each: (each.camera, each.track.region_id) == (camera, region_id)):
            self._fail(recording, error)

    def clear(self) -> None:
        """All regions are gone; the callers have been answered."""
        self._recordings.clear()

    def _open(self, chosen: Callable[[_Recording], bool]) -> list[_Recording]:
        self._recordings = [each for each in self._recordings if not each.request.handle.done]
        return [each for each in self._recordings if chosen(each)]

    def _step(self, recording: _Recording, stamp_ns: int) -> RecordingStep:
        clip = recording.clip
        if clip is None:
            clip = recording.clip = ClipBuffer(
                start_ns=stamp_ns,
                period_s=recording.request.duration_s,
                max_frames=self.options.clip_frames,
                prompt=self._queue.clip_prompts.open(self.options.clip_frames),
            )
        recording.newest_ns = stamp_ns
        enters = recording.track.observed_at(stamp_ns) if clip.wants(stamp_ns) else None
        return RecordingStep(recording, clip, enters, clip.ends(stamp_ns))

    def _settle(self, step: RecordingStep, stamp_ns: int, plan: EmbeddingPlan, batch: int) -> None:
        recording = step.recording
        if step.enters is not None:
            step.clip.add(step.enters, plan)
        recording.recorded_s = (stamp_ns - step.clip.start_ns) / 1e9
        self._report(recording, "")
        if step.ends:
            why_empty = f"it was not in view during the {recording.recorded_s:.1f} s of the recording"
            self._end(recording, batch, why_empty)

    def _fail(self, recording: _Recording, error: PamError) -> None:
        if recording in self._recordings:
            self._recordings.remove(recording)
        recording.request.handle.fail(error)

    def _cut_short(self, recording: _Recording, why: str) -> None:
        """Ends a recording early, with the frames it has."""
        note = f"the clip covers {recording.recorded_s:.1f} of {recording.request.duration_s:g} s: {why}"
        self._end(recording, self._queue.new_batch(), f"it was not in view, and {why}", note)

    def _report(self, recording: _Recording, text: str) -> None:
        request = recording.request
        self._reporter.listener.on_progress(lambda: request.on_progress(recording.recorded_s, text))

    def _end(self, recording: _Recording, batch: int, why_empty: str, cut_short: str = "") -> None:
        self._recordings.remove(recording)
        clip = recording.clip
        if clip is None or not clip.in_view:
            region = f"region {recording.track.region_id} of camera {recording.camera!r}"
            recording.request.handle.fail(NoFrameError(f"there is no clip of {region}: {why_empty}"))
            return

        def deliver(event: CaptionEvent) -> None:
            self._report(recording, event.text)

        self._queue.submit(
            CaptionJob(
                camera=recording.camera,
                region_id=recording.track.region_id,
                batch=batch,
                clip_frames=tuple(clip.frames),
                language=recording.request.language,
                sequence=0,
                max_new_tokens=self.options.max_new_tokens,
                reporter=self._reporter,
                deliver=deliver,
                handle=recording.request.handle,
                prompt=clip.prompt,
                cut_short=cut_short,
                clip_too_thin=clip.too_thin(
                    clip.start_ns + round(recording.recorded_s * 1e9), self.options.clip_least_fraction
                ),
                track=recording.track,
            )
        )
