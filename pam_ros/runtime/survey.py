"""Surveys of a frame: everything in view (`perceive_all`), and what fits a purpose (`find`)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from pam_ros.errors import CancelledError, NotActiveError, NothingFoundError, PamError, UnknownRegionError
from pam_ros.geometry import Box, distinct_boxes
from pam_ros.model.interface import Described, FrameFeatures, PerceptionModel
from pam_ros.model.vision.grid import Candidates, GridFilter, grid_points, kept_boxes
from pam_ros.records import Frame, Language, Prompt, Region, RegionState, Task
from pam_ros.runtime.failures import FaultLog
from pam_ros.runtime.inbox import Inbox
from pam_ros.runtime.masks import ONCE_AT_A_TIME, Masks, PromptResult
from pam_ros.runtime.options import EngineOptions
from pam_ros.runtime.requests import PromptRequest, Request, RequestHandle, Survey, SurveyResult
from pam_ros.runtime.tracks import CameraTracks

POINTS_AT_ONCE = 16  # of a grid: bounds how long a step delays a waiting frame


@dataclass(slots=True, eq=False)
class _Search:
    """A survey whose regions are being looked for.

    Attributes:
        points: batches (N, 2) of the grid that wait.
        until_s: when the grid's budget ends, seconds of the runtime's clock.
        candidates: what the grid found; None once they are filtered, or if there is no grid.
        boxes: number of boxes that passed the filters.
        waiting: a request about each box that is not segmented yet.
        found: of the others, in order.
        failures: why boxes were not segmented.
        complete: the grid was searched to its end.
    """

    survey: Survey
    features: FrameFeatures
    points: deque[NDArray[np.float32]] = field(default_factory=deque)
    until_s: float = 0.0
    candidates: list[Candidates] | None = None
    boxes: int = 0
    waiting: deque[Request] = field(default_factory=deque)
    found: list[PromptResult] = field(default_factory=list)
    failures: list[PamError] = field(default_factory=list)
    complete: bool = True


@dataclass(slots=True, eq=False)
class _Answers:
    """A survey whose regions were found: each is asked about by a request of its own."""

    survey: Survey
    handles: list[RequestHandle[Region]]
    left_out: int
    complete: bool
    # Of handles, the tracked regions that their answers are about.
    known: dict[RequestHandle[Region], Region] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()  # see SurveyResult


class Surveys:
    """Owned by the worker.

    1. A grid of points is segmented, a batch a step, until it is done or the budget is spent.
    2. Filters and non-maximum suppression leave boxes; a detector's boxes or known regions start here.
    3. The boxes are segmented, a few a step, and filtered again. With `keep`, each becomes a usual request.
    4. For `find`, the model judges each region's explanation by the purpose, and the regions are sorted.
    """

    def __init__(
        self,
        *,
        model: PerceptionModel,
        inbox: Inbox,
        faults: FaultLog,
        options: EngineOptions,
        masks: Masks,
        describe: Callable[[list[PromptResult]], None],
        clock: Callable[[], float],
    ) -> None:
        """`describe` starts the texts of regions that are not kept, and answers their requests."""
        self.options = options
        self._model = model
        self._inbox = inbox
        self._faults = faults
        self._masks = masks
        self._describe = describe
        self._clock = clock
        self._search: _Search | None = None
        self._answers: list[_Answers] = []

    @property
    def count(self) -> int:
        """Surveys under way."""
        return len(self._answers) + (self._search is not None)

    def step(self, camera_of: Callable[[str], CameraTracks]) -> bool:
        """Does one piece of work; False if there is none."""
        answered = [each for each in self._answers if all(handle.done for handle in each.handles)]
        if answered:
            self._answers.remove(answered[0])
            self._attempt(answered[0].survey, lambda: self._answer(answered[0]))
            return True
        if self._search is None:
            survey = self._inbox.take_survey()
            if survey is None:
                return False
            camera = camera_of(survey.camera)
            self._attempt(survey, lambda: self._begin(survey, camera))
            return True
        search, camera = self._search, camera_of(self._search.survey.camera)
        cancelled = search.survey.handle.done
        if cancelled or not self._attempt(search.survey, lambda: self._advance(search, camera)):
            self._search = None
        return True

    def clear(self) -> None:
        """Ends every survey."""
        error = CancelledError("the engine was stopped before the answer was ready")
        under_way = [each.survey for each in self._answers] + ([self._search.survey] if self._search else [])
        for survey in under_way:
            survey.handle.fail(error)
        self._search, self._answers = None, []

    # ---- 1. the grid

    def _begin(self, survey: Survey, camera: CameraTracks) -> None:
        content = survey.content
        if content.region_ids:
            texts = PromptRequest(None, content.all_tasks(), content.languages)
            about = [replace(texts, region_id=region_id) for region_id in content.region_ids]
            requests = [self._request(survey, each, None) for each in about]
            handles = _handles(requests)
            for handle in handles:
                handle.framed.add_done_callback(partial(_tell, survey.handle))
            self._hand_out(_Answers(survey, handles, 0, True), requests)
            return
        frame = survey.frame
        if frame is camera.frame and camera.features is not None:
            features = camera.features
        else:
            features = self._model.vision.encode(frame.image)
            if frame is camera.frame:
                camera.features = features
        search = _Search(survey, features)
        if content.boxes_xyxy is not None:
            self._ask_about(search, [np.asarray(box, np.float32) for box in content.boxes_xyxy])
        else:
            points = grid_points(frame.size, self.options.all_points_per_side)
            search.points.extend(
                points[i : i + POINTS_AT_ONCE] for i in range(0, len(points), POINTS_AT_ONCE)
            )
            search.until_s = self._clock() + (content.budget_s or self.options.all_budget_s)
            search.candidates = []
        self._search = search

    def _advance(self, search: _Search, camera: CameraTracks) -> None:
        """One step: a batch of points or boxes, the filters, or the end."""
        if search.candidates is not None:
            if search.points and self._clock() < search.until_s:
                points = search.points.popleft()
                search.candidates.append(self._model.vision.candidates(search.features, points))
            else:
                self._filter(search, search.candidates)
        elif search.waiting:
            size = min(ONCE_AT_A_TIME, len(search.waiting))
            batch = [search.waiting.popleft() for _ in range(size)]
            # A box is a clearer prompt than the point that found it: the masks are segmented once more by it.
            search.found += self._masks.segment_once(batch, search.survey.frame, search.features)
            search.failures += _failures(_handles(batch))
        else:
            self._search = None
            self._finish(search, camera)

    # ---- 2. filters

    def _filter(self, search: _Search, candidates: list[Candidates]) -> None:
        options = self.options
        rule = GridFilter(
            min_iou=options.all_min_iou,
            min_stability=options.all_min_stability,
            max_box_iou=options.all_max_box_iou,
            min_area=options.all_min_area,
            max_area=options.all_max_area,
        )
        search.candidates, search.complete = None, not search.points
        self._ask_about(search, list(kept_boxes(candidates, rule)))

    # ---- 3. requests

    def _ask_about(self, search: _Search, boxes: list[Box]) -> None:
        survey, content = search.survey, search.survey.content
        text = PromptRequest(None, content.all_tasks(), content.languages, image=survey.frame.image)
        search.boxes = len(boxes)
        search.waiting.extend(
            Request(
                survey.camera,
                replace(text, prompt=Prompt.from_clicks(box_xyxy=box)),
                survey.frame,
                self._clock(),
                handle=RequestHandle[Region](),
            )
            for box in boxes
        )

    def _finish(self, search: _Search, camera: CameraTracks) -> None:
        survey, content, frame, found = (
            search.survey,
            search.survey.content,
            search.survey.frame,
            search.found,
        )
        min_score = 0.0 if content.boxes_xyxy is not None else self.options.all_min_iou
        if search.failures and not found:
            raise search.failures[0]
        found = self._distinct([each for each in found if each.answer.mask_score >= min_score])
        limit = content.max_regions or self.options.all_max_regions
        chosen = found[:limit]
        warnings = _failed(search.failures, search.boxes) + _left_out(
            len(found), limit, "at most {} are listed"
        )
        if not content.keep:
            handles = _handles([each.request for each in chosen])
            left_out = search.boxes - len(chosen)
            self._answers.append(_Answers(survey, handles, left_out, search.complete, warnings=warnings))
            self._take_along(survey, handles)
            self._describe(chosen)
            return
        room = self.options.max_regions - len(camera.regions)
        answers = _Answers(survey, [], 0, search.complete, warnings=warnings)
        requests, described = [], []
        boxes_found = np.array([each.answer.box_xyxy for each in chosen], np.float32).reshape(-1, 4)
        matched = camera.match(boxes_found, frame.stamp_ns, self.options.detection_iou)
        for result, known in zip(chosen, matched, strict=True):
            room -= not known
            request = result.request
            if known:  # as it was found here: a tracked mask may have drifted
                described.append(result)
            elif room >= 0:
                prompt = PromptRequest(request.content.prompt, content.all_tasks(), content.languages)
                request = self._request(survey, prompt, frame)
                requests.append(request)
            else:
                continue
            assert request.handle is not None
            answers.handles.append(request.handle)
            if known:
                answers.known[request.handle] = camera.regions[known].snapshot()
        if room < 0:
            answers.warnings += _left_out(len(chosen), len(answers.handles), "the camera has room for {}")
        answers.left_out = search.boxes - len(answers.handles)
        self._hand_out(answers, requests)
        self._describe(described)

    def _distinct(self, results: Sequence[PromptResult]) -> list[PromptResult]:
        """Highest mask score first, without masks that are not in view or repeat one with a higher score."""
        visible = [each for each in results if each.answer.state is RegionState.TRACKED]
        visible.sort(key=lambda each: -each.answer.mask_score)
        boxes = np.array([each.answer.box_xyxy for each in visible], np.float32)
        return [visible[place] for place in distinct_boxes(boxes, self.options.all_max_box_iou)]

    def _request(self, survey: Survey, content: PromptRequest, frame: Frame | None) -> Request:
        return Request(survey.camera, content, frame, self._clock(), handle=RequestHandle[Region]())

    def _hand_out(self, answers: _Answers, requests: Sequence[Request]) -> None:
        """Puts requests in front of the flow, like those of any caller."""
        survey = answers.survey
        self._answers.append(answers)
        self._take_along(survey, answers.handles)
        if not self._inbox.put_found(survey.camera, requests):
            raise NotActiveError("the engine is not active; activate the manager, then try again")

    @staticmethod
    def _take_along(survey: Survey, handles: Sequence[RequestHandle[Region]]) -> None:
        """A survey that is cancelled, or whose engine stops, takes its requests along."""

        def cancel(_: object) -> None:
            for handle in handles:
                handle.cancel()

        survey.handle.future.add_done_callback(cancel)

    # ---- 4. the answer

    def _answer(self, answers: _Answers) -> None:
        survey = answers.survey
        if survey.handle.done:
            return
        regions: dict[int, Region] = {}
        left_out, error = answers.left_out, None
        for place, handle in enumerate(answers.handles, 1):
            failure = handle.future.exception()
            if failure is not None:
                left_out, error = left_out + 1, error or failure
            else:
                region = handle.future.result()
                if (tracked := answers.known.get(handle)) is not None:
                    region = replace(
                        region,
                        region_id=tracked.region_id,
                        created_ns=tracked.created_ns,
                        source_id=tracked.source_id,
                        source_class=tracked.source_class,
                    )
                regions.setdefault(region.region_id or -place, region)  # two boxes may show one known region
        if error is not None and not regions:
            raise error
        listed, scores = list(regions.values()), [0.0]
        content = survey.content
        if content.purpose and listed:
            language = content.languages[0]
            texts = [described(region, language) for region in listed]
            scores = list(self._model.judge.fits(content.purpose, texts, language))
            order = sorted(range(len(listed)), key=lambda i: -scores[i])
            listed, scores = [listed[i] for i in order], [scores[i] for i in order]
            bar = self.options.find_min_score if content.min_score is None else content.min_score
            tracked_ids = {*content.region_ids, *(each.region_id for each in answers.known.values())}
            for i, (region, score) in enumerate(zip(listed, scores, strict=True)):
                if content.keep and score < bar and region.region_id not in tracked_ids:
                    listed[i] = self._let_go(survey, region)
        stamp_ns = survey.frame.stamp_ns
        if content.region_ids:
            stamp_ns = max((region.last_visible_ns for region in listed), default=stamp_ns)
        survey.handle.resolve(
            SurveyResult(
                regions=tuple(listed),
                stamp_ns=stamp_ns,
                frame_id=survey.frame.frame_id,
                left_out=left_out,
                complete=answers.complete,
                scores=tuple(scores) if content.purpose and listed else (),
                warnings=answers.warnings + _failed(_failures(answers.handles), len(answers.handles)),
            )
        )

    def _let_go(self, survey: Survey, region: Region) -> Region:
        """Ends the tracking of a new region that does not fit."""
        with suppress(UnknownRegionError):  # a caller may have removed it meanwhile
            self._inbox.remove(survey.camera, region.region_id)
        return replace(region, region_id=0)

    def _attempt(self, survey: Survey, work: Callable[[], None]) -> bool:
        """Does the work; if it fails, the survey's caller gets the error. Whether it succeeded."""
        failure = self._faults.attempt("surveying a frame", work)
        if isinstance(failure, PamError):
            survey.handle.fail(failure)
        return not isinstance(failure, PamError)


