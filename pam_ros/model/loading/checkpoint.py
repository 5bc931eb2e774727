"""Finds, builds and fills models: `load_model`, `save_model`.

A model folder holds, at its top or in a subfolder of the model's name:

    config.json         Qwen2.5's sizes and PAM's own keys
    *.safetensors       one file, or shards (their index is not needed), under the names in `weights.py`
    tokenizer.json …    as transformers writes them
    sam2.yaml           SAM 2's architecture; absent in official checkpoints, which use sam2.1_hiera_l
    sam2*.pt            SAM 2's weights, unless the safetensors hold them under model.vision_tower.

`save_model` writes the same layout, with `sam2.yaml` and everything in one safetensors file.
"""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen2Config
from transformers.initialization import no_init_weights

from pam_ros.errors import CheckpointError, MemoryLimitError, ModelNotFoundError, PamError
from pam_ros.model.config import Architecture, ModelDescription, PerceiverConfig, list_models, sam2_config
from pam_ros.model.interface import ModelInfo
from pam_ros.model.loading.device import GIB, check_memory, parse_device, parse_dtype
from pam_ros.model.loading.weights import (
    EMBEDDING,
    LM_HEAD,
    SAM2_PREFIX,
    VISION_TOWER,
    Filling,
    official_name,
    our_name,
    read_pt,
    read_safetensors,
    shapes_of,
)
from pam_ros.model.pam import Pam

OFFICIAL_SAM2 = "sam2.1/sam2.1_hiera_l"
_BUILDING = threading.Lock()  # no_init_weights replaces torch.nn.init for the whole process
WORKING_MEMORY_GIB = 0.25  # beside the weights of a model without a description

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Where the pieces of a model lie on this disk."""

    folder: Path
    weights: tuple[Path, ...]
    sam2_weights: Path | None
    sam2_architecture: Path | str
    description: ModelDescription | None


# ---- the front door


def load_model(
    name_or_path: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    sam2: str | Path | None = None,
    memory_limit_gib: float = 0.0,
    progress: Progress | None = None,
) -> Pam:
    """Loads a model by name (`pam-tiny`), hub id (`Perceive-Anything/PAM-3B`) or folder.

    Nothing is downloaded here: `pam fetch` does that.

    Args:
        device: `auto` (a GPU if there is one), `cpu`, `cuda`, `cuda:1`, …
        dtype: `auto` (bfloat16 on a GPU, float32 on a CPU), `float32`, `bfloat16`, `float16`.
        sam2: SAM 2's weights, where they are not in the model's folder.
        memory_limit_gib: at most this much memory may be used; 0 = what is free.
        progress: called with a line for each step.

    Raises ModelNotFoundError, CheckpointError, DeviceError or MemoryLimitError, which name the cause.
    """
    report = progress or (lambda line: None)
    target = parse_device(device)
    kind = parse_dtype(dtype, target)
    files = find_files(name_or_path, None if sam2 is None else Path(sam2))
    check_memory(files.folder.name, needed_gib(files, kind), target, memory_limit_gib)
    report(f"building {name_or_path} on {target} in {str(kind).removeprefix('torch.')}")
    try:
        model = _loaded(files, device=target, dtype=kind, report=report)
        model.info = _info(model, files, target, kind)
    except torch.OutOfMemoryError as error:
        raise MemoryLimitError(f"{name_or_path} does not fit on {target}: {error}") from None
    except PamError as error:
        # The frames of its traceback hold the half-filled model, for as long as the caller holds the error.
        raise error.with_traceback(None) from None
    report(f"ready: {model.info.parameters / 1e6:.1f} M parameters; licence: {model.info.licence}")
    return model


def _info(model: Pam, files: ModelFiles, device: torch.device, dtype: torch.dtype) -> ModelInfo:
    description = files.description
    return ModelInfo(
        name=files.folder.resolve().name if description is None else description.name,
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        licence="see the model's card" if description is None else description.licence,
        crop_small_regions=model.architecture.perceiver.crop_small_regions,
    )


def needed_gib(files: ModelFiles, dtype: torch.dtype) -> float:
    """Memory for the weights in `dtype`, by the files' headers, and for working with them."""
    shapes = {name: shape for path in files.weights for name, shape in shapes_of(path).items()}
    numbers = 0
    if files.sam2_weights is not None:
        numbers = files.sam2_weights.stat().st_size // torch.float32.itemsize  # SAM 2's files are float32
        shapes = {name: shape for name, shape in shapes.items() if not name.startswith(VISION_TOWER)}
    numbers += sum(math.prod(shape) for shape in shapes.values())
    working = WORKING_MEMORY_GIB if files.description is None else files.description.working_memory_gib
    return numbers * dtype.itemsize / GIB + working


# ---- files


