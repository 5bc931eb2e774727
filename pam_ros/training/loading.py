"""Which samples come at which step: decided by seed and step alone, so that a resumed run goes on exactly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class StepSampler:
    """Batches of (index, draw) for one process, steps `first`..`last` (end exclusive).

    Every sample comes once an epoch; `draw` differs from epoch to epoch and seeds a sample's own choices.
    """

    length: int  # samples
    batch: int  # of each process
    seed: int
    first: int
    last: int
    rank: int = 0
    processes: int = 1

    def __len__(self) -> int:
        return max(0, self.last - self.first)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self.first, self.last):
            begin = (step * self.processes + self.rank) * self.batch
            yield [self._sample(place) for place in range(begin, begin + self.batch)]

    def _sample(self, place: int) -> tuple[int, int]:
        epoch, row = divmod(place, self.length)
        return int(_order(self.length, self.seed, epoch)[row]), epoch


@lru_cache(maxsize=4)
def _order(length: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, epoch)).permutation(length)


def is_video_step(step: int, share: float) -> bool:
    """True for `share` of the steps, evenly spread."""
    return int((step + 1) * share) > int(step * share)


def video_steps_before(step: int, share: float) -> int:
    """How many of the steps 0..step (end exclusive) are video steps."""
    return int(step * share)
