"""Files instead of a camera: the engine without a thread, so that no frame is dropped.

Sampling of clips, tracking, prompts and texts are the node's own.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from threading import Lock, RLock
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from pam_ros.errors import InputError, NothingFoundError, StateError
from pam_ros.model.interface import PerceptionModel
from pam_ros.records import Detection, Frame, Language, Prompt, Region, RegionState, Task
from pam_ros.runtime.clip_sampler import EARLY_NS, ClipSampler
from pam_ros.runtime.engine import Engine
from pam_ros.runtime.events import CaptionEvent, FrameResult, TextEvent, with_text
from pam_ros.runtime.options import EngineOptions
from pam_ros.runtime.requests import (
    MAX_SURVEY_REGIONS,
    PromptRequest,
    RequestHandle,
    SurveyRequest,
    SurveyResult,
)

CAMERA = "file"
CLIP_FRAMES = 16  # of a clip
NEVER_S = 86400.0  # a lost region is looked for until the file ends
OnText = Callable[[int, Task, Language, str], None]  # region id, task, language, text so far


@dataclass(frozen=True, slots=True)
class VideoStep:
    """One frame of a recording, and what was reported after it.

    Attributes:
        regions: sorted by id; for a prompt that has found nothing, one that is lost and has no texts.
        captions: of clips that end here.
        warnings: what went wrong.
        summaries: one per region whose stream ends here, from all its captions.
    """

    frame: Frame
    regions: tuple[Region, ...]
    captions: tuple[CaptionEvent, ...]
    warnings: tuple[str, ...] = ()
    summaries: tuple[CaptionEvent, ...] = ()

    def followed_by(self, last: VideoStep) -> VideoStep:
        """Itself, with what was reported at the recording's end."""
        return replace(
            last,
            captions=self.captions + last.captions,
            warnings=self.warnings + last.warnings,
            summaries=self.summaries + last.summaries,
        )


def perceive_image(
    model: PerceptionModel,
    image: NDArray[np.uint8],
    prompts: Sequence[Prompt],
    tasks: Sequence[Task],
    languages: Sequence[Language],
    on_text: OnText = lambda region_id, task, language, text: None,
) -> list[Region]:
    """Masks and texts of several regions of one image: one encoder pass, then regions and texts in batches.

    `image`: (H, W, 3) uint8 RGB. The region of prompt i has id i + 1; if nothing was found, it is
    lost and has no texts. `on_text` is called as texts grow.
    Raises PromptError if a prompt does not lie in the image, InferenceError if the model fails.
    """
    frame = Frame(image=image, stamp_ns=0, camera=CAMERA)
    with closing(Playback(model, _options(prompts, tracking=False), on_text)) as offline:
        return offline.prompt(frame, prompts, tuple(tasks), tuple(languages))


def survey_image(
    model: PerceptionModel,
    image: NDArray[np.uint8],
    request: SurveyRequest,
    on_text: OnText = lambda region_id, task, language, text: None,
    **options: Any,
) -> SurveyResult:
    """Finds everything in an image, or what fits a purpose; the regions have the ids 1, 2, …

    `image`: (H, W, 3) uint8 RGB. `options`: fields of EngineOptions. `on_text` is called as texts grow.
    `SurveyResult.warnings` says which regions are left out. Raises InputError for a request or option that is
    not allowed, InferenceError if the model fails.
    """
    limit = MAX_SURVEY_REGIONS
    bounds = _options((), max_regions=limit, max_queued_requests=limit, tracking=False, **options)
    frame = Frame(image=image, stamp_ns=0, camera=CAMERA)
    with closing(Playback(model, bounds, on_text)) as offline:
        return offline.survey(frame, replace(request, keep=True))


def follow_video(
    model: PerceptionModel, frames: Iterable[Frame], prompts: Sequence[Prompt]
) -> Generator[VideoStep, None, None]:
    """Tracks regions prompted on the first frame, without texts.

    Raises InputError for more prompts than the model can track regions at a time.
    """
    check_room(model, prompts)
    return _run(model, frames, prompts, _options(prompts))


