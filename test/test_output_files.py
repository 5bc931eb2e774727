"""What is written can be read, whatever ends the process: a kill at any moment, or a full disk."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pam_ros import media, videos
from pam_ros.errors import OutputError
from pam_ros.output_files import JsonLines, keep_inputs, remove, result_folder, writable_file, write_text

WRITE_FILM = """
import sys, os, signal
from pathlib import Path
import numpy as np
from pam_ros import media

film = media.VideoWriter(Path(sys.argv[1]))
for k in range(int(sys.argv[2])):
    film.write(np.random.default_rng(k).integers(0, 255, (96, 128, 3), dtype=np.uint8), k * 100_000_000)
os.kill(os.getpid(), signal.SIGKILL)
"""
LIMIT_BYTES = 20_000  # of a file: writing more fails as on a full disk


@pytest.fixture
def small_disk() -> None:
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT_BYTES, old[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, old)


@pytest.mark.parametrize("count", [2, 9, 31])
def test_a_film_plays_after_a_kill(tmp_path: Path, count: int) -> None:
    path = tmp_path / "film.mp4"
    done = subprocess.run([sys.executable, "-c", WRITE_FILM, str(path), str(count)], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    stamps = [frame.stamp_ns for frame in videos.read_video(path)]
    assert stamps == [k * 100_000_000 for k in range(count - 1)]  # the newest one is still open


def write_film(film: media.VideoWriter) -> None:
    noise = np.random.default_rng(0)
    for k in range(100):
        film.write(noise.integers(0, 255, (96, 128, 3), dtype=np.uint8), k * 100_000_000)


def write_lines(lines: JsonLines) -> None:
    for k in range(1000):
        lines.write({"number": k, "text": "水壶" * 20})


@pytest.mark.usefixtures("small_disk")
def test_a_film_plays_up_to_where_the_disk_was_full(tmp_path: Path) -> None:
    film = media.VideoWriter(tmp_path / "film.mp4")
    with pytest.raises(OutputError, match=r"cannot write .*film\.mp4: File too large; what was written"):
        write_film(film)
    film.close()
    assert len(list(videos.read_video(tmp_path / "film.mp4"))) >= 1


@pytest.mark.usefixtures("small_disk")
def test_lines_are_whole_where_the_disk_was_full(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    with JsonLines(path) as lines, pytest.raises(OutputError, match=r"cannot write .*lines\.jsonl: File too"):
        write_lines(lines)
    read = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [line["number"] for line in read] == list(range(len(read)))
    assert len(read) > 50


def test_a_line_is_on_the_disk_when_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    lines = JsonLines(path)
    lines.write({"a": 1})
    assert path.read_text() == '{"a": 1}\n'
    lines.close()


def test_a_file_that_cannot_be_opened_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="Is a directory"):
        JsonLines(tmp_path)
    assert os.listdir(tmp_path) == []


# ---- files that cannot be replaced, and files that must not be


def dangling(path: Path) -> None:
    path.symlink_to("nowhere/x")


def looping(path: Path) -> None:
    path.symlink_to(path.name)


def full(path: Path) -> None:
    path.symlink_to("/dev/full")


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (Path.mkdir, "it is a folder"),
        (dangling, "No such file or directory; a link or a folder on the way leads nowhere"),
        (looping, "Too many levels of symbolic links; remove that link"),
    ],
)
def test_a_file_that_cannot_be_replaced_is_refused_before_the_work(
    tmp_path: Path, place: Callable[[Path], None], words: str
) -> None:
    path = tmp_path / "result.json"
    place(path)
    with pytest.raises(OutputError, match=f"cannot write .*result.json: {words}"):
        result_folder(tmp_path, ["other.json", "result.json"])
    assert os.listdir(tmp_path) == ["result.json"]


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_text(path, "text"),
        lambda path: media.write_image(path, np.zeros((9, 9, 3), np.uint8)),
        lambda path: media.write_mask(path, np.zeros((9, 9), np.bool_)),
    ],
)
def test_a_file_that_fails_later_is_one_sentence(tmp_path: Path, write: Callable[[Path], None]) -> None:
    path = tmp_path / "result.png"
    full(path)
    writable_file(path)  # only writing tells that it is full
    with pytest.raises(OutputError, match=r"cannot write .*result\.png: No space left .* Free some space"):
        write(path)
    remove(path)
    path.mkdir()
    with pytest.raises(OutputError, match=r"cannot remove .*result\.png: Is a directory; remove that folder"):
        remove(path)


def test_a_check_leaves_files_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "old.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("new.txt")
    for name in ("old.txt", "link.txt", "new.txt"):
        writable_file(tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == ["link.txt", "old.txt"]
    assert (tmp_path / "old.txt").read_text() == "old"


def test_no_input_is_replaced(tmp_path: Path) -> None:
    """Whatever names it: a link, a second name, or the folder that it lies in."""
    read, data = tmp_path / "read.png", tmp_path / "data"
    data.mkdir()
    for path in (read, data / "index.jsonl"):
        path.write_text("x")
    (tmp_path / "link.png").symlink_to(read)
    (tmp_path / "second.png").hardlink_to(read)
    inputs = [None, tmp_path / "gone.png", read, data]
    for name in ("read.png", "link.png", "second.png", "data/../read.png"):
        with pytest.raises(OutputError, match=f"{name} is the input .*read.png, which would be lost; choose"):
            keep_inputs([tmp_path / name], inputs)
    with pytest.raises(OutputError, match=r"index\.jsonl would replace a file of the input .*data; choose"):
        keep_inputs([data / "index.jsonl"], inputs)
    keep_inputs([tmp_path / "gone.png", tmp_path / "other.png", data / "new.json"], inputs)


def test_a_name_that_is_no_utf8_is_written_as_an_escape(tmp_path: Path) -> None:
    name = os.fsdecode(b"bad\xff.png")
    write_text(tmp_path / "result.json", json.dumps({"image": name, "text": "水壶"}, ensure_ascii=False))
    with JsonLines(tmp_path / "lines.jsonl") as lines:
        lines.write({"image": name, "text": "水壶"})
    for file in ("result.json", "lines.jsonl"):
        assert json.loads((tmp_path / file).read_bytes().decode()) == {"image": name, "text": "水壶"}
        assert "水壶" in (tmp_path / file).read_text(encoding="utf-8")
