"""Timing and memory for `pam bench`, and the limits of the device: bandwidth and matrix products."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.benchmark import Timer

GIB = 2**30
# Bytes that are copied, and the side of the matrices: more than any cache holds, little enough to be quick.
COPIED_BYTES = {"cuda": 2 * GIB, "cpu": GIB // 4}
MATRIX_SIDE = {"cuda": 8192, "cpu": 1024}
LIMIT_RUN_S = 0.3  # at least, for each limit


@dataclass(frozen=True, slots=True)
class Times:
    """Milliseconds of every run of one measurement."""

    runs_ms: Sequence[float]

    @property
    def median(self) -> float:
        """The median."""
        return statistics.median(self.runs_ms)

    def percentile(self, percent: float) -> float:
        """The value that `percent` of the runs stay below."""
        return float(np.percentile(self.runs_ms, percent))


def measure(run: Callable[[], object], device: torch.device, *, repeats: int, warm_up: int = 1) -> Times:
    """Wall-clock times of `run`, device work included.

    `torch.utils.benchmark.Timer` gives one mean and repeats its warm-up for each; percentiles need every run.
    """
    for _ in range(warm_up):
        run()
    times = []
    for _ in range(repeats):
        synchronize(device)
        begin_s = time.perf_counter()
        run()
        synchronize(device)
        times.append((time.perf_counter() - begin_s) * 1000)
    return Times(times)


def synchronize(device: torch.device) -> None:
    """Waits until the device is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_limits(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Bytes copied and read, and operations of a matrix product in `dtype`, per second: TB/s, TFLOP/s."""
    size, side = COPIED_BYTES[device.type], MATRIX_SIDE[device.type]

    def seconds(statement: str, **tensors: torch.Tensor) -> float:
        timer = Timer(statement, globals=tensors, num_threads=torch.get_num_threads())
        return timer.blocked_autorange(min_run_time=LIMIT_RUN_S).median

    source = torch.zeros(size, dtype=torch.uint8, device=device)
    copy_s = seconds("b.copy_(a)", a=source, b=torch.empty_like(source))
    read_s = seconds("a.sum()", a=source.view(torch.float32))
    matrix = torch.randn(side, side, device=device).to(dtype)
    product_s = seconds("a @ a", a=matrix)
    return {
        "copy_tb_s": 2 * size / copy_s / 1e12,
        "read_tb_s": size / read_s / 1e12,
        "matmul_tflop_s": 2 * side**3 / product_s / 1e12,
    }


def device_name(device: torch.device) -> str:
    """The card's name, or "CPU"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def reset_peak_memory(device: torch.device) -> None:
    """Starts a new measurement of peak memory."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_gib(device: torch.device) -> tuple[float, float]:
    """Peak memory of a CUDA device, GiB: in tensors, and reserved for tensors and graphs."""
    return (
        torch.cuda.max_memory_allocated(device) / GIB,
        torch.cuda.max_memory_reserved(device) / GIB,
    )
