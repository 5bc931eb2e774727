"""Fast DDS's segments in shared memory: those of processes that are gone are removed, the others stay."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from pam_ros.shared_memory import remove_abandoned, segments

# As a participant does it: a segment, and a lock that is held until the process ends.
PARTICIPANT = """
import fcntl, sys, time
from pathlib import Path
from pam_ros.signals import leave
segment = Path("/dev/shm", sys.argv[1])
segment.write_bytes(bytes(1000))
lock = segment.with_name(segment.name + "_el").open("w")
fcntl.flock(lock, fcntl.LOCK_EX)
print("up", flush=True)
sys.stdin.readline()
leave(3)
"""


@contextmanager
def participant(name: str) -> Iterator[subprocess.Popen[str]]:
    """A process with a segment of that name."""
    process = subprocess.Popen(
        [sys.executable, "-c", PARTICIPANT, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "up\n"
        yield process
    finally:
        process.kill()
        process.wait()
        for end in ("", "_el"):
            Path("/dev/shm", name + end).unlink(missing_ok=True)


@pytest.fixture
def name() -> str:
    return f"fastrtps_test{os.getpid():012d}"


def there(name: str) -> bool:
    return Path("/dev/shm", name).exists() or Path("/dev/shm", f"{name}_el").exists()


def test_a_killed_process_leaves_a_segment_that_is_removed(name: str) -> None:
    with participant(name) as process:
        time.sleep(1.1)  # younger ones are left alone
        remove_abandoned()
        assert Path("/dev/shm", name) in segments()
        process.kill()
        process.wait()
        assert there(name)
        assert remove_abandoned() >= 1
        assert not there(name)


def test_a_young_segment_is_left_alone(name: str) -> None:
    with participant(name) as process:
        process.kill()
        process.wait()
        remove_abandoned()
        assert there(name)


def test_a_process_that_leaves_removes_its_segment(name: str) -> None:
    with participant(name) as process:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.wait(20) == 3
        assert not there(name)


def test_children_that_are_killed_leave_none(name: str) -> None:
    """The second signal ends a process and its children at once."""
    script = f"""
import subprocess, sys, time
from pam_ros.signals import stopped_by_signals
child = subprocess.Popen([sys.executable, "-c", {PARTICIPANT!r}, {name!r}], stdin=subprocess.PIPE)
stopped_by_signals()
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "up\n"
        time.sleep(1.1)
        process.send_signal(signal.SIGTERM)
        time.sleep(1.2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == -signal.SIGTERM
        assert not there(name)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        process.wait()
