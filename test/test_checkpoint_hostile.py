"""Model folders from a stranger: each is refused in one sentence, quickly, and without using memory."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from tiny_models import LANGUAGE, official_tensors, sam2_tiny, tiny_pam, write_official
from torch import Tensor

from pam_ros.errors import CheckpointError
from pam_ros.model.loading.checkpoint import load_model, read_config
from pam_ros.model.loading.options import LoadOptions
from pam_ros.model.pam import language_arguments

MOST_S = 5
MOST_KIB = 1 << 20  # resident memory of a process that refuses all of them, KiB
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
DEEP = "[" * 200_000 + "]" * 200_000


def config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / "config.json").write_text(json.dumps(LANGUAGE | changes), encoding="utf-8")

    return change


def text(name: str, content: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(content, encoding="utf-8") and None


def sam2(**changes: Any) -> Callable[[Path], None]:
    return text("sam2.yaml", yaml.safe_dump({"model": sam2_tiny() | changes}))


def pipe(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return change


def weight(name: str, change_tensor: Callable[[Tensor], Tensor]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tensors = official_tensors(tiny_pam("files."))
        tensors[name] = change_tensor(tensors[name])
        save_file(tensors, folder / "model.safetensors")

    return change


def empty_vocabulary(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    content["model"]["vocab"], content["model"]["merges"], content["added_tokens"] = {}, [], []
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")


def tokenizer(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        change(content)
        (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")

    return write


def added_tokens(count: int) -> list[dict[str, Any]]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return [{"id": number, "content": f"<{number}>", **flags} for number in range(count)]


def array_bomb(name: str) -> Callable[[Path], None]:
    """64 KiB that unpack to 65 MiB."""

    def write(folder: Path) -> None:
        with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("mean.npy", bytes(65 << 20))

    return write


def calibration(tokens: int, features: int, value: float) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        curves = {"label": {"bias": 0.0, "odds": 1.0}}
        content = {"curves": curves, "min_confidence": 0.5, "semantic_tokens": tokens}
        (folder / "confidence.json").write_text(json.dumps(content), encoding="utf-8")
        mean = np.full(features, value, np.float32)
        np.savez(folder / "familiarity.npz", mean=mean, linear=mean, rest=mean[0], directions=mean[None])

    return write


def sparse(name: str, size: int) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).touch()
        os.truncate(folder / name, size)

    return write


def nan(tensor: Tensor) -> Tensor:
    changed = tensor.clone()
    changed.view(-1)[3] = float("nan")
    return changed


NORM = "model.layers.0.input_layernorm.weight"
CASES: dict[str, tuple[Callable[[Path], None], str]] = {
    "deep config": (text("config.json", '{"a": ' + DEEP + "}"), "nested too deeply"),
    "deep tokenizer": (text("tokenizer.json", DEEP), "nested too deeply"),
    "deep yaml": (text("sam2.yaml", "model: " + DEEP), "is not a SAM 2 configuration"),
    "yaml alias bomb": (text("sam2.yaml", BOMB + "model: *i\n"), "aliases written out"),
    "yaml that holds itself": (text("sam2.yaml", "model: &m [*m]\n"), "is not a SAM 2 configuration"),
    "list for a number": (config(hidden_size=[32]), "hidden_size is [32]"),
    "true for a number": (config(num_hidden_layers=True), "num_hidden_layers is True"),
    "code in yaml": (text("sam2.yaml", "model: !!python/name:os.system\n"), "is not a SAM 2 configuration"),
    "NaN for a number": (config(rms_norm_eps=float("nan")), "rms_norm_eps is nan"),
    "text for a flag": (config(tie_word_embeddings="no"), "tie_word_embeddings is 'no'"),
    "unknown activation": (config(hidden_act="os.system"), "hidden_act is 'os.system'"),
    "code in rope": (config(rope_scaling={"type": ["dynamic", {"a": 1}]}), "rope_scaling is"),
    "text for mm_perceiver": (config(mm_perceiver="big"), "mm_perceiver"),
    "absurd width": (config(hidden_size=10**12), "allowed: an integer from 1 to 32768"),
    "absurd depth": (config(num_hidden_layers=10**9), "allowed: an integer from 1 to 256"),
    "more than the files hold": (
        config(hidden_size=16384, num_hidden_layers=256, intermediate_size=262144),
        "M parameters, the files hold 0 M",
    ),
    "absurd picture": (sam2(image_size=10**9), "image_size is 1000000000"),
    "absurd module": (sam2(num_maskmem=10**9), "num_maskmem is 1000000000"),
    "large config": (sparse("config.json", 2 << 20), "has 2097152 bytes"),
    "large tokenizer": (sparse("tokenizer.json", 100 << 20), "has 104857600 bytes"),
    "absurd header": (
        lambda folder: (folder / "model.safetensors").write_bytes((1 << 60).to_bytes(8, "little")) and None,
        "may be truncated",
    ),
    "config is a pipe": (pipe("config.json"), "config.json is a pipe"),
    "tokenizer is a pipe": (pipe("tokenizer_config.json"), "tokenizer_config.json is a pipe"),
    "weights are a pipe": (pipe("model.safetensors"), "model.safetensors is a pipe"),
    "SAM 2 is a pipe": (pipe("sam2.1_tiny.pt"), "sam2.1_tiny.pt is a pipe"),
    "NaN weights": (weight(NORM, nan), f"1 with values that are not finite: {NORM}"),
    "infinite weights": (weight(NORM, lambda tensor: tensor / 0), "values that are not finite"),
    "a number for the embedding": (
        weight("model.embed_tokens.weight", lambda tensor: torch.tensor(1.0)),
        "model.embed_tokens.weight is (), expected",
    ),
    "very many added tokens": (
        tokenizer(lambda content: content.update(added_tokens=added_tokens(5000))),
        "adds 5000 tokens",
    ),
    "an id beyond all": (
        tokenizer(lambda content: content["model"]["vocab"].update(zzz=1 << 31)),
        "a token's id is 2147483648",
    ),
    "an id beyond the vocabulary": (
        tokenizer(lambda content: content["model"]["vocab"].update(zzz=900_000)),
        "has a token with id 900000",
    ),
    "a list for the tokenizer": (text("tokenizer.json", "[]"), "is not a tokenizer"),
    "zero for epsilon": (config(rms_norm_eps=0), "rms_norm_eps is 0"),
    "arrays that grow": (array_bomb("familiarity.npz"), "bytes, unpacked"),
    "purposes that grow": (array_bomb("purposes.npz"), "bytes, unpacked"),
    "no arrays": (text("purposes.npz", "PK"), "is not an archive of arrays"),
    "negative tokens of a calibration": (calibration(-9, 4, 1.0), "are not a calibration"),
    "NaN in a calibration": (calibration(4, 4, float("nan")), "are not a calibration"),
    "another model's calibration": (calibration(4, 6, 1.0), "has the calibration of another model"),
    "very many names": (sparse("names.json", 2 << 20), "has 2097152 bytes"),
    "empty vocabulary": (empty_vocabulary, "the tokenizer"),
    "empty weights": (lambda folder: save_file({}, folder / "model.safetensors"), "missing"),
}


def refuse_all(root: Path) -> dict[str, str]:
    """Name → what the refusal says, of every folder under `root`."""
    said = {}
    for name in CASES:
        signal.setitimer(signal.ITIMER_PROF, MOST_S)  # of computing; then it ends the process
        try:
            load_model(LoadOptions(str(root / name), device="cpu"))
            said[name] = "loaded"
        except CheckpointError as error:
            said[name] = str(error)
        signal.setitimer(signal.ITIMER_PROF, 0)
    return said


@pytest.mark.timeout(300)
def test_hostile_folders_are_refused_within_five_seconds_and_a_gibibyte(tmp_path: Path) -> None:
    tensors = official_tensors(tiny_pam("files."))
    for name, (change, _) in CASES.items():
        (tmp_path / name).mkdir()
        write_official(tmp_path / name, tensors)
        change(tmp_path / name)
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)], capture_output=True, text=True, check=False, timeout=250
    )
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    said, peak_kib = json.loads(done.stdout.splitlines()[-1])
    wrong = {name: said[name] for name, (_, words) in CASES.items() if words not in said[name]}
    assert not wrong
    assert all(str(tmp_path / name) in said[name] or "mm_perceiver" in name for name in CASES)
    assert all(len(line) < 400 and "\n" not in line for name, line in said.items() if name != "empty weights")
    assert peak_kib < MOST_KIB


def test_a_refusal_does_not_pass_on_the_advice_to_run_code(tmp_path: Path) -> None:
    write_official(tmp_path, official_tensors(tiny_pam("files.")))
    torch.save({"model": Path("/")}, tmp_path / "sam2.1_tiny.pt")
    with pytest.raises(CheckpointError, match="holds more than tensors") as caught:
        load_model(LoadOptions(str(tmp_path), device="cpu"))
    assert "weights_only" not in str(caught.value)


def test_keys_that_are_not_architecture_are_ignored(tmp_path: Path) -> None:
    stranger = {
        "attn_implementation": "flash_attention_2",
        "_attn_implementation": "eager",
        "auto_map": {"AutoConfig": "evil.Config"},
        "quantization_config": {"load_in_4bit": True},
        "torch_dtype": "float64",
        "_name_or_path": "/etc/passwd",
        "output_attentions": True,
    }
    config(**stranger)(tmp_path)
    kept = read_config(tmp_path)
    assert not kept.keys() & stranger.keys()
    assert kept.keys() <= LANGUAGE.keys()
    assert language_arguments(kept | stranger)["attn_implementation"] == "sdpa"


if __name__ == "__main__":
    results = refuse_all(Path(sys.argv[1]))
    # Not getrusage: its peak includes that of the process that started this one.
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    sys.stdout.write(json.dumps([results, int(peak)]) + "\n")
