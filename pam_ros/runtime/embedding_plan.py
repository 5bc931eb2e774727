"""Perceiver and projector, batched: what several purposes need of one observation is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from pam_ros.errors import PamError
from pam_ros.model.interface import FIRST_FRAME_STRIDE, LATER_FRAME_STRIDE, PerceptionModel, RegionEmbeddings
from pam_ros.runtime.clip_buffer import ClipBuffer
from pam_ros.runtime.failures import FaultLog
from pam_ros.runtime.tracks import TrackObservation

Kind = tuple[int, bool]  # stride, crop
KINDS: tuple[Kind, ...] = (
    (FIRST_FRAME_STRIDE, True), (FIRST_FRAME_STRIDE, False), (LATER_FRAME_STRIDE, False),
)  # fmt: skip


class EmbeddingPlan:
    """Collects observations, then turns them into embeddings, those of a kind (fine? closer?) as one batch."""

    def __init__(self, model: PerceptionModel, faults: FaultLog) -> None:
        self._model = model
        self._faults = faults
        self._crop_small_regions = model.info.crop_small_regions
        self._wanted: dict[tuple[TrackObservation, Kind], tuple[RegionEmbeddings, ...] | PamError | None] = {}

    def want(self, observation: TrackObservation, *, stride: int, crop: bool = False) -> None:
        """Asks for a observation's embeddings at the density of images and first clip frames, or of later frames.

        `closer`: for texts of images, see `PerceptionModel.embeddings`.
        """
        self._wanted.setdefault((observation, self._kind(stride, crop)), None)

    def run(self) -> None:
        """Computes what was asked for since the last run."""
        for kind in KINDS:
            todo = [
                observation
                for (observation, each), embeddings in self._wanted.items()
                if each == kind and embeddings is None
            ]
            results = self._faults.batched("computing embeddings", partial(self._compute, kind), todo)
            for observation, embeddings in zip(todo, results, strict=True):
                self._wanted[observation, kind] = (
                    embeddings if isinstance(embeddings, PamError) else (embeddings,)
                )

    def embeddings(
        self, observation: TrackObservation, *, stride: int, crop: bool = False
    ) -> tuple[RegionEmbeddings, ...] | PamError:
        """The embeddings as a tuple of one, the identical tuple at every call; or why there are none."""
        embeddings = self._wanted[observation, self._kind(stride, crop)]
        assert embeddings is not None, "embeddings() comes after run()"
        return embeddings

    def enter(self, clip: ClipBuffer, observation: TrackObservation) -> PamError | None:
        """Lets a observation enter a clip at the density that `want` was told; without embeddings the clip goes on."""
        embeddings = self.embeddings(observation, stride=clip.next_stride)
        if isinstance(embeddings, PamError):
            return embeddings
        clip.add(observation, embeddings[0])
        return None

    def _kind(self, stride: int, crop: bool) -> Kind:
        return (
            stride,
            crop and self._crop_small_regions,
        )  # else one observation for two purposes is computed once

    def _compute(self, kind: Kind, observations: Sequence[TrackObservation]) -> Sequence[RegionEmbeddings]:
        stride, crop = kind
        return self._model.embeddings([each.output for each in observations], stride=stride, crop=crop)
