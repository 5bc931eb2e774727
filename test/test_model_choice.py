"""`model: auto` takes the best model on this disk that fits, says why, and never loads damaged files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from tiny_models import official_tensors, tiny_pam, write_official

from pam_ros.errors import CheckpointError, MemoryLimitError
from pam_ros.model.loading import device
from pam_ros.model.loading.checkpoint import load_model
from pam_ros.model.loading.checksums import RECORD, Expected, Record
from pam_ros.model.loading.choice import choose_model
from pam_ros.model.loading.options import LoadOptions

CPU = torch.device("cpu")


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of fetched models, an empty cache of the hub, and 100 GiB of free memory."""

    def nothing(hub_id: str, **options: Any) -> str:
        raise LocalEntryNotFoundError("not cached")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", nothing)
    monkeypatch.setenv("PAM_MODELS", str(tmp_path))
    monkeypatch.setattr(device, "free_gib", lambda _: 100.0)
    return tmp_path


def put(models: Path, name: str) -> Path:
    """A tiny model in the official layout, recorded as `pam fetch` does."""
    folder = models / name
    write_official(folder / name, official_tensors(tiny_pam("files.")))
    files = {
        path.relative_to(folder).as_posix(): Expected(
            path.stat().st_size, sha256=hashlib.sha256(path.read_bytes()).hexdigest()
        )
        for path in folder.rglob("*")
        if path.is_file()
    }
    Record(f"Perceive-Anything/{name}", "1" * 40, files).write(folder)
    return folder


def chosen() -> tuple[str, str]:
    """The choice, and what was said about it."""
    lines: list[str] = []
    return choose_model(LoadOptions(), CPU, torch.float32, lines.append), " ".join(lines)


def test_the_bundled_model_says_that_it_is_a_demonstration(models: Path) -> None:
    name, said = chosen()
    assert name == "pam-tiny"
    assert "pam-3b is not on this disk; pam-1.5b is not on this disk; pam-tiny needs 0.3 GiB" in said
    assert "demonstration model" in said
    assert "pam fetch pam-1.5b" in said


def test_the_best_model_on_the_disk_is_loaded(models: Path) -> None:
    put(models, "PAM-1.5B")
    name, said = chosen()
    assert name == "pam-1.5b"
    assert "pam-3b is not on this disk; pam-1.5b needs 2.4 GiB on cpu and fits" in said
    assert "use a GPU" in said
    put(models, "PAM-3B")
    assert chosen()[0] == "pam-3b"
    notes: list[str] = []
    steps: list[str] = []
    pam = load_model(LoadOptions("auto", device="cpu"), progress=steps.append, note=notes.append)
    assert pam.info.name == "pam-3b"
    assert notes[0].startswith("model auto selects pam-3b: ")
    assert steps[0].startswith("verifying the checksums of ")


def test_a_model_that_does_not_fit_is_passed_over(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(models, "PAM-3B")
    monkeypatch.setattr(device, "free_gib", lambda _: 2.0)
    name, said = chosen()
    assert name == "pam-tiny"
    assert "pam-3b needs 2.60 GiB on cpu but only 2.00 GiB are free; pam-1.5b is not" in said
    monkeypatch.setattr(device, "free_gib", lambda _: 0.01)
    with pytest.raises(MemoryLimitError, match="pam-tiny needs"):
        chosen()


def test_an_unfinished_model_is_passed_over(models: Path) -> None:
    folder = put(models, "PAM-3B")
    (folder / "PAM-3B" / "model.safetensors").unlink()
    name, said = chosen()
    assert name == "pam-tiny"
    assert "pam-3b cannot be used" in said
    assert "1 of 6 files are missing (PAM-3B/model.safetensors)" in said


def test_changed_weights_are_not_loaded(models: Path) -> None:
    path = put(models, "PAM-3B") / "PAM-3B" / "model.safetensors"
    load_model(LoadOptions("pam-3b", device="cpu"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    for name in ("pam-3b", "auto", str(models / "PAM-3B")):
        with pytest.raises(CheckpointError, match=r"model\.safetensors has checksum"):
            load_model(LoadOptions(name, device="cpu"))


def test_sam2_is_verified_by_its_known_checksum(models: Path) -> None:
    folder = put(models, "PAM-3B")
    (models / "sam2.1-hiera-large").mkdir()
    file = models / "sam2.1-hiera-large" / "sam2.1_hiera_large.pt"
    (folder / "PAM-3B" / "sam2.1_tiny.pt").rename(file)
    record = json.loads((folder / RECORD).read_text())
    del record["files"]["PAM-3B/sam2.1_tiny.pt"]
    (folder / RECORD).write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=r"sam2\.1_hiera_large\.pt has \d+ bytes, expected 898083611"):
        load_model(LoadOptions("pam-3b", device="cpu"))