def caption_video(
    model: PerceptionModel,
    frames: Iterable[Frame],
    prompts: Sequence[Prompt],
    *,
    every_s: float,
    language: Language,
    decode_times_ns: Sequence[int] = (),
    carry_over: bool = True,
    clip_frames: int = CLIP_FRAMES,
) -> Generator[VideoStep, None, None]:
    """Tracks regions prompted on the first frame and captions them every `every_s` seconds, as the node does.

    With `decode_times_ns`, stamps of the video, the clips end there instead, and nothing is captioned after
    the last. The clip that is open at the end of the video is captioned too. Raises PromptError for a prompt
    outside the first frame, InputError for an option outside its range, or for more prompts than the model
    can track regions at a time. A failed caption is a warning of its step.
    """
    check_room(model, prompts)
    options = _options(
        prompts,
        streaming=True,
        caption_period_s=every_s,
        caption_language=language,
        decode_times_ns=tuple(decode_times_ns),
        carry_over=carry_over,
        clip_frames=clip_frames,
    )
    return _run(model, frames, prompts, options)


def decode_times(
    at_s: Sequence[float], stamps_ns: Sequence[int], *, carry_over: bool = True
) -> tuple[int, ...]:
    """Seconds from the first frame → stamps.

    `stamps_ns`: of every frame. The recording ends one frame's time after the last. A clip starts with the
    last frame of the clip before, or without `carry_over` with the frame after it. Raises InputError for a
    time outside the recording, or one at which no clip can end, because the clip before ends there too.
    """
    first, last = stamps_ns[0], stamps_ns[-1]
    if at_s and last == first:
        raise InputError("a recording of one frame has no decode timestamps; leave them out")
    end_s = (last - first) / 1e9 * (1 + 1 / max(len(stamps_ns) - 1, 1))
    for time_s in at_s:
        if not 0 < time_s <= end_s + 0.005:  # people round
            raise InputError(f"decode timestamp {time_s} s: it must be above 0 s and at most {end_s:.3f} s")
    times_ns = tuple(first + round(time_s * 1e9) for time_s in at_s)
    start_ns: int | None = first
    for time_s, time_ns in zip(at_s, times_ns, strict=True):
        if start_ns is None:
            raise InputError(f"decode timestamp {time_s} s: the clip before lasts to the recording's end")
        if time_ns - start_ns <= EARLY_NS:
            begun_s = (start_ns - first) / 1e9
            raise InputError(
                f"decode timestamp {time_s} s: its clip starts with the frame at {begun_s:.3f} s and must "
                f"last more than {EARLY_NS / 1e9:g} s"
            )
        clip = ClipSampler(start_ns=start_ns, period_s=(time_ns - start_ns) / 1e9, max_frames=CLIP_FRAMES)
        rest = (each for each in stamps_ns if clip.ends(each))
        start_ns = next(islice(rest, 0 if carry_over else 1, None), None)
    return times_ns


def check_room(model: PerceptionModel, prompts: Sequence[Prompt]) -> None:
    """Raises InputError if the model cannot track so many regions at a time."""
    count, limit = len(prompts), model.info.max_regions
    if limit and count > limit:
        raise InputError(
            f"{count} regions are given to track; this model was loaded for at most {limit} at a time. "
            f"Give fewer, or load it with `regions={count}`"
        )


def _options(prompts: Sequence[Prompt], **more: Any) -> EngineOptions:
    count = max(1, len(prompts))
    bounds: dict[str, Any] = {
        "max_regions": count,
        "max_queued_requests": max(32, count),
        "lost_timeout_s": NEVER_S,
    }
    try:
        return EngineOptions(**(bounds | more))
    except ValueError as error:
        raise InputError(str(error)) from None


def _run(
    model: PerceptionModel, frames: Iterable[Frame], prompts: Sequence[Prompt], options: EngineOptions
) -> Generator[VideoStep, None, None]:
    step: VideoStep | None = None
    with closing(Playback(model, options)) as offline:
        for frame in frames:
            if step is None:
                offline.prompt(frame, prompts, (), ())
            else:
                yield step
                offline.process(frame)
            step = offline.step(frame)
        if step is not None:
            offline.end()
            last = offline.step(step.frame)
            yield step.followed_by(last)


class _Turns:
    """Work with one model from several threads: one turn at a time, each to its end."""

    def __init__(self) -> None:
        self._lock, self._taken = RLock(), False

    def __enter__(self) -> None:
        self._lock.acquire()
        if self._taken:
            self._lock.release()
            raise StateError(
                "the model is at work: a function that it calls, such as on_text, must not use it"
            )
        self._taken = True

    def __exit__(self, *_: object) -> None:
        self._taken = False
        self._lock.release()


_TURNS: WeakKeyDictionary[PerceptionModel, _Turns] = WeakKeyDictionary()
_TURNS_LOCK = Lock()