def find_files(name_or_path: str, sam2: Path | None) -> ModelFiles:
    """Finds a model's files without downloading. Raises ModelNotFoundError, which says where it looked."""
    described = list_models()
    by_hub = {d.hub.hub_id: d for d in described.values() if d.hub is not None}
    path = Path(name_or_path).expanduser()
    description = described.get(name_or_path) or by_hub.get(name_or_path)
    if description is None and not path.is_dir():
        raise ModelNotFoundError(_no_model(name_or_path, tuple(described), tuple(by_hub)))
    if description is None:
        folder = path
    elif description.folder is not None:
        folder = description.path.parent / description.folder
    else:
        assert description.hub is not None
        folder = _hub_folder(description.hub.hub_id, description.name)
    root, folder = folder, _with_config(folder)
    weights = tuple(sorted(folder.glob("*.safetensors")))
    if not weights:
        raise ModelNotFoundError(f"no *.safetensors file in {folder}")
    own = folder / "sam2.yaml"
    return ModelFiles(
        folder=folder,
        weights=weights,
        sam2_weights=_find_sam2((folder, root), sam2, description),
        sam2_architecture=own if own.is_file() else OFFICIAL_SAM2,
        description=description,
    )


def _no_model(name_or_path: str, names: tuple[str, ...], hub_ids: tuple[str, ...]) -> str:
    """Why nothing of this name can be loaded; what looks like `owner/name` may be meant as a hub id."""
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name_or_path):
        return (
            f"{name_or_path} is neither a folder nor a hub id that `pam fetch` knows ({', '.join(hub_ids)}); "
            "download other models yourself and give their folder"
        )
    return f"unknown model {name_or_path!r}; give one of {', '.join(names)}, a hub id or a folder"


def _hub_folder(hub_id: str, name: str) -> Path:
    """The hub's local copy of a repository."""
    try:
        return Path(snapshot_download(hub_id, local_files_only=True))
    except (LocalEntryNotFoundError, OSError, ValueError) as error:
        raise ModelNotFoundError(
            f"{hub_id} is not on this disk; download it with: pam fetch {name}"
        ) from error


def _with_config(folder: Path) -> Path:
    """The folder itself or its one subfolder with a config.json (official checkpoints have either)."""
    for candidate in (folder, *sorted(p for p in folder.iterdir() if p.is_dir())):
        if (candidate / "config.json").is_file():
            return candidate
    raise ModelNotFoundError(f"no config.json in {folder} or its subfolders")


def _find_sam2(
    folders: tuple[Path, ...], given: Path | None, description: ModelDescription | None
) -> Path | None:
    """SAM 2's weight file: given, in a folder, or in the hub's cache; None: the safetensors must hold it."""
    if given is not None and not given.is_file():
        raise ModelNotFoundError(f"no SAM 2 weights at {given}")
    if description is not None and description.folder is not None:  # bundled: one file holds everything
        if given is not None:
            raise CheckpointError(
                f"{description.name} includes its SAM 2 weights; do not give others ({given})"
            )
        return None
    if given is not None:
        return given
    beside = [path for folder in folders for path in sorted(folder.glob("sam2*.pt"))]
    if beside:
        return beside[0]
    if description is not None and description.sam2 is not None:
        found = _hub_folder(description.sam2.hub_id, description.name) / description.sam2.pattern
        return found if found.is_file() else None
    return None


