"""Checks that output folders and files can be written before the work starts."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

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
