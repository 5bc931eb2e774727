"""Writes the language model of a PAM checkpoint as a Qwen2 folder, which a text server such as vLLM loads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from pam_ros.errors import CheckpointError
from pam_ros.model.loading.checkpoint import read_config, read_tokenizer
from pam_ros.model.loading.files import ModelFiles, find_files, verify_files
from pam_ros.model.loading.weights import (
    EMBEDDING,
    LANGUAGE_PREFIX,
    LM_HEAD,
    PROJECTOR_PREFIX,
    is_finite,
    our_name,
    read_safetensors,
)
from pam_ros.model.pam import attention_window, language_arguments
from pam_ros.model.text.language_model import STOP_TOKENS, context_length
from pam_ros.output_files import writable_folder

FINGERPRINT_DIGITS = 8


@dataclass(frozen=True, slots=True)
class ExportedLanguage:
    """A written folder.

    Attributes:
        served_name: the name under which robots look for it, see `served_name`.
        bytes: size of its weights.
    """

    folder: Path
    served_name: str
    bytes: int


def export_language(name_or_path: str, folder: Path) -> ExportedLanguage:
    """Writes config.json, model.safetensors and the tokenizer of a Qwen2 model; weights keep their dtype.

    Rows of the vocabulary without a token are cut off, as after loading. Raises ModelNotFoundError,
    CheckpointError or OutputError.
    """
    files = find_files(name_or_path, None)
    verify_files(files, lambda line: None)
    config = read_config(files.folder)
    tokenizer = read_tokenizer(files.folder)
    if tokenizer is None:
        raise CheckpointError(f"{files.folder} has no tokenizer; a text server needs one")
    window, longest = attention_window(config), context_length(config)
    if window is not None and window < longest:
        raise CheckpointError(
            f"{files.folder}: attention reaches {window} tokens back, the context has {longest}; "
            "only models that attend to the whole context can be served"
        )
    tensors: dict[str, Tensor] = {}
    rows = 0
    for path in files.weights:
        for name, tensor in read_safetensors(path):
            if our_name(name).startswith(LANGUAGE_PREFIX):
                if name in tensors:
                    raise CheckpointError(
                        f"two files in {files.folder} hold {name}; remove those of the other model"
                    )
                if name in (EMBEDDING, LM_HEAD):
                    rows = min(len(tokenizer), len(tensor))
                    tensor = tensor[:rows].clone()
                tensors[name] = tensor
    if config.get("tie_word_embeddings"):
        tensors.pop(LM_HEAD, None)
    vocabulary = tokenizer.get_vocab()
    arguments = language_arguments(config) | {
        "vocab_size": rows,
        "max_position_embeddings": longest,
        "sliding_window": None,
        "eos_token_id": [vocabulary[name] for name in STOP_TOKENS if name in vocabulary],
        "architectures": ["Qwen2ForCausalLM"],
        "dtype": tensors[EMBEDDING].dtype if EMBEDDING in tensors else None,
    }
    qwen2 = Qwen2Config(**arguments)
    _check_complete(qwen2, tensors, files.folder)
    writable_folder(folder)
    qwen2.save_pretrained(str(folder))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(str(folder))
    size = sum(tensor.nbytes for tensor in tensors.values())
    return ExportedLanguage(folder, served_name(files), size)


def served_name(files: ModelFiles) -> str:
    """The name that a text server must give this model: `pam-3b-0123abcd`.

    The digits are a hash of the embedding table, the projectors and the decoder's vectors, as the files hold
    them, so that a robot finds out before its first text if the server has other weights.
    """
    return f"{files.name}-{_fingerprint(files.weights)}"


def _fingerprint(paths: Sequence[Path]) -> str:
    digests = {}
    for path in paths:
        for name, tensor in read_safetensors(path, wanted=_identifies):
            content = tensor.contiguous().view(-1).view(torch.uint8).numpy().data
            head = f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode()
            digests[name] = hashlib.sha256(head + hashlib.sha256(content).digest()).hexdigest()
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()[:FINGERPRINT_DIGITS]


def _identifies(official: str, shape: tuple[int, ...]) -> bool:
    ours = our_name(official)
    vector = ours.startswith(LANGUAGE_PREFIX) and len(shape) == 1
    return official == EMBEDDING or vector or ours.startswith(PROJECTOR_PREFIX)


def _check_complete(config: Qwen2Config, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Raises CheckpointError if a tensor is missing, unexpected, not finite or has another shape."""
    with torch.device("meta"):
        expected: dict[str, Any] = dict(Qwen2ForCausalLM(config).state_dict())
    if config.tie_word_embeddings:
        expected.pop(LM_HEAD, None)
    wrong = sorted(
        name
        for name in expected.keys() | tensors.keys()
        if name not in expected or name not in tensors or expected[name].shape != tensors[name].shape
    )
    if wrong:
        raise CheckpointError(
            f"the language model in {folder} is not the Qwen2 that config.json describes; "
            f"missing, unexpected or mis-shaped: {', '.join(wrong)}"
        )
    if infinite := sorted(name for name, tensor in tensors.items() if not is_finite(tensor)):
        raise CheckpointError(f"{folder} has weights with values that are not finite: {', '.join(infinite)}")
