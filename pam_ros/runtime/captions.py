"""Rolling clips and their captions, by the clock and on demand; carry-over from clip to clip."""

from __future__ import annotations

from dataclasses import dataclass

from pam_ros.errors import CancelledError, NoFrameError, PamError
from pam_ros.model.interface import FIRST_FRAME_STRIDE
from pam_ros.records import Language
from pam_ros.runtime.caption_job import CaptionJob
from pam_ros.runtime.clip_buffer import ClipBuffer, ClipFrame
from pam_ros.runtime.embedding_plan import EmbeddingPlan
from pam_ros.runtime.generation_queue import EventReporter, GenerationQueue
from pam_ros.runtime.options import EngineOptions
from pam_ros.runtime.requests import CaptionRequest
from pam_ros.runtime.tracks import CameraTracks, Track, TrackObservation


@dataclass(slots=True, eq=False)
class _Rolling:
    """One region's rolling clip and its captions.

    Attributes:
        wanted: `caption_now` was called, so a clip is collected even where captions do not stream.
        sequence: of the next clip to be captioned.
        story: the newest caption: its sequence, language and text.
        active: the streaming caption that waits or is decoded; following: the one to come after it.
    """

    clip: ClipBuffer | None = None
    wanted: bool = False
    sequence: int = 0
    story: tuple[int, Language, str] | None = None
    active: CaptionJob | None = None
    following: CaptionJob | None = None


@dataclass(slots=True, eq=False)
class ClipStep:
    """What one frame means for one region's rolling clip.

    Attributes:
        enters: the observation that becomes the clip's next frame, at fine density where it is its first.
        ends: the decode timestamp is reached.
        carried: the observation that starts the next clip, at fine density.
    """

    track: Track
    clip: ClipBuffer
    enters: TrackObservation | None
    ends: bool
    carried: TrackObservation | None

    def plan(self, plan: EmbeddingPlan) -> None:
        """Asks for the embeddings this step needs."""
        if self.enters is not None:
            plan.want(self.enters, stride=self.clip.next_stride)
        if self.carried is not None:
            plan.want(self.carried, stride=FIRST_FRAME_STRIDE)


