"""A model without weights that says what the test tells it to, and regions for it to speak of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from fakes import FakeModel

from pam_ros.evaluation.samples import EvaluationRegion, Kind
from pam_ros.model.interface import GenerationRequest, TextDelta
from pam_ros.records import IMAGE_TASKS, Language
from pam_ros.simulator.ontology import ontology
from pam_ros.simulator.texts.captions import describe
from pam_ros.simulator.texts.facts import Facts


@dataclass(eq=False)
class ScriptedModel(FakeModel):
    """Says `answer(region, request)`; regions count from 1 in the order they are prompted."""

    answer: Callable[[int, GenerationRequest], str] = lambda region, request: ""
    asked: list[GenerationRequest] = field(default_factory=list)

    def decode(self, requests: Sequence[GenerationRequest]) -> ScriptedGeneration:
        self.asked += requests
        return ScriptedGeneration(
            [self.answer(request.embeddings[0].region, request) for request in requests]
        )


class ScriptedGeneration:
    """Everything in one step."""

    def __init__(self, texts: list[str]) -> None:
        self.texts, self.done = texts, False

    def step(self) -> list[TextDelta]:
        self.done = True
        return [TextDelta(index, text, True) for index, text in enumerate(self.texts)]

    def cancel(self, index: int) -> None:
        raise AssertionError("nothing is cancelled")


def facts_of(category: str) -> Facts:
    kind = ontology().entries[category].kind
    return Facts(
        category, kind, colour="red", material="metal" if kind == "object" else "", place=("table", "")
    )


def region_of(category: str, number: int, kind: Kind = Kind.OBJECT) -> EvaluationRegion:
    rng = np.random.default_rng(number)
    facts = facts_of(category)
    texts = {
        (task, language): tuple(describe(facts, task, language, rng) for _ in range(3))
        for task in IMAGE_TASKS
        for language in Language
    }
    return EvaluationRegion(
        name=f"region {number}",
        kind=kind,
        box_xyxy=(number * 4.0, 4.0, number * 4.0 + 3, 9.0),
        texts=texts,
        category=category,
        function=ontology().entries[category].function,
        colour="red",
        material="metal",
        instance=number,
    )
