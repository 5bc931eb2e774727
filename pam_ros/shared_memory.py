"""Fast DDS's segments in shared memory: removed if their process is gone, or leaves without finalizing it.

A participant has a segment, 0.5 MiB or, with `config/fastdds.xml`, 67 MiB, and holds a lock on the file
`<segment>_el`. Only a participant that is destroyed removes them: they outlive `os._exit` and SIGKILL.
"""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path

_LOCK = "_el"
_AGE_S = 1.0  # a younger segment may be about to be locked


def segments() -> list[Path]:
    """The segments of all participants on this machine; without ports, which are small and used again."""
    return [
        path.with_name(path.name.removesuffix(_LOCK))
        for path in Path("/dev/shm").glob(f"*{_LOCK}")
        if _is(path)
    ]


def remove_abandoned() -> int:
    """Removes the segments of processes that no longer exist; returns their number."""
    return sum(_remove_if_abandoned(segment) for segment in segments())


def held_by(pid: int) -> list[Path]:
    """The segments of the process."""
    held: list[Path] = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):  # closed meanwhile
            lock = entry.readlink()
            if _is(lock):
                held.append(lock.with_name(lock.name.removesuffix(_LOCK)))
    return held


def remove_own() -> None:
    """Removes this process's segments; it must end directly afterwards."""
    for segment in held_by(os.getpid()):
        _unlink(segment)


def _is(lock: Path) -> bool:
    """Whether this is the lock of a segment."""
    name = lock.name
    return name.startswith("fastrtps_") and name.endswith(_LOCK) and not name.startswith("fastrtps_port")


def _remove_if_abandoned(segment: Path) -> bool:
    lock = segment.with_name(segment.name + _LOCK)
    with suppress(OSError):  # in use, removed meanwhile, or somebody else's
        if time.time() - lock.stat().st_ctime < _AGE_S:
            return False
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _unlink(segment)
        return True
    return False


def _unlink(segment: Path) -> None:
    for path in (segment, segment.with_name(segment.name + _LOCK)):
        path.unlink(missing_ok=True)
