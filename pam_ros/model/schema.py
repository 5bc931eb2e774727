"""What a model folder may hold, checked before anything is built from it. No torch.

A folder is untrusted data: files of limited size, configurations of known keys, types and ranges.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pam_ros.errors import CheckpointError

CONFIG_BYTES = 1 << 20  # of a file of CONFIGS; most have a few thousand
CONFIGS = ("config.json", "sam2.yaml", "names.json", "confidence.json")
TEXT_BYTES = 64 << 20  # of any other file that is read as a whole; Qwen2.5's tokenizer.json has 11 MB
TEXT_SUFFIXES = (".json", ".txt", ".model", ".jinja", ".npz")
YAML_PARTS = 5000  # of sam2.yaml; the official ones have about 200
ACTIVATIONS = ("silu", "swish", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu")
TOKENS, ADDED_TOKENS = 1_000_000, 4096  # most; Qwen2.5 has 151,665, of them 22 added ones
ROPE_KEYS, ROPE_NUMBERS = 20, 1024  # most of each in rope_scaling and rope_parameters


@dataclass(frozen=True, slots=True)
class Range:
    """A number from `low` to `high`: an integer, unless `real`. `empty`: null is allowed, too."""

    low: float
    high: float
    real: bool = False
    empty: bool = False

    def problem(self, value: Any) -> str:
        """Why the value is refused; empty if it is accepted."""
        if value is None and self.empty:
            return ""
        kinds = (int, float) if self.real else (int,)
        if isinstance(value, bool) or not isinstance(value, kinds) or not self.low <= value <= self.high:
            kind = "a number" if self.real else "an integer"
            return f"is {short(value)}; allowed: {kind} from {self.low:g} to {self.high:g}"
        return ""


# Keys of config.json that decide the language model's architecture; every other one is ignored.
LANGUAGE = {
    "vocab_size": Range(1, TOKENS),
    "hidden_size": Range(1, 32768),
    "intermediate_size": Range(1, 262144),
    "num_hidden_layers": Range(1, 256),
    "num_attention_heads": Range(1, 512),
    "num_key_value_heads": Range(1, 512),
    "max_position_embeddings": Range(1, 10_000_000),
    "mm_hidden_size": Range(1, 4096),
    "tokenizer_model_max_length": Range(1, 10_000_000, empty=True),
    "sliding_window": Range(1, 10_000_000, empty=True),
    "max_window_layers": Range(0, 10_000),
    "rms_norm_eps": Range(1e-12, 1.0, real=True),
    "rope_theta": Range(1.0, 1e12, real=True),
}
FLAGS = ("tie_word_embeddings", "use_sliding_window")
ROPE = ("rope_scaling", "rope_parameters")
PERCEIVER = {
    "semantic_tokens": Range(0, 1024),
    "depth": Range(1, 64),
    "heads": Range(1, 256),
    "hidden": Range(1, 65536),
}
# Numbers of sam2.yaml: those of these names, and all others.
SAM2 = {
    "image_size": Range(16, 2048),
    "num_pos_feats": Range(1, 512),
    "temperature": Range(1.0, 1e6, real=True),
    "rope_theta": Range(1.0, 1e6, real=True),
}
SAM2_OTHER = Range(-4096.0, 4096.0, real=True)


@contextmanager
def readable() -> Iterator[None]:
    """Around code that reads a model's folders. Raises CheckpointError for what the system refuses."""
    try:
        yield
    except OSError as error:
        advice = (
            "; give this user access, or use another folder" if isinstance(error, PermissionError) else ""
        )
        place = short(Path(str(error.filename)))
        raise CheckpointError(f"cannot read {place}: {error.strerror}{advice}") from error


def check_readable(path: Path) -> None:
    """Raises CheckpointError if the file cannot be opened."""
    with readable(), path.open("rb"):
        pass


@readable()
def check_folder(folder: Path) -> None:
    """Raises CheckpointError if the folder holds anything but readable files, small texts and folders."""
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            continue
        if path.is_symlink() and not path.exists():
            raise CheckpointError(f"{path} is a link to a file that does not exist; download the model again")
        if not path.is_file():
            raise CheckpointError(f"{path} is a pipe, socket or device; a model folder holds files only")
        check_readable(path)
        limit = CONFIG_BYTES if path.name in CONFIGS else TEXT_BYTES
        if path.suffix in (*TEXT_SUFFIXES, ".yaml") and (size := path.stat().st_size) > limit:
            raise CheckpointError(f"{path} has {size} bytes; at most {limit} are allowed")
        if path.suffix == ".npz":
            _check_arrays(path)


