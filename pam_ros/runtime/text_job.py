"""The texts of one request about one region in one frame: from embeddings to the caller's answer."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import ClassVar

from pam_ros.errors import PamError, TextServerError
from pam_ros.model.interface import TextRequest
from pam_ros.records import Language, Region, Task, Text
from pam_ros.runtime.clip_prompts import ClipPrompt
from pam_ros.runtime.embedding_plan import EmbeddedFrame
from pam_ros.runtime.events import TextEvent
from pam_ros.runtime.generation_queue import EventReporter
from pam_ros.runtime.requests import RequestHandle
from pam_ros.runtime.tracks import Track


@dataclass(slots=True, eq=False)
class TextJob:
    """Implements `Job` for image tasks.

    Attributes:
        frame: jobs about equal frames in one batch share a prefill.
        texts: task and language of each text, in the order in which they were asked for.
        answer: the region in the frame it is described in, before these texts.
        stamp_ns: stamp of that frame.
        track: None for a caller's own image, whose texts are not reported to the listener.
        handle: None for a detection; such jobs are bounded by the number of regions.
    """

    clip: ClassVar[bool] = False
    camera: str
    region_id: int
    batch: int
    frame: EmbeddedFrame
    texts: list[tuple[Task, Language]]
    answer: Region
    stamp_ns: int
    arrived_s: float
    track: Track | None
    handle: RequestHandle[Region] | None
    max_new_tokens: int
    reporter: EventReporter
    prompt: ClipPrompt | None = None
    finals: dict[tuple[Task, Language], Text] = field(default_factory=dict)

    @property
    def frames(self) -> tuple[EmbeddedFrame, ...]:
        """See Job."""
        return (self.frame,)

    def requests(self) -> list[TextRequest]:
        """See Job. From now on the region lists these texts in the order in which they were asked for."""
        if self.track is not None:
            self.track.expect(self.texts)
        return [
            TextRequest(task, language, max_new_tokens=self.max_new_tokens) for task, language in self.texts
        ]

    def progress(self, index: int, text: str, final: bool) -> None:
        """See Job."""
        task, language = self.texts[index]
        if final:
            self.finals[task, language] = Text(text, self.stamp_ns)
        if self.track is None:
            return
        if final:
            self.track.add_text(task, language, Text(text, self.stamp_ns))
        latency_s = self.reporter.clock() - self.arrived_s
        self.reporter.listener.on_text(
            TextEvent(self.camera, self.region_id, task, language, text, final, self.stamp_ns, latency_s)
        )

    def end(self, error: PamError | None) -> None:
        """See Job."""
        if error is None:
            self.reporter.text_latency_s.add(self.reporter.clock() - self.arrived_s)
            if self.handle is not None:
                known = self.answer.texts if self.track is None else self.track.texts
                asked = {each: self.finals[each] for each in self.texts}
                others = {each: text for each, text in known.items() if each not in asked}
                self.handle.resolve(replace(self.answer, texts=MappingProxyType(asked | others)))
        elif self.handle is not None:
            self.handle.fail(error)
        elif not isinstance(error, TextServerError):  # its status is reported once, not for every text
            self.reporter.listener.on_warning(self.camera, f"region {self.region_id} gets no text: {error}")
