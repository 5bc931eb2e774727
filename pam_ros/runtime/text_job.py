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

    def __post_init__(self) -> None:
        if self.track is not None:
            self.track.expect(self, self.texts)

    @property
    def frames(self) -> tuple[EmbeddedFrame, ...]:
        """See Job."""
        return (self.frame,)

    def requests(self) -> list[TextRequest]:
        """See Job."""
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
        self._report(self.track, task, language, text, final)

    def end(self, error: PamError | None) -> None:
        """See Job."""
        if self.track is not None:
            self._settle(self.track)
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

    def _settle(self, track: Track) -> None:
        """If the label that was to name the region will not come, another one names it from now on."""
        before = track.snapshot().name
        track.settle(self)
        name = track.snapshot().name
        if name != before and not track.removed:
            (task, language), text = next(each for each in track.texts.items() if each[0][0] is Task.LABEL)
            self._report(track, task, language, text.text, final=True)

    def _report(self, track: Track, task: Task, language: Language, text: str, final: bool) -> None:
        self.reporter.listener.on_text(
            TextEvent(
                camera=self.camera,
                region_id=self.region_id,
                task=task,
                language=language,
                text=text,
                final=final,
                stamp_ns=self.stamp_ns,
                latency_s=self.reporter.clock() - self.arrived_s,
                asked=track.asked,
            )
        )
