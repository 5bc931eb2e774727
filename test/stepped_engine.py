"""An engine on fakes that takes a turn when the test calls for it: no thread, no waiting, one order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from fakes import FakeModel, Recorder

from pam_ros.errors import PamError
from pam_ros.records import Detection, Frame, Language, Prompt, Region, Task
from pam_ros.runtime.engine import Engine
from pam_ros.runtime.events import CaptionEvent
from pam_ros.runtime.options import EngineOptions
from pam_ros.runtime.requests import PromptRequest, RequestHandle


@dataclass
class Clock:
    """A steady clock that a test advances, seconds."""

    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s


def picture(shade: int = 100, size: tuple[int, int] = (40, 60)) -> np.ndarray:
    """(H, W, 3) uint8 of one shade; 0 shows nothing to the fake model."""
    return np.full((*size, 3), shade, np.uint8)


def make_frame(
    stamp_s: float,
    shade: int = 100,
    camera: str = "front",
    size: tuple[int, int] = (40, 60),
    frame_id: str = "optical",
) -> Frame:
    """A frame of one shade."""
    return Frame(image=picture(shade, size), stamp_ns=round(stamp_s * 1e9), frame_id=frame_id, camera=camera)


def ns(seconds: float) -> int:
    """Seconds → nanoseconds."""
    return round(seconds * 1e9)


def click(x: float = 30, y: float = 20) -> Prompt:
    """One positive click."""
    return Prompt.from_clicks([(x, y)])


def box(x1: float, y1: float, x2: float, y2: float) -> Prompt:
    """A box prompt."""
    return Prompt.from_clicks(box_xyxy=(x1, y1, x2, y2))


@dataclass
class Stepped:
    """An engine with its model, listener and clock, and shortcuts to use it."""

    engine: Engine
    model: FakeModel
    events: Recorder
    clock: Clock

    def turn(self) -> bool:
        """Takes one turn of the worker."""
        return self.engine._worker.turn()

    def settle(self, limit: int = 500) -> None:
        """Takes turns until nothing is left to do."""
        for _ in range(limit):
            if not self.turn():
                return
        raise AssertionError(f"still busy after {limit} turns")

    def frame(
        self, stamp_s: float, shade: int = 100, camera: str = "front", size: tuple[int, int] = (40, 60)
    ) -> None:
        """Submits one frame and takes one turn."""
        self.engine.submit_frame(make_frame(stamp_s, shade, camera, size))
        self.turn()

    def request(
        self, prompt: Prompt | None = None, camera: str = "front", **more: Any
    ) -> RequestHandle[Region]:
        """Sends a PromptRequest, by default for one English label."""
        return self.engine.perceive(camera, PromptRequest(prompt=prompt, **more))

    def region(self, prompt: Prompt | None = None, camera: str = "front", **more: Any) -> Region:
        """Sends a PromptRequest without texts and takes turns until it is answered."""
        handle = self.request(prompt or click(), camera, tasks=(), **more)
        self.settle()
        return handle.future.result(0)

    def detect(self, *boxes: tuple[float, float, float, float], stamp_s: float | None = None) -> None:
        """Detections without texts, and one turn."""
        self.engine.detections(
            "front",
            [Detection(each) for each in boxes],
            None if stamp_s is None else ns(stamp_s),
            (),
            (Language.EN,),
        )
        self.turn()

    @property
    def reported_ids(self) -> list[list[int]]:
        """Region ids of every reported frame."""
        return [[region.region_id for region in result.regions] for result in self.events.frames]


def stepped(
    *cameras: str,
    model: FakeModel | None = None,
    region_ids: dict[str, Iterator[int]] | None = None,
    **options: Any,
) -> Stepped:
    """A started engine without a thread."""
    model, events, clock = model or FakeModel(), Recorder(), Clock()
    engine = Engine(
        model=model,
        cameras=cameras or ("front",),
        options=EngineOptions(**options),
        listener=events,
        clock=clock,
        region_ids=region_ids,
    )
    engine.open()
    return Stepped(engine, model, events, clock)


def error_of(handle: RequestHandle[Any]) -> PamError:
    """The error with which the request failed."""
    error = handle.future.exception(0)
    assert isinstance(error, PamError), error
    return error


ALL_TEXTS = {"tasks": (Task.LABEL, Task.BRIEF), "languages": (Language.EN, Language.ZH)}


def streaming_rig(period_s: float = 1.0, clip_frames: int = 3, **options: Any) -> Stepped:
    """A streaming engine; region 1 was prompted at 1.0 s in a frame of shade 100. Texts have one word."""
    rig = stepped(streaming=True, caption_period_s=period_s, clip_frames=clip_frames, **options)
    rig.model.words = 1
    rig.engine.submit_frame(make_frame(1.0, 100))
    rig.region()
    return rig


def play(rig: Stepped, stamps_shades: Iterable[tuple[float, int]]) -> None:
    """Submits frames and finishes the texts of each before the next."""
    for stamp_s, shade in stamps_shades:
        rig.frame(stamp_s, shade)
        rig.settle()


def captions(rig: Stepped) -> list[str]:
    """The final captions, without summaries."""
    return [event.text for event in rig.events.captions if event.final and not event.summary]


def summaries(rig: Stepped) -> list[CaptionEvent]:
    """The summaries of streams that have ended."""
    return [event for event in rig.events.captions if event.summary]
