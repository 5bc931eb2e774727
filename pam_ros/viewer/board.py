"""What the page shows: the newest image, regions, growing texts. A source writes it, the page reads it."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from pam_ros.records import Language, Region, Task, percent
from pam_ros.runtime.events import TextEvent, with_text
from pam_ros.runtime.overlay import LastSeen, draw_overlay
from pam_ros.runtime.requests import PromptRequest

JPEG_QUALITY = 85
MOST_CAPTIONS = 20  # of a region on the page; older ones are gone
TextKey = tuple[Task, Language]


@dataclass(frozen=True, slots=True)
class Caption:
    """A rolling caption of a region; its clip's start and end in seconds from the start of the first clip."""

    text: str
    final: bool  # False while it grows
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class ShownRegion:
    """One region with its finished texts, those that still grow, and its captions, oldest first."""

    region: Region
    growing: Mapping[TextKey, str]
    captions: tuple[Caption, ...]

    def texts(self) -> list[tuple[str, str, bool]]:
        """(name, text, whether it grows) of every text, in the order asked for, then the captions."""
        known = {key: (text.shown, text.confidence) for key, text in self.region.texts.items()}
        newest = {**known, **{key: (text, None) for key, text in self.growing.items()}}
        texts = []
        for task, language in (key for key in dict.fromkeys((*self.region.asked, *newest)) if key in newest):
            text, confidence = newest[task, language]
            sure = "" if confidence is None else f", {percent(confidence)} sure"
            texts.append(
                (
                    f"{task.value.capitalize()} ({language.value}{sure})",
                    text,
                    (task, language) in self.growing,
                )
            )
        for it in self.captions:
            texts.append((f"Caption, {it.start_s:.1f}-{it.end_s:.1f} s", it.text, not it.final))
        return texts


class Source(Protocol):
    """Where images come from and prompts go to. Every method is thread-safe and returns immediately.

    Attributes:
        title: what is shown, as a heading.
    """

    title: str

    @property
    def notice(self) -> str:
        """A warning to display; empty if there is none."""

    @property
    def pace(self) -> str:
        """Frames that were seen and sent, and the speed; empty if it is not known."""

    @property
    def playing(self) -> bool | None:
        """Whether the video plays; None for a live stream, which cannot be paused."""

    def play_or_pause(self) -> None:
        """Pauses or resumes a video; at its end it starts again."""

    def perceive(self, request: PromptRequest) -> Future[Region]:
        """Makes or refines a region; the answer has its texts. Fails with a PamError."""

    def remove(self, region_id: int) -> None:
        """Removes a region; 0 removes all."""

    def stream_captions(self, enabled: bool, language: Language) -> Future[None]:
        """Starts or stops rolling captions of every region. Fails with a PamError."""

    def close(self) -> None:
        """Ends the source's threads. Idempotent."""


class Board:
    """Thread-safe. Images are drawn when they are asked for: without a viewer nothing is drawn."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._drawing = threading.Lock()
        self._last_seen = LastSeen()
        self._serial = 0
        self._stamp_ns = 0
        self._image: NDArray[np.uint8] | None = None
        self._regions: tuple[Region, ...] = ()
        self._growing: dict[int, dict[TextKey, str]] = {}  # growing ones, by region id
        self._captions: dict[int, dict[int, Caption]] = {}  # region id → clip end, ns → caption
        self._begin_ns: int | None = None  # of the captions' times
        self._jpeg: tuple[int, bytes] = (0, b"")

    # --- for sources

    def show_frame(self, image: NDArray[np.uint8], regions: Iterable[Region], stamp_ns: int) -> None:
        """A (H, W, 3) uint8 RGB frame and every region in it; the image is drawn here."""
        with self._lock:
            self._image, self._stamp_ns = image, stamp_ns
            self._take_regions(regions)

    def show_picture(self, jpeg: bytes, stamp_ns: int) -> None:
        """An image that is already drawn."""
        with self._lock:
            self._serial += 1
            self._stamp_ns = stamp_ns
            self._jpeg = (self._serial, jpeg)

    def show_regions(self, regions: Iterable[Region]) -> None:
        """Every region, for images of `show_picture`."""
        with self._lock:
            self._take_regions(regions, drawn=False)

    def show_text(self, event: TextEvent) -> None:
        """A text as it grows; a final one joins its region's texts."""
        key = (event.task, event.language)
        with self._lock:
            texts = self._growing.setdefault(event.region_id, {})
            texts.pop(key, None)
            if event.final:
                self._take_regions([with_text(region, event) for region in self._regions])
            else:
                texts[key] = event.text

    def show_caption(self, region_id: int, text: str, clip_ns: tuple[int, int], *, final: bool) -> None:
        """A rolling caption as it grows; `clip_ns`: the stamps at which its clip begins and ends."""
        with self._lock:
            if self._begin_ns is None or clip_ns[0] < self._begin_ns:
                self._begin_ns = clip_ns[0]
            start_s, end_s = ((ns - self._begin_ns) / 1e9 for ns in clip_ns)
            finished = {ns: it for ns, it in self._captions.get(region_id, {}).items() if it.final}
            newest = finished | {clip_ns[1]: Caption(text, final, start_s, end_s)}
            self._captions[region_id] = dict(list(newest.items())[-MOST_CAPTIONS:])

    # --- for the page

    @property
    def serial(self) -> int:
        """Counts images; 0 before the first."""
        return self._serial

    @property
    def stamp_ns(self) -> int:
        """Stamp of the newest image's frame."""
        return self._stamp_ns

    def jpeg(self) -> bytes:
        """The newest image; empty before the first."""
        with self._drawing:
            with self._lock:
                serial, image, regions = self._serial, self._image, self._regions
                if image is None or self._jpeg[0] == serial:
                    return self._jpeg[1]
            drawn = draw_overlay(image, regions, last_seen=self._last_seen.update(regions))
            data = _encoded(drawn)
            with self._lock:
                self._jpeg = (serial, data)
            return data

    def regions(self) -> list[ShownRegion]:
        """Every region, sorted by id."""
        with self._lock:
            return [
                ShownRegion(
                    region,
                    dict(self._growing.get(region.region_id, {})),
                    tuple(self._captions.get(region.region_id, {}).values()),
                )
                for region in self._regions
            ]

    def _take_regions(self, regions: Iterable[Region], *, drawn: bool = True) -> None:
        self._regions = tuple(sorted(regions, key=lambda region: region.region_id))
        ids = {region.region_id for region in self._regions}
        self._growing = {region_id: texts for region_id, texts in self._growing.items() if region_id in ids}
        self._captions = {region_id: text for region_id, text in self._captions.items() if region_id in ids}
        self._serial += drawn


def _encoded(picture: NDArray[np.uint8]) -> bytes:
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    return bytes(cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1])
