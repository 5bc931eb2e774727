"""Devices and dtypes by name, and whether a device has enough memory for a model."""

from __future__ import annotations

import math

import psutil
import torch

from pam_ros.errors import DeviceError, MemoryLimitError, ModelNotFoundError
from pam_ros.model.loading.files import ModelFiles
from pam_ros.model.loading.options import LoadOptions, Quantization
from pam_ros.model.loading.weights import VISION_TOWER, is_block_matrix, is_decoder, shapes_of

WORKING_MEMORY_GIB = 0.25  # beside the weights of a model without a description
VISION_MEMORY_GIB = 1.0  # beside the weights of any model without its decoder; with it, the 3B model uses 0.9
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
    """`auto`: bfloat16 on a card that computes in it, float16 on an older one, float32 on a CPU.

    Raises DeviceError for an unknown name.
    """
    if name == "auto":
        if device.type != "cuda":
            return torch.float32
        with torch.cuda.device(device):
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    if name not in DTYPES:
        raise DeviceError(f"unknown dtype {name!r}; allowed: auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def needed_gib(files: ModelFiles, dtype: torch.dtype, options: LoadOptions) -> float:
    """Memory for the weights in `dtype`, by the files' headers, and for working with them.

    `options`: whether there is a decoder, and how it is quantised.

    Raises CheckpointError for a file that cannot be read, ModelNotFoundError if SAM 2's weights are nowhere.
    """
    shapes = tensor_shapes(files)
    if not options.decoder:
        shapes = {name: shape for name, shape in shapes.items() if not is_decoder(name)}
    size = 0.0  # bytes
    if files.sam2_weights is not None:  # SAM 2's files are float32
        size = files.sam2_weights.stat().st_size / torch.float32.itemsize * dtype.itemsize
        shapes = {name: shape for name, shape in shapes.items() if not name.startswith(VISION_TOWER)}
    small = Quantization(options.quantization).bytes_per_weight
    for name, shape in shapes.items():
        each = small if small and is_block_matrix(name, shape) else dtype.itemsize
        size += math.prod(shape) * each
    working = WORKING_MEMORY_GIB if files.description is None else files.description.working_memory_gib
    if not options.decoder:
        working = min(working, VISION_MEMORY_GIB)
    return size / GIB + working


def tensor_shapes(files: ModelFiles) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors in the safetensors files. Raises as `needed_gib`."""
    shapes = {name: shape for path in files.weights for name, shape in shapes_of(path).items()}
    if files.sam2_weights is None and not any(name.startswith(VISION_TOWER) for name in shapes):
        raise ModelNotFoundError(
            f"no SAM 2 weights in {files.folder} (neither sam2*.pt nor {VISION_TOWER}* tensors); "
            "put sam2.1_hiera_large.pt beside config.json or give its path"
        )
    return shapes


def free_gib(device: torch.device) -> float:
    """Free memory of a GPU; of a CPU, the memory that the system could hand out."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / GIB
    return psutil.virtual_memory().available / GIB


def check_memory(name: str, needed_gib: float, device: torch.device, limit_gib: float) -> None:
    """Raises MemoryLimitError, naming needed and free, before anything large is built.

    `limit_gib`: at most this much may be used; 0 = all that is free.
    """
    free = free_gib(device)
    if needed_gib > (min(free, limit_gib) if limit_gib > 0 else free):
        limit = f" (memory_limit_gib allows {limit_gib:.2f})" if limit_gib > 0 else ""
        raise MemoryLimitError(
            f"{name} needs {needed_gib:.2f} GiB on {device} but only {free:.2f} GiB are free{limit}; "
            "use quantization int8 or int4, a smaller model or another device, or free memory"
        )
