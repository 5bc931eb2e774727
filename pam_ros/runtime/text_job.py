"""The texts of one request about one region in one frame: from embeddings to the caller's answer."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import ClassVar

from pam_ros.errors import PamError, TextServerError
from pam_ros.model.interface import TextDelta, TextRequest
from pam_ros.records import Language, Region, Task, Text
from pam_ros.runtime.agreement import Agreement, Key
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
    agreement: Agreement = field(init=False)
    finals: dict[Key, Text] = field(default_factory=dict)
    _round: list[Key] = field(default_factory=list)  # texts that are generated now

    def __post_init__(self) -> None:
        self.agreement = Agreement(self.reporter.names, tuple(self.texts), self.answer.texts)
        if self.track is not None:
            self.track.expect(self, self.texts)

    @property
    def frames(self) -> tuple[EmbeddedFrame, ...]:
        """See Job."""
        return (self.frame,)

    def requests(self) -> list[TextRequest]:
        """See Job."""
        wanted = self.agreement.round()
        self._round = [key for key, _ in wanted]
        return [
            TextRequest(
                task,
                language,
                max_new_tokens=self.max_new_tokens,
                beginning=beginning,
                mask_score=self.answer.mask_score,
            )
            for (task, language), beginning in wanted
        ]

    def progress(self, index: int, delta: TextDelta) -> None:
        """See Job."""
        key, text = self._round[index], Text(delta.text, self.stamp_ns, delta.confidence)
        settled = self.agreement.add(key, text) if delta.final else {}
        if key not in settled and self.track is not None:
            self._report(self.track, key, text, final=False)
        for each, known in settled.items():
            self.finals[each] = self.reporter.judged(known)
            if self.track is not None:
                self.track.add_text(*each, self.finals[each])
                self._report(self.track, each, self.finals[each], final=True)

    def revise(self) -> bool:
        """See Job."""
        return len(self.agreement.settled) < len(self.texts)

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
                texts = MappingProxyType(asked | others)
                self.handle.resolve(replace(self.answer, texts=texts, asked=tuple(texts)))
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
            key, text = next(each for each in track.texts.items() if each[0][0] is Task.LABEL)
            self._report(track, key, text, final=True)

    def _report(self, track: Track, key: Key, text: Text, *, final: bool) -> None:
        task, language = key
        self.reporter.listener.on_text(
            TextEvent(
                camera=self.camera,
                region_id=self.region_id,
                task=task,
                language=language,
                text=text.text,
                final=final,
                confidence=text.confidence,
                unsure=text.unsure,
                stamp_ns=self.stamp_ns,
                latency_s=self.reporter.clock() - self.arrived_s,
                asked=track.asked,
            )
        )
