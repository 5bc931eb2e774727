"""Finds, builds and fills models: `load_model`, `save_model`.

A model folder holds, at its top or in a subfolder of the model's name:

    config.json         Qwen2.5's sizes and PAM's own keys
    *.safetensors       one file, or shards (their index is not needed), under the names in `weights.py`
    tokenizer.json …    as transformers writes them
    sam2.yaml           SAM 2's architecture; absent in official checkpoints, which use sam2.1_hiera_l
    purposes.npz        matches purposes with explanations, for a language model that cannot judge them
    confidence.json …   calibration of confidences, with familiarity.npz; names.json: what the model knows
    sam2*.pt            SAM 2's weights, unless the safetensors hold them under model.vision_tower.

`save_model` writes the same layout, with `sam2.yaml` and everything in one safetensors file.
"""

from __future__ import annotations

import json
import math
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen2Config
from transformers.initialization import no_init_weights

from pam_ros.errors import CheckpointError, MemoryLimitError, PamError, StateError
from pam_ros.model.config import Architecture, PerceiverConfig, sam2_config
from pam_ros.model.descriptions import AUTO
from pam_ros.model.interface import ModelInfo
from pam_ros.model.loading.choice import choose_model
from pam_ros.model.loading.device import check_memory, needed_gib, parse_device, parse_dtype, tensor_shapes
from pam_ros.model.loading.files import OFFICIAL_SAM2, ModelFiles, find_files, verify_files, with_config
from pam_ros.model.loading.options import LoadOptions, Quantization
from pam_ros.model.loading.quantization import Quantizer, parse_quantization
from pam_ros.model.loading.weights import (
    EMBEDDING,
    LM_HEAD,
    SAM2_PREFIX,
    VISION_TOWER,
    Filler,
    Filling,
    is_decoder,
    official_name,
    our_name,
    read_pt,
    read_safetensors,
)
from pam_ros.model.pam import Pam
from pam_ros.model.schema import (
    check_folder,
    check_tokenizer,
    language_keys,
    language_parameters,
    read_json,
    short,
)
from pam_ros.model.text.confidence import CONFIDENCE, FAMILIARITY, ConfidenceModel
from pam_ros.model.text.matching import PurposeMatcher
from pam_ros.model.text.names import NAMES, ObjectNames

PURPOSES = "purposes.npz"  # see `model.text.matching`
DEMONSTRATION_KEY = "demonstration"  # of config.json: trained from a model that knows rendered objects only

# A model describes more parameters than its files hold if a part is missing, which is reported by name.
SLACK, SLACK_PARAMETERS = 3, 20_000_000

_BUILDING = threading.Lock()  # no_init_weights replaces torch.nn.init for the whole process

Progress = Callable[[str], None]


# ---- the front door


def load_model(
    options: LoadOptions, *, progress: Progress | None = None, note: Progress | None = None
) -> Pam:
    """Loads a model by name, hub id or folder; without its decoder if a text server is named.

    Nothing is downloaded here: `pam fetch` does that. The checksums it recorded are verified.

    Args:
        options: `regions` is not used here, see `opening.open_model`.
        progress: called with a line for each step.
        note: called with what a user should read, e.g. which model `auto` took and why; None: `progress` is.

    Raises ModelNotFoundError, CheckpointError, DeviceError or MemoryLimitError, which name the cause.
    """
    report = progress or (lambda line: None)
    target = parse_device(options.device)
    kind = parse_dtype(options.dtype, target)
    if options.dtype == "auto" and kind is torch.float16:
        report("this GPU does not support bfloat16; using float16, which is slightly less accurate")
    quantization = parse_quantization(options.quantization, target)
    if quantization is not Quantization.NONE and not options.decoder:
        report(f"quantization {quantization.value} has no effect: the text server has the decoder")
        quantization = Quantization.NONE
    name = options.model
    if name == AUTO:
        name = choose_model(options, target, kind, note or report)
    files = find_files(name, options.sam2)
    verify_files(files, report)
    check_memory(files.name, needed_gib(files, kind, options), target, options.memory_limit_gib)
    layers = "" if quantization is Quantization.NONE else f", its language model in {quantization.value}"
    report(f"building {name} on {target} in {str(kind).removeprefix('torch.')}{layers}")
    try:
        model = _loaded(
            files,
            device=target,
            dtype=kind,
            decoder=options.decoder,
            quantization=quantization,
            report=report,
        )
        model.info = _info(model, files, target, kind, quantization)
    except torch.OutOfMemoryError as error:
        raise MemoryLimitError(f"{name} does not fit on {target}: {error}") from None
    except PamError as error:
        # The frames of its traceback hold the half-filled model, for as long as the caller holds the error.
        raise error.with_traceback(None) from None
    report(f"weights loaded: {model.info.parameters / 1e6:.1f} M parameters; licence: {model.info.licence}")
    return model


