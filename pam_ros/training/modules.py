"""Prepares the model for training: builds or loads it, freezes parts, sets learning rates."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from sam2.modeling.position_encoding import PositionEmbeddingRandom, PositionEmbeddingSine
from sam2.modeling.sam2_utils import LayerNorm2d
from torch import Tensor, nn

from pam_ros.model.config import sam2_config
from pam_ros.model.descriptions import list_models
from pam_ros.model.loading.checkpoint import architecture_of, load_model, read_config, read_tokenizer
from pam_ros.model.loading.files import OFFICIAL_SAM2
from pam_ros.model.loading.options import LoadOptions
from pam_ros.model.pam import Pam
from pam_ros.model.vision.segmenter import Segmenter
from pam_ros.training.config import PARTS, StageConfig

NO_DECAY_DIMENSIONS = 1  # biases, norms and single vectors are not decayed


def open_model(config: StageConfig) -> Pam:
    """The model a stage starts from, float32 on the CPU; `fresh` draws its weights from the seed."""
    pam = (
        _fresh(config)
        if config.fresh
        else load_model(LoadOptions(config.model, device="cpu", dtype="float32"))
    )
    for module in pam.modules():
        if isinstance(module, PositionEmbeddingSine):
            module.cache.clear()  # it was filled in inference mode, through which gradients cannot flow
    return pam


def _fresh(config: StageConfig) -> Pam:
    described = list_models().get(config.model)
    folder = Path(config.model)
    if described is not None and described.folder is not None:
        folder = described.path.parent / described.folder
    own = folder / "sam2.yaml"
    sam2 = sam2_config(own if own.is_file() else OFFICIAL_SAM2)
    architecture = architecture_of(read_config(folder), sam2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return Pam(architecture, read_tokenizer(folder))


def part_of(name: str) -> str:
    """The part that a parameter belongs to; a stage's own heads count as the segmenter's."""
    for part in PARTS:
        if name.startswith(part + "."):
            return part
    return "segmenter"


def freeze_all_but(pam: Pam, trained: Sequence[str]) -> None:
    """Gives gradients to parameters of the named parts only."""
    for name, parameter in pam.named_parameters():
        parameter.requires_grad_(part_of(name) in trained)


def parameter_groups(module: nn.Module, config: StageConfig) -> list[dict[str, Any]]:
    """AdamW's groups: by part (its peak rate) and by whether weight decay applies."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and parameter.numel():  # no semantic tokens: an empty table
            peak = config.part_rates.get(part_of(name.removeprefix("pam.")), config.learning_rate)
            decay = 0.0 if parameter.squeeze().ndim <= NO_DECAY_DIMENSIONS else config.weight_decay
            groups.setdefault((peak, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": peak, "peak": peak, "weight_decay": decay}
        for (peak, decay), parameters in groups.items()
    ]


FEW_CHANNELS = 16  # of a layer norm, see `_normalise`


def fit_for_training(module: nn.Module) -> None:
    """Makes SAM 2 compute the same in fewer steps, and position encodings in float32 even under autocast."""
    for part in module.modules():
        if isinstance(part, PositionEmbeddingRandom):
            _keep_codes_exact(part)
        elif isinstance(part, LayerNorm2d):
            part.forward = partial(_normalise, part)


def _normalise(norm: LayerNorm2d, x: Tensor) -> Tensor:
    """(B, C, h, w), normalised over C by one kernel; the package's own forward takes nine.

    That kernel gives each pixel a block of threads. With few channels and many pixels, as at the start of
    the mask downsampler, that took a third of a video step (H200), so there the package's forward is used.
    """
    if x.shape[1] <= FEW_CHANNELS:
        normed: Tensor = LayerNorm2d.forward(norm, x)
        return normed
    last = F.layer_norm(x.permute(0, 2, 3, 1), norm.weight.shape, norm.weight, norm.bias, norm.eps)
    return last.permute(0, 3, 1, 2)


def _keep_codes_exact(part: PositionEmbeddingRandom) -> None:
    """bfloat16 would be off by a pixel. The grid's encoding, which never changes, is computed once."""
    part.forward = lru_cache(partial(PositionEmbeddingRandom.forward, part))
    original = PositionEmbeddingRandom._pe_encoding

    def exact(coordinates: Tensor) -> Tensor:
        with torch.autocast(coordinates.device.type, enabled=False):
            code: Tensor = original(part, coordinates.float())
            return code

    part._pe_encoding = exact


def normalised(segmenter: Segmenter, pixels: Tensor) -> Tensor:
    """(N, 3, S, S) uint8 or float 0..255 → what the encoder takes."""
    return (pixels.float() / 255 - segmenter.pixel_mean) / segmenter.pixel_std
