"""One network by OpenVINO, for CPUs: converted once, kept in the user's cache, and called with tensors.

Converting takes seconds, so the result is kept, by a digest of weights, code and versions.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import tempfile
import threading
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

SETTINGS = {
    "INFERENCE_PRECISION_HINT": "f32",
    "PERFORMANCE_HINT": "LATENCY",
    # Shapes whose kernels are kept, 5000 by default: with every number of clicks the process grew by 36 MB.
    "CPU_RUNTIME_CACHE_CAPACITY": 16,
}
_CONVERTING = threading.Lock()  # tracing changes the state of the process


@dataclass(frozen=True, slots=True)
class Free:
    """A side of any length; the network is traced with `example`."""

    example: int


Shape = Sequence[int | Free]


def openvino_is_installed() -> bool:
    """Whether the package is there; nothing is imported."""
    return importlib.util.find_spec("openvino") is not None


def digest(networks: Iterable[nn.Module], sources: Iterable[str]) -> str:
    """Changes with the weights, with the files `sources` that use them, and with the packages' versions."""
    found = hashlib.sha256(" ".join(version(name) for name in ("openvino", "torch", "sam2")).encode())
    for source in (__file__, *sources):
        found.update(Path(source).read_bytes())
    for network in networks:
        for name, tensor in chain(network.named_parameters(), network.named_buffers()):
            found.update(f"{name} {tuple(tensor.shape)}".encode())
            found.update(tensor.detach().contiguous().numpy().tobytes())
    return found.hexdigest()[:32]


class OpenVinoNetwork:
    """A float32 network on the CPU. Not thread-safe."""

    def __init__(self, network: nn.Module, shapes: Sequence[Shape], path: Path) -> None:
        """Compiles `network`; its converted form is kept in the file `path`, relative to the user's cache.

        `shapes`: of its inputs, which are float32. Raises what OpenVINO raises.
        """
        import openvino

        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        file = cache / "pam_ros" / "openvino" / path
        with _CONVERTING:
            if not file.is_file():
                _convert(network, shapes, file)
        threads = {"INFERENCE_NUM_THREADS": torch.get_num_threads()}
        compiled = openvino.Core().compile_model(str(file), "CPU", SETTINGS | threads)
        self._outputs = range(len(compiled.outputs))
        self._request = compiled.create_infer_request()

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """float32 tensors on the CPU → float32 tensors."""
        arrays = [tensor.contiguous().numpy() for tensor in inputs]
        results = self._request.infer(arrays, share_inputs=True, share_outputs=True)
        # Copies: the next call writes to the same memory.
        return [torch.from_numpy(results[i].copy()) for i in self._outputs]


def _convert(network: nn.Module, shapes: Sequence[Shape], file: Path) -> None:
    """Writes `file`; a reader sees a whole file or none."""
    import openvino

    example = tuple(
        torch.zeros([side.example if isinstance(side, Free) else side for side in shape]) for shape in shapes
    )
    bounds = [[-1 if isinstance(side, Free) else side for side in shape] for shape in shapes]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing: what Python decides is fixed here
        model = openvino.convert_model(network, example_input=example, input=bounds)
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as temporary:
        openvino.save_model(model, Path(temporary) / file.name, compress_to_fp16=False)
        weights = file.with_suffix(".bin")
        shutil.move(Path(temporary) / weights.name, weights)
        shutil.move(Path(temporary) / file.name, file)  # last: it names the other file
