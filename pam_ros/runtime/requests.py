"""What callers submit (PromptRequest), what they get back (RequestHandle), and how both reach the worker."""

from __future__ import annotations

import concurrent.futures
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from pam_ros.errors import (
    CancelledError,
    InputError,
    LanguageError,
    PamError,
    PromptError,
    TaskError,
    without_frames,
)
from pam_ros.records import IMAGE_TASKS, Detection, Frame, Language, Prompt, Region, Task, language_of
from pam_ros.runtime.events import CaptionEvent

T = TypeVar("T")

MIN_CLIP_S = 0.1  # shortest `caption_clip`, seconds
MAX_CLIP_S = 120.0  # longest `caption_clip`, seconds
MAX_DETECTIONS = 256  # of one message; as many as there may be regions
MAX_SURVEY_REGIONS = 256
MAX_SURVEY_S = 60.0  # longest search of a survey, seconds
MAX_PURPOSE = 500  # characters of a purpose


@dataclass(frozen=True, slots=True)
class PromptRequest:
    """A region, and the texts to generate about it.

    Attributes:
        prompt: clicks, box or mask; None describes the region `region_id` as it is now.
        tasks: image tasks, in the order they are wanted; empty requests for the mask only.
        languages: every task is answered in each of them.
        region_id: 0 makes a new region; otherwise that region is refined (or described).
        refine_hit: a click on a region refines that region; elsewhere it makes a new one.
        stamp_ns: stamp of the frame meant; None means the newest.
        image: (H, W, 3) uint8 RGB, the caller's own image: nothing is tracked, the answer has region id 0.
    """

    prompt: Prompt | None
    tasks: tuple[Task, ...] = (Task.LABEL,)
    languages: tuple[Language, ...] = (Language.EN,)
    region_id: int = 0
    stamp_ns: int | None = None
    image: NDArray[np.uint8] | None = None
    refine_hit: bool = False

    def texts(self) -> list[tuple[Task, Language]]:
        """Every text asked for, once each, language by language."""
        return list(dict.fromkeys((task, language) for language in self.languages for task in self.tasks))


class RequestHandle(Generic[T]):
    """A request under way. Callbacks of its future run on the thread that ends it, so they must not block."""

    def __init__(self) -> None:
        self.future: concurrent.futures.Future[T] = concurrent.futures.Future()  # a value, or a PamError
        # The stamp of the frame that the answer is about, as soon as it is known; None if there is none.
        self.framed: concurrent.futures.Future[int | None] = concurrent.futures.Future()

    @property
    def done(self) -> bool:
        """True once answered, failed or cancelled."""
        return self.future.done()

    def cancel(self) -> None:
        """Fails the future with CancelledError now; generation stops at the next step. Idempotent."""
        self.fail(CancelledError("the request was cancelled before it was answered"))

    def is_about(self, stamp_ns: int | None) -> None:
        """Tells of which frame, the first time."""
        with suppress(concurrent.futures.InvalidStateError):
            self.framed.set_result(stamp_ns)

    def resolve(self, value: T) -> None:
        """Answers, unless it has ended already."""
        self.is_about(None)
        with suppress(concurrent.futures.InvalidStateError):  # a cancel on another thread may win the race
            self.future.set_result(value)

    def fail(self, error: PamError) -> None:
        """Fails, unless it has ended already."""
        self.is_about(None)
        with suppress(concurrent.futures.InvalidStateError):
            self.future.set_exception(without_frames(error))


@dataclass(frozen=True, slots=True, eq=False)
class ClipRequest:
    """`caption_clip` on its way to the worker."""

    handle: RequestHandle[CaptionEvent]
    duration_s: float
    language: Language
    on_progress: Callable[[float, str], None]  # recorded seconds, partial text


@dataclass(frozen=True, slots=True, eq=False)
class CaptionRequest:
    """`caption_now` on its way to the worker."""

    handle: RequestHandle[CaptionEvent]
    region_id: int
    language: Language


@dataclass(frozen=True, slots=True)
class SurveyRequest:
    """Everything in view, or what fits a purpose.

    Attributes:
        tasks, languages: texts of every region, as in PromptRequest.
        purpose: what a region is to be good for, in the first language; "" = no judgement.
        boxes_xyxy: a detector's boxes, pixels, instead of a grid of points.
        region_ids: known regions instead of a search.
        max_regions: maximum regions of the answer; 0 = the option `all_max_regions`.
        budget_s: time for the grid, seconds; 0 = the option `all_budget_s`.
        keep: new regions are tracked from now on, with a purpose only those that fit; the others' ids are 0.
        min_score: a score that fits the purpose, 0..1; None = the option `find_min_score`.
        stamp_ns: stamp of the frame meant; None means the newest.
        image: (H, W, 3) uint8 RGB, the caller's own image; nothing is kept.
    """

    tasks: tuple[Task, ...] = ()
    languages: tuple[Language, ...] = (Language.EN,)
    purpose: str = ""
    boxes_xyxy: tuple[tuple[float, float, float, float], ...] | None = None
    region_ids: tuple[int, ...] = ()
    max_regions: int = 0
    budget_s: float = 0.0
    keep: bool = False
    min_score: float | None = None
    stamp_ns: int | None = None
    image: NDArray[np.uint8] | None = None

    def all_tasks(self) -> tuple[Task, ...]:
        """The tasks, with those that a purpose is judged by."""
        judged = (Task.LABEL, Task.EXPLAIN) if self.purpose else ()
        return tuple(dict.fromkeys((*self.tasks, *judged)))


