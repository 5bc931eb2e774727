"""What the runtime reports: masks of a frame, growing texts, streaming captions, warnings.

Events are frozen values; the `Listener` that receives them is called on the worker thread.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pam_ros.records import Language, Region, Task, Text


@dataclass(frozen=True, slots=True)
class FrameResult:
    """The masks of one processed frame, reported before any text about it.

    The same stamp is reported a second time when a prompt comes for a frame that was processed already.

    Attributes:
        size: (height, width) of the frame, pixels.
        regions: every region of the camera, sorted by id; regions of this frame's prompts are among them.
        image: (H, W, 3) uint8 RGB, the frame's image itself, not a copy.
        latency_s: from the arrival of the frame (of the prompt, for a second report) to this result, seconds.
        mark: see ModelInfo.
        arrived_s: when the frame arrived, seconds of the monotonic clock; None for a second report.
    """

    camera: str
    stamp_ns: int
    frame_id: str
    size: tuple[int, int]
    regions: tuple[Region, ...]
    image: NDArray[np.uint8]
    latency_s: float
    mark: str = ""
    arrived_s: float | None = None


@dataclass(frozen=True, slots=True)
class TextEvent:
    """The text so far of one task about one region; reported after every token, and once with `final`.

    Attributes:
        stamp_ns: of the frame the text speaks of.
        latency_s: from the arrival of the request to this event, seconds.
        confidence, unsure: of a final text, see `records.Text`.
        asked: see Region.
    """

    camera: str
    region_id: int
    task: Task
    language: Language
    text: str
    final: bool
    stamp_ns: int
    latency_s: float
    asked: tuple[tuple[Task, Language], ...] = ()
    confidence: float | None = None
    unsure: bool = False

    @property
    def shown(self) -> str:
        """See `records.Text`."""
        return Text(self.text, 0, self.confidence, self.unsure).shown


def with_text(region: Region, event: TextEvent) -> Region:
    """The region with the event's text, if the event is about it."""
    if region.region_id != event.region_id:
        return region
    text = Text(event.text, event.stamp_ns, event.confidence, event.unsure)
    texts = {**region.texts, (event.task, event.language): text}
    order = dict.fromkeys((*event.asked, *texts))
    return replace(region, texts={each: texts[each] for each in order if each in texts}, asked=event.asked)


@dataclass(frozen=True, slots=True)
class CaptionEvent:
    """The caption so far of one clip of one region; reported after every token, and once with `final`.

    Attributes:
        frame_id: of the clip's last frame.
        clip_start_ns, clip_end_ns: stamps of the clip's first and last frame.
        sequence: counts the region's clips from 0; a gap is a clip that was skipped because decoding fell
            behind. Always 0 for `Engine.caption_clip`, whose clip is its caller's own.
        frame_count: frames the caption is made from.
        clip_too_thin: too few for the clip's length to trust the text, see `ClipBuffer.too_thin`; of a
            summary, in one of its clips.
        summary: the text sums up all captions of the region's stream, which has ended; see `summary`.
        latency_s: from the arrival of the clip's last frame to this event, seconds.
        cut_short: why the clip ended before its time, if it did; a sentence.
        confidence: of a final caption: the mean probability of its tokens, at most the label's confidence,
            0..1; not calibrated; None if it is not known.
        unsure: the confidence is known and low.
    """

    camera: str
    region_id: int
    frame_id: str
    clip_start_ns: int
    clip_end_ns: int
    sequence: int
    frame_count: int
    text: str
    final: bool
    language: Language
    latency_s: float
    summary: bool = False
    clip_too_thin: bool = False
    cut_short: str = ""
    confidence: float | None = None
    unsure: bool = False

    @property
    def shown(self) -> str:
        """The text as displayed, see `caption_for_people`; the text itself while it grows."""
        if not self.final:
            return self.text
        text = Text(self.text, 0, self.confidence, self.unsure).shown
        return caption_for_people(text, self.language, self.frame_count if self.clip_too_thin else None)


def caption_for_people(text: str, language: Language, too_few: int | None) -> str:
    """A caption as displayed: if its clip is too thin, with `too_few` frames, it says so."""
    if too_few is None:
        return text
    if language is Language.ZH:
        return f"{text}（仅依据{too_few}帧）"
    return f"{text} (from {too_few} frame{'s' * (too_few != 1)} only)"


class Listener(Protocol):
    """Receives the runtime's results.

    Called on the worker thread, so it must not block. An exception it raises is logged and goes no further.
    """

    def on_frame(self, result: FrameResult) -> None:
        """The masks of one frame."""

    def on_text(self, event: TextEvent) -> None:
        """A text of one region grew or ended. Not called for a caller's own image."""

    def on_caption(self, event: CaptionEvent) -> None:
        """A rolling caption (streaming, or asked for with `caption_now`) grew or ended, or was summed up."""

    def on_warning(self, camera: str, message: str) -> None:
        """A problem that concerns no waiting caller: a detection was rejected, a region was removed."""
