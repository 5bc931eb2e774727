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
VERIFIED = ".pam_verified.json"  # sizes and times of change of files whose checksum was right
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
        """Writes it beside the files."""
        (folder / RECORD).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

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
            return cls(content["hub_id"], content["revision"], files)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path} cannot be read ({error}); {AGAIN}") from error


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

    A file is read only if its size or time of change differ from those it had when it was last found right.
    `remove`: delete a file whose checksum is wrong, so that it is fetched again.
    """
    check_sizes(folder, files)
    known = _verified(folder)
    states = {name: _state(folder / name) for name in files}
    unread = [
        name
        for name, expected in files.items()
        if (expected.sha256 or expected.git_sha1) and known.get(name) != states[name]
    ]
    if unread:
        report(f"verifying the checksums of {len(unread)} files in {folder}")
    with ThreadPoolExecutor(4) as pool:  # hashlib releases the interpreter's lock
        checked = list(pool.map(lambda name: _matches(folder / name, files[name]), unread))
    for name, (same, found) in zip(unread, checked, strict=True):
        if not same:
            wanted = files[name].sha256 or files[name].git_sha1
            if remove:
                (folder / name).unlink()
            advice = "it was deleted; run pam fetch again" if remove else AGAIN
            raise CheckpointError(f"{folder / name} has checksum {found}, expected {wanted}; {advice}")
    if unread:
        with suppress(OSError):  # a folder that is read-only is verified at every load
            (folder / VERIFIED).write_text(json.dumps({**known, **states}) + "\n", encoding="utf-8")
    return len(unread)


def _verified(folder: Path) -> dict[str, list[int]]:
    try:
        content = json.loads((folder / VERIFIED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _state(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _matches(path: Path, expected: Expected) -> tuple[bool, str]:
    """Whether the content is the expected one, and its checksum."""
    if expected.sha256 is not None:
        found, wanted = _digest(hashlib.sha256(), path), expected.sha256
    else:
        header = f"blob {path.stat().st_size}\0".encode()
        found, wanted = _digest(hashlib.sha1(header), path), expected.git_sha1 or ""
    return found == wanted, found


def _digest(digest: hashlib._Hash, path: Path) -> str:
    for block in _blocks(path):
        digest.update(block)
    return digest.hexdigest()


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            yield block
