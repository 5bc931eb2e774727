"""Weight files ↔ modules: the official tensor names, strict filling, reading without running code."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pam_ros.errors import CheckpointError

# Prefixes of the official names → prefixes of our modules. The first that fits counts.
OFFICIAL_NAMES = (
    ("model.vision_tower.sam2_model_predictor.", "segmenter.sam2."),
    ("model.vision_resampler.", "perceiver."),
    ("model.mm_projector_img.", "projector.visual."),
    ("model.mm_projector_semT.", "projector.semantic."),
    ("model.image_newline", "projector.image_newline"),
    ("model.semT_newline", "projector.semantic_newline"),
    ("model.frame_newline", "projector.frame_newline"),
    ("lm_head.", "language.transformer.lm_head."),
    ("model.", "language.transformer.model."),
)
VISION_TOWER = "model.vision_tower."
SAM2_PREFIX = "segmenter.sam2."
EMBEDDING = "model.embed_tokens.weight"
LM_HEAD = "lm_head.weight"
LANGUAGE_PREFIX = "language.transformer."
PROJECTOR_PREFIX = "projector."


def our_name(official: str) -> str:
    """Official tensor name → name of our module's tensor; unknown names come back unchanged."""
    for theirs, ours in OFFICIAL_NAMES:
        if official.startswith(theirs):
            return ours + official[len(theirs) :]
    return official


def official_name(ours: str) -> str:
    """The inverse of `our_name`."""
    for theirs, prefix in OFFICIAL_NAMES:
        if ours.startswith(prefix):
            return theirs + ours[len(prefix) :]
    return ours


def is_decoder(official: str) -> bool:
    """True for the language model's tensors other than its embedding table."""
    return our_name(official).startswith(LANGUAGE_PREFIX) and official != EMBEDDING


def is_block_matrix(official: str, shape: tuple[int, ...]) -> bool:
    """True for the weights of the linear layers in the decoder's blocks."""
    return official.startswith("model.layers.") and len(shape) == 2


Filler = Callable[[Tensor], None]


class Filling:
    """Copies tensors into a model and keeps account of what was missing, unexpected or mis-shaped."""

    def __init__(self, model: nn.Module, *, tied: bool, fillers: Mapping[str, Filler]) -> None:
        """`tied`: the embedding serves as the language model's head, whatever the files hold.

        `fillers`: what takes a tensor in place of the slot of that name.
        """
        self._fillers = fillers
        self._slots = dict(model.state_dict(keep_vars=True))
        self._left = set(self._slots)
        self._unexpected: list[str] = []
        self._misshaped: list[str] = []
        self._repeated: list[str] = []
        self._not_finite: list[str] = []  # of those that a filler was to take
        self._extremes: list[tuple[str, Tensor, Tensor]] = []  # read at the end: it waits for the device
        self._ignored = our_name(LM_HEAD) if tied else None
        self._left.discard(our_name(LM_HEAD) if tied else "")

    @torch.no_grad()
    def take(self, ours: str, tensor: Tensor, *, source: str) -> None:
        """Copies one tensor into the model, in the dtype and on the device of its parameter."""
        if ours == self._ignored:
            return
        slot = self._slots.get(ours)
        if slot is None:
            self._unexpected.append(source)
        elif ours not in self._left:
            self._repeated.append(source)
        elif slot.shape != tensor.shape:
            self._misshaped.append(f"{source} is {tuple(tensor.shape)}, expected {tuple(slot.shape)}")
        elif ours in self._fillers:
            if is_finite(tensor):
                self._fillers[ours](tensor)
            else:
                self._not_finite.append(source)
        else:
            slot.copy_(tensor)
            self._extremes += [(source, *slot.aminmax())] if slot.is_floating_point() and slot.numel() else []
        self._left.discard(ours)

    def check(self, folder: Path) -> None:
        """Raises CheckpointError listing every name that does not fit."""
        problems = {
            "missing": sorted(map(official_name, self._left)),
            "unexpected": sorted(self._unexpected),
            "that two files hold": sorted(self._repeated),
            "with a different shape": sorted(self._misshaped),
            "with values that are not finite": sorted(self._not_finite + self._extreme()),
        }
        lines = [f"{len(names)} {what}: {', '.join(names)}" for what, names in problems.items() if names]
        if lines:
            raise CheckpointError(f"the weights in {folder} do not fit the architecture; " + "; ".join(lines))

    def _extreme(self) -> list[str]:
        """Names of the tensors that hold NaN, infinity, or a number too large for the model's dtype."""
        if not self._extremes:
            return []
        both = [torch.stack([low, high]).float() for _, low, high in self._extremes]
        finite = torch.isfinite(torch.stack(both)).all(dim=1).cpu()
        return [name for (name, *_), good in zip(self._extremes, finite.tolist(), strict=True) if not good]


def is_finite(tensor: Tensor) -> bool:
    """Whether it holds neither NaN nor infinity. Waits for its device."""
    if not tensor.numel():
        return True
    wide = tensor.float() if tensor.itemsize == 1 else tensor  # there is no such operation for eight bits
    return bool(torch.stack(wide.aminmax()).float().isfinite().all())


# ---- reading


def shapes_of(path: Path) -> dict[str, tuple[int, ...]]:
    """Tensor shapes from a safetensors header, without reading the tensors. Raises CheckpointError."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"cannot read {path} ({error}); the file may be truncated") from error


def read_safetensors(
    path: Path, wanted: Callable[[str, tuple[int, ...]], bool] = lambda name, shape: True
) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors, one at a time; only those `wanted` by name and shape. Raises CheckpointError."""
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (no mapping)
                if wanted(name, tuple(file.get_slice(name).get_shape())):
                    yield name, file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"cannot read {path} ({error}); the file may be truncated") from error


def read_pt(path: Path) -> Iterator[tuple[str, Tensor]]:
    """SAM 2's own files, `torch.save({"model": …})`; no code in them is run. Raises CheckpointError."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:  # whose message advises to run the code in the file
        raise CheckpointError(
            f"cannot read {path}: it holds more than tensors, or is truncated; no code in it was run"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"cannot read {path} ({error}); the file may be truncated") from error
    tensors = content.get("model") if isinstance(content, Mapping) else None
    if not isinstance(tensors, Mapping) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise CheckpointError(f"{path} has no tensors under 'model'; it is not a SAM 2 checkpoint")
    yield from tensors.items()
