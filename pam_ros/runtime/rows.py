"""Perceiver and projector, batched: what several purposes need of one sighting is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from pam_ros.errors import PamError
from pam_ros.model.interface import FrameRows, PerceptionModel
from pam_ros.runtime.clip_buffer import ClipBuffer
from pam_ros.runtime.failures import FaultLog
from pam_ros.runtime.tracks import Sighting


class RowPlan:
    """Collects sightings, then turns them into rows in at most two batches: fine and coarse."""

    def __init__(self, model: PerceptionModel, faults: FaultLog) -> None:
        self._model = model
        self._faults = faults
        self._wanted: dict[tuple[Sighting, bool], tuple[FrameRows, ...] | PamError | None] = {}

    def want(self, sighting: Sighting, *, fine: bool) -> None:
        """Asks for a sighting's rows at the density of images and first clip frames, or of later frames."""
        self._wanted.setdefault((sighting, fine), None)

    def run(self) -> None:
        """Computes what was asked for since the last run."""
        for fine in (True, False):
            todo = [
                sighting for (sighting, each), rows in self._wanted.items() if each is fine and rows is None
            ]
            results = self._faults.batched("computing rows", partial(self._compute, fine), todo)
            for sighting, rows in zip(todo, results, strict=True):
                self._wanted[sighting, fine] = rows if isinstance(rows, PamError) else (rows,)

    def rows(self, sighting: Sighting, *, fine: bool) -> tuple[FrameRows, ...] | PamError:
        """The rows as a tuple of one, the identical tuple at every call; or why there are none."""
        rows = self._wanted[sighting, fine]
        assert rows is not None, "rows() comes after run()"
        return rows

    def enter(self, clip: ClipBuffer, sighting: Sighting) -> PamError | None:
        """Lets a sighting enter a clip at the density that `want` was told; without rows the clip goes on."""
        rows = self.rows(sighting, fine=clip.wants_fine)
        if isinstance(rows, PamError):
            return rows
        clip.add(sighting, rows[0])
        return None

    def _compute(self, fine: bool, sightings: Sequence[Sighting]) -> Sequence[FrameRows]:
        return self._model.rows([sighting.observation for sighting in sightings], fine=fine)
