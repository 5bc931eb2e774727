"""Threads that compute."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


def in_passing_thread(work: Callable[[], Result]) -> Result:
    """Does `work` in a thread that ends with it; returns what it returns, raises what it raises.

    Every thread that ever computed with PyTorch keeps its OpenMP helpers until it ends. Where they are more
    than the cores, libgomp lets those of all threads sleep between steps: on two cores the engine's worker
    then tracks 5 instead of 8 frames a second. So whoever loads or tries a model must not stay.
    """
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(work).result()
