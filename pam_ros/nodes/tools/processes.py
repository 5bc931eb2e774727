"""Starts the package's own processes and ends them: for `pam demo`, `pam soak` and the tests."""

from __future__ import annotations

import ctypes
import fcntl
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import psutil

from pam_ros.errors import StateError
from pam_ros.shared_memory import remove_abandoned
from pam_ros.signals import END_S

END_TIMEOUT_S = 20.0  # for one process to end after its signal
LEAVE_TIMEOUT_S = END_S - 0.5  # for all that still run when the group is left
WAIT_TIMEOUT_S = 20.0  # for anything that should happen soon; busy machines are slow


def wait_until(
    condition: Callable[[], Any], what: str | Callable[[], str], timeout_s: float = WAIT_TIMEOUT_S
) -> Any:
    """Returns the condition's value once it is true. Raises StateError, naming `what`, after the timeout."""
    until_s = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > until_s:
            text = what if isinstance(what, str) else what()
            raise StateError(f"timed out after {timeout_s:g} s waiting for {text}")
        time.sleep(0.01)
    return value


_LIBC = ctypes.CDLL(None)  # opened here, as little should happen between fork and exec
_PR_SET_PDEATHSIG = 1  # of sys/prctl.h


def _end_with_parent() -> None:
    """Runs in the child: it gets SIGTERM when the process that started it ends, even by SIGKILL."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Process:
    """One Python process; its log is a file if it has one, else it goes to this process's terminal."""

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        name: str,
        folder: Path,
        log: Path | None,
        environment: Mapping[str, str],
    ) -> None:
        """`arguments` of the Python interpreter; `folder` is the working directory."""
        self.name = name
        self._log = log
        stream = log.open("wb") if log is not None else None
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder,
            env=os.environ | environment,
            stdout=stream,
            stderr=subprocess.STDOUT if log is not None else None,
            # Ctrl-C in a terminal reaches this process only, which ends the others in order.
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
        if stream is not None:
            stream.close()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    @property
    def lines(self) -> list[str]:
        """Its log so far; a line that is not complete is left out."""
        return self.log().splitlines(keepends=True)

    def log(self) -> str:
        """Its log so far."""
        text = self._log.read_text(encoding="utf-8", errors="replace") if self._log is not None else ""
        return text[: text.rfind("\n") + 1]

    def wait_for_log(self, words: str, timeout_s: float = WAIT_TIMEOUT_S) -> str:
        """The first line of its log that contains `words`. Raises StateError if it ends without one."""

        def found() -> str | None:
            running = self.exit_code is None
            line = next((line for line in self.lines if words in line), None)
            if line is None and not running:
                self.check_running()
            return line

        line: str = wait_until(found, lambda: f"a log line with {words!r}; the log:\n{self.log()}", timeout_s)
        return line

    def resident_mib(self) -> float:
        """Its resident memory, MiB."""
        return float(psutil.Process(self.pid).memory_info().rss / (1 << 20))

    def check_running(self) -> None:
        """Raises StateError if it has ended."""
        if self.exit_code is not None:
            end = f"process {self.name} exited with code {self.exit_code}"
            raise StateError(f"{end}; its log:\n{self.log()}" if self._log is not None else end)

    def send(self, number: int) -> None:
        """Sends it a signal."""
        self._process.send_signal(number)

    def end(self, number: int = signal.SIGINT) -> int:
        """Stops it by a signal; its exit code. Kills it and raises StateError if it does not stop in time."""
        if self.exit_code is None:
            self.send(number)
        try:
            return self._process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise StateError(f"process {self.name} did not stop; its log:\n{self.log()}") from None

    def kill(self) -> None:
        """Kills it if it still runs."""
        if self.exit_code is None:
            self._process.kill()
            self._process.wait()


class Processes:
    """Processes of one private ROS domain on this machine; ends them all when left."""

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        """`folder`: working directory and place of the logs; must exist."""
        self.domain, self._lock = _reserve_domain()
        self.running: dict[str, Process] = {}
        self._folder = folder
        self._environment = {
            "ROS_DOMAIN_ID": str(self.domain),
            "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
            **(environment or {}),
        }

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self.running.values():
            if process.exit_code is None:
                process.send(signal.SIGINT)
        until_s = time.monotonic() + LEAVE_TIMEOUT_S
        while time.monotonic() < until_s and any(it.exit_code is None for it in self.running.values()):
            time.sleep(0.05)
        for process in self.running.values():
            process.kill()
        remove_abandoned()  # by those that were killed
        self._lock.close()

    def start(
        self,
        name: str,
        arguments: Sequence[str],
        *,
        parameters: Mapping[str, Any] | None = None,
        ros_arguments: Sequence[str] = (),
        log: bool = False,
    ) -> Process:
        """Starts `python ARGUMENTS` with ROS parameters; with `log` its output goes to `<name>.log`."""
        pairs = [part for key, value in (parameters or {}).items() for part in ("-p", f"{key}:={value}")]
        process = Process(
            [*arguments, "--ros-args", *ros_arguments, *pairs],
            name=name,
            folder=self._folder,
            log=self._folder / f"{name}.log" if log else None,
            environment=self._environment,
        )
        self.running[name] = process
        return process

    def start_module(self, module: str, **options: Any) -> Process:
        """Starts `pam_ros.nodes.<module>`, named by its last part; `options` as for `start`."""
        return self.start(module.rpartition(".")[2], ["-m", f"pam_ros.nodes.{module}"], **options)

    def end(self, name: str) -> int:
        """Stops a process by SIGINT; its exit code."""
        return self.running.pop(name).end()

    def kill(self, name: str) -> None:
        """Ends a process by SIGKILL."""
        self.running.pop(name).kill()

    def check(self) -> None:
        """Raises StateError if a process ended with an error."""
        for process in self.running.values():
            if process.exit_code:
                process.check_running()


def _reserve_domain() -> tuple[int, IO[bytes]]:
    """A ROS domain that no other `Processes` of this machine uses, and the open file that reserves it."""
    domains = list(range(1, 100))
    random.SystemRandom().shuffle(domains)
    for domain in domains:
        lock = (Path(tempfile.gettempdir()) / f"pam_ros_domain_{domain}_{os.getuid()}.lock").open("ab")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # in use
            lock.close()
            continue
        return domain, lock
    raise StateError("all ROS domains from 1 to 99 are in use by other tests or demos on this machine")
