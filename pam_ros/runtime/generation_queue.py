"""Texts that wait and texts that are decoded: batches take turns, one bounded step at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from pam_ros.errors import CancelledError, InferenceError, PamError
from pam_ros.model.interface import Decode, GenerationRequest, PerceptionModel
from pam_ros.runtime.failures import FaultLog, GuardedListener
from pam_ros.runtime.statistics import Smoothed

MAX_BATCHES = 4  # batches decoded side by side; each holds a key-value cache on the device


@dataclass(frozen=True, slots=True, eq=False)
class EventReporter:
    """Where jobs leave what they have."""

    listener: GuardedListener
    clock: Callable[[], float]  # seconds, steady
    text_latency_s: Smoothed = field(default_factory=Smoothed)


class Job(Protocol):
    """The texts one caller waits for, about one region."""

    camera: str
    region_id: int
    group: object  # waiting jobs with the identical group start as one batch

    @property
    def counted(self) -> bool:
        """True for a caller's request, which the bound on waiting requests counts."""

    @property
    def abandoned(self) -> bool:
        """True once nobody waits any more."""

    def requests(self) -> list[GenerationRequest]:
        """What to decode; asked for when decoding starts."""

    def progress(self, index: int, text: str, final: bool) -> None:
        """The text of request `index` so far."""

    def end(self, error: PamError | None) -> None:
        """Called once: every request is final (None), or why not."""


@dataclass(slots=True, eq=False)
class _Batch:
    """Jobs decoded together."""

    decode: Decode
    owners: list[tuple[Job, int]]  # by the index that decode reports: whose request, and which of theirs
    unfinished: dict[Job, set[int]]  # indices that are not final; a job leaves when it ended


class GenerationQueue:
    """Owned by the worker; the counts may be read from any thread."""

    def __init__(self, model: PerceptionModel, faults: FaultLog) -> None:
        self._model = model
        self._faults = faults
        self._waiting: list[Job] = []
        self._running: deque[_Batch] = deque()  # whose turn it is, first in line first
        self.queued = 0  # callers' requests that wait
        self.decoding = 0  # texts
        self.tokens = 0  # steps of texts so far, ever

    def submit(self, job: Job) -> None:
        """Puts the job behind those that wait."""
        self._waiting.append(job)
        self._count()

    def replace(self, old: Job, new: Job) -> bool:
        """Puts `new` where `old` waits. False where `old` waits no more."""
        if old not in self._waiting:
            return False
        self._waiting[self._waiting.index(old)] = new
        self._count()
        return True

    def cancel(self, camera: str, region_id: int, error: PamError) -> None:
        """Ends every job about the region."""
        self._end_where(lambda job: (job.camera, job.region_id) == (camera, region_id), error)

    def clear(self, error: PamError) -> None:
        """Ends every job."""
        self._end_where(lambda job: True, error)

    def step(self) -> bool:
        """One bounded piece of work: a prefill chunk or a token for one batch. False where there is none."""
        self._end_where(
            lambda job: job.abandoned, CancelledError("the request was cancelled while it waited")
        )
        if self._waiting and len(self._running) < MAX_BATCHES:
            self._start()
        if not self._running:
            self._count()
            return False
        batch = self._running.popleft()
        failure = self._faults.attempt("decoding", lambda: self._advance(batch))
        if failure is not None:
            self._retry_alone(batch, failure)
        if batch.unfinished:
            self._running.append(batch)
        self._count()
        return True

    def _start(self) -> None:
        group = self._waiting[0].group
        jobs = [job for job in self._waiting if job.group is group]
        self._waiting = [job for job in self._waiting if job.group is not group]
        requests: list[GenerationRequest] = []
        owners: list[tuple[Job, int]] = []
        batch_of: dict[Job, set[int]] = {}
        for job in jobs:
            own = job.requests()
            batch_of[job] = set(range(len(requests), len(requests) + len(own)))
            owners += [(job, index) for index in range(len(own))]
            requests += own
        decode = self._faults.attempt("starting to decode", lambda: self._model.decode(requests))
        if not isinstance(decode, PamError):
            self._running.appendleft(_Batch(decode, owners, batch_of))
        elif len(jobs) > 1:
            self._separate(jobs)
        else:
            jobs[0].end(decode)

    def _advance(self, batch: _Batch) -> None:
        deltas = [] if batch.decode.done else batch.decode.step()
        for delta in deltas:
            self._report(batch, delta.index, delta.text, delta.final)
        if batch.decode.done:
            self._fail(batch, InferenceError("decoding ended without a final text"))

    def _report(self, batch: _Batch, index: int, text: str, final: bool) -> None:
        job, own_index = batch.owners[index]
        left = batch.unfinished.get(job)
        if left is None or index not in left:
            return
        self.tokens += 1
        job.progress(own_index, text, final)
        if final:
            left.discard(index)
            if not left:
                del batch.unfinished[job]
                job.end(None)

    def _retry_alone(self, batch: _Batch, error: PamError) -> None:
        """After a failed step nobody knows whose fault it was: each job gets a decode of its own."""
        jobs = list(batch.unfinished)
        batch.unfinished.clear()
        if len({job for job, _ in batch.owners}) > 1:
            self._separate(jobs)
        else:
            for job in jobs:
                job.end(error)

    def _separate(self, jobs: list[Job]) -> None:
        for job in jobs:
            job.group = object()
        self._waiting = jobs + self._waiting

    def _fail(self, batch: _Batch, error: PamError) -> None:
        for job in list(batch.unfinished):
            self._cancel(batch, job)
            job.end(error)

    def _cancel(self, batch: _Batch, job: Job) -> None:
        indices = batch.unfinished.pop(job)

        def cancel() -> None:
            for index in indices:
                batch.decode.cancel(index)

        self._faults.attempt("cancelling a text", cancel)

    def _end_where(self, chosen: Callable[[Job], bool], error: PamError) -> None:
        gone = [job for job in self._waiting if chosen(job)]
        self._waiting = [job for job in self._waiting if job not in gone]
        for batch in self._running:
            for job in [job for job in batch.unfinished if chosen(job)]:
                self._cancel(batch, job)
                gone.append(job)
        self._running = deque(batch for batch in self._running if batch.unfinished)
        for job in gone:  # last, since ending a job may submit the next
            job.end(error)
        self._count()

    def _count(self) -> None:
        self.queued = sum(job.counted for job in self._waiting)
        self.decoding = sum(len(left) for batch in self._running for left in batch.unfinished.values())
