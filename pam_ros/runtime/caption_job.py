"""One clip's caption: from the embeddings of its frames to the events that listeners receive."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

from pam_ros.errors import PamError, TextServerError
from pam_ros.model.interface import TextDelta, TextRequest
from pam_ros.records import Language, Task, Text
from pam_ros.runtime.agreement import thing_of
from pam_ros.runtime.clip_buffer import ClipFrame
from pam_ros.runtime.clip_prompts import ClipPrompt
from pam_ros.runtime.embedding_plan import EmbeddedFrame
from pam_ros.runtime.events import CaptionEvent
from pam_ros.runtime.generation_queue import EventReporter
from pam_ros.runtime.requests import RequestHandle
from pam_ros.runtime.tracks import Track


def _no_caption() -> str | None:
    return None


def _nobody(job: CaptionJob) -> None:
    pass


@dataclass(slots=True, eq=False)
class CaptionJob:
    """Implements `Job` for clips.

    Attributes:
        clip_frames: the clip's frames, oldest first; at least one.
        sequence, clip_too_thin, cut_short: see CaptionEvent.
        deliver: receives every event, the final one included.
        previous: returns the previous clip's caption, as known when generation starts.
        ended: called once, after the last event.
        handle: None for a streaming caption, of which each region has two at most.
        prompt: see Job.
        track: the caption names the region as the most confident label of `track`, see `agreement`.
        final: the caption, once it is complete.
    """

    clip: ClassVar[bool] = True
    camera: str
    region_id: int
    batch: int
    clip_frames: tuple[ClipFrame, ...]
    language: Language
    sequence: int
    max_new_tokens: int
    reporter: EventReporter
    deliver: Callable[[CaptionEvent], None]
    clip_too_thin: bool = False
    cut_short: str = ""
    previous: Callable[[], str | None] = _no_caption
    ended: Callable[[CaptionJob], None] = _nobody
    handle: RequestHandle[CaptionEvent] | None = None
    prompt: ClipPrompt | None = None
    track: Track | None = None
    final: CaptionEvent | None = None
    _beginning: str = ""

    @property
    def frames(self) -> tuple[EmbeddedFrame, ...]:
        """See Job."""
        return tuple(frame.embedded for frame in self.clip_frames)

    def requests(self) -> list[TextRequest]:
        """See Job."""
        return [
            TextRequest(
                Task.CLIP,
                self.language,
                previous_caption=self.previous(),
                max_new_tokens=self.max_new_tokens,
                beginning=self._beginning,
            )
        ]

    def progress(self, index: int, delta: TextDelta) -> None:
        """See Job."""
        final = delta.final and not self._must_begin_again(delta)
        said = Text(delta.text, 0, delta.confidence)
        if final:
            guide = self._guide()
            _, sure = guide or (None, None)
            if sure is not None and said.confidence is not None:
                said = replace(said, confidence=min(sure, said.confidence))
            said = self.reporter.judged(said)
            if guide is None:
                said = replace(said, unsure=True)
        first, last = self.clip_frames[0], self.clip_frames[-1]
        event = CaptionEvent(
            camera=self.camera,
            region_id=self.region_id,
            frame_id=last.frame_id,
            clip_start_ns=first.stamp_ns,
            clip_end_ns=last.stamp_ns,
            sequence=self.sequence,
            frame_count=len(self.clip_frames),
            clip_too_thin=self.clip_too_thin,
            cut_short=self.cut_short,
            text=said.text,
            final=final,
            language=self.language,
            latency_s=self.reporter.clock() - last.arrived_s,
            confidence=said.confidence,
            unsure=said.unsure,
        )
        self.final = event if final else None
        self.deliver(event)

    def revise(self) -> bool:
        """See Job."""
        return self.final is None

    def _guide(self) -> tuple[str | None, float | None] | None:
        """What a label says that the caption should speak of, see `agreement.thing_of`; None without a label.

        (None, None) if no label can say it.
        """
        if self.reporter.names is None or self.track is None:
            return None, None
        return thing_of(self.track.texts, self.reporter.names)

    def _must_begin_again(self, delta: TextDelta) -> bool:
        """Whether a finished caption names something else; once only."""
        thing, _ = self._guide() or (None, None)
        if thing is None or self.reporter.names is None or self._beginning:
            return False
        self._beginning = self.reporter.names.beginning(delta.text, self.language, thing) or ""
        return bool(self._beginning)

    def end(self, error: PamError | None) -> None:
        """See Job."""
        if self.final is not None:
            self.reporter.text_latency_s.add(self.final.latency_s)
            if self.handle is not None:
                self.handle.resolve(self.final)
        elif error is not None and self.handle is not None:
            self.handle.fail(error)
        elif error is not None and not isinstance(error, TextServerError):  # see TextJob
            self.reporter.listener.on_warning(
                self.camera, f"region {self.region_id} gets no caption: {error}"
            )
        self.ended(self)
