"""The model's parts as training sees them: built or loaded, frozen or not, with their learning rates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from sam2.modeling.position_encoding import PositionEmbeddingSine
from torch import nn

from pam_ros.model.config import list_models, sam2_config
from pam_ros.model.loading.checkpoint import (
    OFFICIAL_SAM2,
    architecture_of,
    load_model,
    read_config,
    read_tokenizer,
)
from pam_ros.model.pam import Pam
from pam_ros.training.config import PARTS, StageConfig

NO_DECAY_DIMENSIONS = 1  # biases, norms and single vectors are not decayed


def open_model(config: StageConfig) -> Pam:
    """The model a stage starts from, float32 on the CPU; `fresh`: its architecture, weights from the seed."""
    pam = _fresh(config) if config.fresh else load_model(config.model, device="cpu", dtype="float32")
    for module in pam.modules():
        if isinstance(module, PositionEmbeddingSine):
            module.cache.clear()  # filled in inference mode, which gradients cannot pass
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
    """Which part a parameter belongs to; a stage's own head trains with what it hangs on."""
    for part in PARTS:
        if name.startswith(part + "."):
            return part
    return "segmenter"


def freeze_all_but(pam: Pam, trained: Sequence[str]) -> None:
    """Only parameters of the named parts get gradients."""
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