def _tell(survey: RequestHandle[SurveyResult], framed: Future[int | None]) -> None:
    """A survey of known regions is about the frame that they are described in."""
    if (stamp_ns := framed.result()) is not None:
        survey.is_about(stamp_ns)


def _left_out(found: int, listed: int, limit: str) -> tuple[str, ...]:
    """A warning if more were found than are listed."""
    if found <= listed:
        return ()
    return (
        f"{found} regions were found, {limit.format(listed)}; those with the lowest mask scores are left out",
    )


def described(region: Region, language: Language) -> Described:
    """What a model judges a region's purpose by."""
    label, explanation = (region.texts.get((task, language)) for task in (Task.LABEL, Task.EXPLAIN))
    return Described(
        label.text if label else "",
        explanation.text if explanation else "",
        explanation.confidence if explanation else None,
    )


def _handles(requests: Sequence[Request]) -> list[RequestHandle[Region]]:
    return [each.handle for each in requests if each.handle is not None]


def _failures(handles: Sequence[RequestHandle[Region]]) -> list[PamError]:
    """Why requests have failed; there being nothing is no failure."""
    errors = [each.future.exception() for each in handles if each.done]
    return [each for each in errors if isinstance(each, PamError) and not isinstance(each, NothingFoundError)]


def _failed(failures: Sequence[PamError], count: int) -> tuple[str, ...]:
    """A warning if some of `count` regions have failed."""
    if not failures:
        return ()
    return (f"{len(failures)} of {count} regions failed and are left out; the first: {failures[0]}",)
