"""SIGINT and SIGTERM: the first asks a process to finish; another, over a second later, ends it immediately.

A process that does not finish within END_S is ended, and its child processes with it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

import psutil

from pam_ros.shared_memory import remove_abandoned, remove_own

REPEAT_S = 1.0  # `ros2 launch` sends SIGINT twice within a second: both are one request
END_S = 4.5  # from the first signal to the end, at most
KILL_S = 0.3  # until a killed process is gone


class Stopped(BaseException):
    """Raised in the main thread by the first signal; no `except Exception` stops it on its way.

    Attributes:
        partial: what has been written so far, as displayed; see `cli.output.partly`.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number
        self.partial = "nothing was written"


def exit_code(number: int) -> int:
    """Of a process that a signal ended, as shells report it: 130 after SIGINT, 143 after SIGTERM."""
    return 128 + number


def handle_end_signals(
    finish: Callable[[int], None], *, code: int | None = None, bounded: bool = True
) -> None:
    """Calls `finish` on the main thread with the number of the first signal. Call this on the main thread.

    `code`: exit code of a process that does not finish in time; None: that of the signal. Without `bounded`
    it may take as long as it needs.
    """
    first_s: float | None = None

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal first_s
        now_s = time.monotonic()
        if first_s is None:
            first_s = now_s
            if bounded:
                end_in(END_S, exit_code(number) if code is None else code)
            finish(number)
        elif now_s - first_s > REPEAT_S:
            kill_children()
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)


def stopped_by_signals(*, code: int = 0, bounded: bool = True) -> threading.Event:
    """An event that the first signal sets; options: see `handle_end_signals`."""
    stopped = threading.Event()
    handle_end_signals(lambda number: stopped.set(), code=code, bounded=bounded)
    return stopped


_held: list[int] | None = None  # the signals that came inside `unbroken`; None outside


@contextmanager
def unbroken() -> Iterator[None]:
    """Delays a signal: `Stopped` is raised at the end. On the main thread, inside `raising_on_signals`."""
    global _held
    _held = []
    try:
        yield
    finally:
        came, _held = _held, None
    if came:
        raise Stopped(came[0])


@contextmanager
def raising_on_signals() -> Iterator[None]:
    """The first signal raises `Stopped` in the main thread. Call this on the main thread."""

    def finish(number: int) -> None:
        if _held is None:
            raise Stopped(number)
        _held.append(number)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    handle_end_signals(finish)
    yield
    for number, handler in before.items():  # after `Stopped` the process ends: no need
        signal.signal(number, handler)


def end_in(seconds: float, code: int) -> None:
    """Ends this process and its children after a while, unless it has ended by itself."""

    def end() -> None:
        with suppress(OSError, ValueError):
            sys.stderr.write("an operation that cannot be interrupted is still running; exiting anyway\n")
            sys.stderr.flush()
        leave(code)  # a thread in native code cannot be joined, and finalizing under it crashes

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


def leave(code: int) -> NoReturn:
    """Ends this process without finalizing Python, which takes seconds once networks were compiled.

    Everything must be closed; child processes that are left are killed, and DDS's shared memory is removed.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    kill_children()
    with suppress(OSError):
        remove_own()
    os._exit(code)


def kill_children() -> None:
    """Kills the processes that this one started, and theirs."""
    children: list[psutil.Process] = []
    with suppress(psutil.Error):
        children = psutil.Process().children(recursive=True)
    for child in children:
        with suppress(psutil.Error):
            child.kill()
    if children:
        psutil.wait_procs(children, KILL_S)
        remove_abandoned()
