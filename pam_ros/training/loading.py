"""Chooses the samples of a step from seed and step alone, so that a resumed run continues exactly."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


def samples_of_step(step: int, *, length: int, batch: int, seed: int) -> NDArray[np.int64]:
    """(batch,) indices below `length` of a step; every sample comes once an epoch."""
    places = [divmod(place, length) for place in range(step * batch, (step + 1) * batch)]
    return np.array([_order(length, seed, epoch)[row] for epoch, row in places])


@lru_cache(maxsize=4)
def _order(length: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, epoch)).permutation(length)


def is_video_step(step: int, fraction: float, after: int = 0) -> bool:
    """True for `fraction` of the steps from `after` on, evenly spread."""
    return video_steps_before(step + 1, fraction, after) > video_steps_before(step, fraction, after)


def video_steps_before(step: int, fraction: float, after: int = 0) -> int:
    """How many of the steps 0..step (end exclusive) are video steps."""
    return int(max(0, step - after) * fraction)
