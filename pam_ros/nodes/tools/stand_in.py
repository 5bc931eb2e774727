"""`pam_node` with a stand-in for the model that computes nothing: what remains is the node's own work."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pam_ros.errors import StateError
from pam_ros.model.interface import (
    ModelInfo,
    PerceptionModel,
    PurposeJudge,
    TextDelta,
    TextGenerator,
    TextRequest,
    VisionModel,
)
from pam_ros.model.loading.options import LoadOptions
from pam_ros.model.vision.grid import Candidates
from pam_ros.nodes.main import run
from pam_ros.nodes.manager_node import Progress
from pam_ros.records import Prompt

NAME = "stand-in"


@dataclass(frozen=True, slots=True, eq=False)
class StandInFeatures:
    """A frame, of which nothing is kept but its size."""

    size: tuple[int, int]


@dataclass(slots=True, eq=False)
class StandInMemory:
    """What is found in every frame."""

    observation: StandInObservation | None = None


@dataclass(frozen=True, slots=True, eq=False)
class StandInObservation:
    """A region that never moves."""

    mask: NDArray[np.bool_]  # (H, W)
    mask_score: float = 1.0
    presence_score: float = 1.0


class StandIn:
    """Implements `PerceptionModel` at no cost: a mask is its prompt's box, a text is one word."""

    def __init__(self) -> None:
        self.info = ModelInfo(name=NAME, device="cpu", dtype="float32", parameters=0, licence="")
        self.problem = ""
        self.in_background = False
        self._ids = count(1)
        self._texts: list[int] = []  # that run

    @property
    def vision(self) -> VisionModel:
        """This object itself."""
        return self

    @property
    def text(self) -> TextGenerator:
        """This object itself."""
        return self

    @property
    def judge(self) -> PurposeJudge:
        """Raises StateError."""
        raise StateError("the stand-in judges no purposes")

    @property
    def names(self) -> None:
        """It knows none."""

    def close(self) -> None:
        """Nothing is held."""

    def encode(self, image: NDArray[np.uint8]) -> StandInFeatures:
        """Looks at the size only."""
        return StandInFeatures((image.shape[0], image.shape[1]))

    def new_memory(self) -> StandInMemory:
        """An empty memory."""
        return StandInMemory()

    def saved(self, memory: StandInMemory) -> Callable[[], None]:
        """Puts the memory's observation back."""
        return partial(setattr, memory, "observation", memory.observation)

    def segment(
        self, features: StandInFeatures, prompts: Sequence[Prompt], memories: Sequence[StandInMemory]
    ) -> list[StandInObservation]:
        """Fills each prompt's box; without one, the middle of the frame."""
        height, width = features.size
        for prompt, memory in zip(prompts, memories, strict=True):
            middle = (width / 4, height / 4, 3 * width / 4, 3 * height / 4)
            x1, y1, x2, y2 = (round(side) for side in (middle if prompt.box is None else prompt.box.tolist()))
            mask = np.zeros(features.size, np.bool_)
            mask[max(y1, 0) : y2, max(x1, 0) : x2] = True
            memory.observation = StandInObservation(mask)
        return self.track(features, memories)

    def track(self, features: StandInFeatures, memories: Sequence[StandInMemory]) -> list[StandInObservation]:
        """The same mask again, not a copy."""
        return [memory.observation for memory in memories if memory.observation is not None]

    def candidates(self, features: StandInFeatures, points_xy: NDArray[np.float32]) -> Candidates:
        """Raises StateError."""
        raise StateError("the stand-in finds nothing by itself")

    def embeddings(
        self, observations: Sequence[StandInObservation], *, stride: int, crop: bool = False
    ) -> list[tuple[()]]:
        """Empty ones."""
        return [()] * len(observations)

    @property
    def busy(self) -> bool:
        """True while a text is not final."""
        return bool(self._texts)

    def notify(self, wake: Callable[[], None]) -> None:
        """Does nothing: `step` does the work."""

    def open_prompt(self, *, clip: bool, frames: int = 1) -> int:
        """Only counts."""
        return next(self._ids)

    def extend_prompt(self, prompt_id: int, embeddings: Any) -> None:
        """Does nothing."""

    def release_prompt(self, prompt_id: int) -> None:
        """Does nothing."""

    def generate(self, requests: Sequence[tuple[int, TextRequest]]) -> list[int]:
        """Each text ends with the next step."""
        ids = [next(self._ids) for _ in requests]
        self._texts += ids
        return ids

    def step(self) -> list[TextDelta]:
        """Ends all texts."""
        ended, self._texts = self._texts, []
        return [TextDelta(text_id, NAME, final=True) for text_id in ended]

    def cancel(self, text_id: int) -> None:
        """Ends a text without a report."""
        self._texts = [running for running in self._texts if running != text_id]


def load_stand_in(options: LoadOptions, *, progress: Progress | None) -> PerceptionModel:
    """Whatever model the options name."""
    return StandIn()


if TYPE_CHECKING:

    def _conforms(model: StandIn) -> tuple[VisionModel, TextGenerator]:
        return model, model


if __name__ == "__main__":
    sys.exit(run(sys.argv, load_model=load_stand_in))
