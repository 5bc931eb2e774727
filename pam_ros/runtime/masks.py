"""Encodes a frame once, segments its prompts and tracks its regions, as batches; contains faults."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from pam_ros.errors import CancelledError, CapacityError, NothingFoundError, PamError, PromptError
from pam_ros.geometry import Box, distinct_boxes
from pam_ros.model.interface import FrameFeatures, Observation, PerceptionModel, RegionMemory
from pam_ros.records import Frame, Language, Prompt, Region, Task, plain
from pam_ros.runtime.failures import FaultLog, GuardedListener, rejected_detections
from pam_ros.runtime.inbox import Inbox
from pam_ros.runtime.options import EngineOptions
from pam_ros.runtime.requests import Request
from pam_ros.runtime.tracks import CameraTracks, Track, TrackObservation

Undo = Callable[[], None]

ONCE_AT_A_TIME = 4  # regions that are not kept: a fast model has few slots for them beside the tracked ones


@dataclass(frozen=True, slots=True, eq=False)
class PromptResult:
    """A region in the frame that its request is about."""

    request: Request
    track: Track | None  # None on a caller's own image
    observation: TrackObservation
    answer: Region  # as of that frame

    def with_label(self, language: Language) -> PromptResult | None:
        """The same, asking for a label that captions follow; None if the region has one or will get it."""
        request, track = self.request, self.track
        asked = [] if request.clip is not None else request.content.texts()
        if track is None or any(task is Task.LABEL for task, _ in (*track.asked, *asked)):
            return None
        content = replace(request.content, tasks=(Task.LABEL,), languages=(language,))
        return replace(self, request=replace(request, content=content, handle=None, clip=None))


class Masks:
    """Owned by the worker. A failure is reported only to the request or region concerned."""

    def __init__(
        self,
        *,
        model: PerceptionModel,
        inbox: Inbox,
        listener: GuardedListener,
        faults: FaultLog,
        options: EngineOptions,
    ) -> None:
        self.options = options
        self._vision = model.vision
        self._inbox = inbox
        self._listener = listener
        self._faults = faults
        self._rejected: dict[str, list[str]] = {}  # by camera

    def segment(self, camera: CameraTracks, frame: Frame, requests: Sequence[Request]) -> list[PromptResult]:
        """Prompts on one frame → regions, in as few batches as their order allows; it is encoded once."""
        results: list[PromptResult] = []
        features: FrameFeatures | PamError | None = None
        gone_back: dict[int, Undo] = {}  # by region
        left = list(requests)
        while left:
            now, left = _next_batch(camera, left)
            now = self._usable(camera, frame, now)
            if now and features is None:
                features = self._features(camera, frame)
            if features is None or isinstance(features, PamError):
                for request in now:
                    self.refuse(request, features or PromptError("the frame is no longer available"))
                continue
            if frame is not camera.frame:
                here = gone_back.keys() | {each.answer.region_id for each in results}
                now = self._go_back(camera, features, now, gone_back, here)
            size = max(len(now), 1) if self.options.tracking else ONCE_AT_A_TIME
            for start in range(0, len(now), size):
                results += self._segment_now(camera, frame, features, now[start : start + size])
        for region_id in gone_back.keys() - {each.answer.region_id for each in results}:
            gone_back[region_id]()
        return results

    def segment_once(
        self, requests: Sequence[Request], frame: Frame, features: FrameFeatures | None = None
    ) -> list[PromptResult]:
        """Prompts on a frame whose regions are not kept; `features` are the frame's, if they are known."""
        scratch = CameraTracks(name=requests[0].camera if requests else "", frame=frame, features=features)
        results: list[PromptResult] = []
        size = min(ONCE_AT_A_TIME, self.options.max_regions)
        for start in range(0, len(requests), size):
            results += self.segment(scratch, frame, requests[start : start + size])
        return results

    def track(self, camera: CameraTracks, tracks: Sequence[Track]) -> None:
        """Looks for regions in the camera's frame, as one batch."""
        frame = camera.frame
        if not tracks or frame is None:
            return
        features = self._features(camera, frame)
        if isinstance(features, PamError):
            results: list[Observation | PamError] = [features] * len(tracks)
        else:
            track_batch = partial(self._track_batch, features)
            results = self._faults.batched("tracking", track_batch, [track.memory for track in tracks])
        failed = ""
        for track, result in zip(tracks, results, strict=True):
            if isinstance(result, PamError):
                track.miss(frame.stamp_ns)
                failed = f"region {track.region_id} cannot be tracked: {result}"
            else:
                track.observe(TrackObservation(result, frame.stamp_ns, frame.frame_id, camera.arrived_s))
        if failed:
            self._listener.on_warning(camera.name, failed)

    def refuse(self, request: Request, error: PamError) -> None:
        """Fails the request; a detection's refusal waits for `report_rejected`."""
        if request.handle is not None:
            request.handle.fail(error)
        elif request.clip is not None:
            request.clip.handle.fail(error)
        else:
            self._rejected.setdefault(request.camera, []).append(str(error))

    def report_rejected(self) -> None:
        """Warns of the detections that were refused since the last call, in one line per camera."""
        for camera, errors in self._rejected.items():
            self._listener.on_warning(camera, rejected_detections(errors))
        self._rejected = {}

    def _segment_now(
        self, camera: CameraTracks, frame: Frame, features: FrameFeatures, requests: Sequence[Request]
    ) -> list[PromptResult]:
        items = [(_prompt(request), self._memory(camera, request)) for request in requests]
        segmented = self._faults.batched("segmenting", partial(self._segment_batch, features), items)
        pairs = zip(requests, segmented, strict=True)
        results = [self._result_of(camera, frame, request, found) for request, found in pairs]
        return [result for result in results if result is not None]

    # Before the model

    def _usable(self, camera: CameraTracks, frame: Frame, requests: Sequence[Request]) -> list[Request]:
        """The requests that can be segmented on this frame; the others fail with the reason."""
        usable: list[Request] = []
        known = self._known_detections(camera, frame, requests)
        new = 0
        for request in requests:
            prompt, region_id = _prompt(request), request.content.region_id
            try:
                prompt.check_size(*frame.size)
                if region_id and region_id not in camera.regions:
                    raise CancelledError(f"region {region_id} was removed before its prompt was processed")
                if not region_id and not prompt.shows_region:
                    raise PromptError(
                        f"the negative click {plain(prompt.points[0])} is on no region; "
                        "click on the part of a mask that is to be left out"
                    )
                if request.done or request in known:
                    continue
                if not region_id and len(camera.regions) + new >= self.options.max_regions:
                    raise CapacityError(
                        f"camera {camera.name!r} has {len(camera.regions) + new} regions, "
                        f"the limit is {self.options.max_regions}; remove one first"
                    )
            except PamError as error:
                self.refuse(request, error)
                continue
            new += not region_id
            usable.append(request)
        return usable

    def _known_detections(
        self, camera: CameraTracks, frame: Frame, requests: Sequence[Request]
    ) -> set[Request]:
        """Detections that match a region, or a detection before them."""
        detections = [request for request in requests if request.detection is not None]
        boxes = np.array([_clipped(_prompt(each), frame) for each in detections], np.float32).reshape(-1, 4)
        min_iou = self.options.detection_iou
        matched = camera.match(boxes, frame.stamp_ns, min_iou)
        new = [place for place, region_id in enumerate(matched) if not region_id]
        distinct = {new[place] for place in distinct_boxes(boxes[new], min_iou)}
        return {each for place, each in enumerate(detections) if place not in distinct}

    def _go_back(
        self,
        camera: CameraTracks,
        features: FrameFeatures,
        requests: Sequence[Request],
        gone_back: dict[int, Undo],
        here: Set[int],
    ) -> list[Request]:
        """Before regions are refined in an earlier frame, they are tracked into it: a click there must not be
        combined with the mask of a later frame. Returns the requests whose regions were found.

        Args:
            gone_back: gets, by region, what undoes it.
            here: regions that are in that frame already.
        """
        refined = dict.fromkeys(each.content.region_id for each in requests if each.content.region_id)
        ids = [region_id for region_id in refined if region_id not in here]
        memories = [camera.regions[region_id].memory for region_id in ids]
        results = self._faults.batched("tracking", partial(self._go_back_batch, features), memories)
        failed: dict[int, PamError] = {}
        for region_id, result in zip(ids, results, strict=True):
            if isinstance(result, PamError):
                failed[region_id] = result
            else:
                gone_back[region_id] = result
        for request in requests:
            if request.content.region_id in failed:
                self.refuse(request, failed[request.content.region_id])
        return [request for request in requests if request.content.region_id not in failed]

    def _memory(self, camera: CameraTracks, request: Request) -> RegionMemory | None:
        track = camera.regions.get(request.content.region_id)
        return None if track is None else track.memory

    # The model

    def _features(self, camera: CameraTracks, frame: Frame) -> FrameFeatures | PamError:
        if frame is not camera.frame:
            return self._faults.attempt("encoding a frame", lambda: self._vision.encode(frame.image))
        if camera.features is None:
            features = self._faults.attempt("encoding a frame", lambda: self._vision.encode(frame.image))
            if isinstance(features, PamError):
                return features
            camera.features = features
        return camera.features

    def _segment_batch(
        self, features: FrameFeatures, items: Sequence[tuple[Prompt, RegionMemory | None]]
    ) -> list[tuple[Observation, RegionMemory, Undo]]:
        # New memories are made per call, so that a failed batch leaves nothing in those of the next attempt.
        memories = [self._vision.new_memory() if memory is None else memory for _, memory in items]
        undo = [_nothing if memory is None else self._vision.saved(memory) for _, memory in items]
        observations = self._vision.segment(features, [prompt for prompt, _ in items], memories)
        return list(zip(observations, memories, undo, strict=True))

    def _go_back_batch(self, features: FrameFeatures, memories: Sequence[RegionMemory]) -> list[Undo]:
        undo = [self._vision.saved(memory) for memory in memories]
        self._vision.track(features, memories)
        return undo

    def _track_batch(
        self, features: FrameFeatures, memories: Sequence[RegionMemory]
    ) -> Sequence[Observation]:
        return self._vision.track(features, memories)

    # After the model

    def _result_of(
        self,
        camera: CameraTracks,
        frame: Frame,
        request: Request,
        result: tuple[Observation, RegionMemory, Undo] | PamError,
    ) -> PromptResult | None:
        if isinstance(result, PamError):
            self.refuse(request, result)
            return None
        output, memory, undo = result
        arrived_s = camera.arrived_s if frame is camera.frame else request.arrived_s
        observation = TrackObservation(output, frame.stamp_ns, frame.frame_id, arrived_s, prompted=True)
        track = camera.regions.get(request.content.region_id)
        if self._is_nothing(request, observation):
            undo()  # a region stays as it was
            if track is None and request.detection is None:
                next(camera.ids)  # prompts of one frame keep the ids that they would have had
            where = "there"
            if request.detection is not None:
                where = f"in the box {plain(_clipped(_prompt(request), frame))}"
            scores = float(output.mask_score), float(output.presence_score)
            self.refuse(request, NothingFoundError(*scores, where))
            return None
        if track is None:
            boxes: deque[tuple[int, Box]] = deque(maxlen=self.options.frame_history)
            kept = memory if self.options.tracking else None
            track = Track(0, kept, frame.stamp_ns, observation, boxes)
        track.observe(observation)
        if request.content.image is not None:
            return PromptResult(request, None, observation, track.snapshot())
        if track.region_id == 0:
            track.region_id = next(camera.ids)
            camera.regions[track.region_id] = track
            self._inbox.add_region(camera.name, track.region_id)
            if request.detection is not None:
                track.source = request.detection
                track.remember_detection(_clipped(_prompt(request), frame))
        return PromptResult(request, track, observation, track.snapshot())

    def _is_nothing(self, request: Request, found: TrackObservation) -> bool:
        """Whether a prompt has found nothing that is worth a name. A mask prompt needs no mask score."""
        poor = found.output.mask_score < self.options.min_mask_score and _prompt(request).mask is None
        return not found.in_view or poor


