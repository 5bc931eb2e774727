"""Checkpoints of a stage: each is complete or absent, whatever ends the process. No torch."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

KEPT = 2
_NAME, _NAMES = "step_{:08d}", "step_" + "[0-9]" * 8
_UNFINISHED = "unfinished"


class Checkpoints:
    """Folders `step_00000120`, … in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def found(self) -> list[Path]:
        """The checkpoints, the newest first."""
        return sorted(self.folder.glob(_NAMES), reverse=True)

    def begin(self) -> Path:
        """An empty folder to write a checkpoint into; what a killed process left there is removed."""
        unfinished = self.folder / _UNFINISHED
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        return unfinished

    def finish(self, step: int) -> Path:
        """Makes what was written since `begin` the checkpoint of this step; removes all but the last two.

        Those of this step and later ones go first: an earlier run left them, and `--resume` would take them.
        """
        unfinished, final = self.folder / _UNFINISHED, self.folder / _NAME.format(step)
        sync(unfinished)
        for old in self.found():
            if old.name >= final.name:
                self._remove(old)
        unfinished.rename(final)
        _sync_entry(self.folder)
        for old in self.found()[KEPT:]:
            self._remove(old)
        for gone in self.folder.glob("removed_*"):
            shutil.rmtree(gone, ignore_errors=True)
        return final

    def _remove(self, checkpoint: Path) -> None:
        """Renames it first: half of a checkpoint must not look whole."""
        gone = self.folder / f"removed_{checkpoint.name}"
        shutil.rmtree(gone, ignore_errors=True)
        shutil.rmtree(checkpoint.rename(gone), ignore_errors=True)


def replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Writes a folder anew: it is complete when it appears, and the old one stays until then."""
    new, old = folder.with_name(f"{folder.name}.new"), folder.with_name(f"{folder.name}.old")
    shutil.rmtree(new, ignore_errors=True)
    write(new)
    sync(new)
    shutil.rmtree(old, ignore_errors=True)
    with suppress(FileNotFoundError):
        folder.rename(old)
    new.rename(folder)
    _sync_entry(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def sync(folder: Path) -> None:
    """Waits until everything in the folder is on the disk."""
    for path in folder.rglob("*"):
        _sync_entry(path)
    _sync_entry(folder)


def _sync_entry(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
