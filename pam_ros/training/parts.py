"""The model's parts as training sees them: built or loaded, frozen or not, with their learning rates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from pam_ros.model.checkpoint import _read_config, _tokenizer, architecture_of, find_files, load_model
from pam_ros.model.config import sam2_config
from pam_ros.model.pam import Pam
from pam_ros.training.config import PARTS, StageConfig

NO_DECAY_DIMENSIONS = 1  # biases, norms and single vectors are not decayed


def open_model(config: StageConfig) -> Pam:
    """The model a stage starts from, in float32 on the CPU; `fresh`: its architecture with weights from the seed."""
    if not config.fresh:
        return load_model(config.model, device="cpu", dtype="float32")
    files = find_files(config.model, None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return Pam(architecture_of(_read_config(files.folder), sam2_config(files.sam2_architecture)), _tokenizer(files.folder))


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
        if parameter.requires_grad:
            peak = config.part_rates.get(part_of(name.removeprefix("pam.")), config.learning_rate)
            decay = 0.0 if parameter.squeeze().ndim <= NO_DECAY_DIMENSIONS else config.weight_decay
            groups.setdefault((peak, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": peak, "peak": peak, "weight_decay": decay}
        for (peak, decay), parameters in groups.items()
    ]
