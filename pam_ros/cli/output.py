"""What commands say besides their results: progress, notes and warnings, on stderr; results go to stdout."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pam_ros.output_files import writable_file
from pam_ros.signals import Stopped

console = Console(stderr=True)
EVERY_S = 5.0  # between two lines of progress, if nobody sees a bar
STANDARD_OUTPUT = Path("/dev/stdout")


def be_quiet() -> None:
    """From now on only errors are shown."""
    console.quiet = True


def be_verbose() -> None:
    """From now on the package's log is shown."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    package = logging.getLogger("pam_ros")
    package.addHandler(handler)
    package.setLevel(logging.DEBUG)


def note(line: object) -> None:
    """A line on stderr, as it is: no markup, and not broken into several."""
    console.print(str(line), markup=False, highlight=False, soft_wrap=True)


@contextmanager
def partly(what: Callable[[], str]) -> Iterator[None]:
    """If a signal ends the work inside, the command's last line names what is there: `what`."""
    try:
        yield
    except Stopped as stopped:
        stopped.partial = what()
        raise


@contextmanager
def working(what: str) -> Iterator[Callable[[str], None]]:
    """Shows what is going on: a spinner in a terminal, else a line every few seconds. Call it with news."""
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
    """Prints the line while the work inside goes on."""
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


def json_target(path: Path | None) -> Path | None:
    """Where `--json` writes: `-` is stdout. Raises OutputError if the file cannot be written."""
    if path is None:
        return None
    return STANDARD_OUTPUT if str(path) == "-" else writable_file(path)


def table_console(json_file: Path | None, width: int | None = None) -> Console:
    """Where a table of results goes: stdout, or stderr if JSON goes there."""
    if json_file == STANDARD_OUTPUT:
        return console
    return Console(width=width, file=sys.stdout)
