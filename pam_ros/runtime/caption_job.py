"""One clip's caption: from its frames' rows to the events its listeners get."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pam_ros.errors import PamError
from pam_ros.model.interface import DecodeRequest
from pam_ros.records import Language, Task
from pam_ros.runtime.clip_buffer import ClipFrame
from pam_ros.runtime.events import CaptionEvent
from pam_ros.runtime.language_queue import Outlet
from pam_ros.runtime.requests import Ticket


def _no_caption() -> str | None:
    return None


def _nobody(job: CaptionJob) -> None:
    pass


@dataclass(slots=True, eq=False)
class CaptionJob:
    """See Job.

    Attributes:
        frames: of the clip, oldest first; at least one.
        sequence: see CaptionEvent.
        deliver: takes every event, the final one included.
        previous: gives the caption of the clip before, as known when decoding starts.
        ended: told once, after the last event.
        ticket: None for a streaming caption.
        final: the caption, once it is complete.
    """

    camera: str
    region_id: int
    group: object
    frames: tuple[ClipFrame, ...]
    language: Language
    sequence: int
    max_new_tokens: int
    outlet: Outlet
    deliver: Callable[[CaptionEvent], None]
    previous: Callable[[], str | None] = _no_caption
    ended: Callable[[CaptionJob], None] = _nobody
    ticket: Ticket[CaptionEvent] | None = None
    final: CaptionEvent | None = None

    @property
    def counted(self) -> bool:
        """See Job. Streaming captions are bounded by two per region."""
        return self.ticket is not None

    @property
    def abandoned(self) -> bool:
        """See Job."""
        return self.ticket is not None and self.ticket.settled

    def requests(self) -> list[DecodeRequest]:
        """See Job."""
        rows = tuple(frame.rows for frame in self.frames)
        previous = self.previous()
        return [
            DecodeRequest(
                rows, Task.CLIP, self.language, previous_caption=previous, max_new_tokens=self.max_new_tokens
            )
        ]

    def progress(self, index: int, text: str, final: bool) -> None:
        """See Job."""
        first, last = self.frames[0], self.frames[-1]
        event = CaptionEvent(
            camera=self.camera,
            region_id=self.region_id,
            frame_id=last.frame_id,
            clip_start_ns=first.stamp_ns,
            clip_end_ns=last.stamp_ns,
            sequence=self.sequence,
            frame_count=len(self.frames),
            text=text,
            final=final,
            language=self.language,
            latency_s=self.outlet.clock() - last.arrived_s,
        )
        self.final = event if final else None
        self.deliver(event)

    def end(self, error: PamError | None) -> None:
        """See Job."""
        if self.final is not None:
            self.outlet.text_latency_s.add(self.final.latency_s)
            if self.ticket is not None:
                self.ticket.resolve(self.final)
        elif error is not None and self.ticket is not None:
            self.ticket.fail(error)
        elif error is not None:
            self.outlet.listener.on_warning(self.camera, f"region {self.region_id} misses a caption: {error}")
        self.ended(self)
