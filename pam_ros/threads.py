"""Runs compute work in a temporary thread."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


def in_temporary_thread(work: Callable[[], Result]) -> Result:
    """Runs `work` in a thread that ends with it; returns its result, raises its exception.

    A thread that has computed with PyTorch keeps its OpenMP helpers until it ends. If there are more of them
    than cores, libgomp lets those of all threads sleep between steps: on two cores the engine's worker then
    tracks 5 instead of 8 frames a second. So a thread that loads or tries a model must not live on.
    """
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(work).result()
