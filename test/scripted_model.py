"""A model without weights that answers as the test wants, and regions to ask it about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from fakes import FakeModel, FakeText

from pam_ros.datasets.schema import FramePrompt, Kind, SampleRegion
from pam_ros.model.interface import TextDelta, TextRequest
from pam_ros.records import IMAGE_TASKS, Language
from pam_ros.simulator.ontology import ontology
from pam_ros.simulator.texts.captions import describe
from pam_ros.simulator.texts.facts import Facts


@dataclass(eq=False)
class ScriptedModel(FakeModel):
    """Answers `answer(region, text)` in one step; regions count from 1 in the order they are prompted."""

    answer: Callable[[int, FakeText], str] = lambda region, text: ""
    asked: list[FakeText] = field(default_factory=list)

    def generate(self, requests: Sequence[tuple[int, TextRequest]]) -> list[int]:
        text_ids = super().generate(requests)
        self.asked += self._running[0].running
        return text_ids

    def step(self) -> list[TextDelta]:
        texts = self._running.pop(0).running
        return [TextDelta(text.text_id, self.answer(text.embeddings[0].region, text), True) for text in texts]


def facts_of(category: str) -> Facts:
    kind = ontology().entries[category].kind
    return Facts(
        category, kind, colour="red", material="metal" if kind == "object" else "", place=("table", "")
    )


def region_of(category: str, number: int, kind: Kind = Kind.OBJECT) -> SampleRegion:
    rng = np.random.default_rng(number)
    facts = facts_of(category)
    texts = {
        (task, language): tuple(describe(facts, task, language, rng) for _ in range(3))
        for task in IMAGE_TASKS
        for language in Language
    }
    return SampleRegion(
        name=f"region {number}",
        kind=kind,
        prompts={0: FramePrompt((number * 4.0, 4.0, number * 4.0 + 3, 9.0))},
        texts=texts,
        category=category,
        function=ontology().entries[category].function,
        colour="red",
        material="metal",
        object_id=number,
    )
