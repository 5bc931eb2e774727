"""THE flow: frame → masks → texts, in numbered steps. Everything here runs on the worker thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from pam_ros.errors import CancelledError, PamError
from pam_ros.model.interface import FIRST_FRAME_STRIDE, PerceptionModel
from pam_ros.runtime.captions import Captions
from pam_ros.runtime.clip_recorder import ClipRecorder
from pam_ros.runtime.embedding_plan import EmbeddingPlan
from pam_ros.runtime.events import FrameResult, Listener
from pam_ros.runtime.failures import FaultLog, GuardedListener
from pam_ros.runtime.generation_queue import EventReporter, GenerationQueue
from pam_ros.runtime.inbox import Inbox
from pam_ros.runtime.masks import Masks, PromptResult
from pam_ros.runtime.options import EngineOptions
from pam_ros.runtime.requests import Request
from pam_ros.runtime.statistics import EngineStatistics, RateMeter
from pam_ros.runtime.survey import Surveys
from pam_ros.runtime.text_job import TextJob
from pam_ros.runtime.tracks import CameraTracks, Track
from pam_ros.runtime.waiting_room import Work


class Flow:
    """Owned by the worker: takes what waits in the inbox, uses the model, calls the listener."""

    def __init__(
        self,
        *,
        model: PerceptionModel,
        cameras: Mapping[str, Iterator[int]],
        options: EngineOptions,
        inbox: Inbox,
        listener: Listener,
        faults: FaultLog,
        clock: Callable[[], float],
    ) -> None:
        """`cameras`: their names, and the ids of their regions. `clock` returns steady seconds."""
        self._model = model
        self._options = options
        self._inbox = inbox
        self._faults = faults
        self._clock = clock
        self._cameras = {name: CameraTracks(name=name, ids=ids) for name, ids in cameras.items()}
        self._listener = GuardedListener(listener, faults, lambda: inbox.active)
        self._reporter = EventReporter(self._listener, clock, self._min_confidence, model.names)
        self._queue = GenerationQueue(model.text, faults)
        model.text.notify(inbox.wake)
        self._token_rate = RateMeter()
        self._masks = Masks(model=model, inbox=inbox, listener=self._listener, faults=faults, options=options)
        self._captions = Captions(queue=self._queue, reporter=self._reporter, faults=faults, options=options)
        self._recorder = ClipRecorder(
            queue=self._queue, reporter=self._reporter, faults=faults, options=options
        )
        self._surveys = Surveys(
            model=model,
            inbox=inbox,
            faults=faults,
            options=options,
            masks=self._masks,
            describe=self._describe_once,
            clock=clock,
        )

    def _see(self, work: Work) -> None:
        """THE flow: one camera's newest frame and the requests about it → masks → texts.

        `work.frame` is None if requests came without a frame: they are answered on the last one.
        """
        camera, plan = self._cameras[work.camera], EmbeddingPlan(self._model, self._faults)

        # 1. A prompt on an earlier frame is segmented there, and tracked into the newest frame below.
        earlier = self._masks.segment(camera, work.older_frame, work.older) if work.older_frame else []

        # 2. The newest frame replaces the one before; older frames are never processed later.
        if work.frame is not None and camera.begin(work.frame, work.arrived_s):
            self._captions.restart(camera)
            self._recorder.restart(camera.name)
            self._listener.on_warning(
                camera.name, "the stamps jumped back: clips and frame history start over"
            )
        frame = camera.frame
        assert frame is not None, "a prompt is accepted after the first frame only"

        # 3. Encode once, and track every region, as one batch. Without regions nothing is encoded.
        self._masks.track(camera, self._to_track(camera, work, earlier))

        # 4. Prompts on this frame, as one batch. A detection that matches a region is left to the tracker.
        results = earlier + self._masks.segment(camera, frame, work.current)

        # 5. Masks are published before any text is generated.
        self._remove_lost(camera)
        if work.frame is not None or results:
            self._publish(camera, work)

        # 6. What needs embeddings: prompted or described regions, and clips that this frame enters or ends.
        results = self._wanting_texts(camera, results + self._described(camera, work.describe))
        for result in results:
            plan.want(result.observation, stride=FIRST_FRAME_STRIDE, crop=True)
        clips = self._captions.plan(camera, frame.stamp_ns, plan) if work.frame is not None else []
        recordings = self._recorder.plan(camera.name, frame.stamp_ns, plan) if work.frame is not None else []

        # 7. Perceiver and projector run now, as batches, so that texts later need the language model only.
        plan.run()

        # 8. Texts about the image start as one batch: one prefill a region, its texts branch off.
        self._start_texts(results, plan)

        # 9. Clips whose decode timestamp this is start as another batch. Texts are generated in bounded steps
        #    between frames (`text_turn`), for a fraction of the frame's time.
        batch = self._queue.new_batch()
        self._captions.settle(camera.name, frame.stamp_ns, clips, plan, batch)
        self._recorder.settle(frame.stamp_ns, recordings, plan, batch)
        self._captions.now(camera, work.captions, plan)

    def _see_image(self, request: Request) -> None:
        """The flow for a caller's own image: one region, not tracked and not published."""
        assert request.frame is not None
        self._describe_once(self._masks.segment_once([request], request.frame))

    def _describe_once(self, results: list[PromptResult]) -> None:
        """Embeds and describes regions that are not tracked."""
        if results:
            plan = EmbeddingPlan(self._model, self._faults)
            results = self._wanting_texts(CameraTracks(name=results[0].request.camera), results)
            for each in results:
                plan.want(each.observation, stride=FIRST_FRAME_STRIDE, crop=True)
            plan.run()
            self._start_texts(results, plan)

    # ---- the flow's smaller steps

    def _to_track(self, camera: CameraTracks, work: Work, earlier: list[PromptResult]) -> list[Track]:
        if work.frame is not None:
            return list(camera.regions.values())
        # The frame was processed before; only regions prompted on an earlier one are still missing in it.
        tracks = {each.track.region_id: each.track for each in earlier if each.track is not None}
        return list(tracks.values())

    def _remove_lost(self, camera: CameraTracks) -> None:
        for track in list(camera.regions.values()):
            lost_s = camera.lost_for_s(track)
            if lost_s > self._options.lost_timeout_s:
                message = f"region {track.region_id} was out of view for {lost_s:.1f} s and is removed"
                self._inbox.drop_region(camera.name, track.region_id)
                self._forget(camera, track.region_id, CancelledError(message))
                self._listener.on_warning(camera.name, message)

    def _publish(self, camera: CameraTracks, work: Work) -> None:
        now_s, arrived_s = self._clock(), None
        if work.frame is not None:
            arrived_s = work.arrived_s
            latency_s = now_s - arrived_s
            camera.processed += 1
            camera.rate.add(now_s)
            camera.mask_latency_s.add(latency_s)
        else:
            latency_s = now_s - min(request.arrived_s for request in (*work.older, *work.current))
        self._send(camera, latency_s, arrived_s)

    def _send(self, camera: CameraTracks, latency_s: float, arrived_s: float | None = None) -> None:
        """The camera's regions as of its newest frame, to the listener; `arrived_s`: of a new frame."""
        frame = camera.frame
        assert frame is not None
        camera.count()
        live = self._inbox.live(camera.name)  # a caller may have removed one meanwhile
        regions = tuple(
            track.snapshot() for region_id, track in sorted(camera.regions.items()) if region_id in live
        )
        self._listener.on_frame(
            FrameResult(
                camera.name,
                frame.stamp_ns,
                frame.frame_id,
                frame.size,
                regions,
                frame.image,
                latency_s,
                self._model.info.mark,
                arrived_s,
            )
        )

    def _described(self, camera: CameraTracks, requests: list[Request]) -> list[PromptResult]:
        results = []
        for request in requests:
            region_id = request.content.region_id
            track = camera.regions.get(region_id)
            if track is None:
                self._masks.refuse(request, CancelledError(f"region {region_id} was removed meanwhile"))
            else:
                results.append(PromptResult(request, track, track.last_visible, track.snapshot()))
        return results

    def _wanting_texts(self, camera: CameraTracks, results: list[PromptResult]) -> list[PromptResult]:
        """Starts recordings and answers requests for a mask only; returns the results that want texts.

        If texts must agree, a region that will be captioned gets a label even if none was requested.
        """
        wanting: list[PromptResult] = []
        for result in results:
            request, clip = result.request, result.request.clip
            if request.handle is not None:
                request.handle.is_about(result.answer.last_visible_ns)
            if self._reporter.names is not None and (clip is not None or self._options.streaming):
                language = self._options.caption_language if clip is None else clip.language
                if (labelled := result.with_label(language)) is not None:
                    wanting.append(labelled)
            if clip is not None and result.track is not None:
                self._recorder.add(camera.name, result.track, clip)
            elif request.content.texts() and not request.done:
                wanting.append(result)
            elif request.handle is not None:
                request.handle.resolve(result.answer)
        return wanting

    def _start_texts(self, results: list[PromptResult], plan: EmbeddingPlan) -> None:
        batch = self._queue.new_batch()
        for result in results:
            request = result.request
            frame = plan.embedded(result.observation, stride=FIRST_FRAME_STRIDE, crop=True)
            if isinstance(frame, PamError):
                self._masks.refuse(request, frame)
                continue
            self._queue.submit(
                TextJob(
                    camera=request.camera,
                    region_id=result.answer.region_id,
                    batch=batch,
                    frame=frame,
                    texts=request.content.texts(),
                    answer=result.answer,
                    stamp_ns=result.observation.stamp_ns,
                    arrived_s=request.arrived_s,
                    track=result.track,
                    handle=request.handle,
                    max_new_tokens=self._options.max_new_tokens,
                    reporter=self._reporter,
                )
            )

    # ---- the worker's turns

    def masks_turn(self) -> bool:
        """Does all work on masks that is pending. Whether there was any."""
        removed = self._inbox.take_removed()
        for name, region_id in removed:
            error = CancelledError(f"region {region_id} was removed before the answer was ready")
            self._forget(self._cameras[name], region_id, error)
        for name in dict.fromkeys(name for name, _ in removed):  # the camera may stand still
            if self._cameras[name].frame is not None:
                self._send(self._cameras[name], 0.0)
        for name, message in self._inbox.take_warnings():
            self._listener.on_warning(name, message)
        self._recorder.check_stalls(self._inbox.advanced_s)
        self._captions.check_streaming()
        work, image = self._inbox.take(), self._inbox.take_image()
        if work is not None:
            failure = self._faults.attempt("processing a frame", lambda: self._see(work))
            if failure is not None:  # a bug of this package: no caller must wait forever
                for request in (*work.older, *work.current, *work.describe):
                    self._masks.refuse(request, failure)
                for caption in work.captions:
                    caption.handle.fail(failure)
        if image is not None:
            failure = self._faults.attempt("processing an image", lambda: self._see_image(image))
            if failure is not None:
                self._masks.refuse(image, failure)
        surveyed = self._surveys.step(self._cameras.__getitem__)
        for name in self._inbox.take_ended():
            self._captions.end_stream(self._cameras[name])
        self._masks.report_rejected()
        self._inbox.hand_over()
        return work is not None or image is not None or surveyed

    def text_turn(self) -> bool:
        """One bounded step of text generation. Whether there was one."""
        tokens = self._queue.tokens
        busy = self._queue.step()
        if self._queue.tokens > tokens:
            self._token_rate.add(self._clock(), self._queue.tokens - tokens)
        return busy

    def _forget(self, camera: CameraTracks, region_id: int, error: PamError) -> None:
        if (track := camera.regions.pop(region_id, None)) is not None:
            track.removed = True
            self._captions.forget(camera.name, region_id)
            self._recorder.forget(camera.name, region_id, error)
            self._queue.cancel(camera.name, region_id, error)
            camera.count()

    def leave(self) -> None:
        """Ends everything that is under way and forgets all regions: the engine was stopped."""
        self._captions.clear()
        self._recorder.clear()
        self._surveys.clear()
        self._queue.clear(CancelledError("the engine was stopped before the answer was ready"))
        for camera in self._cameras.values():
            camera.forget()

    def _min_confidence(self) -> float:
        return self._options.min_confidence or self._model.info.min_confidence

    # ---- for the engine, on any thread

    @property
    def waiting(self) -> int:
        """Requests that have left the inbox and wait."""
        return self._queue.queued + self._recorder.count + self._surveys.count

    @property
    def in_background(self) -> bool:
        """Whether texts are being generated that a turn only reports on."""
        return self._queue.in_background

    @property
    def options(self) -> EngineOptions:
        """How the runtime behaves. May be replaced while it runs."""
        return self._options

    @options.setter
    def options(self, options: EngineOptions) -> None:
        self._options = self._masks.options = self._captions.options = self._recorder.options = options
        self._surveys.options = options

    def statistics(self) -> EngineStatistics:
        """Rates, latencies and counts, as of now."""
        now_s = self._clock()
        cameras = [
            camera.statistics(*self._inbox.counters(name), now_s) for name, camera in self._cameras.items()
        ]
        return EngineStatistics(
            cameras=tuple(cameras),
            generating=self._queue.generating,
            queued=self._inbox.pending() + self._queue.queued,
            tokens_per_s=self._token_rate.rate_hz(now_s),
            text_latency_s=self._reporter.text_latency_s.value or 0.0,
            text_problem=self._model.text.problem,
        )
