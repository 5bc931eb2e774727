"""What commands print on stderr: progress, notes and warnings; results go to stdout."""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pam_ros.errors import OutputError
from pam_ros.output_files import ESCAPED, writable_file
from pam_ros.signals import Stopped

console = Console(stderr=True)
EVERY_S = 5.0  # between two lines of progress, if nobody sees a bar
STANDARD_OUTPUT = Path("/dev/stdout")
_lost: list[OutputError] = []  # why stdout did not take something; the first reason only


class _Stream(io.FileIO):
    """stdout or stderr. What cannot be written is lost; the first loss on stdout raises OutputError."""

    def __init__(self, number: int, name: str) -> None:
        super().__init__(number, "w", closefd=False)
        self._raises = name if name == "stdout" else ""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data) or 0
        except OSError as error:
            name, self._raises = self._raises, ""
            if name:
                why = f"cannot write the results to {name}: {error.strerror}; redirect it elsewhere"
                _lost.append(OutputError(why))
                raise _lost[0] from None
            return len(data)


def finish_output() -> None:
    """Flushes stdout. Raises OutputError if it has not taken everything, even if that was caught before."""
    sys.stdout.flush()
    if _lost:
        raise _lost.pop()


def guard_streams() -> None:
    """Makes stdout and stderr accept every text, and stderr never fail.

    A closed one is connected to the null device: otherwise the next file that is opened would get its
    descriptor, and the output of libraries. Streams that were replaced, as in tests, stay as they are.
    """
    _lost.clear()
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
    for number, name in ((1, "stdout"), (2, "stderr")):
        old = getattr(sys, name)
        if old is not getattr(sys, f"__{name}__"):
            continue
        if old is not None:
            old.flush()
        setattr(sys, name, guarded(number, name, old))


def guarded(number: int, name: str, old: Any) -> io.TextIOWrapper:
    """A stream on this file descriptor, set up as `old`, the current one. `name`: stdout or stderr."""
    stream, unbuffered = _Stream(number, name), getattr(old, "write_through", False)
    return io.TextIOWrapper(
        stream if unbuffered else io.BufferedWriter(stream),
        encoding=getattr(old, "encoding", "utf-8"),
        errors=ESCAPED,
        line_buffering=getattr(old, "line_buffering", False),
        write_through=unbuffered,
    )


def be_quiet() -> None:
    """Shows only errors from now on."""
    console.quiet = True


def be_verbose() -> None:
    """Shows the package's log from now on."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    package = logging.getLogger("pam_ros")
    package.addHandler(handler)
    package.setLevel(logging.DEBUG)


def note(line: object) -> None:
    """Prints a line on stderr verbatim: no markup, no wrapping."""
    console.print(str(line), markup=False, highlight=False, soft_wrap=True)


@contextmanager
def partly(what: Callable[[], str]) -> Iterator[None]:
    """If a signal ends the work inside, the command's last line says what has been written: `what`."""
    try:
        yield
    except Stopped as stopped:
        stopped.partial = what()
        raise


@contextmanager
def working(what: str) -> Iterator[Callable[[str], None]]:
    """Shows the current work: a spinner in a terminal, else a line every few seconds.

    Yields a function that changes the text.
    """
    if console.is_terminal:
        with console.status(escape(what)) as status:
            yield lambda line: status.update(escape(line))
        return
    newest = [what]
    with _every_few_seconds(lambda: newest[0]):
        yield lambda line: newest.__setitem__(0, line)


@contextmanager
def progress_bar(what: str, total: int) -> Iterator[Callable[[], None]]:
    """Shows how many of `total` are done: a bar in a terminal, else a line every few seconds."""
    if console.is_terminal:
        columns = (TextColumn(what, markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as progress:
            task = progress.add_task(what, total=total)
            yield lambda: progress.advance(task)
        return
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1

    with _every_few_seconds(lambda: f"{what}: {done} of {total}"):
        yield advance


@contextmanager
def _every_few_seconds(line: Callable[[], str]) -> Iterator[None]:
    """Prints the line periodically while the work inside runs."""
    ended, begun_s = threading.Event(), time.monotonic()

    def report() -> None:
        while not ended.wait(EVERY_S):
            note(f"{line()} ({time.monotonic() - begun_s:.0f} s)")

    thread = threading.Thread(target=report, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def json_target(path: Path | None, inputs: Iterable[Path | None] = ()) -> Path | None:
    """The file for `--json`; `-` is stdout. Raises OutputError if it cannot be written or is an input."""
    if path is None:
        return None
    return STANDARD_OUTPUT if str(path) == "-" else writable_file(path, inputs)


def table_console(json_file: Path | None, width: int | None = None) -> Console:
    """The console for a table of results: stdout, or stderr if JSON goes to stdout."""
    if json_file == STANDARD_OUTPUT:
        return console
    return Console(width=width, file=sys.stdout)