@dataclass(frozen=True, slots=True)
class SurveyResult:
    """What a survey found.

    Attributes:
        regions: with their texts; highest mask score first, or best fit to the purpose first.
        stamp_ns, frame_id: of the frame.
        left_out: regions that were found but are not listed: too many, failed, empty or twice.
        complete: False if the budget was spent before the grid was done.
        scores: how well each region fits the purpose, 0..1; empty without one.
        warnings: why regions are left out that are neither empty nor listed already.
    """

    regions: tuple[Region, ...]
    stamp_ns: int
    frame_id: str
    left_out: int
    complete: bool
    scores: tuple[float, ...] = ()
    warnings: tuple[str, ...] = ()

    def fitting(self, min_score: float) -> int:
        """How many of the first regions score at least `min_score`."""
        return sum(score >= min_score for score in self.scores)


@dataclass(frozen=True, slots=True, eq=False)
class Survey:
    """A survey on its way to the worker."""

    camera: str
    content: SurveyRequest
    frame: Frame
    handle: RequestHandle[SurveyResult]


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One prompt, or one region to describe, on its way to the worker.

    Attributes:
        frame: the frame its stamp was matched to, or the caller's own; None = the newest when its turn comes.
        arrived_s: when it arrived, seconds of the runtime's clock.
        handle: answers the caller; None for a detection, and if `clip` answers.
        detection: the detection it comes from; a region that matches it already is left to the tracker.
    """

    camera: str
    content: PromptRequest
    frame: Frame | None
    arrived_s: float
    handle: RequestHandle[Region] | None = None
    clip: ClipRequest | None = None
    detection: Detection | None = None

    @property
    def done(self) -> bool:
        """True once it was answered, failed or cancelled."""
        handle = self.handle or (self.clip and self.clip.handle)
        return bool(handle and handle.done)


def check_request(request: PromptRequest) -> None:
    """Raises InputError if the request is invalid whatever the frame."""
    _check_texts(request.tasks, request.languages)
    if request.image is not None and (request.prompt is None or request.region_id):
        raise PromptError(
            f"a request with its own image needs a prompt and region id 0; it has "
            f"{'no prompt' if request.prompt is None else 'a prompt'} and region id {request.region_id}"
        )
    new = not request.region_id and not request.refine_hit
    if request.prompt is not None and new and not request.prompt.shows_region:
        raise PromptError("a new region needs a positive click, a box or a mask; it has negative clicks only")
    if request.prompt is None and not request.region_id:
        raise PromptError(
            "the request has neither a prompt nor a region id; send clicks, a box, a mask, or a region id"
        )


def check_clip(request: PromptRequest, duration_s: float) -> None:
    """Raises InputError if a clip cannot be recorded as requested."""
    if not math.isfinite(duration_s) or not MIN_CLIP_S <= duration_s <= MAX_CLIP_S:
        raise InputError(
            f"the clip's duration is {duration_s} s; allowed: {MIN_CLIP_S:g} to {MAX_CLIP_S:g} s"
        )
    if request.image is not None:
        raise PromptError("a clip is recorded from the camera; the request must not have its own image")


def check_detections(detections: Sequence[Detection]) -> None:
    """Raises InputError if there are more in one message than are read."""
    if len(detections) > MAX_DETECTIONS:
        raise InputError(f"a message has {len(detections)} detections; at most {MAX_DETECTIONS} are allowed")


def purpose_of(request: str, language: str | None = None) -> tuple[str, Language]:
    """What a region is to be good for, and its language; no `language`: by the script of the request.

    Raises PromptError for an empty request, LanguageError for an unknown language.
    """
    purpose = request.strip()
    try:
        purpose.encode()
    except UnicodeEncodeError:
        raise PromptError(f"the request {purpose!r} is not valid Unicode; send it as UTF-8") from None
    if not purpose:
        raise PromptError("the request is empty; say what you need, e.g. 'something to cut with'")
    return purpose, Language.parse(language) if language else language_of(purpose)


def check_survey(request: SurveyRequest) -> None:
    """Raises InputError if the survey is invalid whatever the frame."""
    _check_texts(request.all_tasks(), request.languages)
    ways = [request.boxes_xyxy is not None, bool(request.region_ids)]
    if all(ways) or (request.region_ids and request.image is not None):
        raise PromptError("region ids cannot be combined with boxes or an image; send one or the other")
    if request.keep and request.image is not None:
        raise PromptError("regions of the request's own image cannot be kept; leave out `keep` or the image")
    if not 0 <= request.max_regions <= MAX_SURVEY_REGIONS:
        raise InputError(f"max_regions is {request.max_regions}; allowed: 0..{MAX_SURVEY_REGIONS}")
    if not math.isfinite(request.budget_s) or not 0.0 <= request.budget_s <= MAX_SURVEY_S:
        raise InputError(f"the budget is {request.budget_s} s; allowed: 0..{MAX_SURVEY_S:g} s")
    if request.min_score is not None and not 0.0 <= request.min_score <= 1.0:
        raise InputError(f"min_score is {request.min_score}; allowed: 0..1")
    if len(request.purpose) > MAX_PURPOSE:
        raise InputError(f"the request has {len(request.purpose)} characters; allowed: {MAX_PURPOSE}")
    for box in request.boxes_xyxy or ():
        Prompt.from_clicks(box_xyxy=box)


def _check_texts(tasks: Sequence[Task], languages: Sequence[Language]) -> None:
    for task in tasks:
        if task not in IMAGE_TASKS:
            allowed = ", ".join(each.value for each in IMAGE_TASKS)
            raise TaskError(f"task {task.value!r} needs a clip, not one image; allowed: {allowed}")
    if tasks and not languages:
        raise LanguageError("tasks need at least one language; none was given")
