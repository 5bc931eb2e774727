"""Texts that wait and texts being generated: batches take turns, one bounded step at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, ClassVar, Protocol

from pam_ros.errors import CancelledError, InferenceError, PamError
from pam_ros.model.interface import TextDelta, TextGenerator, TextRequest
from pam_ros.model.text.names import ObjectNames
from pam_ros.records import Text
from pam_ros.runtime.clip_prompts import ClipPrompt, ClipPrompts
from pam_ros.runtime.embedding_plan import EmbeddedFrame
from pam_ros.runtime.failures import FaultLog, GuardedListener
from pam_ros.runtime.requests import RequestHandle
from pam_ros.runtime.statistics import Smoothed

# Batches generated side by side. In this process each holds a key-value cache on the device; in the
# background the generator itself decides which texts run.
MAX_BATCHES, MAX_BATCHES_IN_BACKGROUND = 4, 32


@dataclass(frozen=True, slots=True, eq=False)
class EventReporter:
    """What jobs report their results through.

    Attributes:
        clock: steady seconds.
        min_confidence: texts below it are unsure.
        names: see `Agreement`.
    """

    listener: GuardedListener
    clock: Callable[[], float]
    min_confidence: Callable[[], float]
    names: ObjectNames | None = None
    text_latency_s: Smoothed = field(default_factory=Smoothed)

    def judged(self, text: Text) -> Text:
        """A final text, marked if it is unsure."""
        unsure = text.confidence is not None and text.confidence < self.min_confidence()
        return replace(text, unsure=unsure)


class Job(Protocol):
    """The texts of one request, about one region."""

    camera: str
    region_id: int
    batch: int  # waiting jobs with the same number start together, see `GenerationQueue.new_batch`
    clip: ClassVar[bool]  # whether the texts are about a clip
    prompt: ClipPrompt | None  # that was extended by the frames already; unused once the texts have started

    @property
    def frames(self) -> tuple[EmbeddedFrame, ...]:
        """What the texts are about: one frame, or a clip's frames, oldest first."""

    @property
    def handle(self) -> RequestHandle[Any] | None:
        """The caller's; None for a detection and for streaming captions."""

    def requests(self) -> list[TextRequest]:
        """The texts to generate; called when generation starts."""

    def progress(self, index: int, delta: TextDelta) -> None:
        """Request `index` of `requests()` has this text so far."""

    def revise(self) -> bool:
        """Every text is final; True if some must be generated again: `requests` is called once more."""

    def end(self, error: PamError | None) -> None:
        """Called once: every text is final (None), or why not."""


@dataclass(slots=True, eq=False)
class _Running:
    """A job whose texts are being generated."""

    job: Job
    batch_size: int  # jobs that started in its batch
    unfinished: dict[int, int]  # text id → index of the job's request