class Playback:
    """Recorded frames of one camera through the engine, on the caller's thread; collects what it reports.

    To be closed: until then it holds memories and prompts of the model.
    """

    def __init__(self, model: PerceptionModel, options: EngineOptions, on_text: OnText | None = None) -> None:
        self._on_text = on_text
        self._regions: tuple[Region, ...] = ()
        self._nothing: tuple[Region, ...] = ()  # for prompts that have found nothing
        self._next_id = 1  # of the next prompt's region
        self._captions: list[CaptionEvent] = []
        self._warnings: list[str] = []
        self._summaries: list[CaptionEvent] = []
        self._problem = ""  # of texts, as reported last
        self._engine = Engine(model=model, cameras=[CAMERA], options=options, listener=self)
        self._engine.open()
        with _TURNS_LOCK:
            self._turns = _TURNS.setdefault(model, _Turns())

    def prompt(
        self,
        frame: Frame,
        prompts: Sequence[Prompt],
        tasks: tuple[Task, ...],
        languages: tuple[Language, ...],
    ) -> list[Region]:
        """Submits a frame and prompts on it; returns the prompts' regions, see `perceive_image`."""
        self._engine.submit_frame(_named(frame))
        handles: list[RequestHandle[Region]] = []
        for prompt in prompts:
            prompt.check_size(*frame.size)
            handles.append(self._engine.perceive(CAMERA, PromptRequest(prompt, tasks, languages)))
        self._run()
        found = []
        for region_id, handle in enumerate(handles, self._next_id):
            try:
                found.append(handle.future.result(0))
            except NothingFoundError as error:
                found.append(_nothing(region_id, error))
                self._nothing += (found[-1],)
        self._next_id += len(handles)
        return found

    def survey(self, frame: Frame, request: SurveyRequest) -> SurveyResult:
        """Submits a frame and a survey of it."""
        self._engine.submit_frame(_named(frame))
        handle = self._engine.survey(CAMERA, request)
        self._run()
        return handle.future.result(0)

    def process(self, frame: Frame) -> None:
        """Submits a frame and does all the work that follows from it."""
        self._engine.submit_frame(_named(frame))
        self._run()

    def request(self, request: PromptRequest) -> Region:
        """A prompt that was recorded among the frames; its region. Raises the InputError that refuses it."""
        handle = self._engine.perceive(CAMERA, request)
        self._run()
        return handle.future.result(0)

    def detections(
        self,
        detections: Sequence[Detection],
        stamp_ns: int | None,
        tasks: tuple[Task, ...],
        languages: tuple[Language, ...],
    ) -> None:
        """A detector's boxes, see `Engine.detections`."""
        self._engine.detections(CAMERA, detections, stamp_ns, tasks, languages)
        self._run()

    def _run(self) -> None:
        with self._turns:
            self._engine.run_pending()

    def close(self) -> None:
        """Gives back what the model holds for it. Idempotent."""
        self._engine.close()

    def end(self) -> None:
        """The video is over."""
        self._engine.end_stream(CAMERA)
        self._run()

    def step(self, frame: Frame) -> VideoStep:
        """What was reported since the last step."""
        problem = self._engine.statistics().text_problem
        if problem not in ("", self._problem):
            self._warnings.append(problem)
        self._problem = problem
        regions = tuple(sorted(self._regions + self._nothing, key=lambda region: region.region_id))
        step = VideoStep(frame, regions, tuple(self._captions), tuple(self._warnings), tuple(self._summaries))
        self._captions, self._warnings, self._summaries = [], [], []
        return step

    def on_frame(self, result: FrameResult) -> None:
        """See Listener."""
        self._regions = result.regions

    def on_text(self, event: TextEvent) -> None:
        """See Listener."""
        if event.final:
            self._regions = tuple(with_text(region, event) for region in self._regions)
        if self._on_text is not None:
            self._on_text(event.region_id, event.task, event.language, event.text)

    def on_caption(self, event: CaptionEvent) -> None:
        """See Listener."""
        if event.summary:
            self._summaries.append(event)
        elif event.final:
            self._captions.append(event)

    def on_warning(self, camera: str, message: str) -> None:
        """See Listener."""
        self._warnings.append(message)


def _nothing(region_id: int, error: NothingFoundError) -> Region:
    """Stands for the region of a prompt that has found nothing: lost, without texts."""
    return Region(
        region_id=region_id,
        state=RegionState.LOST,
        box_xyxy=np.zeros(4, np.float32),
        mask=np.zeros((0, 0), np.bool_),
        mask_score=error.mask_score,
        presence_score=error.presence_score,
        texts={},
        created_ns=0,
        last_visible_ns=0,
    )


def _named(frame: Frame) -> Frame:
    return frame if frame.camera == CAMERA else replace(frame, camera=CAMERA)
