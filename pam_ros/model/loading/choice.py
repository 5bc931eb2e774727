"""`model: auto`: the best official model that is on this disk and fits the device, and why it was chosen."""

from __future__ import annotations

from collections.abc import Callable

import torch

from pam_ros.errors import MemoryLimitError, ModelError, ModelNotFoundError
from pam_ros.model.descriptions import DEMONSTRATION
from pam_ros.model.loading.device import check_memory, needed_gib
from pam_ros.model.loading.files import find_files
from pam_ros.model.loading.options import LoadOptions

BEST_FIRST = ("pam-3b", "pam-1.5b", "pam-tiny")
BUNDLED = BEST_FIRST[-1]


def choose_model(
    options: LoadOptions, device: torch.device, dtype: torch.dtype, report: Callable[[str], None]
) -> str:
    """Name of the first of BEST_FIRST that can be used here; `report` gets a line that says why.

    Raises a ModelError if not even the bundled model can be used.
    """
    passed_over: list[str] = []
    for name in BEST_FIRST:
        try:
            needed = needed_gib(find_files(name, options.sam2), dtype, options)
            check_memory(name, needed, device, options.memory_limit_gib)
        except ModelError as error:
            if name == BUNDLED:
                raise
            passed_over.append(_reason(name, error))
        else:
            why = "; ".join([*passed_over, f"{name} needs {needed:.1f} GiB on {device} and fits"])
            report(f"model auto selects {name}: {why}")
            if name == BUNDLED:
                report(DEMONSTRATION)
            elif device.type == "cpu":
                report(f"{name} on a CPU takes seconds for each frame and minutes for a text; use a GPU")
            return name
    raise AssertionError("the bundled model is chosen, or its error raised")


def _reason(name: str, error: ModelError) -> str:
    if isinstance(error, ModelNotFoundError):
        return f"{name} is not on this disk"
    if isinstance(error, MemoryLimitError):
        return str(error).partition(";")[0]  # the rest is advice for a model that was named
    return f"{name} cannot be used: {error}"  # an unfinished download, a truncated file
