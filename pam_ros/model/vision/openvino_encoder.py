"""SAM 2's image encoder by OpenVINO, for CPUs: the same features in less time, if the package is installed.

Converting takes seconds, so the result is kept in the user's cache, by the weights' checksum.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import tempfile
import threading
import warnings
from pathlib import Path
from typing import Any

import torch
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor, nn

_CONVERTING = threading.Lock()  # tracing changes the state of the process
SETTINGS = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}


def openvino_is_installed() -> bool:
    """Whether the package is there; nothing is imported."""
    return importlib.util.find_spec("openvino") is not None


class OpenVinoEncoder:
    """Pixels → the levels of the feature pyramid, finest first. Not thread-safe."""

    def __init__(self, sam2: SAM2Base, cache: Path | None = None) -> None:
        """Compiles the encoder of a float32 model; `cache`: folder of converted encoders, None = the user's.

        Raises what OpenVINO raises.
        """
        import openvino

        self._levels: int = sam2.num_feature_levels
        folder = cache or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "pam_ros"
        path = folder / "openvino" / f"{_checksum(sam2, openvino.__version__)}.xml"
        with _CONVERTING:
            if not path.is_file():
                _save(openvino, sam2, path)
        threads = {"INFERENCE_NUM_THREADS": torch.get_num_threads()}
        compiled = openvino.Core().compile_model(str(path), "CPU", SETTINGS | threads)
        self._request = compiled.create_infer_request()

    def __call__(self, pixels: Tensor) -> list[Tensor]:
        """(B, 3, S, S) float32 on the CPU → levels, each (B, C, H, W) float32."""
        frames = [self._encoded(frame.contiguous()) for frame in torch.split(pixels, 1)]
        return [torch.cat(levels) for levels in zip(*frames, strict=True)]

    def _encoded(self, pixels: Tensor) -> list[Tensor]:
        results = self._request.infer([pixels.numpy()], share_inputs=True, share_outputs=True)
        # Copies: the next frame is written to the same memory.
        return [torch.from_numpy(results[level].copy()) for level in range(self._levels)]


class _Levels(nn.Module):
    """The encoder with SAM 2's projections of the finer levels."""

    def __init__(self, sam2: SAM2Base) -> None:
        super().__init__()
        self.sam2 = sam2

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """(1, 3, S, S) → levels."""
        levels = self.sam2.forward_image(pixels)["backbone_fpn"]
        return tuple(levels[-self.sam2.num_feature_levels :])


def _save(openvino: Any, sam2: SAM2Base, path: Path) -> None:
    """Converts the encoder; a reader sees a whole file or none."""
    pixels = torch.zeros(1, 3, sam2.image_size, sam2.image_size)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing: shapes are fixed here
        model = openvino.convert_model(_Levels(sam2), example_input=pixels, input=[list(pixels.shape)])
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
        openvino.save_model(model, Path(temporary) / path.name, compress_to_fp16=False)
        weights = path.with_suffix(".bin")
        shutil.move(Path(temporary) / weights.name, weights)
        shutil.move(Path(temporary) / path.name, path)  # last: it names the other file


def _checksum(sam2: SAM2Base, version: str) -> str:
    digest = hashlib.sha256(f"{version} {sam2.image_size}".encode())
    for name, tensor in sorted(sam2.image_encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    for module in (sam2.sam_mask_decoder.conv_s0, sam2.sam_mask_decoder.conv_s1):
        for tensor in module.state_dict().values():
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]
