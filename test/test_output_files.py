"""What is written can be read, whatever ends the process: a kill at any moment, or a full disk."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pam_ros import media, videos
from pam_ros.errors import OutputError
from pam_ros.output_files import JsonLines

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
