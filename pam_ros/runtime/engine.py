"""The thread-safe interface of the runtime: inputs are queued for the worker, which runs the flow."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from itertools import count
from typing import Any

from pam_ros.errors import CancelledError, PamError
from pam_ros.model.interface import PerceptionModel
from pam_ros.records import Detection, Frame, Language, Prompt, Region, Task
from pam_ros.runtime.events import CaptionEvent, Listener
from pam_ros.runtime.failures import FaultLog, rejected_detections
from pam_ros.runtime.flow import Flow
from pam_ros.runtime.inbox import Inbox
from pam_ros.runtime.options import EngineOptions
from pam_ros.runtime.requests import (
    CaptionRequest,
    ClipRequest,
    PromptRequest,
    Request,
    RequestHandle,
    SurveyRequest,
    SurveyResult,
    check_clip,
    check_detections,
    check_request,
    check_survey,
)
from pam_ros.runtime.statistics import EngineStatistics
from pam_ros.runtime.worker import Worker

IDLE_S = 0.1  # how often an idle worker checks for cameras that stand still during a recording


class Engine:
    """Several cameras on one model. Every method is thread-safe and returns immediately, except as noted.

    Inputs are only queued; one worker thread owns the model and calls the listener. Without a thread (`open`
    and `run_pending` instead of `start`), the caller's thread does the work: files, evaluation, tests.
    """

    def __init__(
        self,
        *,
        model: PerceptionModel,
        cameras: Sequence[str],
        options: EngineOptions,
        listener: Listener,
        clock: Callable[[], float] = time.monotonic,
        region_ids: dict[str, Iterator[int]] | None = None,
    ) -> None:
        """`clock` returns steady seconds.

        `region_ids`: by camera, from an engine before this one, whose ids are not to be used again; filled.
        """
        region_ids = {} if region_ids is None else region_ids
        self._clock = clock
        self._handles: dict[Future[Any], RequestHandle[Any]] = {}  # not done yet
        self._handles_lock = threading.Lock()
        faults = FaultLog()
        self._inbox = Inbox(cameras, options, queued_elsewhere=lambda: self._flow.waiting, clock=clock)
        self._flow = Flow(
            model=model,
            cameras={name: region_ids.setdefault(name, count(1)) for name in cameras},
            options=options,
            inbox=self._inbox,
            listener=listener,
            faults=faults,
            clock=clock,
        )
        self._worker = Worker(
            masks=self._flow.masks_turn,
            texts=self._flow.text_turn,
            idle=lambda: self._inbox.wait(IDLE_S),
            leave=self._flow.leave,
            clock=clock,
            faults=faults,
        )

    @property
    def options(self) -> EngineOptions:
        """How the runtime behaves. May be replaced while it runs (`dataclasses.replace`)."""
        return self._flow.options

    @options.setter
    def options(self, options: EngineOptions) -> None:
        self._flow.options = options
        self._inbox.configure(options)

    def start(self) -> None:
        """Starts accepting input, and the worker thread. Idempotent."""
        self._inbox.open()
        self._worker.start()

    def open(self) -> None:
        """Starts accepting input without a worker thread; `run_pending` does the work, `close` ends it."""
        self._inbox.open()

    def close(self) -> None:
        """After `open`: stops, and gives back what the model holds for it. Idempotent."""
        self.stop()
        self._flow.leave()

    def run_pending(self) -> None:
        """Processes everything that is pending, texts included, on the caller's thread. Needs `open`."""
        while True:
            if not self._worker.turn():
                if not self._flow.in_background:
                    return
                self._inbox.wait(IDLE_S)

    def stop(self) -> None:
        """Fails pending requests, drops frames and regions, waits for the current piece of work. Idempotent.

        No listener is called after it returns. After the next `start`, region ids continue where they were.
        """
        self._inbox.close()
        with self._handles_lock:
            handles = list(self._handles.values())
        for handle in handles:
            handle.fail(CancelledError("the engine was stopped before the answer was ready"))
        self._worker.stop()

    def submit_frame(self, frame: Frame, arrived_s: float | None = None) -> None:
        """Offers the newest frame of `frame.camera`; one still waiting is dropped. Ignored while stopped.

        `arrived_s`: when it came, before it was decoded, seconds of the monotonic clock; None = now.
        """
        self._inbox.put_frame(frame, arrived_s)

    def perceive(self, camera: str, request: PromptRequest) -> RequestHandle[Region]:
        """Segments a prompt, or describes an existing region: its state in that frame, with the texts."""
        handle = RequestHandle[Region]()

        def put() -> None:
            check_request(request)
            self._inbox.put_request(Request(camera, request, None, self._clock(), handle=handle))

        return self._accept(camera, handle, put)

    def survey(self, camera: str, request: SurveyRequest) -> RequestHandle[SurveyResult]:
        """Finds everything in view, or what fits a purpose; see SurveyRequest."""
        handle = RequestHandle[SurveyResult]()

        def put() -> None:
            check_survey(request)
            self._inbox.put_survey(camera, request, handle)

        return self._accept(camera, handle, put)

    def detections(
        self,
        camera: str,
        detections: Sequence[Detection],
        stamp_ns: int | None,
        tasks: tuple[Task, ...],
        languages: tuple[Language, ...],
    ) -> None:
        """A detector's boxes in the frame of that stamp (None: the newest).

        New objects become regions; those that match a region are left to the tracker. Failures are warnings.
        """
        requests: list[tuple[Detection, PromptRequest]] = []
        problems: list[str] = []
        try:
            check_detections(detections)
            for detection in detections:
                try:
                    prompt = Prompt.from_clicks(box_xyxy=detection.box_xyxy)
                    request = PromptRequest(prompt, tasks, languages, stamp_ns=stamp_ns)
                    check_request(request)
                    requests.append((detection, request))
                except PamError as error:
                    problems.append(str(error))
            self._inbox.put_detections(camera, requests, stamp_ns)
        except PamError as error:
            problems += [str(error)] * (len(detections) - len(problems))
        if problems:
            self._inbox.put_warning(camera, rejected_detections(problems))

    def remove_region(self, camera: str, region_id: int) -> None:
        """Removes the region, its texts and running requests. Raises UnknownRegionError."""
        self._inbox.remove(camera, region_id)

    def clear_regions(self, camera: str) -> int:
        """Removes every region of the camera; returns how many there were."""
        return self._inbox.remove_all(camera)

    def caption_now(self, camera: str, region_id: int, language: Language) -> RequestHandle[CaptionEvent]:
        """A decode timestamp on demand: captions the clip collected so far and starts the next.

        If captions do not stream, the first call captions the newest frame and starts collecting.
        """
        handle = RequestHandle[CaptionEvent]()
        request = CaptionRequest(handle, region_id, language)
        return self._accept(camera, handle, lambda: self._inbox.put_caption(camera, request))

    def caption_clip(
        self,
        camera: str,
        request: PromptRequest,
        duration_s: float,
        language: Language,
        on_progress: Callable[[float, str], None],
    ) -> RequestHandle[CaptionEvent]:
        """Records a region for `duration_s` of stream time from the next frame on, then captions the clip.

        `on_progress(recorded_s, partial_text)` is called on the worker thread. `request.tasks` are ignored.
        A camera that stands still ends the clip early.
        """
        handle = RequestHandle[CaptionEvent]()
        clip = ClipRequest(handle, duration_s, language, on_progress)

        def put() -> None:
            check_request(request)
            check_clip(request, duration_s)
            self._inbox.put_request(Request(camera, request, None, self._clock(), clip=clip))

        return self._accept(camera, handle, put)

    def end_stream(self, camera: str) -> None:
        """No more frames will come for now: captions what the camera's open clips hold."""
        self._inbox.end(camera)

    def statistics(self) -> EngineStatistics:
        """Rates, latencies and counts, as of now."""
        return self._flow.statistics()

    def _accept(self, camera: str, handle: RequestHandle[Any], put: Callable[[], None]) -> RequestHandle[Any]:
        """Queues a request; errors end up in the handle too, so that callers look in one place."""
        self._inbox.check_camera(camera)
        with self._handles_lock:
            self._handles[handle.future] = handle
        handle.future.add_done_callback(self._done)
        try:
            put()
        except PamError as error:
            handle.fail(error)
        return handle

    def _done(self, future: Future[Any]) -> None:
        with self._handles_lock:
            self._handles.pop(future, None)
