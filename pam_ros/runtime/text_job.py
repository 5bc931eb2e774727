"""The texts of one region in one image: from the Perceiver's embeddings to the caller's answer."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import MappingProxyType

from pam_ros.errors import PamError
from pam_ros.model.interface import GenerationRequest, RegionEmbeddings
from pam_ros.records import Language, Region, Task, Text
from pam_ros.runtime.events import TextEvent
from pam_ros.runtime.generation_queue import EventReporter
from pam_ros.runtime.requests import RequestHandle
from pam_ros.runtime.tracks import Track


@dataclass(slots=True, eq=False)
class TextJob:
    """Every text one request requests for.

    Attributes:
        embeddings: one frame's; jobs about the same observation hold the identical tuple and so share a prefill.
        texts: task and language of each.
        answer: the region in the frame it is described in, before these texts.
        stamp_ns: of that frame.
        track: None for a caller's own image; its texts are not reported to the listener.
        handle: None for a detection.
    """

    camera: str
    region_id: int
    group: object
    embeddings: tuple[RegionEmbeddings, ...]
    texts: list[tuple[Task, Language]]
    answer: Region
    stamp_ns: int
    arrived_s: float
    track: Track | None
    handle: RequestHandle[Region] | None
    max_new_tokens: int
    reporter: EventReporter
    finals: dict[tuple[Task, Language], Text] = field(default_factory=dict)

    @property
    def counted(self) -> bool:
        """See Job. Those of detections are bounded by the regions there may be."""
        return self.handle is not None

    @property
    def abandoned(self) -> bool:
        """See Job."""
        return self.handle is not None and self.handle.done

    def requests(self) -> list[GenerationRequest]:
        """See Job."""
        return [
            GenerationRequest(self.embeddings, task, language, max_new_tokens=self.max_new_tokens)
            for task, language in self.texts
        ]

    def progress(self, index: int, text: str, final: bool) -> None:
        """See Job."""
        task, language = self.texts[index]
        if final:
            self.finals[task, language] = Text(text, self.stamp_ns)
        if self.track is None:
            return
        if final:
            self.track.texts[task, language] = Text(text, self.stamp_ns)
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
        else:
            self.reporter.listener.on_warning(self.camera, f"region {self.region_id} gets no text: {error}")
