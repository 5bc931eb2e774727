"""Rolling clips and their captions, by the clock and on demand; carry-over from clip to clip."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import TypeVar

from pam_ros.errors import CancelledError, NoFrameError, PamError
from pam_ros.model.interface import FIRST_FRAME_STRIDE
from pam_ros.records import Language
from pam_ros.runtime.caption_job import CaptionJob
from pam_ros.runtime.clip_buffer import ClipBuffer, ClipFrame
from pam_ros.runtime.clip_prompts import ClipPrompt
from pam_ros.runtime.clip_sampler import EARLY_NS
from pam_ros.runtime.embedding_plan import EmbeddingPlan
from pam_ros.runtime.events import CaptionEvent
from pam_ros.runtime.failures import FaultLog
from pam_ros.runtime.generation_queue import EventReporter, GenerationQueue
from pam_ros.runtime.options import EngineOptions
from pam_ros.runtime.requests import CaptionRequest
from pam_ros.runtime.summary import MOST_CAPTIONS, summarise
from pam_ros.runtime.tracks import CameraTracks, Track, TrackObservation

R = TypeVar("R")
WANTED_S = 60.0


@dataclass(frozen=True, slots=True)
class _PreviousCaption:
    """The newest caption of a region."""

    sequence: int
    language: Language
    text: str


@dataclass(slots=True, eq=False)
class _Rolling:
    """One region's rolling clip and its captions.

    Attributes:
        track: the region.
        wanted_ns: the camera's time at the newest `caption_now`: for WANTED_S from then on, a clip is
            collected even if captions do not stream.
        sequence: of the next clip to be captioned.
        since: captions of clips before this one belong to a time before the camera's stamps jumped back.
        active: the streaming caption that waits or is generated, with its id in the queue; following: the one
            after it.
        finished: the captions that the summary is made from, at most MOST_CAPTIONS.
        streamed: captions have streamed since the last summary.
        ending: the stream is over; its summary follows the captions that are still generated.
    """

    track: Track
    clip: ClipBuffer | None = None
    wanted_ns: int | None = None
    sequence: int = 0
    since: int = 0
    previous: _PreviousCaption | None = None
    active: CaptionJob | None = None
    active_id: int = 0
    following: CaptionJob | None = None
    finished: list[CaptionEvent] = field(default_factory=list)
    streamed: bool = False
    ending: bool = False

    def drop(self) -> None:
        """Drops the clip and the caption that waits."""
        self.clip = self.following = None

    def held(self) -> Iterator[ClipPrompt | None]:
        """See `ClipPrompts.add_holder`."""
        if self.clip is not None:
            yield self.clip.prompt
        if self.following is not None:
            yield self.following.prompt

    def keep(self, caption: CaptionEvent) -> None:
        """Keeps a caption for the summary; one in another language begins a new summary."""
        if self.finished and self.finished[0].language is not caption.language:
            self.finished.clear()
        self.finished.append(caption)
        if len(self.finished) > MOST_CAPTIONS:
            del self.finished[1]  # the first names the object

    def take_summary(self) -> CaptionEvent | None:
        """The captions so far as one text, oldest clip first, or None; the next summary starts over."""
        captions = sorted(self.finished, key=lambda caption: caption.sequence)
        self.finished, self.streamed, self.ending = [], False, False
        if not captions:
            return None
        sure = [caption.confidence for caption in captions]
        last, sequence, self.sequence = captions[-1], self.sequence, self.sequence + 1
        return replace(
            last,
            clip_start_ns=captions[0].clip_start_ns,
            sequence=sequence,
            frame_count=sum(caption.frame_count for caption in captions),
            clip_too_thin=any(caption.clip_too_thin for caption in captions),
            text=summarise([caption.text for caption in captions], last.language),
            latency_s=0.0,
            summary=True,
            confidence=None if None in sure else min(each for each in sure if each is not None),
            unsure=any(caption.unsure for caption in captions),
        )


@dataclass(slots=True, eq=False)
class ClipStep:
    """What one frame means for one region's rolling clip.

    Attributes:
        enters: the observation that becomes the clip's next frame.
        ends: the decode timestamp is reached.
        carried: the observation that starts the next clip, at first-frame density.
    """

    rolling: _Rolling
    clip: ClipBuffer
    enters: TrackObservation | None
    ends: bool
    carried: TrackObservation | None

    def plan(self, plan: EmbeddingPlan) -> None:
        """Asks for the embeddings that this step needs."""
        if self.enters is not None:
            plan.want(self.enters, stride=self.clip.next_stride)
        if self.carried is not None:
            plan.want(self.carried, stride=FIRST_FRAME_STRIDE)


class Captions:
    """Owned by the worker. Clips live here; the generation queue runs the texts."""

    def __init__(
        self, *, queue: GenerationQueue, reporter: EventReporter, faults: FaultLog, options: EngineOptions
    ) -> None:
        self.options = options
        self._faults = faults
        self._queue = queue
        self._reporter = reporter
        self._rolling: dict[tuple[str, int], _Rolling] = {}  # by camera and region id
        queue.clip_prompts.add_holder(lambda: chain.from_iterable(map(_Rolling.held, self._rolling.values())))

    # A new frame, in two halves: which embeddings are needed, and what becomes of them

    def plan(self, camera: CameraTracks, stamp_ns: int, plan: EmbeddingPlan) -> list[ClipStep]:
        """Finds the clips that the camera's newest frame enters or ends; asks `plan` for the embeddings."""
        needed = []
        for rolling in [self._rolling_of(camera.name, track) for track in camera.regions.values()]:
            step = self._attempt(rolling, partial(self._frame_step, rolling, stamp_ns))
            if isinstance(step, ClipStep):
                step.plan(plan)
                needed.append(step)
        return needed

    def settle(
        self, camera: str, stamp_ns: int, steps: list[ClipStep], plan: EmbeddingPlan, batch: int
    ) -> None:
        """Lets frames enter, and starts the captions of clips that end; `plan` was run in between."""
        for step in steps:
            self._attempt(step.rolling, partial(self._settle, camera, stamp_ns, step, plan, batch))

    def _settle(self, camera: str, stamp_ns: int, step: ClipStep, plan: EmbeddingPlan, batch: int) -> None:
        if step.enters is not None:
            step.clip.add(step.enters, plan)
        if step.ends:
            self._end(camera, step, stamp_ns, plan, batch)

    def _attempt(self, rolling: _Rolling, work: Callable[[], R]) -> R | PamError:
        """A fault of one region's clip costs this clip, not the frame's other work."""
        result = self._faults.attempt("a rolling clip", work)
        if isinstance(result, PamError):
            rolling.clip = None
        return result

    def check_streaming(self) -> None:
        """Sums up the streams of all regions once streaming is switched off, even if no frame comes."""
        if not self.options.streaming:
            for rolling in self._rolling.values():
                if rolling.streamed and rolling.active is None:
                    self._sum_up(rolling)

    def end_stream(self, camera: CameraTracks) -> None:
        """The camera's stream is over: captions the clips that are still open."""
        batch = self._queue.new_batch()
        for track in camera.regions.values():
            rolling = self._rolling_of(camera.name, track)
            clip, rolling.clip = rolling.clip, None
            # What is left after a decode timestamp is a clip of one frame: nothing can happen in it.
            instant = rolling.sequence > 0 and clip is not None and len(clip.frames) == 1
            if clip is not None and clip.new_frames and self.options.streaming and not instant:
                job = self._job(
                    camera.name, rolling, clip, clip.frames[-1].stamp_ns, batch, self.options.caption_language
                )
                self._submit(rolling, job)
            rolling.ending = True
            if rolling.active is None:
                self._sum_up(rolling)

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
            rolling = self._rolling_of(camera.name, track)
            failure = self._attempt(rolling, partial(self._now, camera, rolling, request, plan))
            if isinstance(failure, PamError):
                request.handle.fail(failure)

    def _now(
        self, camera: CameraTracks, rolling: _Rolling, request: CaptionRequest, plan: EmbeddingPlan
    ) -> None:
        track = rolling.track
        rolling.wanted_ns = (camera.frame or track.last_observed).stamp_ns
        # Without a clip so far there is only what it looked like when it was last in view.
        newest = track.last_visible if rolling.clip is None else track.last_observed
        clip = rolling.clip or self._clip(newest.stamp_ns, self.options.caption_period_s)
        missing = not clip.frames or newest.stamp_ns > clip.frames[-1].stamp_ns
        step = self._step(rolling, clip, newest if missing and clip.has_room else None, ends=True)
        step.plan(plan)
        plan.run()
        failure: PamError | None = clip.add(step.enters, plan) if step.enters is not None else None
        self._begin_next(step, camera.frame.stamp_ns if camera.frame else newest.stamp_ns, plan)
        if clip.frames:
            batch = self._queue.new_batch()
            job = self._job(camera.name, rolling, clip, newest.stamp_ns, batch, request.language)
            job.handle = request.handle
            self._queue.submit(job)
        else:
            request.handle.fail(
                failure or NoFrameError(f"region {request.region_id} has not been observed yet")
            )

    def _frame_step(self, rolling: _Rolling, stamp_ns: int) -> ClipStep | None:
        wanted = rolling.wanted_ns is not None and stamp_ns - rolling.wanted_ns <= WANTED_S * 1e9
        if not self.options.streaming and not wanted:
            rolling.drop()
            return None
        observation = rolling.track.observed_at(stamp_ns)
        if rolling.clip is None:
            if observation is None:
                return None
            rolling.clip = self._new_clip(stamp_ns)
            if rolling.clip is None:
                return None
        enters = observation if rolling.clip.wants(stamp_ns) else None
        return self._step(rolling, rolling.clip, enters, ends=rolling.clip.ends(stamp_ns))

    def _step(
        self, rolling: _Rolling, clip: ClipBuffer, enters: TrackObservation | None, *, ends: bool
    ) -> ClipStep:
        carried = (enters or clip.last) if ends and self._carries() else None
        return ClipStep(rolling, clip, enters, ends, carried)

    def _carries(self) -> bool:
        return self.options.carry_over and self.options.clip_frames > 1  # a clip of one has no room for it

    def _new_clip(self, start_ns: int, carried: ClipFrame | None = None) -> ClipBuffer | None:
        """The clip that starts here; None after the last of the decode timestamps that were named."""
        times_ns = self.options.decode_times_ns
        if not times_ns:
            return self._clip(start_ns, self.options.caption_period_s, carried)
        # The clip before may have ended a little early, see ClipSampler.
        end_ns = next((time_ns for time_ns in times_ns if time_ns - start_ns > EARLY_NS), None)
        return None if end_ns is None else self._clip(start_ns, (end_ns - start_ns) / 1e9, carried)

    def _clip(self, start_ns: int, period_s: float, carried: ClipFrame | None = None) -> ClipBuffer:
        return ClipBuffer(
            start_ns=start_ns,
            period_s=period_s,
            max_frames=self.options.clip_frames,
            prompt=self._queue.clip_prompts.open(self.options.clip_frames),
            carried=carried,
        )

    def _end(self, camera: str, step: ClipStep, stamp_ns: int, plan: EmbeddingPlan, batch: int) -> None:
        self._begin_next(step, stamp_ns, plan)
        # Without new frames the region was not looked for: there is nothing to caption.
        if self.options.streaming and step.clip.new_frames:
            language = self.options.caption_language
            job = self._job(camera, step.rolling, step.clip, stamp_ns, batch, language)
            self._submit(step.rolling, job)

    def _begin_next(self, step: ClipStep, stamp_ns: int, plan: EmbeddingPlan) -> None:
        """The paper's section 3.1: the last frame, at first-frame density, starts the next clip."""
        carried: ClipFrame | None = None
        if step.carried is not None:
            embedded = plan.embedded(step.carried, stride=FIRST_FRAME_STRIDE)
            if not isinstance(embedded, PamError):
                carried = ClipFrame.of(step.carried, embedded)
        elif self._carries() and step.clip.frames:
            carried = step.clip.frames[0]  # carried once already, and nothing was observed since
        # Without a carried frame the next clip starts with the next frame the region is observed in.
        step.rolling.clip = None if carried is None else self._new_clip(stamp_ns, carried)

    # One streaming caption at a time per region; the newest clip waits, others are skipped

    def _submit(self, rolling: _Rolling, job: CaptionJob) -> None:
        rolling.streamed = True
        if rolling.active is None:
            rolling.active, rolling.active_id = job, self._queue.submit(job)
            return
        if self._queue.replace(rolling.active_id, job):
            skipped: CaptionJob | None = rolling.active
            rolling.active = job
        else:
            skipped, rolling.following = rolling.following, job
        if skipped is not None:
            self._reporter.listener.on_warning(
                job.camera,
                f"region {job.region_id}: skipped caption {skipped.sequence}, because generation takes longer"
                f" than the caption period ({self.options.caption_period_s} s); raise streaming.period_s",
            )

    def _job(
        self,
        camera: str,
        rolling: _Rolling,
        clip: ClipBuffer,
        end_ns: int,
        batch: int,
        language: Language,
    ) -> CaptionJob:
        sequence, rolling.sequence = rolling.sequence, rolling.sequence + 1

        def previous() -> str | None:
            # A caption in another language would make the model change its language.
            known = rolling.previous
            return known.text if known is not None and known.language is language else None

        def ended(job: CaptionJob) -> None:
            known = rolling.previous
            if job.final is not None and sequence >= rolling.since:
                if known is None or known.sequence < sequence:
                    rolling.previous = _PreviousCaption(sequence, language, job.final.text)
                rolling.keep(job.final)
            if rolling.active is job:
                rolling.active, rolling.following = rolling.following, None
                if rolling.active is not None:
                    rolling.active_id = self._queue.submit(rolling.active)
                elif rolling.ending:
                    self._sum_up(rolling)

        return CaptionJob(
            camera=camera,
            region_id=rolling.track.region_id,
            batch=batch,
            clip_frames=tuple(clip.frames),
            prompt=clip.prompt,
            language=language,
            sequence=sequence,
            max_new_tokens=self.options.max_new_tokens,
            reporter=self._reporter,
            deliver=self._reporter.listener.on_caption,
            clip_too_thin=clip.too_thin(end_ns, self.options.clip_least_fraction),
            previous=previous,
            ended=ended,
            track=rolling.track,
        )

    # Beginnings and ends

    def _sum_up(self, rolling: _Rolling) -> None:
        """Reports the captions of a stream that has ended as one text."""
        if (summary := rolling.take_summary()) is not None:
            self._reporter.listener.on_caption(summary)

    def restart(self, camera: CameraTracks) -> None:
        """The camera's stamps jumped back: clips and the summary start anew, without a previous caption."""
        for track in camera.regions.values():
            rolling = self._rolling_of(camera.name, track)
            rolling.clip = rolling.previous = None
            self._sum_up(rolling)
            rolling.since = rolling.sequence

    def forget(self, camera: str, region_id: int) -> None:
        """The region is gone; the generation queue ends its running captions."""
        rolling = self._rolling.pop((camera, region_id), None)
        if rolling is not None:
            rolling.drop()
            self._sum_up(rolling)

    def clear(self) -> None:
        """All regions are gone."""
        for camera, region_id in list(self._rolling):
            self.forget(camera, region_id)

    def _rolling_of(self, camera: str, track: Track) -> _Rolling:
        return self._rolling.setdefault((camera, track.region_id), _Rolling(track))
