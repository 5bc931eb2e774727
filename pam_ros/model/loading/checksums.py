"""Checksums of downloaded files: recorded by `pam fetch` from the hub's metadata, verified at load."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from pam_ros.errors import CheckpointError
from pam_ros.model.schema import readable

RECORD = "pam_fetch.json"  # beside the files: what was fetched, and its checksums
VERIFIED = ".pam_verified.json"  # of each file that was right: size, time of change, checksum
BLOCK_BYTES = 16 * 2**20
AGAIN = "delete it and run pam fetch again"


@dataclass(frozen=True, slots=True)
class Expected:
    """Size and checksum of a file, as the hub states them.

    Attributes:
        bytes: size; None if unknown.
        sha256: of the content (large files).
        git_sha1: git's name of the content (small files, for which the hub states no SHA-256).
    """

    bytes: int | None = None
    sha256: str | None = None
    git_sha1: str | None = None

    @property
    def checksum(self) -> str | None:
        """The one that is stated; None if there is none."""
        return self.sha256 or self.git_sha1


@dataclass(frozen=True, slots=True)
class Record:
    """What `pam fetch` put into a folder.

    Attributes:
        revision: the commit that was fetched.
        files: by path below the folder.
    """

    hub_id: str
    revision: str
    files: Mapping[str, Expected]

    def write(self, folder: Path) -> None:
        """Writes it beside the files; the old one stays until it is complete."""
        new = folder / f"{RECORD}.part"
        new.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        new.replace(folder / RECORD)

    @classmethod
    @readable()
    def read(cls, folder: Path) -> Record | None:
        """None if the folder has none. Raises CheckpointError if it cannot be read."""
        path = folder / RECORD
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            files = {name: Expected(**values) for name, values in content["files"].items()}
            if outside := [name for name in files if leaves(name)]:
                raise ValueError(f"{outside[0]!r} is outside of the folder")
            return cls(content["hub_id"], content["revision"], files)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{path} cannot be read ({error}); {AGAIN}") from error


def leaves(name: str) -> bool:
    """Whether a path that should lie below a folder leads out of it."""
    return ".." in Path(name).parts or Path(name).is_absolute()


def check_sizes(folder: Path, files: Mapping[str, Expected]) -> None:
    """Raises CheckpointError if a file is missing or has another size. Reads no contents."""
    missing = sorted(name for name in files if not (folder / name).is_file())
    if missing:
        raise CheckpointError(
            f"{folder} is incomplete: {len(missing)} of {len(files)} files are missing "
            f"({', '.join(missing)}); run pam fetch again, it continues where it stopped"
        )
    for name, expected in files.items():
        size = (folder / name).stat().st_size
        if expected.bytes is not None and size != expected.bytes:
            raise CheckpointError(f"{folder / name} has {size} bytes, expected {expected.bytes}; {AGAIN}")


def verify(
    folder: Path,
    files: Mapping[str, Expected],
    report: Callable[[str], None] = lambda line: None,
    *,
    remove: bool = False,
) -> int:
    """Compares sizes and checksums; returns how many files were read for it. Raises CheckpointError.

    `remove`: delete files whose checksum is wrong, so that they are fetched again.
    """
    check_sizes(folder, files)
    read, wrong = find_wrong(folder, files, report)
    for name in wrong if remove else ():
        (folder / name).unlink()
    for name, found in wrong.items():
        advice = "it was deleted; run pam fetch again" if remove else AGAIN
        raise CheckpointError(
            f"{folder / name} has checksum {found}, expected {files[name].checksum}; {advice}"
        )
    return read


def find_wrong(
    folder: Path, files: Mapping[str, Expected], report: Callable[[str], None]
) -> tuple[int, dict[str, str]]:
    """How many files were read, and the checksum found in each that is not the expected one.

    A file is read only if its size, its time of change or the expected checksum differ from those with which
    it was last found right.
    """
    known = _verified(folder)
    states = {name: [*_state(folder / name), expected.checksum] for name, expected in files.items()}
    unread = [name for name, state in states.items() if files[name].checksum and known.get(name) != state]
    if unread:
        report(f"verifying the checksums of {len(unread)} files in {folder}")
    with ThreadPoolExecutor(4) as pool:  # hashlib releases the interpreter's lock
        found = list(pool.map(lambda name: _checksum(folder / name, files[name]), unread))
    wrong = {name: each for name, each in zip(unread, found, strict=True) if each != files[name].checksum}
    if unread:
        right = {name: state for name, state in {**known, **states}.items() if name not in wrong}
        with suppress(OSError):  # a folder that is read-only is verified at every load
            (folder / VERIFIED).write_text(json.dumps(right) + "\n", encoding="utf-8")
    return len(unread), wrong


def _verified(folder: Path) -> dict[str, list[int | str | None]]:
    try:
        content = json.loads((folder / VERIFIED).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _state(path: Path) -> list[int]:
    """Size and time of change: not that of the content, which a copy of the file may keep."""
    status = path.stat()
    return [status.st_size, status.st_ctime_ns]


def _checksum(path: Path, expected: Expected) -> str:
    """The content's checksum, of the kind that is expected."""
    if expected.sha256:
        return _digest(hashlib.sha256(), path)
    return _digest(hashlib.sha1(f"blob {path.stat().st_size}\0".encode()), path)


def _digest(digest: hashlib._Hash, path: Path) -> str:
    for block in _blocks(path):
        digest.update(block)
    return digest.hexdigest()


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            yield block
