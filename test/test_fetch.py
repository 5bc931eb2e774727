"""`pam fetch` against a local server with the hub's API: sizes, licence, resume, pinned commit, checksums."""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import hub_server
import huggingface_hub
import pytest
import yaml
from hub_server import Hub, Repository, serving

from pam_ros.cli.main import main
from pam_ros.errors import CheckpointError, ModelNotFoundError
from pam_ros.model import descriptions
from pam_ros.model.loading.checksums import RECORD, VERIFIED, Expected, Record, verify
from pam_ros.model.loading.files import find_files, verify_files
from pam_ros.share import share_folder

FIRST, SECOND = "1" * 40, "2" * 40
WEIGHTS = bytes(range(256)) * 400  # 102,400 bytes
SAM2 = b"sam2" * 5000
FILES = {
    "README.md": b"a card",
    "LICENSE": b"the licence",
    "PAM-3B/config.json": b"{}",
    "PAM-3B/tokenizer.json": b"{ }",
    "PAM-3B/picture.png": b"not wanted",
    "PAM-3B/model-00001-of-00002.safetensors": WEIGHTS,
    "PAM-3B/model-00002-of-00002.safetensors": WEIGHTS[::-1],
}
SHARD = "PAM-3B/model-00001-of-00002.safetensors"
FETCHED = sorted(name for name in FILES if name not in ("README.md", "PAM-3B/picture.png"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with PAM-3B and a small file instead of SAM 2's weights; fetched models go to tmp_path/models."""
    source = share_folder("models", "*.yaml")
    described = tmp_path / "described"
    described.mkdir()
    (described / "pam-tiny").symlink_to(source / "pam-tiny")
    for path in source.glob("*.yaml"):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if "sam2" in content:
            content["sam2"] |= {"bytes": len(SAM2), "sha256": hashlib.sha256(SAM2).hexdigest()}
        (described / path.name).write_text(yaml.safe_dump(content), encoding="utf-8")
    monkeypatch.setattr(descriptions, "share_folder", lambda *names: described)
    monkeypatch.setenv("PAM_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("COLUMNS", "200")
    with serving() as hub:
        hub.repositories = {
            "Perceive-Anything/PAM-3B": Repository({FIRST: FILES}, FIRST),
            "facebook/sam2.1-hiera-large": Repository({SECOND: {"sam2.1_hiera_large.pt": SAM2}}, SECOND),
        }
        constants = importlib.import_module("huggingface_hub.constants")
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        yield hub


class Pam:
    """Runs `pam` in this process; `said` is what it printed, on one line."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys
        self.said = ""

    def __call__(self, *arguments: str) -> int:
        self._monkeypatch.setattr(sys, "argv", ["pam", *arguments])
        self._monkeypatch.setattr(sys, "stdin", io.StringIO())
        with pytest.raises(SystemExit) as ended:
            main()
        printed = self._capsys.readouterr()
        self.said = " ".join((printed.out + printed.err).split())
        return int(ended.value.code or 0)


@pytest.fixture
def pam(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Pam:
    return Pam(monkeypatch, capsys)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "models" / "PAM-3B"


def test_the_licence_and_the_sizes_come_before_the_download(hub: Hub, pam: Pam, folder: Path):
    assert pam("fetch", "pam-3b") == 2
    assert "Qwen RESEARCH" in pam.said
    assert "no commercial use" in pam.said
    assert "102.4 kB" in pam.said
    assert f"PAM-3B at {FIRST}: 204.8 kB to download to {folder}" in pam.said
    assert "nothing was downloaded: agree to the licence terms above with --accept-licence" in pam.said
    assert hub.ranges == []
    assert not folder.exists()


def test_a_fetched_model_is_complete_recorded_and_found(hub: Hub, pam: Pam, folder: Path):
    assert pam("fetch", "pam-3b", "--accept-licence") == 0, pam.said
    fetched = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (RECORD, VERIFIED)
    )
    assert fetched == FETCHED
    assert all((folder / name).read_bytes() == FILES[name] for name in FETCHED)
    record = Record.read(folder)
    assert record is not None
    assert (record.hub_id, record.revision) == ("Perceive-Anything/PAM-3B", FIRST)
    assert record.files[SHARD] == Expected(len(WEIGHTS), sha256=hashlib.sha256(WEIGHTS).hexdigest())
    assert record.files["PAM-3B/config.json"].git_sha1 == "9e26dfeeb6e641a33dae4961196235bdb965b21b"  # git's
    files = find_files("pam-3b", None)
    assert [path.name for path in files.weights] == [Path(name).name for name in FETCHED[-3:-1]]
    assert files.sam2_weights == folder.parent / "sam2.1-hiera-large" / "sam2.1_hiera_large.pt"

    asked = len(hub.ranges)
    assert pam("fetch", "pam-3b", "--accept-licence") == 0
    assert f"PAM-3B at {FIRST}: 0 bytes to download" in pam.said
    assert len(hub.ranges) == asked


def test_a_stopped_download_goes_on_where_it_stopped(
    hub: Hub, pam: Pam, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    hub.stop_after[SHARD] = 40_000
    assert pam("fetch", "pam-3b", "--accept-licence") == 2
    assert f"the download of {SHARD} stopped at 40.0 kB of 102.4 kB" in pam.said
    with pytest.raises(CheckpointError, match=r"incomplete: 3 of 5 files are missing .*run pam fetch again"):
        find_files("pam-3b", None)
    assert pam("models") == 0
    assert "incomplete" in pam.said
    hub.stop_after.clear()
    hub.ranges.clear()
    assert pam("fetch", "pam-3b", "--accept-licence") == 0, pam.said
    assert "164.8 kB to download" in pam.said
    assert hub.ranges[0] == (SHARD, 40_000)
    assert (folder / SHARD).read_bytes() == WEIGHTS
    assert list(folder.rglob("*.part")) == []


def test_a_file_with_other_contents_is_refused_and_fetched_again(hub: Hub, pam: Pam, folder: Path):
    hub.wrong[SHARD] = bytes(len(WEIGHTS))
    assert pam("fetch", "pam-3b", "--accept-licence") == 2
    assert f"{SHARD} has checksum" in pam.said
    assert hashlib.sha256(WEIGHTS).hexdigest() in pam.said
    hub.wrong.clear()
    assert pam("fetch", "pam-3b", "--accept-licence") == 0, pam.said
    assert (folder / SHARD).read_bytes() == WEIGHTS


def test_a_fetched_model_stays_at_its_commit(hub: Hub, pam: Pam, folder: Path):
    assert pam("fetch", "pam-3b", "--accept-licence") == 0
    repository = hub.repositories["Perceive-Anything/PAM-3B"]
    repository.commits[SECOND] = FILES | {"PAM-3B/config.json": b"{'new': 1}"}
    repository.main = SECOND
    assert pam("fetch", "pam-3b", "--accept-licence") == 0
    assert f"at {FIRST}" in pam.said
    assert (folder / "PAM-3B/config.json").read_bytes() == b"{}"
    assert pam("fetch", "pam-3b", "--accept-licence", "--revision", "main") == 0, pam.said
    assert f"at {SECOND}" in pam.said
    assert (folder / "PAM-3B/config.json").read_bytes() == b"{'new': 1}"
    assert pam("fetch", "pam-3b", "--revision", "v9") == 2
    assert "the hub has no Perceive-Anything/PAM-3B at revision v9" in pam.said


@pytest.mark.parametrize("state", ["kept", "gone", "without checksums"])
def test_files_of_another_commit_are_replaced_although_their_sizes_are_equal(
    hub: Hub, pam: Pam, folder: Path, state: str
):
    assert pam("fetch", "pam-3b", "--accept-licence") == 0
    if state == "gone":
        (folder / VERIFIED).unlink()
    elif state == "without checksums":
        stats = {name: (folder / name).stat() for name in FETCHED}
        old = {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}
        (folder / VERIFIED).write_text(json.dumps(old), encoding="utf-8")
    changed = {SHARD: WEIGHTS[1:] + WEIGHTS[:1], "PAM-3B/config.json": b"[]"}
    repository = hub.repositories["Perceive-Anything/PAM-3B"]
    repository.commits[SECOND] = FILES | changed
    hub.ranges.clear()
    assert pam("fetch", "pam-3b", "--accept-licence", "--revision", SECOND) == 0, pam.said
    assert f"PAM-3B at {SECOND}: 102.4 kB to download" in pam.said
    assert sorted(hub.ranges) == [(name, 0) for name in sorted(changed)]
    assert all((folder / name).read_bytes() == (FILES | changed)[name] for name in FETCHED)


def test_shards_of_the_commit_before_do_not_stay_beside_those_of_the_new_one(
    hub: Hub, pam: Pam, folder: Path
):
    assert pam("fetch", "pam-3b", "--accept-licence") == 0
    (folder / "PAM-3B" / "mine.txt").touch()
    shard = "PAM-3B/model-0000{}-of-00003.safetensors"
    repository = hub.repositories["Perceive-Anything/PAM-3B"]
    other = {name: content for name, content in FILES.items() if "model-" not in name}
    repository.commits[SECOND] = other | {shard.format(i): WEIGHTS[i:] for i in (1, 2, 3)}
    assert pam("fetch", "pam-3b", "--accept-licence", "--revision", SECOND) == 0, pam.said
    found = [path.name for path in find_files("pam-3b", None).weights]
    assert found == [Path(shard.format(i)).name for i in (1, 2, 3)]
    assert (folder / "PAM-3B" / "mine.txt").is_file()


def test_a_file_without_a_checksum_is_not_downloaded(
    hub: Hub, pam: Pam, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    known = hub_server.sibling
    monkeypatch.setattr(hub_server, "sibling", lambda path, content: known(path, content) | {"blobId": None})
    assert pam("fetch", "pam-3b", "--accept-licence") == 2
    assert "the hub states no checksum of Perceive-Anything/PAM-3B/PAM-3B/config.json" in pam.said
    assert hub.ranges == []


def test_a_subfolder_that_is_given_is_verified(hub: Hub, pam: Pam, folder: Path):
    assert pam("fetch", "pam-3b", "--accept-licence") == 0
    files = find_files(str(folder / "PAM-3B"), None)
    verify_files(files, print)
    (folder / SHARD).write_bytes(WEIGHTS[::-1])
    with pytest.raises(CheckpointError, match=r"00001-of-00002\.safetensors has checksum"):
        verify_files(files, print)


def test_no_record_overrules_the_pinned_checksum_of_sam2(hub: Hub, pam: Pam, folder: Path):
    assert pam("fetch", "pam-3b", "--accept-licence") == 0
    files = find_files("pam-3b", None)
    assert files.sam2_weights is not None
    files.sam2_weights.write_bytes(SAM2[::-1])
    other = Expected(len(SAM2), sha256=hashlib.sha256(SAM2[::-1]).hexdigest())
    Record("mine", FIRST, {files.sam2_weights.name: other}).write(files.sam2_weights.parent)
    with pytest.raises(CheckpointError, match=f"expected {hashlib.sha256(SAM2).hexdigest()}"):
        verify_files(files, print)


def test_an_empty_folder_does_not_hide_the_cache_of_the_hub(
    hub: Hub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder.mkdir(parents=True)
    cached = tmp_path / "cached"
    cached.mkdir()
    (cached / "config.json").write_text("{}", encoding="utf-8")
    (cached / "model.safetensors").touch()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda hub_id, **options: str(cached))
    assert find_files("pam-3b", None).root == cached


def test_weights_at_the_top_of_the_repository_are_fetched(hub: Hub, pam: Pam, folder: Path):
    top = {name.removeprefix("PAM-3B/"): content for name, content in FILES.items()}
    hub.repositories["Perceive-Anything/PAM-3B"].commits[FIRST] = top
    assert pam("fetch", "pam-3b", "--accept-licence") == 0, pam.said
    assert len(find_files("pam-3b", None).weights) == 2
    assert not (folder / "README.md").exists()


def test_a_full_disk_is_noticed_before_the_download(
    hub: Hub, pam: Pam, monkeypatch: pytest.MonkeyPatch, folder: Path
):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100_000))
    assert pam("fetch", "pam-3b", "--accept-licence") == 2
    assert "the download needs 224.8 kB" in pam.said
    assert "only 100.0 kB are free" in pam.said
    assert "PAM_MODELS" in pam.said
    assert hub.ranges == []


def test_another_sam2_than_the_pinned_one_is_refused(hub: Hub, pam: Pam):
    hub.repositories["facebook/sam2.1-hiera-large"].commits[SECOND] = {"sam2.1_hiera_large.pt": SAM2[::-1]}
    assert pam("fetch", "pam-3b", "--accept-licence") == 2
    assert "nothing was downloaded" in pam.said
    assert hub.ranges == []


def test_without_the_hub_files_sizes_and_folders_are_listed(
    hub: Hub, pam: Pam, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    for arguments in (["fetch", "pam-3b"], ["fetch", "pam-3b", "--offline"]):
        pam(*arguments)
        assert f"Perceive-Anything/PAM-3B, copy to {folder}/" in pam.said
        assert "about 7.3 GB" in pam.said
        assert f"sam2.1_hiera_large.pt {len(SAM2)} bytes" in pam.said
    for name in FETCHED:  # as a user copies them by hand
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(FILES[name])
    assert len(find_files("pam-3b", None).weights) == 2


def test_checksums_are_read_once_and_again_after_a_change(tmp_path: Path):
    (tmp_path / "a.bin").write_bytes(WEIGHTS)
    files = {"a.bin": Expected(len(WEIGHTS), sha256=hashlib.sha256(WEIGHTS).hexdigest())}
    assert [verify(tmp_path, files) for _ in range(3)] == [1, 0, 0]
    (tmp_path / "a.bin").write_bytes(WEIGHTS[:-1] + b"x")
    with pytest.raises(CheckpointError, match=r"a\.bin has checksum .* delete it and run pam fetch again"):
        verify(tmp_path, files)
    (tmp_path / "a.bin").write_bytes(WEIGHTS[:-1])
    with pytest.raises(CheckpointError, match=r"a\.bin has 102399 bytes, expected 102400"):
        verify(tmp_path, files)


def test_checksums_of_another_commit_prove_nothing(tmp_path: Path):
    (tmp_path / "a.bin").write_bytes(WEIGHTS)
    right, other = (
        {"a.bin": Expected(len(WEIGHTS), sha256=hashlib.sha256(content).hexdigest())}
        for content in (WEIGHTS, WEIGHTS[::-1])
    )
    assert [verify(tmp_path, right) for _ in range(2)] == [1, 0]
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"a\.bin has checksum"):
            verify(tmp_path, other)


def test_a_copy_is_read_although_it_keeps_the_times(tmp_path: Path):
    original, copy = tmp_path / "original", tmp_path / "copy"
    original.mkdir()
    (original / "a.bin").write_bytes(WEIGHTS)
    files = {"a.bin": Expected(len(WEIGHTS), sha256=hashlib.sha256(WEIGHTS).hexdigest())}
    assert verify(original, files) == 1
    time_ns = (original / "a.bin").stat().st_mtime_ns
    shutil.copytree(original, copy)
    (copy / "a.bin").write_bytes(WEIGHTS[:-1] + b"x")  # damaged on the way
    os.utime(copy / "a.bin", ns=(time_ns, time_ns))
    assert (copy / VERIFIED).is_file()
    with pytest.raises(CheckpointError, match=r"a\.bin has checksum"):
        verify(copy, files)


def test_a_record_that_was_not_finished_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    old = Record("a/b", FIRST, {})
    old.write(tmp_path)
    written = Path.write_text

    def half(path: Path, text: str, **options: str) -> int:
        written(path, text[: len(text) // 2], **options)
        raise OSError("the disk is full")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError, match="full"):
        Record("a/b", SECOND, {}).write(tmp_path)
    assert Record.read(tmp_path) == old


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "[" * 99_999,
        '{"hub_id": 1}',
        json.dumps({"files": {"a": {"md5": 1}}}),
        json.dumps({"hub_id": "a/b", "revision": FIRST, "files": {"../b": {}}}),
        json.dumps({"hub_id": "a/b", "revision": FIRST, "files": {"/b": {}}}),
    ],
)
def test_a_damaged_record_is_refused(tmp_path: Path, content: str):
    (tmp_path / RECORD).write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match="cannot be read"):
        Record.read(tmp_path)


def test_a_bundled_and_an_unknown_model(hub: Hub, pam: Pam):
    assert pam("fetch", "pam-tiny") == 0
    assert "bundled" in pam.said
    assert pam("fetch", "pam-huge") == 2
    assert "unknown model 'pam-huge'; available: pam-1.5b, pam-3b, pam-tiny" in pam.said
    with pytest.raises(ModelNotFoundError, match="is not on this disk"):
        find_files("pam-1.5b", None)