def _check_arrays(path: Path) -> None:
    """Raises CheckpointError if an archive of arrays is none, or large once it is unpacked."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(part.file_size for part in archive.infolist())
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} is not an archive of arrays: {short(error)}") from None
    if size > TEXT_BYTES:
        raise CheckpointError(f"{path} has {size} bytes, unpacked; at most {TEXT_BYTES} are allowed")


def check_tokenizer(path: Path) -> None:
    """Raises CheckpointError if tokenizer.json has too many tokens, or ids that no vocabulary has."""
    content = read_json(path)
    try:
        vocabulary, added = content["model"]["vocab"], content.get("added_tokens") or []
        ids = [each["id"] for each in added]
        ids += vocabulary.values() if isinstance(vocabulary, Mapping) else range(len(vocabulary))
    except (AttributeError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a tokenizer: {type(error).__name__}: {short(error)}") from None
    if len(added) > ADDED_TOKENS:
        raise CheckpointError(f"{path} adds {len(added)} tokens; at most {ADDED_TOKENS} are allowed")
    if wrong := next((each for each in ids if Range(0, TOKENS - 1).problem(each)), None):
        raise CheckpointError(f"{path}: a token's id {Range(0, TOKENS - 1).problem(wrong)}")


def read_json(path: Path) -> Any:
    """A JSON file. Raises CheckpointError."""
    check_readable(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise CheckpointError(f"{path} is nested too deeply") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {short(error)}") from None


def language_keys(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The keys of config.json that are architecture. Raises CheckpointError that lists what is wrong."""
    problems = [
        f"{key} {why}"
        for key, range_ in LANGUAGE.items()
        if key in config and (why := range_.problem(config[key]))
    ]
    problems += [
        f"{key} is {short(config[key])}; allowed: true, false"
        for key in FLAGS
        if not isinstance(config.get(key, False), bool)
    ]
    problems += [
        f"{key} is {short(config[key])}; allowed: null, or names with numbers"
        for key in ROPE
        if not _is_rope(config.get(key))
    ]
    if config.get("hidden_act", "silu") not in ACTIVATIONS:
        allowed = ", ".join(ACTIVATIONS)
        problems.append(f"hidden_act is {short(config['hidden_act'])}; allowed: {allowed}")
    if problems:
        raise CheckpointError(f"{path}: {'; '.join(problems)}")
    known = (*LANGUAGE, *FLAGS, *ROPE, "hidden_act", "model_type")
    kept = {key: config[key] for key in known if key in config}
    return kept | {key: float(kept[key]) for key, each in LANGUAGE.items() if each.real and key in kept}


def _is_rope(value: Any) -> bool:
    if value is None:
        return True
    if not isinstance(value, Mapping) or len(value) > ROPE_KEYS:
        return False
    parts = [part for each in value.values() for part in (each if isinstance(each, list) else [each])]
    if len(parts) > ROPE_NUMBERS:
        return False
    return all(isinstance(part, str | bool) or (_is_finite(part) and abs(part) <= 1e12) for part in parts)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def language_parameters(language: Mapping[str, Any]) -> int:
    """How many numbers the language model of these keys has, its head included if it is not tied."""
    hidden, heads = language["hidden_size"], language.get("num_attention_heads", 32)
    key_values = language.get("num_key_value_heads", heads)
    attention = 2 * hidden * hidden + 2 * hidden * hidden * key_values // heads
    layer = attention + 3 * hidden * language.get("intermediate_size", 22016)
    tables = 1 if language.get("tie_word_embeddings") else 2
    return int(language["num_hidden_layers"] * layer + tables * language["vocab_size"] * hidden)


def check_perceiver(values: Any) -> None:
    """Raises CheckpointError for a size of `mm_perceiver` that is out of range."""
    if not isinstance(values, Mapping):
        raise CheckpointError(f"config.json, mm_perceiver: it is {short(values)}; allowed: names with values")
    for key, range_ in PERCEIVER.items():
        if key in values and (why := range_.problem(values[key])):
            raise CheckpointError(f"config.json, mm_perceiver: {key} {why}")
    for key in ("crop_small_regions", "closer_look"):
        if not isinstance(values.get(key, False), bool):
            raise CheckpointError(
                f"config.json, mm_perceiver: {key} is {short(values[key])}; allowed: true or false"
            )


def check_yaml(path: Path) -> None:
    """Raises CheckpointError if the file is large, or its aliases make it so."""
    what = f"{path} is not a SAM 2 configuration"
    if not path.is_file() or path.stat().st_size > CONFIG_BYTES:
        raise CheckpointError(f"{what}: it must be a file of at most {CONFIG_BYTES} bytes")
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        parts = _expanded(root, {})
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise CheckpointError(f"{what}: {short(error)}") from None
    if parts > YAML_PARTS:
        raise CheckpointError(f"{what}: it has more than {YAML_PARTS} parts, its aliases written out")


def _expanded(node: Any, known: dict[int, int]) -> int:
    """How many parts a composed YAML node has without aliases. One that contains itself has too many."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in known:
        known[id(node)] = YAML_PARTS  # while it is not known, so that one in itself is too large
        children = [part for each in node.value for part in (each if isinstance(each, tuple) else (each,))]
        known[id(node)] = 1 + sum(_expanded(child, known) for child in children)
    return known[id(node)]


def check_sam2(config: Any, path: Path) -> None:
    """Raises CheckpointError if a number of SAM 2's configuration is out of range."""
    for key, value in _numbers(config, ""):
        if why := SAM2.get(key, SAM2_OTHER).problem(value):
            raise CheckpointError(f"{path}: {key} {why}")


def _numbers(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Every number below a node, and strings where a number is needed, with the nearest name."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from _numbers(value, str(name))
    elif isinstance(node, list):
        for value in node:
            yield from _numbers(value, key)
    elif key in SAM2 or (isinstance(node, int | float) and not isinstance(node, bool)):
        yield key, node


def short(value: Any) -> str:
    """The value as text, at most a line."""
    text = " ".join(str(value).split()) if isinstance(value, Exception | Path) else repr(value)
    return text if len(text) <= 100 else f"{text[:100]}…"