def _info(
    model: Pam, files: ModelFiles, device: torch.device, dtype: torch.dtype, quantization: Quantization
) -> ModelInfo:
    description = files.description
    return ModelInfo(
        name=files.name,
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
        parameters=model.parameter_count,
        quantization=quantization.value,
        licence="see the model's card" if description is None else description.licence,
        crop_small_regions=model.architecture.perceiver.crop_small_regions,
        calibrated=model.confidence.calibrated,
        min_confidence=model.confidence.min_confidence,
        demonstration=description.demonstration if description is not None else _marked(files.folder),
    )


def _marked(folder: Path) -> bool:
    """Whether the folder was trained from a demonstration model: what that cannot do, it cannot do either."""
    config = read_json(folder / "config.json")
    return isinstance(config, dict) and config.get(DEMONSTRATION_KEY) is True


# ---- reading


def read_config(folder: Path) -> dict[str, Any]:
    """The architecture in config.json; other keys are left out. Raises CheckpointError if it is not PAM's."""
    path = folder / "config.json"
    config = read_json(path)
    if not isinstance(config, dict) or config.get("model_type") != "llava_qwen":
        found = config.get("model_type") if isinstance(config, dict) else config
        raise CheckpointError(f"{path} has model_type {found!r}; PAM needs 'llava_qwen'")
    missing = [key for key in ("vocab_size", "hidden_size", "num_hidden_layers") if key not in config]
    if missing:
        raise CheckpointError(f"{path}: missing keys {', '.join(missing)}")
    language = language_keys(config, path)
    return language | ({"mm_perceiver": config["mm_perceiver"]} if "mm_perceiver" in config else {})


# ---- building


def load_official(
    folder: Path,
    *,
    sam2_weights: Path | None,
    sam2_architecture: Path | str = OFFICIAL_SAM2,
    progress: Progress | None = None,
) -> Pam:
    """Loads a folder in the official layout, in float32 on the CPU. `load_model` is the front door."""
    check_folder(folder)
    folder = with_config(folder)
    check_folder(folder)
    weights = tuple(sorted(folder.glob("*.safetensors")))
    files = ModelFiles(folder, weights, sam2_weights, sam2_architecture, None, folder)
    report = progress or (lambda line: None)
    return _loaded(files, device=torch.device("cpu"), dtype=torch.float32, report=report)


def _loaded(
    files: ModelFiles,
    *,
    device: torch.device,
    dtype: torch.dtype,
    report: Progress,
    decoder: bool = True,
    quantization: Quantization = Quantization.NONE,
) -> Pam:
    """Builds a model without initialising, then copies every tensor in; strict in both directions."""
    config = read_config(files.folder)
    tokenizer = read_tokenizer(files.folder)
    shapes = tensor_shapes(files)
    _fit_vocabulary(config, shapes, tokenizer)
    _check_size(config, shapes, files.folder)
    # Some weights are drawn all the same, hence the fork of the random generator.
    with _BUILDING, torch.random.fork_rng(devices=[]), no_init_weights():
        model = _build(files, config, tokenizer, decoder=decoder)
    if decoder:
        model.language.transformer.tie_weights()  # part of the initialisation that was skipped
    fillers: dict[str, Filler] = {}
    if quantization is not Quantization.NONE:
        fillers = Quantizer(quantization, device).hold_back(model.language)
    # Before the weights come: what was never written costs no memory, so the peak is one model of `dtype`.
    model.place(device, dtype, values=False)
    filling = Filling(
        model,
        tied=bool(config.get("tie_word_embeddings")),
        fillers={f"language.{name}": filler for name, filler in fillers.items()},
    )
    _fill(filling, files, decoder=decoder, report=report)
    if (files.folder / PURPOSES).is_file():
        model.matcher = PurposeMatcher(files.folder / PURPOSES)
    if (files.folder / NAMES).is_file():
        model.names = ObjectNames.read(files.folder / NAMES)
    model.confidence = ConfidenceModel.read(files.folder)
    _check_familiarity(model, files.folder)
    model.requires_grad_(False)
    if files.description is not None and decoder:
        model.text.max_new_tokens = files.description.max_new_tokens
    if decoder:
        model.text.confidence = model.confidence
    return model


def _check_familiarity(model: Pam, folder: Path) -> None:
    """Raises CheckpointError if the calibration is of a model with other embeddings."""
    familiarity, tokens = model.confidence.familiarity, model.architecture.perceiver.semantic_tokens
    features = 2 * model.architecture.language["hidden_size"]
    if familiarity is None or (familiarity.semantic_tokens, len(familiarity.mean)) == (tokens, features):
        return
    raise CheckpointError(
        f"{folder} has the calibration of another model: {familiarity.semantic_tokens} semantic tokens and "
        f"{len(familiarity.mean)} features, the model has {tokens} and {features}; calibrate it again"
    )


