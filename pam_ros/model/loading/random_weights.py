"""Models of the official sizes with random weights, for measurements without a download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from pam_ros.errors import ModelNotFoundError
from pam_ros.model.config import Architecture, sam2_config
from pam_ros.model.interface import ModelInfo
from pam_ros.model.loading.checkpoint import read_tokenizer, save_model
from pam_ros.model.loading.device import GIB, check_memory, parse_device, parse_dtype
from pam_ros.model.loading.files import OFFICIAL_SAM2, find_files
from pam_ros.model.loading.options import LoadOptions, Quantization
from pam_ros.model.loading.quantization import Quantizer, parse_quantization
from pam_ros.model.pam import Pam, language_arguments

LIFT = 3.0  # of a mask's weights, and of the presence score's logit
VISION_PARAMETERS = 300_000_000  # of SAM 2.1 Large, Perceiver and projector, rounded up
# Arguments of Qwen2Config, by the config.json of Qwen2.5 and PAM.
COMMON: dict[str, Any] = {
    "vocab_size": 151936,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
    "max_position_embeddings": 32768,
    "tokenizer_model_max_length": 12288,
    "sliding_window": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"},
}
SIZES: dict[str, dict[str, int]] = {
    "pam-3b": {
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
    },
    "pam-1.5b": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
    },
}


def random_architecture(name: str) -> Architecture:
    """Shapes of an official model. Raises ModelNotFoundError for another name."""
    if name not in SIZES:
        raise ModelNotFoundError(
            f"no random weights for model {name!r}; give one of {', '.join(SIZES)}, or load real weights"
        )
    return Architecture(sam2=sam2_config(OFFICIAL_SAM2), language=COMMON | SIZES[name])


def random_model(options: LoadOptions, *, seed: int = 0) -> Pam:
    """Builds `pam-3b` or `pam-1.5b` with random weights and without a tokenizer.

    The weights are drawn in float32 on the device, then cast.
    Raises ModelNotFoundError for another name, DeviceError, or MemoryLimitError.
    """
    name = options.model
    architecture = random_architecture(name)
    target = parse_device(options.device)
    kind = parse_dtype(options.dtype, target)
    quantization = parse_quantization(options.quantization, target)
    with torch.device("meta"):
        language = Qwen2ForCausalLM(Qwen2Config(**language_arguments(architecture.language)))
    numbers = VISION_PARAMETERS + sum(parameter.numel() for parameter in language.parameters())
    needed_gib = numbers * torch.float32.itemsize / GIB
    check_memory(f"{name} with random weights", needed_gib, target, options.memory_limit_gib)
    with torch.random.fork_rng(devices=[target] if target.type == "cuda" else []), target:
        torch.manual_seed(seed)
        model = Pam(architecture)
        find_everything(model)
    if target.type == "cuda":  # float32 weights leave holes: cast, then move out and in again
        model.place(target, kind)
        model.place(torch.device("cpu"), kind)
        torch.cuda.empty_cache()
    model.place(target, kind)
    if quantization is not Quantization.NONE:
        Quantizer(quantization, target).quantise(model.language)
    model.requires_grad_(False)
    model.info = ModelInfo(
        name=name,
        device=str(target),
        dtype=str(kind).removeprefix("torch."),
        parameters=model.parameter_count,
        quantization=quantization.value,
        licence="random weights",
    )
    return model


def find_everything(model: Pam) -> None:
    """Lifts biases of the mask decoder: every prompt finds an object, whose mask is not empty.

    Random weights find something or nothing by chance, and a prompt that finds nothing makes no region.
    """
    decoder = model.segmenter.sam2.sam_mask_decoder
    last = [mlp.layers[-1] for mlp in decoder.output_hypernetworks_mlps]
    with torch.no_grad():
        for layer in (*last, decoder.pred_obj_score_head.layers[-1]):
            layer.bias.fill_(LIFT)


def save_random_model(options: LoadOptions, folder: Path) -> None:
    """Writes `random_model` with pam-tiny's tokenizer to a folder that `load_model` reads."""
    write_model(random_model(options), folder)


def write_model(model: Pam, folder: Path) -> None:
    """Writes a model in its own dtype; with pam-tiny's tokenizer if it has none."""
    if model.language.tokenizer is None:
        model.language.tokenizer = read_tokenizer(find_files("pam-tiny", None).folder)
    save_model(model, folder, dtype=model.segmenter.dtype)
