"""What callers hand in (PromptRequest), what they get back (RequestHandle), and how both travel to the worker."""

from __future__ import annotations

import concurrent.futures
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from pam_ros.errors import CancelledError, InputError, LanguageError, PamError, PromptError, TaskError
from pam_ros.records import IMAGE_TASKS, Frame, Language, Prompt, Region, Task
from pam_ros.runtime.events import CaptionEvent

T = TypeVar("T")

MAX_CLIP_S = 120.0  # the longest `caption_clip`, seconds


@dataclass(frozen=True, slots=True)
class PromptRequest:
    """Which region is meant, and what to say about it.

    Attributes:
        prompt: clicks, box or mask; None describes the region `region_id` as it is now.
        tasks: image tasks, in the order they are wanted; empty requests for the mask only.
        languages: every task is answered in each of them.
        region_id: 0 makes a new region; otherwise that region is refined (or described).
        stamp_ns: stamp of the frame meant; None means the newest.
        image: (H, W, 3) uint8 RGB, the caller's own picture: nothing is tracked, the answer has region id 0.
    """

    prompt: Prompt | None
    tasks: tuple[Task, ...] = (Task.LABEL,)
    languages: tuple[Language, ...] = (Language.EN,)
    region_id: int = 0
    stamp_ns: int | None = None
    image: NDArray[np.uint8] | None = None

    def texts(self) -> list[tuple[Task, Language]]:
        """Every text asked for, once each, language by language."""
        return list(dict.fromkeys((task, language) for language in self.languages for task in self.tasks))


class RequestHandle(Generic[T]):
    """A request under way. Its callbacks run on the thread that settles it, so they must not block."""

    def __init__(self) -> None:
        self.future: concurrent.futures.Future[T] = concurrent.futures.Future()  # a value, or a PamError

    @property
    def done(self) -> bool:
        """True once answered, failed or cancelled; work for it is then pointless."""
        return self.future.done()

    def cancel(self) -> None:
        """Fails the future with CancelledError now; decoding stops at the next step. Idempotent."""
        self.fail(CancelledError("the request was cancelled before it was answered"))

    def resolve(self, value: T) -> None:
        """Answers, unless settled already."""
        with suppress(concurrent.futures.InvalidStateError):  # a cancel on another thread may win the race
            self.future.set_result(value)

    def fail(self, error: PamError) -> None:
        """Fails, unless settled already."""
        with suppress(concurrent.futures.InvalidStateError):
            self.future.set_exception(error)


@dataclass(frozen=True, slots=True, eq=False)
class ClipRequest:
    """`caption_clip` on its way to the worker."""

    handle: RequestHandle[CaptionEvent]
    duration_s: float
    language: Language
    on_progress: Callable[[float, str], None]  # watched seconds, partial text


@dataclass(frozen=True, slots=True, eq=False)
class CaptionRequest:
    """`caption_now` on its way to the worker."""

    handle: RequestHandle[CaptionEvent]
    region_id: int
    language: Language


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One prompt, or one region to describe, on its way to the worker.

    Attributes:
        frame: the frame its stamp was matched to, or the caller's own; None = the newest when its turn comes.
        arrived_s: when it came, seconds of the runtime's clock.
        handle: who waits for the region; None for a detection and where `watch` waits.
        detection: True lets a region that is there already stand for it.
    """

    camera: str
    content: PromptRequest
    frame: Frame | None
    arrived_s: float
    handle: RequestHandle[Region] | None = None
    watch: ClipRequest | None = None
    detection: bool = False

    @property
    def settled(self) -> bool:
        """True when its caller waits no more."""
        waiting = self.handle or (self.watch and self.watch.handle)
        return bool(waiting and waiting.done)


def check_request(request: PromptRequest) -> None:
    """Raises InputError where the request makes no sense on any frame."""
    for task in request.tasks:
        if task not in IMAGE_TASKS:
            allowed = ", ".join(each.value for each in IMAGE_TASKS)
            raise TaskError(f"{task.value!r} is not said of one image; allowed: {allowed}")
    if request.tasks and not request.languages:
        raise LanguageError("tasks came without a language; name at least one")
    if request.image is not None and (request.prompt is None or request.region_id):
        raise PromptError(
            f"an image of your own needs a prompt and region id 0; came with prompt "
            f"{'none' if request.prompt is None else 'given'} and region id {request.region_id}"
        )
    if request.prompt is None and not request.region_id:
        raise PromptError(
            "neither a prompt nor a region id came; send clicks, a box, a mask, or the id of a region"
        )


def check_clip(request: PromptRequest, duration_s: float) -> None:
    """Raises InputError where a clip cannot be watched as asked."""
    if not math.isfinite(duration_s) or not 0.0 < duration_s <= MAX_CLIP_S:
        raise InputError(
            f"the duration to watch is {duration_s} s; allowed: above 0, at most {MAX_CLIP_S:g} s"
        )
    if request.image is not None:
        raise PromptError("a clip is watched on the camera; an image of your own cannot come with it")