def architecture_of(config: Mapping[str, Any], sam2: Mapping[str, Any]) -> Architecture:
    """A checkpoint's config.json and SAM 2 configuration → architecture. Raises CheckpointError."""
    language = {key: value for key, value in config.items() if key != "mm_perceiver"}
    perceiver = PerceiverConfig.parse(config.get("mm_perceiver", {}))
    return Architecture(sam2=sam2, language=language, perceiver=perceiver)


def _build(
    files: ModelFiles, config: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase | None, *, decoder: bool
) -> Pam:
    """A folder's description → modules. Raises CheckpointError if no model can be built from it."""
    architecture = architecture_of(config, sam2_config(files.sam2_architecture))
    try:
        return Pam(architecture, tokenizer, decoder=decoder)
    except PamError:
        raise
    except Exception as error:  # untrusted numbers can break anything
        raise CheckpointError(
            f"{files.folder}: cannot build the model from config.json: {short(error)}"
        ) from error


def _fill(filling: Filling, files: ModelFiles, *, decoder: bool, report: Progress) -> None:
    def wanted(name: str, shape: tuple[int, ...]) -> bool:
        if name.startswith(VISION_TOWER) and files.sam2_weights is not None:
            return False  # the SAM 2 file decides
        return decoder or not is_decoder(name)

    if files.sam2_weights is not None:
        report(f"reading {files.sam2_weights.name}")
        for name, tensor in read_pt(files.sam2_weights):
            filling.take(SAM2_PREFIX + name, tensor, source=name)
    for path in files.weights:
        report(f"reading {path.name}")
        for name, tensor in read_safetensors(path, wanted):
            filling.take(our_name(name), tensor, source=name)
    filling.check(files.folder)


def _fit_vocabulary(
    config: dict[str, Any], shapes: Mapping[str, tuple[int, ...]], tokenizer: PreTrainedTokenizerBase | None
) -> None:
    """Checkpoints come with the full vocabulary or trimmed to the tokenizer; the tensor's shape decides."""
    shape = shapes.get(EMBEDDING, ())
    rows = shape[0] if len(shape) == 2 else config["vocab_size"]
    allowed = {int(config["vocab_size"])} | ({len(tokenizer)} if tokenizer is not None else set())
    if rows not in allowed:
        names = " or ".join(map(str, sorted(allowed)))
        raise CheckpointError(f"{EMBEDDING} has {rows} rows; config.json and tokenizer allow {names}")
    highest = max(tokenizer.get_vocab().values(), default=0) if tokenizer is not None else 0
    if tokenizer is not None and highest >= rows:
        raise CheckpointError(
            f"the tokenizer in {tokenizer.name_or_path} has a token with id {highest}, "
            f"{EMBEDDING} has {rows} rows"
        )
    config["vocab_size"] = rows


def _check_size(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], folder: Path) -> None:
    """Raises CheckpointError if config.json describes a model far larger than the files hold."""
    described, held = language_parameters(config), sum(math.prod(shape) for shape in shapes.values())
    if described > SLACK * held + SLACK_PARAMETERS:
        raise CheckpointError(
            f"{folder}: config.json describes a language model of {described / 1e6:.0f} M parameters, "
            f"the files hold {held / 1e6:.0f} M"
        )


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """The folder's tokenizer; None if it has none (then only token ids can be fed)."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        return None
    if (folder / "tokenizer.json").is_file():
        check_tokenizer(folder / "tokenizer.json")
    # The folder's config.json is PAM's, not one that transformers knows; the tokenizer needs none of it.
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            str(folder), config=Qwen2Config(), local_files_only=True, trust_remote_code=False
        )
        pieces = tokenizer.encode("1 a", add_special_tokens=False)
    except Exception as error:  # the package raises whatever its parsers do
        raise CheckpointError(f"cannot read the tokenizer in {folder}: {short(error)}") from error
    if not pieces:
        raise CheckpointError(f"the tokenizer in {folder} has no tokens for text; its vocabulary is empty")
    return tokenizer


# ---- writing


def save_model(model: Pam, folder: Path, *, dtype: torch.dtype = torch.float16) -> None:
    """Writes our layout: config.json, sam2.yaml, model.safetensors (in `dtype`), tokenizer.

    A calibration in the folder is removed: it is of the weights that are replaced.
    Raises StateError for a quantised model.
    """
    if model.info.quantization != Quantization.NONE.value:
        raise StateError(f"a model quantised to {model.info.quantization} is not saved; load it without")
    folder.mkdir(parents=True, exist_ok=True)
    for stale in (CONFIDENCE, FAMILIARITY):
        (folder / stale).unlink(missing_ok=True)
    architecture = model.architecture
    config = {
        **architecture.language,
        "model_type": "llava_qwen",
        "mm_hidden_size": model.segmenter.width,
        "mm_perceiver": architecture.perceiver.as_json(),
        **({DEMONSTRATION_KEY: True} if model.info.demonstration else {}),
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
    if model.matcher is not None:
        shutil.copyfile(model.matcher.weights, folder / PURPOSES)
    if model.language.tokenizer is not None:
        model.language.tokenizer.save_pretrained(str(folder))