class Captions:
    """Owned by the worker. Clips live here; decoding is the language queue's."""

    def __init__(self, *, queue: GenerationQueue, reporter: EventReporter, options: EngineOptions) -> None:
        self.options = options
        self._queue = queue
        self._reporter = reporter
        self._rolling: dict[Track, _Rolling] = {}

    # A new frame, in two halves: which embeddings are needed, and what becomes of them

    def plan(self, camera: CameraTracks, stamp_ns: int, plan: EmbeddingPlan) -> list[ClipStep]:
        """Finds out which clips the camera's newest frame enters or ends; requests `plan` for their embeddings."""
        steps = [self._frame_step(track, stamp_ns) for track in camera.regions.values()]
        needed = [step for step in steps if step is not None]
        for step in needed:
            step.plan(plan)
        return needed

    def settle(
        self, camera: str, stamp_ns: int, steps: list[ClipStep], plan: EmbeddingPlan, group: object
    ) -> None:
        """Lets frames enter, and requests for the captions of clips that end; `plan` was run in between."""
        for step in steps:
            if step.enters is not None:
                plan.enter(step.clip, step.enters)
            if not step.ends:
                continue
            frames, new_frames = tuple(step.clip.frames), step.clip.new_frames
            self._begin_next(step, stamp_ns, plan)
            # Without new frames the region was looked for in none: there is nothing to tell.
            if self.options.streaming and new_frames:
                self._submit(
                    self._job(camera, step.track, frames, group, self.options.caption_language), step.track
                )

    def now(self, camera: CameraTracks, requests: list[CaptionRequest], plan: EmbeddingPlan) -> None:
        """`caption_now`: ends the regions' rolling clips here; the newest observation is their last frame."""
        for request in requests:
            track = camera.regions.get(request.region_id)
            if request.handle.done:
                continue
            if track is None:
                request.handle.fail(
                    CancelledError(f"region {request.region_id} was removed before it was captioned")
                )
                continue
            rolling = self._rolling_of(track)
            rolling.wanted = True
            # Without a clip so far there is only what it looked like when it was last in view.
            newest = track.last_visible if rolling.clip is None else track.last_observed
            clip = rolling.clip or self._new_clip(newest.stamp_ns)
            missing = not clip.frames or newest.stamp_ns > clip.frames[-1].stamp_ns
            step = self._step(track, clip, newest if missing and clip.has_room else None, ends=True)
            step.plan(plan)
            plan.run()
            failure: PamError | None = plan.enter(clip, step.enters) if step.enters is not None else None
            frames = tuple(clip.frames)
            self._begin_next(step, camera.frame.stamp_ns if camera.frame else newest.stamp_ns, plan)
            if frames:
                job = self._job(camera.name, track, frames, object(), request.language)
                job.handle = request.handle
                self._queue.submit(job)
            else:
                request.handle.fail(
                    failure or NoFrameError(f"region {request.region_id} has not been seen yet")
                )

    def _frame_step(self, track: Track, stamp_ns: int) -> ClipStep | None:
        rolling = self._rolling_of(track)
        if not self.options.streaming and not rolling.wanted:
            rolling.clip = rolling.following = None
            return None
        looked = track.observed_at(stamp_ns)
        if rolling.clip is None:
            if looked is None:
                return None
            rolling.clip = self._new_clip(stamp_ns)
        enters = looked if rolling.clip.wants(stamp_ns) else None
        return self._step(track, rolling.clip, enters, ends=rolling.clip.ends(stamp_ns))

    def _step(
        self, track: Track, clip: ClipBuffer, enters: TrackObservation | None, *, ends: bool
    ) -> ClipStep:
        return ClipStep(
            track, clip, enters, ends, (enters or clip.last) if ends and self._carries() else None
        )

    def _carries(self) -> bool:
        return self.options.carry_over and self.options.clip_frames > 1  # a clip of one has no room for it

    def _new_clip(self, start_ns: int, carried: ClipFrame | None = None) -> ClipBuffer:
        period_s, max_frames = self.options.caption_period_s, self.options.clip_frames
        return ClipBuffer(start_ns=start_ns, period_s=period_s, max_frames=max_frames, carried=carried)

    def _begin_next(self, step: ClipStep, stamp_ns: int, plan: EmbeddingPlan) -> None:
        """The paper's section 3.1: the last frame, at first-frame density, starts the next clip."""
        carried: ClipFrame | None = None
        if step.carried is not None:
            embeddings = plan.embeddings(step.carried, stride=FIRST_FRAME_STRIDE)
            if not isinstance(embeddings, PamError):
                carried = ClipFrame.of(step.carried, embeddings[0])
        elif self._carries() and step.clip.frames:
            carried = step.clip.frames[0]  # carried once already, and nothing was seen since
        # Without a carried frame the next clip starts with the next frame the region is seen in.
        self._rolling_of(step.track).clip = None if carried is None else self._new_clip(stamp_ns, carried)

    # One streaming caption at a time per region; the newest clip waits, others are skipped

    def _submit(self, job: CaptionJob, track: Track) -> None:
        rolling = self._rolling_of(track)
        if rolling.active is None:
            rolling.active = job
            self._queue.submit(job)
            return
        if self._queue.replace(rolling.active, job):
            skipped: CaptionJob | None = rolling.active
            rolling.active = job
        else:
            skipped, rolling.following = rolling.following, job
        if skipped is not None:
            self._reporter.listener.on_warning(
                job.camera,
                f"region {job.region_id}: caption {skipped.sequence} is skipped, decoding takes longer than "
                f"the caption period of {self.options.caption_period_s} s",
            )

    def _job(
        self, camera: str, track: Track, frames: tuple[ClipFrame, ...], group: object, language: Language
    ) -> CaptionJob:
        rolling = self._rolling_of(track)
        sequence, rolling.sequence = rolling.sequence, rolling.sequence + 1

        def previous() -> str | None:
            # A caption in another language would make the model change its language.
            story = rolling.story
            return story[2] if story is not None and story[1] is language else None

        def ended(job: CaptionJob) -> None:
            if job.final is not None and (rolling.story is None or rolling.story[0] < sequence):
                rolling.story = (sequence, language, job.final.text)
            if rolling.active is job:
                rolling.active, rolling.following = rolling.following, None
                if rolling.active is not None:
                    self._queue.submit(rolling.active)

        return CaptionJob(
            camera=camera,
            region_id=track.region_id,
            group=group,
            frames=frames,
            language=language,
            sequence=sequence,
            max_new_tokens=self.options.max_new_tokens,
            reporter=self._reporter,
            deliver=self._reporter.listener.on_caption,
            previous=previous,
            ended=ended,
        )

    # Beginnings and ends

    def restart(self, camera: CameraTracks) -> None:
        """The camera's stamps jumped back: clips start anew, and so does what they tell."""
        for track in camera.regions.values():
            rolling = self._rolling_of(track)
            rolling.clip = rolling.story = None

    def forget(self, track: Track) -> None:
        """The region is gone; its captions under way are for the language queue to end."""
        rolling = self._rolling.pop(track, None)
        if rolling is not None:
            rolling.following = None

    def clear(self) -> None:
        """All regions are gone."""
        for track in list(self._rolling):
            self.forget(track)

    def _rolling_of(self, track: Track) -> _Rolling:
        return self._rolling.setdefault(track, _Rolling())
