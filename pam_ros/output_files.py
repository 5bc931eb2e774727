"""Output folders and files: checked before the work starts; JSON lines that are never cut."""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from pam_ros.errors import OutputError


def writable_folder(path: Path) -> Path:
    """Creates the folder if it is missing. Raises OutputError if no file can be created in it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        raise OutputError(f"cannot write to folder {path}: {error.strerror}; choose another folder") from None


def writable_file(path: Path) -> Path:
    """Creates the file's folder if it is missing. Raises OutputError if the file cannot be written."""
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder; choose a file")
    writable_folder(path.parent)
    if path.exists() and not os.access(path, os.W_OK):
        raise OutputError(f"cannot write {path}: Permission denied; choose another file")
    return path


class JsonLines:
    """A file of JSON lines. Each line has left the process when `write` returns, and none is ever cut."""

    def __init__(self, path: Path) -> None:
        """Replaces the file. Raises OutputError."""
        self._path = path
        self._size = 0  # bytes of whole lines
        try:
            self._file = path.open("wb", buffering=0)
        except OSError as error:
            raise cannot_write(path, error) from None

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, values: Any) -> None:
        """One line. Raises OutputError if the disk is full; the lines before it stay."""
        line = (json.dumps(values, ensure_ascii=False) + "\n").encode()
        try:
            left = memoryview(line)
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            with suppress(OSError):
                self._file.truncate(self._size)
            raise cannot_write(self._path, error) from None
        self._size += len(line)

    def close(self) -> None:
        """Idempotent."""
        self._file.close()


def cannot_write(path: Path, error: OSError) -> OutputError:
    """What to raise if a file cannot be written any further, e.g. because the disk is full."""
    return OutputError(
        f"cannot write {path}: {error.strerror or error}; what was written before can be read. "
        "Free some space, or choose another folder"
    )
