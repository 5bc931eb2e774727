"""Perceiver and projector, batched: what several purposes need of one sighting is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from pam_ros.errors import PamError
from pam_ros.model.interface import FrameRows, PerceptionModel
from pam_ros.runtime.clip_buffer import ClipBuffer
from pam_ros.runtime.failures import FaultLog
from pam_ros.runtime.tracks import Sighting

Kind = tuple[bool, bool]  # fine, closer
KINDS: tuple[Kind, ...] = ((True, True), (True, False), (False, False))


class RowPlan:
    """Collects sightings, then turns them into rows, those of a kind (fine? closer?) as one batch."""

    def __init__(self, model: PerceptionModel, faults: FaultLog) -> None:
        self._model = model
        self._faults = faults
        self._closer_look = model.info.closer_look
        self._wanted: dict[tuple[Sighting, Kind], tuple[FrameRows, ...] | PamError | None] = {}

    def want(self, sighting: Sighting, *, fine: bool, closer: bool = False) -> None:
        """Asks for a sighting's rows at the density of images and first clip frames, or of later frames.

        `closer`: for texts of images, see `PerceptionModel.rows`.
        """
        self._wanted.setdefault((sighting, self._kind(fine, closer)), None)

    def run(self) -> None:
        """Computes what was asked for since the last run."""
        for kind in KINDS:
            todo = [
                sighting for (sighting, each), rows in self._wanted.items() if each == kind and rows is None
            ]
            results = self._faults.batched("computing rows", partial(self._compute, kind), todo)
            for sighting, rows in zip(todo, results, strict=True):
                self._wanted[sighting, kind] = rows if isinstance(rows, PamError) else (rows,)

    def rows(
        self, sighting: Sighting, *, fine: bool, closer: bool = False
    ) -> tuple[FrameRows, ...] | PamError:
        """The rows as a tuple of one, the identical tuple at every call; or why there are none."""
        rows = self._wanted[sighting, self._kind(fine, closer)]
        assert rows is not None, "rows() comes after run()"
        return rows

    def enter(self, clip: ClipBuffer, sighting: Sighting) -> PamError | None:
        """Lets a sighting enter a clip at the density that `want` was told; without rows the clip goes on."""
        rows = self.rows(sighting, fine=clip.wants_fine)
        if isinstance(rows, PamError):
            return rows
        clip.add(sighting, rows[0])
        return None

    def _kind(self, fine: bool, closer: bool) -> Kind:
        return fine, closer and self._closer_look  # else one sighting for two purposes is computed once

    def _compute(self, kind: Kind, sightings: Sequence[Sighting]) -> Sequence[FrameRows]:
        fine, closer = kind
        return self._model.rows([each.observation for each in sightings], fine=fine, closer=closer)