def read_config(folder: Path) -> dict[str, Any]:
    """config.json. Raises CheckpointError if it is not PAM's."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(config, dict) or config.get("model_type") != "llava_qwen":
        found = config.get("model_type") if isinstance(config, dict) else config
        raise CheckpointError(f"{path} has model_type {found!r}; PAM needs 'llava_qwen'")
    missing = [key for key in ("vocab_size", "hidden_size", "num_hidden_layers") if key not in config]
    if missing:
        raise CheckpointError(f"{path}: missing keys {', '.join(missing)}")
    return config


# ---- building


def load_official(
    folder: Path,
    *,
    sam2_weights: Path | None,
    sam2_architecture: Path | str = OFFICIAL_SAM2,
    progress: Progress | None = None,
) -> Pam:
    """Loads a folder in the official layout, in float32 on the CPU. `load_model` is the front door."""
    folder = _with_config(folder)
    weights = tuple(sorted(folder.glob("*.safetensors")))
    files = ModelFiles(folder, weights, sam2_weights, sam2_architecture, None)
    report = progress or (lambda line: None)
    return _loaded(files, device=torch.device("cpu"), dtype=torch.float32, report=report)


def _loaded(files: ModelFiles, *, device: torch.device, dtype: torch.dtype, report: Progress) -> Pam:
    """Builds a model without initialising, then copies every tensor in; strict in both directions."""
    config = read_config(files.folder)
    tokenizer = read_tokenizer(files.folder)
    shapes = {name: shape for path in files.weights for name, shape in shapes_of(path).items()}
    if files.sam2_weights is None and not any(name.startswith(VISION_TOWER) for name in shapes):
        raise ModelNotFoundError(
            f"no SAM 2 weights in {files.folder} (neither sam2*.pt nor {VISION_TOWER}* tensors); "
            "put sam2.1_hiera_large.pt beside config.json or give its path"
        )
    _fit_vocabulary(config, shapes, tokenizer)
    # Some weights are drawn all the same, hence the fork of the random generator.
    with _BUILDING, torch.random.fork_rng(devices=[]), no_init_weights():
        model = _build(files, config, tokenizer)
    model.language.transformer.tie_weights()  # part of the initialisation that was skipped
    # Before the weights come: what was never written costs no memory, so the peak is one model of `dtype`.
    model.place(device, dtype)
    _fill(model, files, tied=bool(config.get("tie_word_embeddings")), report=report)
    model.requires_grad_(False)
    if files.description is not None:
        model.text.max_new_tokens = files.description.max_new_tokens
    return model


def architecture_of(config: Mapping[str, Any], sam2: Mapping[str, Any]) -> Architecture:
    """A checkpoint's config.json and SAM 2 configuration → architecture. Raises CheckpointError."""
    language = {key: value for key, value in config.items() if key != "mm_perceiver"}
    perceiver = PerceiverConfig.parse(config.get("mm_perceiver", {}))
    return Architecture(sam2=sam2, language=language, perceiver=perceiver)


def _build(files: ModelFiles, config: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase | None) -> Pam:
    """A folder's description → modules. Raises CheckpointError if no model can be built from it."""
    architecture = architecture_of(config, sam2_config(files.sam2_architecture))
    try:
        return Pam(architecture, tokenizer)
    except PamError:
        raise
    except Exception as error:  # whatever a stranger's numbers break
        raise CheckpointError(f"{files.folder}: cannot build the model from config.json: {error}") from error


def _fill(model: Pam, files: ModelFiles, *, tied: bool, report: Progress) -> None:
    filling = Filling(model, tied=tied)
    if files.sam2_weights is not None:
        report(f"reading {files.sam2_weights.name}")
        for name, tensor in read_pt(files.sam2_weights):
            filling.take(SAM2_PREFIX + name, tensor, source=name)
    for path in files.weights:
        report(f"reading {path.name}")
        for name, tensor in read_safetensors(path):
            if name.startswith(VISION_TOWER) and files.sam2_weights is not None:
                continue  # the SAM 2 file decides
            filling.take(our_name(name), tensor, source=name)
    filling.check(files.folder)


def _fit_vocabulary(
    config: dict[str, Any], shapes: Mapping[str, tuple[int, ...]], tokenizer: PreTrainedTokenizerBase | None
) -> None:
    """Checkpoints come with the full vocabulary or trimmed to the tokenizer; the tensor's shape decides."""
    rows = shapes.get(EMBEDDING, (config["vocab_size"],))[0]
    allowed = {int(config["vocab_size"])} | ({len(tokenizer)} if tokenizer is not None else set())
    if rows not in allowed:
        names = " or ".join(map(str, sorted(allowed)))
        raise CheckpointError(f"{EMBEDDING} has {rows} rows; config.json and tokenizer allow {names}")
    config["vocab_size"] = rows


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """The folder's tokenizer; None if it has none (then only token ids can be fed)."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        return None
    # The folder's config.json is PAM's, not one that transformers knows; the tokenizer needs none of it.
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            str(folder), config=Qwen2Config(), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # the package raises whatever its parsers do
        raise CheckpointError(f"cannot read the tokenizer in {folder}: {error}") from error
    return tokenizer


# ---- writing


def save_model(model: Pam, folder: Path, *, dtype: torch.dtype = torch.float16) -> None:
    """Writes our layout: config.json, sam2.yaml, model.safetensors (in `dtype`), tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    architecture = model.architecture
    config = {
        **architecture.language,
        "model_type": "llava_qwen",
        "mm_hidden_size": model.segmenter.width,
        "mm_perceiver": architecture.perceiver.as_json(),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    sam2 = yaml.safe_dump({"model": dict(architecture.sam2)}, sort_keys=False)
    (folder / "sam2.yaml").write_text(sam2, encoding="utf-8")
    exact = model.exact_names()
    skipped = our_name(LM_HEAD) if config.get("tie_word_embeddings") else None
    tensors = {
        official_name(name): tensor.detach().to("cpu", tensor.dtype if name in exact else dtype).contiguous()
        for name, tensor in model.state_dict().items()
        if name != skipped
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if model.language.tokenizer is not None:
        model.language.tokenizer.save_pretrained(str(folder))
