"""`pam doctor`, the part with torch: GPUs and their kernels, memory, and the models on this disk."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import psutil
import torch

from pam_ros.errors import ModelError, ModelNotFoundError
from pam_ros.findings import Finding, Verdict
from pam_ros.model.descriptions import DEMONSTRATION, ModelDescription, list_models
from pam_ros.model.loading.choice import BUNDLED, choose_model
from pam_ros.model.loading.device import GIB, free_gib, needed_gib, parse_device, parse_dtype
from pam_ros.model.loading.files import find_files, verify_files
from pam_ros.model.loading.options import LoadOptions

# Chips of embedded boards: code for the desktop chips of the same generation is not made for them.
EMBEDDED = {"8.7", "10.1", "11.0"}
OTHER_TORCH = "install a torch build for this architecture; see docs/onboard.md"


def gpu_findings() -> Iterator[Finding]:
    """Every GPU: whether torch was built for its architecture, and whether a kernel runs on it."""
    build = f"torch {torch.__version__}, CUDA {torch.version.cuda or 'none'}"
    if not torch.cuda.is_available():
        if not _has_nvidia_gpu():
            yield Finding("gpu", "GPU", f"none ({build}); the model runs on the CPU", Verdict.NOTE)
        elif (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
            value = f"CUDA_VISIBLE_DEVICES={visible} hides it; the model runs on the CPU"
            yield Finding("gpu", "GPU", value, Verdict.NOTE, "unset CUDA_VISIBLE_DEVICES")
        elif torch.version.cuda is None:
            fix = "install a CUDA build of torch"
            yield Finding("gpu", "GPU", f"present, but {build} is for CPUs only", Verdict.ERROR, fix)
        else:
            fix = "check that nvidia-smi lists the GPU, and update its driver"
            yield Finding("gpu", "GPU", f"present, but {build} cannot use it", Verdict.ERROR, fix)
        return
    built_for = torch.cuda.get_arch_list()
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
        failure = kernel_failure(device)
        yield architecture_finding(f"cuda:{index} {name}", capability, built_for, build, failure)


def architecture_finding(
    name: str, capability: tuple[int, int], built_for: Sequence[str], build: str, failure: str
) -> Finding:
    """`failure`: why the test kernel did not run; empty if it ran."""
    value = f"sm_{capability[0]}{capability[1]}; {build} for {', '.join(built_for)}"
    if failure:
        return Finding("gpu", name, f"{value}; a kernel fails: {failure}", Verdict.ERROR, OTHER_TORCH)
    if not is_built_for(capability, built_for):
        value = f"{value}; not in the list, but a kernel runs"
        return Finding("gpu", name, value, Verdict.NOTE, f"if other kernels fail, {OTHER_TORCH}")
    return Finding("gpu", name, f"{value}; a kernel runs")


def is_built_for(capability: tuple[int, int], built_for: Iterable[str]) -> bool:
    """True if machine code for the chip, or code that its driver compiles, is in the build.

    Machine code runs on chips of the same major and the same or a higher minor number, but not on embedded
    ones; PTX (`compute_90`) is compiled for every later chip.
    """
    for entry in built_for:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)[af]?", entry)
        if match is None:
            continue
        built = (int(match[2]), int(match[3]))
        embedded = f"{capability[0]}.{capability[1]}" in EMBEDDED
        same_major = built[0] == capability[0] and built[1] <= capability[1] and not embedded
        if built == capability or (same_major if match[1] == "sm" else built <= capability):
            return True
    return False


def kernel_failure(device: torch.device) -> str:
    """Runs an element-wise kernel and a matrix product in the weights' dtype; why they fail, or nothing."""
    try:
        ones = torch.ones(64, 64, device=device, dtype=torch.bfloat16)
        found = float((ones * 2 @ ones).sum().item())
    except (RuntimeError, AssertionError) as error:  # what torch raises for CUDA, and for a build without
        return str(error).strip().splitlines()[0]
    expected = 64 * 64 * 128.0
    return "" if found == expected else f"wrong result {found}, expected {expected}"


def _has_nvidia_gpu() -> bool:
    return any(Path(path).exists() for path in ("/dev/nvidia0", "/dev/nvhost-gpu", "/dev/nvgpu"))


def memory_findings() -> Iterator[Finding]:
    """Main memory, and every GPU's."""
    memory = psutil.virtual_memory()
    yield Finding("memory", "main", f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free")
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(index)
        yield Finding("memory", f"cuda:{index}", f"{free / GIB:.1f} of {total / GIB:.1f} GiB free")


def _fix(model: ModelDescription, error: ModelError) -> str:
    """What makes a model usable that is on this disk: a download does not help if the system refuses it."""
    if isinstance(error.__cause__, PermissionError):
        return f"give this user access to {error.__cause__.filename}, or set PAM_MODELS to another folder"
    if isinstance(error.__cause__, OSError):
        return "check this disk, or set PAM_MODELS to a folder on another one"
    return "reinstall pam_ros" if model.name == BUNDLED else model.fetch_command


def model_findings() -> Iterator[Finding]:
    """Every model: whether its files are here and right, and whether it fits; and which one `auto` takes."""
    device = parse_device("auto")
    dtype = parse_dtype("auto", device)
    for name, model in list_models().items():
        try:
            files = find_files(name, None)
            verify_files(files, lambda line: None)
            needed, free = needed_gib(files, dtype, LoadOptions()), free_gib(device)
        except ModelNotFoundError:
            yield Finding("models", name, "not on this disk", Verdict.NOTE, model.fetch_command)
        except ModelError as error:
            yield Finding("models", name, str(error), Verdict.ERROR, _fix(model, error))
        else:
            value = f"{files.folder}; needs {needed:.1f} of {free:.1f} GiB free on {device}"
            small = needed > free
            fix = "free memory, or use a smaller model" if small else ""
            yield Finding("models", name, value, Verdict.NOTE if small else Verdict.OK, fix)
    lines: list[str] = []
    try:
        chosen = choose_model(LoadOptions(), device, dtype, lines.append)
    except ModelError as error:
        yield Finding("models", "auto", str(error), Verdict.ERROR, "free memory")
        return
    demonstration = chosen == BUNDLED
    yield Finding(
        "models",
        "auto",
        f"takes {chosen}",
        Verdict.NOTE if demonstration else Verdict.OK,
        DEMONSTRATION if demonstration else "",
    )
