"""Output folders and files: checked before the work starts; JSON lines that are never truncated."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from pam_ros.errors import OutputError

# Bytes that are no UTF-8, e.g. of a file's name, become the escapes that JSON and Python read.
ESCAPED = "backslashreplace"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_ADVICE = {
    errno.EISDIR: "remove that folder, or choose another place",
    errno.ENOENT: "a link or a folder on the way leads nowhere; remove it, or choose another place",
    errno.ELOOP: "remove that link, or choose another place",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def writable_folder(path: Path) -> Path:
    """Creates the folder if it is missing. Raises OutputError if no file can be created in it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except (FileExistsError, NotADirectoryError):
        raise OutputError(
            f"cannot write to folder {path}: it, or what it lies in, is a file; choose another folder"
        ) from None
    except OSError as error:
        raise OutputError(f"cannot write to folder {path}: {error.strerror}; choose another folder") from None


def writable_file(path: Path, inputs: Iterable[Path | None] = ()) -> Path:
    """Creates the file's folder if it is missing; the file stays as it is.

    Raises OutputError if the file cannot be written, or if it is one of the inputs; see `keep_inputs`.
    """
    keep_inputs([path], inputs)
    with writing(path):
        if path.is_dir():
            raise OutputError(f"cannot write {path}: it is a folder; choose another file")
        writable_folder(path.parent)
        there = path.exists()
        if there and not path.is_file():  # a device or a pipe, which opening may change or block
            return path
        with path.open("ab"):
            pass
        if not there:  # where a link leads, if it is one
            path.resolve().unlink()
    return path


def result_folder(folder: Path, names: Iterable[str], inputs: Iterable[Path | None] = ()) -> Path:
    """Creates the folder if it is missing, and checks every file that will be written or removed there.

    Raises OutputError if one of them cannot be written, or is one of the inputs; see `keep_inputs`.
    """
    paths = [folder / name for name in names]
    keep_inputs(paths, inputs)
    writable_folder(folder)
    for path in paths:
        writable_file(path)
    return folder


def keep_inputs(written: Iterable[Path], inputs: Iterable[Path | None]) -> None:
    """Raises OutputError if a file that will be written or removed is an input, or lies in an input folder.

    Links are followed. An input that is None or does not exist is passed over.
    """
    read = [each for each in inputs if each is not None and os.path.lexists(each)]
    for path in written:
        if not os.path.lexists(path):
            continue
        for each in read:
            if _same(path, each):
                raise OutputError(
                    f"the output {path} is the input {each}, which would be lost; choose another output"
                )
            if _same(path.parent, each):
                raise OutputError(
                    f"the output {path} would replace a file of the input {each}; choose another output"
                )


def _same(one: Path, other: Path) -> bool:
    with suppress(OSError):
        return one.samefile(other)
    return False


class JsonLines:
    """A file of JSON lines. Each line has left the process when `write` returns; none is ever truncated."""

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
        line = (json.dumps(values, ensure_ascii=False) + "\n").encode(errors=ESCAPED)
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


def write_text(path: Path, text: str) -> None:
    """Replaces a file by the text, in UTF-8. Raises OutputError."""
    with writing(path):
        path.write_text(text, encoding="utf-8", errors=ESCAPED)


def remove(path: Path) -> None:
    """Removes a file, if there is one. Raises OutputError."""
    with writing(path, "remove"):
        path.unlink(missing_ok=True)


@contextmanager
def writing(path: Path, what: str = "write") -> Iterator[None]:
    """Turns an OSError inside into an OutputError about this file."""
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error, what) from None


def cannot_write(path: Path, error: Exception, what: str = "write") -> OutputError:
    """The OutputError for a file that cannot be written, or only in part, e.g. because the disk is full.

    `error`: an OSError, or PyAV's, which has the same attributes.
    """
    number = getattr(error, "errno", None)
    advice = _ADVICE.get(number or 0, "choose another place")
    if number in _FULL:
        advice = "what was written before can be read. Free some space, or choose another folder"
    return OutputError(f"cannot {what} {path}: {getattr(error, 'strerror', None) or error}; {advice}")
