"""THE flow: frame → masks → texts, in numbered steps; and the thread-safe front of the runtime."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from pam_ros.errors import CancelledError, PamError
from pam_ros.model.interface import FIRST_FRAME_STRIDE, PerceptionModel
from pam_ros.records import Frame, Language, Prompt, Region, Task
from pam_ros.runtime.captions import Captions
from pam_ros.runtime.clip_recorder import ClipRecorder
from pam_ros.runtime.embedding_plan import EmbeddingPlan
from pam_ros.runtime.events import CaptionEvent, FrameResult, Listener
from pam_ros.runtime.failures import FaultLog, GuardedListener
from pam_ros.runtime.generation_queue import EventReporter, GenerationQueue
from pam_ros.runtime.inbox import Inbox, Work
from pam_ros.runtime.masks import Masks, PromptResult
from pam_ros.runtime.options import EngineOptions
from pam_ros.runtime.requests import (
    CaptionRequest,
    ClipRequest,
    PromptRequest,
    Request,
    RequestHandle,
    check_clip,
    check_request,
)
from pam_ros.runtime.statistics import CameraStatistics, EngineStatistics, RateMeter
from pam_ros.runtime.text_job import TextJob
from pam_ros.runtime.tracks import CameraTracks, Track
from pam_ros.runtime.worker import Worker

__all__ = ["CameraStatistics", "Engine", "EngineStatistics", "PromptRequest", "RequestHandle"]

IDLE_S = 0.1  # how often an idle worker looks whether a watched camera stands still


class Engine:
    """Several cameras on one model. Every method is thread-safe and returns at once, except `stop`.

    Inputs only hand over; one worker thread owns the model and calls the listener.
    """

    def __init__(
        self,
        *,
        model: PerceptionModel,
        cameras: Sequence[str],
        options: EngineOptions,
        listener: Listener,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` gives steady seconds; tests bring their own."""
        self._model = model
        self._options = options
        self._clock = clock
        self._faults = FaultLog()
        self._cameras = {name: CameraTracks(name=name) for name in cameras}
        self._handles: set[RequestHandle[Any]] = set()  # not settled yet
        self._handles_lock = threading.Lock()
        self._inbox = Inbox(cameras, options, queued_elsewhere=self._queued_behind_inbox, clock=clock)
        self._listener = GuardedListener(listener, self._faults, lambda: self._inbox.active)
        self._reporter = EventReporter(self._listener, clock)
        self._queue = GenerationQueue(model, self._faults)
        self._token_rate = RateMeter()
        self._masks = Masks(
            model=model, inbox=self._inbox, listener=self._listener, faults=self._faults, options=options
        )
        self._captions = Captions(queue=self._queue, reporter=self._reporter, options=options)
        self._watches = ClipRecorder(queue=self._queue, reporter=self._reporter, options=options)
        self._worker = Worker(
            masks=self._masks_turn,
            language=self._language_turn,
            idle=lambda: self._inbox.wait(IDLE_S),
            leave=self._leave,
            share=lambda: self._options.text_time_fraction,
            clock=clock,
            faults=self._faults,
        )

    # ---- the flow, on the worker thread

    def _see(self, work: Work) -> None:
        """THE flow: one camera's newest frame and what was asked about it → masks → texts.

        `work.frame` is None when prompts came and no frame: they are answered on the frame shown last.
        """
        camera, plan = self._cameras[work.camera], EmbeddingPlan(self._model, self._faults)

        # 1. A prompt that means an earlier frame is segmented there, and tracked on from there below.
        earlier = self._masks.segment(camera, work.older_frame, work.older) if work.older_frame else []

        # 2. The newest frame replaces the one before; nothing older is ever worked off.
        if work.frame is not None and camera.begin(work.frame, work.arrived_s):
            self._captions.restart(camera)
            self._watches.restart(camera.name)
            self._listener.on_warning(
                camera.name, "the stamps jumped back: clips and frame history start anew"
            )
        frame = camera.frame
        assert frame is not None, "a prompt is accepted after the first frame only"

        # 3. Encode once, and find every region in it, as one batch. Without regions nothing is encoded.
        self._masks.track(camera, self._to_track(camera, work, earlier))

        # 4. Prompts on this frame, as one batch; a detection of a known region is left to the tracker.
        shown = earlier + self._masks.segment(camera, frame, work.current)

        # 5. Masks go out before any word is thought of.
        self._forget_lost(camera, frame.stamp_ns)
        if work.frame is not None or shown:
            self._publish(camera, work)

        # 6. What is to be told: of regions prompted or to be described, of clips this frame enters or ends.
        shown = self._pass_on(camera, shown + self._described(camera, work.describe))
        for each in shown:
            plan.want(each.observation, stride=FIRST_FRAME_STRIDE, crop=True)
        clips = self._captions.plan(camera, frame.stamp_ns, plan) if work.frame is not None else []
        watched = self._watches.plan(camera.name, frame.stamp_ns, plan) if work.frame is not None else []

        # 7. Perceiver and projector run now, batched, so that a text later costs the language model only.
        plan.run()

        # 8. Texts of images start as one batch: one prefill a region, its tasks sequence off.
        self._tell(shown, plan)

        # 9. Clips whose decode timestamp this is start as another batch. Decoding itself is done in steps
        #    between frames (`_language_turn`), and never makes a frame wait for more than one.
        ended = object()
        self._captions.settle(camera.name, frame.stamp_ns, clips, plan, ended)
        self._watches.settle(frame.stamp_ns, watched, plan, ended)
        self._captions.now(camera, work.captions, plan)

    def _see_image(self, request: Request) -> None:
        """The flow for a caller's own image: one region, nothing tracked, nothing published."""
        shown = self._masks.segment_image(request)
        if shown is not None:
            plan = EmbeddingPlan(self._model, self._faults)
            kept = self._pass_on(CameraTracks(name=request.camera), [shown])
            for each in kept:
                plan.want(each.observation, stride=FIRST_FRAME_STRIDE, crop=True)
            plan.run()
            self._tell(kept, plan)

    # ---- the flow's smaller steps

    def _to_track(self, camera: CameraTracks, work: Work, earlier: list[PromptResult]) -> list[Track]:
        if work.frame is not None:
            return list(camera.regions.values())
        # The frame was worked off before; only what was prompted on an earlier one has yet to be found in it.
        return list(dict.fromkeys(each.track for each in earlier if each.track is not None))

    def _forget_lost(self, camera: CameraTracks, stamp_ns: int) -> None:
        for track in list(camera.regions.values()):
            lost_s = track.lost_for_s(stamp_ns)
            if lost_s > self._options.lost_timeout_s:
                message = f"region {track.region_id} was out of view for {lost_s:.1f} s and is removed"
                self._inbox.drop_region(camera.name, track.region_id)
                self._forget(camera, track.region_id, CancelledError(message))
                self._listener.on_warning(camera.name, message)

    def _publish(self, camera: CameraTracks, work: Work) -> None:
        frame, now_s = camera.frame, self._clock()
        assert frame is not None
        if work.frame is not None:
            latency_s = now_s - work.arrived_s
            camera.processed += 1
            camera.rate.add(now_s)
            camera.mask_latency_s.add(latency_s)
        else:
            latency_s = now_s - min(request.arrived_s for request in (*work.older, *work.current))
        camera.count()
        live = self._inbox.live(camera.name)  # a caller may have removed one meanwhile
        regions = tuple(
            track.snapshot() for region_id, track in sorted(camera.regions.items()) if region_id in live
        )
        self._listener.on_frame(
            FrameResult(
                camera.name, frame.stamp_ns, frame.frame_id, frame.size, regions, frame.image, latency_s
            )
        )

    def _described(self, camera: CameraTracks, requests: list[Request]) -> list[PromptResult]:
        shown = []
        for request in requests:
            track = camera.regions.get(request.content.region_id)
            if track is None:
                self._masks.refuse(
                    request, CancelledError(f"region {request.content.region_id} was removed meanwhile")
                )
            else:
                shown.append(PromptResult(request, track, track.last_visible, track.snapshot()))
        return shown

    def _pass_on(self, camera: CameraTracks, shown: list[PromptResult]) -> list[PromptResult]:
        """Starts watches, answers who wants a mask only; returns those that want texts."""
        wanting: list[PromptResult] = []
        for each in shown:
            if each.request.watch is not None and each.track is not None:
                self._watches.add(camera.name, each.track, each.request.watch)
            elif each.request.content.texts() and not each.request.settled:
                wanting.append(each)
            elif each.request.handle is not None:
                each.request.handle.resolve(each.answer)
        return wanting

    def _tell(self, shown: list[PromptResult], plan: EmbeddingPlan) -> None:
        group = object()
        for each in shown:
            embeddings = plan.embeddings(each.observation, stride=FIRST_FRAME_STRIDE, crop=True)
            if isinstance(embeddings, PamError):
                self._masks.refuse(each.request, embeddings)
                continue
            self._queue.submit(
                TextJob(
                    camera=each.request.camera,
                    region_id=each.answer.region_id,
                    group=group,
                    embeddings=embeddings,
                    texts=each.request.content.texts(),
                    answer=each.answer,
                    stamp_ns=each.observation.stamp_ns,
                    arrived_s=each.request.arrived_s,
                    track=each.track,
                    handle=each.request.handle,
                    max_new_tokens=self._options.max_new_tokens,
                    reporter=self._reporter,
                )
            )

    # ---- the worker's turns

    def _masks_turn(self) -> bool:
        for camera, region_id in self._inbox.take_removed():
            error = CancelledError(f"region {region_id} was removed before the answer was ready")
            self._forget(self._cameras[camera], region_id, error)
        for camera, message in self._inbox.take_warnings():
            self._listener.on_warning(camera, message)
        self._watches.check_stalls(self._inbox.advanced_s)
        work, image = self._inbox.take(), self._inbox.take_image()
        if work is not None:
            failure = self._faults.attempt("seeing", lambda: self._see(work))
            if failure is not None:  # a fault of ours: whoever waits must not wait forever
                for request in (*work.older, *work.current, *work.describe):
                    self._masks.refuse(request, failure)
                for caption in work.captions:
                    caption.handle.fail(failure)
        if image is not None:
            failure = self._faults.attempt("seeing an image", lambda: self._see_image(image))
            if failure is not None:
                self._masks.refuse(image, failure)
        self._inbox.hand_over()
        return work is not None or image is not None

    def _language_turn(self) -> bool:
        tokens = self._queue.tokens
        busy = self._queue.step()
        if self._queue.tokens > tokens:
            self._token_rate.add(self._clock(), self._queue.tokens - tokens)
        return busy

    def _forget(self, camera: CameraTracks, region_id: int, error: PamError) -> None:
        track = camera.regions.pop(region_id, None)
        if track is not None:
            self._captions.forget(track)
            self._watches.forget(track, error)
            self._queue.cancel(camera.name, region_id, error)
            camera.count()

    def _leave(self) -> None:
        self._captions.clear()
        self._watches.clear()
        self._queue.clear(CancelledError("the engine was stopped before the answer was ready"))
        for camera in self._cameras.values():
            camera.forget()

    def _queued_behind_inbox(self) -> int:
        return self._queue.queued + self._watches.count

    # ---- the front, on any thread

    @property
    def options(self) -> EngineOptions:
        """How the runtime behaves; may be set while it runs, whole (`dataclasses.replace`)."""
        return self._options

    @options.setter
    def options(self, options: EngineOptions) -> None:
        self._options = self._masks.options = self._captions.options = self._watches.options = options
        self._inbox.configure(options)

    def start(self) -> None:
        """Begins to accept and to work. Idempotent."""
        self._inbox.open()
        self._worker.start()

    def stop(self) -> None:
        """Fails what is pending, forgets frames and regions, waits for the piece of work at hand. Idempotent.

        No listener is called after it returns. Region ids go on where they were after the next `start`.
        """
        self._inbox.close()
        with self._handles_lock:
            handles = list(self._handles)
        for handle in handles:
            handle.fail(CancelledError("the engine was stopped before the answer was ready"))
        self._worker.stop()

    def submit_frame(self, frame: Frame) -> None:
        """Offers the newest frame of `frame.camera`; one still waiting is dropped. Ignored while stopped."""
        self._inbox.put_frame(frame)

    def perceive(self, camera: str, request: PromptRequest) -> RequestHandle[Region]:
        """The region of a prompt, or the one named, with the texts asked for: as of the frame asked about."""
        handle = RequestHandle[Region]()

        def put() -> None:
            check_request(request)
            self._inbox.put_request(Request(camera, request, None, self._clock(), handle=handle))

        return self._accept(camera, handle, put)

    def detections(
        self,
        camera: str,
        boxes_xyxy: Sequence[tuple[float, float, float, float]],
        stamp_ns: int | None,
        tasks: tuple[Task, ...],
        languages: tuple[Language, ...],
    ) -> None:
        """Boxes (x1, y1, x2, y2) of a detector, pixels of the frame of that stamp (None: the newest).

        New objects become regions, known ones are left to the tracker. Failures are told to the listener.
        """
        requests = []
        for box in boxes_xyxy:
            try:
                request = PromptRequest(Prompt.from_clicks(box_xyxy=box), tasks, languages, stamp_ns=stamp_ns)
                check_request(request)
                requests.append(request)
            except PamError as error:
                self._inbox.put_warning(camera, f"a detection is refused: {error}")
        try:
            self._inbox.put_detections(camera, requests, stamp_ns)
        except PamError as error:
            self._inbox.put_warning(camera, f"{len(requests)} detections are refused: {error}")

    def remove_region(self, camera: str, region_id: int) -> None:
        """Forgets the region, its texts and running requests. Raises UnknownRegionError."""
        self._inbox.remove(camera, region_id)

    def clear_regions(self, camera: str) -> int:
        """Forgets every region of the camera; returns how many there were."""
        return self._inbox.remove_all(camera)

    def caption_now(self, camera: str, region_id: int, language: Language) -> RequestHandle[CaptionEvent]:
        """A decode timestamp on demand: captions the clip collected so far and starts the next.

        Where captions do not stream, the first call captions the newest frame and begins to collect.
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
        """ClipRecorder a region for `duration_s` of stream time from the next frame on, then captions what it saw.

        `on_progress(recorded_s, partial_text)` is called on the worker thread. `request.tasks` are left out.
        A camera that stands still ends the clip early.
        """
        handle = RequestHandle[CaptionEvent]()
        watch = ClipRequest(handle, duration_s, language, on_progress)

        def put() -> None:
            check_request(request)
            check_clip(request, duration_s)
            self._inbox.put_request(Request(camera, request, None, self._clock(), watch=watch))

        return self._accept(camera, handle, put)

    def statistics(self) -> EngineStatistics:
        """How it is doing, as of now."""
        now_s = self._clock()
        cameras = [
            camera.statistics(*self._inbox.counters(name), now_s) for name, camera in self._cameras.items()
        ]
        return EngineStatistics(
            cameras=tuple(cameras),
            decoding=self._queue.decoding,
            queued=self._inbox.pending() + self._queue.queued,
            tokens_per_s=self._token_rate.rate_hz(now_s),
            text_latency_s=self._reporter.text_latency_s.value or 0.0,
        )

    def _accept(self, camera: str, handle: RequestHandle[Any], put: Callable[[], None]) -> RequestHandle[Any]:
        """Hands over; what is wrong goes to the handle too, so that callers have one place to look."""
        self._inbox.check_camera(camera)
        with self._handles_lock:
            self._handles.add(handle)
        handle.future.add_done_callback(lambda _: self._settled(handle))
        try:
            put()
        except PamError as error:
            handle.fail(error)
        return handle

    def _settled(self, handle: RequestHandle[Any]) -> None:
        with self._handles_lock:
            self._handles.discard(handle)