class GenerationQueue:
    """Owned by the worker; the counts may be read from any thread."""

    def __init__(self, generator: TextGenerator, faults: FaultLog) -> None:
        self._generator = generator
        self._faults = faults
        self._ids = count(1)  # of jobs and batches
        self._waiting: dict[int, Job] = {}  # by job id, first in line first
        self.clip_prompts = ClipPrompts(generator, faults)
        self.clip_prompts.add_holder(lambda: (job.prompt for job in self._waiting.values()))
        self._running: dict[int, _Running] = {}  # by job id
        self._job_of: dict[int, int] = {}  # text id → job id
        self.queued = 0  # callers' requests that wait
        self.generating = 0  # texts
        self.tokens = 0  # generated so far, ever

    @property
    def in_background(self) -> bool:
        """Whether texts are being generated that `step` only reports on."""
        return self._generator.in_background and bool(self._running)

    def new_batch(self) -> int:
        """A number for jobs that are to start together."""
        return next(self._ids)

    def submit(self, job: Job) -> int:
        """Puts the job behind those that wait; returns its id."""
        job_id = next(self._ids)
        self._waiting[job_id] = job
        self._count()
        return job_id

    def replace(self, job_id: int, job: Job) -> bool:
        """Puts `job` in the place and under the id of one that waits; False if it no longer waits."""
        if job_id not in self._waiting:
            return False
        self._waiting[job_id] = job
        self._count()
        return True

    def cancel(self, camera: str, region_id: int, error: PamError) -> None:
        """Ends every job about the region."""
        self._end_if(lambda job: (job.camera, job.region_id) == (camera, region_id), error)

    def clear(self, error: PamError) -> None:
        """Ends every job."""
        self._end_if(lambda job: True, error)
        self.clip_prompts.release_unheld()

    def step(self) -> bool:
        """One bounded piece of work: a prefill chunk, or a token for one batch. False if there is none."""
        self._end_if(_abandoned, CancelledError("the request was cancelled before it was answered"))
        background = self._generator.in_background
        most = MAX_BATCHES_IN_BACKGROUND if background else MAX_BATCHES
        started = bool(self._waiting) and len({each.job.batch for each in self._running.values()}) < most
        if started:
            self._start()
        self.clip_prompts.release_unheld()
        if not self._running:
            self._count()
            return started  # what failed to start may have left others waiting
        deltas = self._faults.attempt("generating text", self._generator.step)
        stopped = False
        if isinstance(deltas, PamError):
            self._retry_alone(list(self._running), deltas)
        else:
            self._take(deltas)
            stopped = bool(self._running) and not self._generator.busy
            if stopped:
                error = InferenceError("text generation ended without a final text")
                for job_id in list(self._running):
                    self._stop(job_id).end(error)
        self._count()
        return not background or started or stopped or bool(deltas)

    # ---- starting

    def _start(self) -> None:
        batch = next(iter(self._waiting.values())).batch
        jobs = {job_id: job for job_id, job in self._waiting.items() if job.batch == batch}
        for job_id in jobs:
            del self._waiting[job_id]
        owners = [
            (job_id, index, request)
            for job_id, job in jobs.items()
            for index, request in enumerate(job.requests())
        ]
        text_ids = self._faults.attempt("starting a text", lambda: self._generate(jobs, owners))
        if not isinstance(text_ids, PamError):
            self._running |= {job_id: _Running(job, len(jobs), {}) for job_id, job in jobs.items()}
            for text_id, (job_id, index, _) in zip(text_ids, owners, strict=True):
                self._running[job_id].unfinished[text_id] = index
                self._job_of[text_id] = job_id
        elif len(jobs) > 1:
            self._wait_alone(jobs)
        else:
            for job in jobs.values():
                job.end(text_ids)

    def _generate(self, jobs: dict[int, Job], owners: Sequence[tuple[int, int, TextRequest]]) -> list[int]:
        """Opens one prompt for all texts about the same frames, and starts the texts."""
        prompts: dict[tuple[bool, tuple[EmbeddedFrame, ...]], int] = {}
        opened: list[int] = []
        try:
            for job in jobs.values():
                about = (job.clip, job.frames)
                if about in prompts:
                    continue
                ready = job.prompt.holds(job.frames) if job.prompt is not None else None
                if ready is not None:
                    prompts[about] = ready
                    continue
                prompts[about] = self._generator.open_prompt(clip=job.clip, frames=len(job.frames))
                opened.append(prompts[about])
                for frame in job.frames:
                    self._generator.extend_prompt(prompts[about], frame.embeddings)
            return self._generator.generate(
                [(prompts[jobs[job_id].clip, jobs[job_id].frames], request) for job_id, _, request in owners]
            )
        finally:
            for prompt_id in opened:
                self._generator.release_prompt(prompt_id)

    # ---- results

    def _take(self, deltas: Sequence[TextDelta]) -> None:
        failed: dict[int, PamError] = {}
        for delta in deltas:
            job_id = self._job_of.get(delta.text_id)
            if job_id is None:
                continue
            if delta.error is not None:
                if job_id not in failed:
                    failed[job_id] = self._faults.as_pam_error("generating text", delta.error)
                continue
            self.tokens += delta.new_tokens
            running = self._running[job_id]
            running.job.progress(running.unfinished[delta.text_id], delta)
            if delta.final:
                del running.unfinished[delta.text_id], self._job_of[delta.text_id]
                if not running.unfinished:
                    del self._running[job_id]
                    if running.job.revise():
                        self._wait_alone({job_id: running.job})
                    else:
                        running.job.end(None)
        for job_id, error in failed.items():
            self._retry_alone([job_id], error)

    def _retry_alone(self, job_ids: Sequence[int], error: PamError) -> None:
        """After a failed step the job at fault is unknown: each job of the batch runs once more, alone."""
        again: dict[int, Job] = {}
        for job_id in job_ids:
            alone = self._running[job_id].batch_size == 1
            job = self._stop(job_id)
            if alone:
                job.end(error)
            else:
                again[job_id] = job
        self._wait_alone(again)

    def _wait_alone(self, jobs: dict[int, Job]) -> None:
        """Puts jobs in front of the line, each in a batch of its own."""
        for job in jobs.values():
            job.batch = self.new_batch()
        self._waiting = jobs | self._waiting

    def _stop(self, job_id: int) -> Job:
        """Takes a running job out and cancels what is left of its texts."""
        running = self._running.pop(job_id)

        def cancel() -> None:
            for text_id in running.unfinished:
                self._generator.cancel(text_id)

        for text_id in running.unfinished:
            del self._job_of[text_id]
        self._faults.attempt("cancelling a text", cancel)
        return running.job

    def _end_if(self, chosen: Callable[[Job], bool], error: PamError) -> None:
        gone = [self._waiting.pop(job_id) for job_id, job in list(self._waiting.items()) if chosen(job)]
        gone += [self._stop(job_id) for job_id, each in list(self._running.items()) if chosen(each.job)]
        for job in gone:  # last, since ending a job may submit the next
            job.end(error)
        self._count()

    def _count(self) -> None:
        self.queued = sum(job.handle is not None for job in self._waiting.values())
        self.generating = len(self._job_of)


def _abandoned(job: Job) -> bool:
    """True once the caller no longer waits."""
    return job.handle is not None and job.handle.done
