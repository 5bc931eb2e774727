"""Where results go: what cannot be written is found out before the work, not after it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from pam_ros.errors import OutputError


def writable_folder(path: Path) -> Path:
    """Makes the folder where it is missing. Raises OutputError where no file can be made in it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        raise OutputError(f"cannot write into folder {path}: {error.strerror}; name another one") from None


def writable_file(path: Path) -> Path:
    """Makes the file's folder where it is missing. Raises OutputError where the file cannot be written."""
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder; name a file")
    writable_folder(path.parent)
    if path.exists() and not os.access(path, os.W_OK):
        raise OutputError(f"cannot write {path}: Permission denied; name another file")
    return path
