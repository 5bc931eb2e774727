"""Devices and dtypes by name, and whether a device has enough memory for a model."""

from __future__ import annotations

import psutil
import torch

from pam_ros.errors import DeviceError, MemoryLimitError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
GIB = 2**30


def parse_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda`, `cuda:1` → device. Raises DeviceError for one that is unknown or absent."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" or (name.startswith("cuda:") and name[5:].isdecimal()):
        _check_cuda(name)
    present = ["cpu"] + [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    known = device is not None and (str(device) in present or (name == "cuda" and len(present) > 1))
    if device is None or not known:
        raise DeviceError(f"unknown device {name!r}; available: auto, {', '.join(present)}")
    return device


def _check_cuda(name: str) -> None:
    """Raises DeviceError, which says what to check, if torch finds no GPU."""
    if torch.cuda.is_available():
        return
    if torch.version.cuda is None and torch.version.hip is None:
        why = f"torch {torch.__version__} is a CPU-only build: install a CUDA build"
    else:
        why = (
            f"torch {torch.__version__} supports CUDA: check that nvidia-smi lists the GPU "
            "and that its driver is recent"
        )
    raise DeviceError(f"device {name!r}: torch finds no CUDA GPU. {why}, or use device cpu or auto")


def parse_dtype(name: str, device: torch.device) -> torch.dtype:
    """Raises DeviceError for an unknown name."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise DeviceError(f"unknown dtype {name!r}; allowed: auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def check_memory(name: str, needed_gib: float, device: torch.device, limit_gib: float) -> None:
    """Raises MemoryLimitError, naming needed and free, before anything large is built.

    `limit_gib`: at most this much may be used; 0 = all that is free.
    """
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0] / GIB
    else:
        free = psutil.virtual_memory().available / GIB
    if needed_gib > (min(free, limit_gib) if limit_gib > 0 else free):
        limit = f" (memory_limit_gib allows {limit_gib:.2f})" if limit_gib > 0 else ""
        raise MemoryLimitError(
            f"{name} needs {needed_gib:.2f} GiB on {device} but only {free:.2f} GiB are free{limit}; "
            "use a smaller model, another device, or free memory"
        )
