"""A killed training run leaves checkpoints that are complete: twenty kills at random moments."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pam_ros.training.checkpoints import KEPT, Checkpoints, replace_folder

# Writes checkpoints as fast as it can, from the step after the newest on; each has three files that name it.
WRITER = """
import sys
from pathlib import Path
from pam_ros.training.checkpoints import Checkpoints

checkpoints = Checkpoints(Path(sys.argv[1]))
step = max([int(each.name[5:]) for each in checkpoints.found()], default=0)
print("up", flush=True)
while True:
    step += 1
    folder = checkpoints.begin()
    (folder / "model").mkdir()
    for name in ("model/weights", "optimiser", "progress"):
        (folder / name).write_bytes(step.to_bytes(8, "little") * 40_000)
    checkpoints.finish(step)
"""


def check(folder: Path) -> int:
    """Every checkpoint is complete; the newest one's step."""
    steps = []
    for each in Checkpoints(folder).found():
        step = int(each.name.removeprefix("step_"))
        for name in ("model/weights", "optimiser", "progress"):
            assert (each / name).read_bytes() == step.to_bytes(8, "little") * 40_000, (each, name)
        steps.append(step)
    return max(steps, default=0)


def test_twenty_kills_leave_complete_checkpoints(tmp_path: Path) -> None:
    moments, newest, kept = random.Random(0), 0, []
    for _ in range(20):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None and process.stdout.readline() == b"up\n"
            time.sleep(moments.uniform(0.0, 0.3))
            process.kill()
        before, newest = newest, check(tmp_path)
        assert newest >= before
        kept.append(len(Checkpoints(tmp_path).found()))
    assert newest > 20  # most were killed in the middle of one
    assert max(kept) <= KEPT + 1  # the third is removed after the new one is there
    assert kept.count(KEPT) >= 10


def test_only_the_last_two_are_kept_and_remains_are_removed(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    (tmp_path / "removed_step_00000001").mkdir()
    for step in (10, 20, 30):
        (checkpoints.begin() / "file").write_text(str(step))
        checkpoints.finish(step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000020", "step_00000030"]
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "half").touch()
    assert list(checkpoints.begin().iterdir()) == []
    checkpoints.finish(30)  # the same step once more
    assert [path.name for path in checkpoints.found()] == ["step_00000030", "step_00000020"]


def test_checkpoints_of_an_earlier_run_are_not_resumed(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (4000, 5000, 100):  # the last one in a new run
        (checkpoints.begin() / "file").write_text(str(step))
        checkpoints.finish(step)
    assert [path.name for path in checkpoints.found()] == ["step_00000100"]


def test_a_checkpoint_of_the_same_step_goes_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (10, 20):
        (checkpoints.begin() / "file").write_text(str(step))
        checkpoints.finish(step)
    remove = shutil.rmtree

    def half(folder: Path, **options: bool) -> None:
        if (folder / "file").exists() and folder.name != "unfinished":
            (folder / "file").unlink()
            raise KeyboardInterrupt
        remove(folder, **options)

    (checkpoints.begin() / "file").write_text("20")
    monkeypatch.setattr(shutil, "rmtree", half)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.finish(20)
    assert [(path / "file").read_text() for path in checkpoints.found()] == ["10"]
    monkeypatch.undo()
    (checkpoints.begin() / "file").write_text("20")
    checkpoints.finish(20)
    assert [(path / "file").read_text() for path in checkpoints.found()] == ["20", "10"]


def test_a_copy_beside_the_checkpoints_is_none(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.begin()
    checkpoints.finish(10)
    (tmp_path / "step_00000010.bak").mkdir()
    assert [path.name for path in checkpoints.found()] == ["step_00000010"]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"times": len(list(tmp_path.iterdir()))}))

    for _ in range(2):
        replace_folder(tmp_path / "model", write)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert json.loads((tmp_path / "model" / "config.json").read_text()) == {"times": 2}  # beside the old one