def _nothing() -> None:
    """Undoes what was done to a memory that was new."""


def _prompt(request: Request) -> Prompt:
    assert request.content.prompt is not None, "a request without a prompt describes a region"
    return request.content.prompt


def _aims(request: Request) -> bool:
    """Whether it is a click that refines the region that it hits, which is yet to be found."""
    content = request.content
    clicked = content.prompt is not None and len(content.prompt.points) > 0
    return content.refine_hit and not content.region_id and clicked


def _aimed(camera: CameraTracks, request: Request) -> Request:
    """A click that aims gets the id of the region that it hits."""
    if not _aims(request):
        return request
    region_id = camera.region_at(*_prompt(request).points[0].tolist())
    return replace(request, content=replace(request.content, region_id=region_id))


def _clipped(prompt: Prompt, frame: Frame) -> Box:
    """The part of the prompt's box inside the frame; masks do not extend beyond it either."""
    height, width = frame.size
    assert prompt.box is not None
    return np.clip(prompt.box, 0, np.array([width, height, width, height], np.float32))


def _next_batch(camera: CameraTracks, requests: Sequence[Request]) -> tuple[list[Request], list[Request]]:
    """What can be segmented at once, and the rest. A further prompt on a region refines the result of the one
    before; a click that aims may hit what the prompts before it make.
    """
    end = next((place for place, each in enumerate(requests) if place and _aims(each)), len(requests))
    now: list[Request] = []
    rest: list[Request] = []
    seen: set[int] = set()
    for request in (_aimed(camera, requests[0]), *requests[1:end]):
        region_id = request.content.region_id
        (rest if region_id in seen else now).append(request)
        if region_id:
            seen.add(region_id)
    return now, [*rest, *requests[end:]]
