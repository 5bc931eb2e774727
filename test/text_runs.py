"""Starts texts through the `TextGenerator` protocol and reports them by their place in the request."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pam_ros.model.interface import PerceptionModel, TextDelta, TextRequest
from pam_ros.records import Language, Task


@dataclass(frozen=True)
class Wanted:
    """A text about embeddings: one frame's, or for Task.CLIP a clip's, oldest first."""

    embeddings: tuple[Any, ...]
    task: Task
    language: Language
    previous_caption: str | None = None
    max_new_tokens: int = 512
    temperature: float = 0.0


class TextRun:
    """Running texts; results name a text by its place in `wanted`."""

    def __init__(self, model: PerceptionModel, wanted: Sequence[Wanted]) -> None:
        self.generator: Any = model.text
        prompts: dict[tuple[int, ...], int] = {}  # texts of the same embeddings share a prompt
        requests = []
        for each in wanted:
            key = (int(each.task is Task.CLIP), *map(id, each.embeddings))
            if key not in prompts:
                prompts[key] = self.generator.open_prompt(clip=each.task is Task.CLIP)
                for frame in each.embeddings:
                    self.generator.extend_prompt(prompts[key], frame)
            request = TextRequest(
                each.task, each.language, each.previous_caption, each.max_new_tokens, each.temperature
            )
            requests.append((prompts[key], request))
        try:
            self.ids: list[int] = self.generator.generate(requests)
        finally:
            for prompt_id in prompts.values():
                self.generator.release_prompt(prompt_id)
        self.open = set(self.ids)

    @property
    def done(self) -> bool:
        return not self.open

    def step(self) -> list[tuple[int, TextDelta]]:
        """(place, delta) of the texts that changed."""
        deltas = [delta for delta in self.generator.step() if delta.text_id in self.ids]
        for delta in deltas:
            if delta.error is not None:
                raise delta.error
        self.open -= {delta.text_id for delta in deltas if delta.final}
        return [(self.ids.index(delta.text_id), delta) for delta in deltas]

    def cancel(self, place: int) -> None:
        self.generator.cancel(self.ids[place])
        self.open.discard(self.ids[place])

    def finish(self) -> dict[int, list[TextDelta]]:
        """Runs all texts to their end; every delta of each text, in order."""
        deltas: dict[int, list[TextDelta]] = defaultdict(list)
        for _ in range(10_000):
            if self.done:
                return deltas
            for place, delta in self.step():
                deltas[place].append(delta)
        raise AssertionError("the texts did not end")
