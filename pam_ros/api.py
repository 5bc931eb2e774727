"""The Python interface, without ROS: `load_model`, `perceive`, `perceive_all`, `find`, `caption`.

Examples: docs/python.md.

Coordinates are `(x, y)` pixels, x right, y down, the centre of the top-left pixel at (0, 0); boxes are
`(x1, y1, x2, y2)`. An image is the path of a file or a (H, W, 3) uint8 array, RGB. Times are seconds. A model
belongs to one thread at a time. Every error is a `pam_ros.errors.PamError`; notes go to the logger `pam_ros`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pam_ros.errors import ImageError, InputError, NothingFoundError, PromptError
from pam_ros.geometry import full_mask
from pam_ros.model.loading.options import REGIONS
from pam_ros.plain_values import (
    LAST_S,
    frames_of,
    image_of,
    integer_of,
    list_of,
    mask_of,
    names_of,
    number_of,
    path_of,
    rows_of,
    shown,
    text_of,
)
from pam_ros.records import (
    Frame,
    Language,
    Prompt,
    Region,
    RegionState,
    Task,
    Text,
    image_tasks,
)
from pam_ros.share import version

if TYPE_CHECKING:
    from pam_ros.model.interface import PerceptionModel
    from pam_ros.runtime.events import CaptionEvent
    from pam_ros.runtime.offline import OnText, VideoStep
    from pam_ros.runtime.requests import SurveyRequest, SurveyResult

__version__ = version()

LOGGER = logging.getLogger(__name__)

FilePath = str | os.PathLike[str]
Image = FilePath | ArrayLike  # a file, or (H, W, 3) uint8 RGB
Mask = FilePath | ArrayLike  # a file, see `media.read_mask`, or (H, W), above 0 inside
Click = tuple[float, float]  # (x, y)
Box = tuple[float, float, float, float]  # (x1, y1, x2, y2)
EVERY_S = 2.0  # clip length if none is given
OnGrowth = Callable[[int, str, str, str], None]  # region id, task, language, text so far


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """A region of an image.

    Attributes:
        mask: (H, W) bool of the image's size; all False if nothing was found.
        region: everything else that is known, such as `mask_score` and `presence_score`.
        score: how well the region fits the request of `find`, 0..1; None from the other functions.
    """

    mask: NDArray[np.bool_]
    region: Region
    score: float | None = None

    @property
    def found(self) -> bool:
        """False if there is no object at the prompt: the mask is empty, and there are no texts."""
        return self.region.state is RegionState.TRACKED

    @property
    def box(self) -> Box:
        """The tight box of the mask, pixels, x2 and y2 exclusive; zeros if nothing was found."""
        x1, y1, x2, y2 = self.region.box_xyxy.tolist()
        return (x1, y1, x2, y2)

    @property
    def label(self) -> str:
        """The label in the first requested language; empty without one, or if nothing was found."""
        return self.region.name

    @property
    def confidence(self) -> float | None:
        """Probability that `label` is right, 0..1; None if it is not known."""
        return self.region.name_confidence

    @property
    def texts(self) -> dict[tuple[str, str], Text]:
        """All texts by task and language: `result.texts["explain", "en"].text`."""
        return {(task.value, language.value): text for (task, language), text in self.region.texts.items()}


def load_model(
    model: str = "auto",
    *,
    device: str = "auto",
    dtype: str = "auto",
    quantization: str = "none",
    sam2: FilePath | None = None,
    text_server: str = "",
    regions: int = REGIONS,
) -> PerceptionModel:
    """Loads a model on the fastest path this machine supports; takes seconds to a minute. Downloads nothing.

    Args:
        model: a name (see `pam models`), a hub id or a folder; `auto` takes the best official model that is
            on this disk and fits, else `pam-tiny`, a demonstration model.
        device: `auto` (a GPU if there is one), `cpu`, `cuda`, `cuda:1`, …
        dtype: `auto`, `float32`, `bfloat16` or `float16`.
        quantization: of the language model's linear layers: `none`, `int8` or `int4`.
        sam2: SAM 2's weights file, if it is not in the model's folder.
        text_server: URL of a server that generates the texts (docs/text_server.md).
        regions: how many regions of a video can be tracked at a time, 1 to 256; on a GPU each takes memory.
            Images may have 256 regions in any case.

    Raises ModelNotFoundError, CheckpointError, DeviceError or MemoryLimitError; InputError for an argument
    of the wrong type, an invalid URL or a number out of range.
    """
    from pam_ros.model.loading.options import LoadOptions
    from pam_ros.runtime.requests import MAX_SURVEY_REGIONS
    from pam_ros.threads import in_temporary_thread

    options = LoadOptions(
        model=str(path_of("model", model)) if not isinstance(model, str) else model,
        device=text_of("device", device),
        dtype=text_of("dtype", dtype),
        sam2=None if sam2 is None else path_of("sam2", sam2),
        quantization=text_of("quantization", quantization),
        text_server=text_of("text_server", text_server),
        regions=integer_of("regions", regions, 1, MAX_SURVEY_REGIONS),
    )
    from pam_ros.model.opening import open_model  # after the checks: it takes seconds

    return in_temporary_thread(lambda: open_model(options, progress=LOGGER.info, note=LOGGER.warning))


def perceive(
    model: PerceptionModel,
    image: Image,
    *,
    clicks: Iterable[Click] = (),
    not_clicks: Iterable[Click] = (),
    boxes: Iterable[Box] = (),
    masks: Iterable[Mask] = (),
    tasks: Iterable[str] = ("label",),
    languages: Iterable[str] = ("en",),
    on_text: OnGrowth | None = None,
) -> list[Result]:
    """Segments and describes regions of an image.

    Args:
        clicks, not_clicks, boxes, masks: see `prompts`.
        tasks: any of `label`, `explain`, `brief`, `detail`; empty = masks only.
        languages: `en`, `zh`; every task is answered in each of them.
        image: a path, or (H, W, 3) uint8 RGB.
        on_text: called after every token with region id, task, language and the text so far.

    Returns one result for each region: masks first, then boxes or the clicks. If one has `found == False`,
    the others are unaffected.

    Raises ImageError, PromptError, TaskError or LanguageError for bad input, InferenceError if the model
    fails.
    """
    from pam_ros.runtime.offline import perceive_image

    _check_model(model)
    pixels, asked = image_of(image), prompts(clicks, not_clicks, boxes, masks)
    wanted, spoken = image_tasks(names_of("tasks", tasks, "label")), _languages(languages)
    regions = perceive_image(model, pixels, asked, wanted, spoken, _growth(on_text))
    return [_result(region, pixels) for region in regions]


def perceive_all(
    model: PerceptionModel,
    image: Image,
    *,
    boxes: Iterable[Box] | None = None,
    tasks: Iterable[str] = ("label",),
    languages: Iterable[str] = ("en",),
    max_regions: int = 24,
    budget_s: float = 60.0,
    on_text: OnGrowth | None = None,
) -> list[Result]:
    """Segments and describes everything in an image, without a prompt; highest mask score first.

    Args:
        boxes: of a detector, instead of the search; empty = no regions.
        max_regions: maximum number of results, 1 to 256. A warning is logged if more were found, or if one
            fails.
        budget_s: time for the search, seconds, above 0, at most 60; the texts take additional time. A
            warning is logged if it runs out.

    Other arguments and errors: see `perceive`; InputError for a limit out of range.
    """
    from pam_ros.runtime.requests import MAX_SURVEY_REGIONS, MAX_SURVEY_S, SurveyRequest

    _check_model(model)
    request = SurveyRequest(
        tasks=image_tasks(names_of("tasks", tasks, "label")),
        languages=_languages(languages),
        boxes_xyxy=_boxes(boxes),
        max_regions=integer_of("max_regions", max_regions, 1, MAX_SURVEY_REGIONS),
        budget_s=number_of("budget_s", budget_s, 0.0, MAX_SURVEY_S, above=True),
    )
    pixels = image_of(image)
    return [_result(region, pixels) for region in _survey(model, pixels, request, on_text).regions]


def find(
    model: PerceptionModel,
    image: Image,
    request: str,
    *,
    boxes: Iterable[Box] | None = None,
    language: str | None = None,
    min_score: float | None = None,
    max_regions: int = 24,
    budget_s: float = 60.0,
    on_text: OnGrowth | None = None,
) -> list[Result]:
    """Finds the objects that serve a purpose, best first; an empty list if nothing fits.

    Args:
        request: what you need, such as "something to cut with" or "用来喝水的东西".
        language: of the request and the texts, `en` or `zh`; None = detected from the request's script.
        min_score: lowest score that counts as a fit, 0..1; None = default of the parameter `find.min_score`.

    Every result has a `score`, a label and an explanation. Other arguments and errors: see `perceive_all`;
    PromptError for an empty request.
    """
    from pam_ros.runtime.options import EngineOptions
    from pam_ros.runtime.requests import MAX_SURVEY_REGIONS, MAX_SURVEY_S, SurveyRequest, purpose_of

    _check_model(model)
    purpose, spoken = purpose_of(text_of("request", request), language)
    if min_score is not None:
        min_score = number_of("min_score", min_score, 0.0, 1.0)
    survey = SurveyRequest(
        languages=(spoken,),
        purpose=purpose,
        boxes_xyxy=_boxes(boxes),
        max_regions=integer_of("max_regions", max_regions, 1, MAX_SURVEY_REGIONS),
        budget_s=number_of("budget_s", budget_s, 0.0, MAX_SURVEY_S, above=True),
        min_score=min_score,
    )
    pixels = image_of(image)
    answer = _survey(model, pixels, survey, on_text)
    fitting = answer.fitting(EngineOptions().find_min_score if min_score is None else min_score)
    pairs = list(zip(answer.regions, answer.scores, strict=True))[:fitting]
    return [_result(region, pixels, score) for region, score in pairs]


def caption(
    model: PerceptionModel,
    video: FilePath | Iterable[tuple[float, ArrayLike]],
    *,
    clicks: Iterable[Click] = (),
    not_clicks: Iterable[Click] = (),
    boxes: Iterable[Box] = (),
    masks: Iterable[Mask] = (),
    every_s: float | None = None,
    at_s: Iterable[float] = (),
    language: str = "en",
    carry_over: bool = True,
    summary: bool = False,
) -> Iterator[CaptionEvent]:
    """Tracks regions of a video and captions them clip by clip, as the node does.

    Args:
        video: the path of a file, or frames: (time in seconds, (H, W, 3) uint8 RGB), in order of time.
        clicks, not_clicks, boxes, masks: on the first frame, see `prompts`; they get the region ids 1, 2, …
        every_s: length of a clip, seconds; 2 if neither it nor `at_s` is given.
        at_s: decode timestamps instead: seconds from the first frame at which clips end.
        language: `en` or `zh`.
        carry_over: each clip starts with the last frame of the one before.
        summary: at the end, yield one more caption per region that merges the others; its `summary` is
            True.

    Yields the final caption of each clip when the clip ends; failed captions are logged.

    With a live source and `at_s`, all frames up to the last of these times are read before anything is
    yielded.

    Raises the errors of `perceive` for bad input, before anything is yielded, and InputError for more regions
    than the model was loaded for, see `load_model`; NothingFoundError if a prompt finds nothing on the first
    frame.
    """
    from pam_ros.runtime.offline import caption_video, check_room, decode_times

    _check_model(model)
    period_s = number_of("every_s", EVERY_S if every_s is None else every_s, 0.1, 3600.0)
    named_s = [
        number_of("a time of at_s", each, 0.0, LAST_S, above=True) for each in list_of("at_s", at_s, "3, 7.5")
    ]
    if named_s and every_s is not None:
        raise InputError("give every_s or at_s, not both")
    spoken, asked = Language.parse(language), prompts(clicks, not_clicks, boxes, masks)
    check_room(model, asked)
    times_ns: tuple[int, ...] = ()
    frames = _frames(video)
    if named_s:
        if isinstance(video, str | os.PathLike):
            from pam_ros.videos import video_stamps_ns

            stamps_ns = video_stamps_ns(Path(video))
        else:
            kept = _until(frames, max(named_s))
            frames, stamps_ns = chain(kept, frames), [frame.stamp_ns for frame in kept]
        times_ns = decode_times(named_s, stamps_ns, carry_over=carry_over) if stamps_ns else ()
    first = next(frames, None)
    if first is None:
        raise ImageError("the video has no frames; give at least one (time in seconds, image)")
    for prompt in asked:
        prompt.check_size(*first.size)
    steps = caption_video(
        model,
        chain([first], frames),
        asked,
        every_s=period_s,
        decode_times_ns=times_ns,
        language=spoken,
        carry_over=carry_over,
    )
    return _captions(steps, summary)


def prompts(
    clicks: Iterable[Click] = (),
    not_clicks: Iterable[Click] = (),
    boxes: Iterable[Box] = (),
    masks: Iterable[Mask] = (),
) -> list[Prompt]:
    """One prompt per region: one for each mask; one for all clicks and at most one box, else each box.

    Args:
        clicks: pixels on the object, [(x, y), …]. not_clicks: pixels outside it.
        boxes: [(x1, y1, x2, y2), …].
        masks: (H, W) arrays of the image's size, bool or numbers, above 0 inside, or image files.

    Raises PromptError for anything else, for no region, and for more than 256.
    """
    from pam_ros.runtime.requests import MAX_SURVEY_REGIONS

    on, off = rows_of("clicks", clicks, 2), rows_of("not_clicks", not_clicks, 2)
    corners = rows_of("boxes", boxes, 4)
    if (on or off) and len(corners) > 1:
        raise PromptError(
            f"clicks can be combined with one box, not {len(corners)}; for several regions give boxes only"
        )
    if getattr(masks, "ndim", 0) == 2:
        raise PromptError("masks is one mask, an array (H, W); give a list of masks: [mask]")
    drawn = list_of("masks", masks, "'mask.png'")
    if (count := len(drawn) + (1 if on or off else len(corners))) > MAX_SURVEY_REGIONS:
        raise PromptError(
            f"{count} regions are given; at most {MAX_SURVEY_REGIONS} are allowed. Give them in several calls"
        )
    found = [Prompt.from_mask(mask_of(mask)) for mask in drawn]
    if on or off:
        labels = [1] * len(on) + [0] * len(off)
        found.append(Prompt.from_clicks(on + off, labels, corners[0] if corners else None))
    else:
        found += [Prompt.from_clicks(box_xyxy=box) for box in corners]
    if not found:
        raise PromptError("no region given; give clicks, boxes or masks")
    return found


# --- plain values → records


def _check_model(model: object) -> None:
    """Raises InputError for anything but a model, StateError for one that is closed."""
    if not (hasattr(model, "vision") and hasattr(model, "text")):
        raise InputError(f"model must be what load_model returns, not {shown(model)}")


def _frames(video: FilePath | Iterable[tuple[float, ArrayLike]]) -> Iterator[Frame]:
    from pam_ros.videos import read_video

    if isinstance(video, str | os.PathLike):
        yield from read_video(Path(video), LOGGER.warning)
        return
    yield from frames_of(video)


def _until(frames: Iterable[Frame], time_s: float) -> list[Frame]:
    """The frames up to the first one that comes more than `time_s` seconds after the first."""
    kept: list[Frame] = []
    for frame in frames:
        kept.append(frame)
        if frame.stamp_ns - kept[0].stamp_ns > time_s * 1e9:
            break
    return kept


def _boxes(boxes: Iterable[Box] | None) -> tuple[Box, ...] | None:
    if boxes is None:
        return None
    return tuple((x1, y1, x2, y2) for x1, y1, x2, y2 in rows_of("boxes", boxes, 4))


def _languages(codes: Iterable[str]) -> tuple[Language, ...]:
    return tuple(dict.fromkeys(Language.parse(code) for code in names_of("languages", codes, "en")))


# --- records → results


def _result(region: Region, pixels: NDArray[np.uint8], score: float | None = None) -> Result:
    return Result(full_mask(region.box_xyxy, region.mask, pixels.shape), region, score)


def _growth(on_text: OnGrowth | None) -> OnText:
    if on_text is not None and not callable(on_text):
        raise InputError(f"on_text must be a function, not {shown(on_text)}")

    def tell(region_id: int, task: Task, language: Language, text: str) -> None:
        if on_text is not None:
            on_text(region_id, task.value, language.value, text)

    return tell


def _survey(
    model: PerceptionModel, pixels: NDArray[np.uint8], request: SurveyRequest, on_text: OnGrowth | None
) -> SurveyResult:
    from pam_ros.runtime.offline import survey_image

    found = survey_image(model, pixels, request, _growth(on_text))
    for line in found.warnings:
        LOGGER.warning("%s", line)
    if not found.complete:
        LOGGER.warning("the budget of %g s was spent before everything was searched", request.budget_s)
    return found


def _captions(steps: Generator[VideoStep, None, None], summary: bool) -> Iterator[CaptionEvent]:
    with closing(steps):
        for number, step in enumerate(steps):
            if number == 0:
                for region in step.regions:
                    if region.state is RegionState.LOST:
                        where = f"at prompt {region.region_id} of the first frame"
                        raise NothingFoundError(region.mask_score, region.presence_score, where)
            for line in step.warnings:
                LOGGER.warning("%s", line)
            yield from step.captions
            if summary:
                yield from step.summaries
