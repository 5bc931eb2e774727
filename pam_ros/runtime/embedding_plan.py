"""Semantic Perceiver and projector, batched: embeddings that several purposes need are computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from pam_ros.errors import PamError
from pam_ros.model.interface import FIRST_FRAME_STRIDE, LATER_FRAME_STRIDE, PerceptionModel, RegionEmbeddings
from pam_ros.runtime.failures import FaultLog
from pam_ros.runtime.tracks import TrackObservation

AT_ONCE = 16  # regions of a batch: bounds its memory
Kind = tuple[int, bool]  # stride, crop
KINDS: tuple[Kind, ...] = (
    (FIRST_FRAME_STRIDE, True), (FIRST_FRAME_STRIDE, False), (LATER_FRAME_STRIDE, False),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class EmbeddedFrame:
    """One region in one frame, ready for the text generator. Equal if the keys are."""

    key: tuple[int, int, bool]  # observation id, stride, crop
    embeddings: RegionEmbeddings = field(compare=False)


class EmbeddingPlan:
    """Collects what is needed, then computes it: what has one stride and crop as one batch, 16 at most."""

    def __init__(self, model: PerceptionModel, faults: FaultLog) -> None:
        self._vision = model.vision
        self._faults = faults
        self._crop_small_regions = model.info.crop_small_regions
        self._wanted: dict[tuple[int, int, bool], TrackObservation] = {}  # not computed yet
        self._done: dict[tuple[int, int, bool], EmbeddedFrame | PamError] = {}

    def want(self, observation: TrackObservation, *, stride: int, crop: bool = False) -> None:
        """Asks for an observation's embeddings; see `VisionModel.embeddings`."""
        key = self._key(observation, stride, crop)
        if key not in self._done:
            self._wanted[key] = observation

    def run(self) -> None:
        """Computes what was asked for since the last run."""
        for stride, crop in KINDS:
            todo = {key: each for key, each in self._wanted.items() if key[1:] == (stride, crop)}
            compute = partial(self._compute, stride, crop)
            observations, results = list(todo.values()), []
            for start in range(0, len(observations), AT_ONCE):
                batch = observations[start : start + AT_ONCE]
                results += self._faults.batched("computing embeddings", compute, batch)
            for key, result in zip(todo, results, strict=True):
                self._done[key] = result if isinstance(result, PamError) else EmbeddedFrame(key, result)
        self._wanted.clear()

    def embedded(
        self, observation: TrackObservation, *, stride: int, crop: bool = False
    ) -> EmbeddedFrame | PamError:
        """The embeddings, or why there are none. Comes after `run`."""
        return self._done[self._key(observation, stride, crop)]

    def _key(self, observation: TrackObservation, stride: int, crop: bool) -> tuple[int, int, bool]:
        return observation.observation_id, stride, crop and self._crop_small_regions

    def _compute(
        self, stride: int, crop: bool, observations: Sequence[TrackObservation]
    ) -> Sequence[RegionEmbeddings]:
        return self._vision.embeddings([each.output for each in observations], stride=stride, crop=crop)
