"""Models and homes that this user may not read: one error names the place; `auto` takes another model."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from pam_ros.errors import CheckpointError, ModelNotFoundError
from pam_ros.model.loading import choice
from pam_ros.model.loading.fetch import by_hand, describe
from pam_ros.model.loading.files import find_files, verify_files
from pam_ros.model.loading.options import LoadOptions
from pam_ros.runtime.fonts import find_font, system_fonts
from pam_ros.share import share_folder

OVERRIDES = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH: what lets root read everything


@contextmanager
def permissions_hold() -> Iterator[None]:
    """For root, too."""
    libc = ctypes.CDLL(None)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this thread
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice
    assert libc.capget(header, sets) == 0
    before = sets[0]
    sets[0] &= ~OVERRIDES
    assert libc.capset(header, sets) == 0
    try:
        yield
    finally:
        sets[0] = before
        assert libc.capset(header, sets) == 0


@pytest.fixture
def locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that nobody may enter; an empty cache of the hub."""

    def nothing(hub_id: str, **options: object) -> str:
        raise LocalEntryNotFoundError("not cached")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", nothing)
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o000)
    with permissions_hold():
        yield folder
    folder.chmod(0o700)


def tiny(folder: Path) -> Path:
    """A folder with links to the files of pam-tiny, of which a test may replace some."""
    folder.mkdir()
    for path in find_files("pam-tiny", None).folder.iterdir():
        (folder / path.name).symlink_to(path)
    return folder


@pytest.mark.parametrize("place", ["", "model"])
def test_a_locked_folder_is_named(locked: Path, place: str) -> None:
    with pytest.raises(CheckpointError, match=rf"cannot read {locked / place}: Permission denied; give"):
        find_files(str(locked / place), None)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "purposes.npz"])
def test_a_locked_file_is_named(locked: Path, tmp_path: Path, name: str) -> None:
    folder = tiny(tmp_path / "model")
    (folder / name).unlink()
    (folder / name).touch(mode=0o000)
    with pytest.raises(CheckpointError, match=f"cannot read {folder / name}: Permission denied"):
        find_files(str(folder), None)


def test_locked_weights_of_sam2_are_named(locked: Path, tmp_path: Path) -> None:
    folder, weights = tiny(tmp_path / "model"), tmp_path / "sam2.pt"
    weights.touch(mode=0o000)
    for given in (weights, locked / "sam2.pt"):
        with pytest.raises(CheckpointError, match=f"cannot read {given}: Permission denied"):
            find_files(str(folder), given)


def test_locked_files_are_not_verified(tmp_path: Path) -> None:
    files = find_files(str(tiny(tmp_path / "model")), None)
    files.root.chmod(0o000)
    with permissions_hold(), pytest.raises(CheckpointError, match=f"cannot read {files.root}"):
        verify_files(files, print)
    files.root.chmod(0o700)


def test_auto_passes_over_a_locked_place(locked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setenv("PAM_MODELS", str(locked))
    said: list[str] = []
    assert choice.choose_model(LoadOptions(), torch.device("cpu"), torch.float32, said.append) == "pam-tiny"
    assert f"pam-3b cannot be used: cannot read {locked}/PAM-3B: Permission denied" in said[0]
    with pytest.raises(CheckpointError, match=f"cannot read {locked}"):
        list(by_hand(describe("pam-3b")))


def test_doctor_asks_for_access_to_a_locked_place(locked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pam_ros.model.loading.diagnosis import model_findings

    monkeypatch.setenv("PAM_MODELS", str(locked))
    found = {finding.name: finding for finding in model_findings()}
    assert found["pam-3b"].fix == (
        f"give this user access to {locked}/PAM-3B, or set PAM_MODELS to another folder"
    )


def test_a_user_without_a_home_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAM_MODELS", "~nouser/models")
    with pytest.raises(CheckpointError, match="~nouser/models: no such home folder; set HOME, or PAM_MODELS"):
        find_files("pam-3b", None)


@pytest.mark.parametrize("name", ["m" * 300, "m/" * 3000, "~nouser/x", "a\0b"])
def test_a_name_that_no_file_can_have_is_unknown(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match=r"unknown model .*; give auto, one of") as caught:
        find_files(name, None)
    assert len(str(caught.value)) < 300


def test_fonts_of_a_locked_home_are_passed_over(locked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(locked))
    assert all(os.access(path, os.R_OK) for path in system_fonts.__wrapped__())
    for place in (locked / "font.ttf", "~nouser/font.ttf"):
        with pytest.raises(ValueError, match="there is no regular file of this name"):
            find_font(str(place), 12)


def test_bundled_files_are_readable(locked: Path) -> None:
    """The permissions of the tests themselves are no reason for the errors above."""
    assert os.access(share_folder("models", "*.yaml"), os.R_OK)
    assert find_files("pam-tiny", None).name == "pam-tiny"
