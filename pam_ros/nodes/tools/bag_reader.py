"""Reads bags for `pam bag`: a damaged bag is an InputError; skipped messages are counted by reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from rosbags.interfaces import Connection
from rosbags.rosbag2 import Reader, ReaderError

from pam_ros.errors import InputError, PamError
from pam_ros.media import why
from pam_ros.runtime.failures import kind_of

_UNFINISHED = "File end magic is invalid."  # the library's words


class BagReader:
    """An open bag.

    Attributes:
        path: folder or file.
        connections: its topics; one with several publishers may have several.
    """

    def __init__(self, path: Path) -> None:
        """Raises InputError if it cannot be read."""
        self.path = path
        with _readable(path, ""):
            self._reader = Reader(path)
            self._reader.open()
        self.connections: Sequence[Connection] = tuple(self._reader.connections)

    def messages(self, connections: Sequence[Connection] = ()) -> Iterator[tuple[Connection, int, bytes]]:
        """Connection, time of recording in ns and content of every message; no `connections`: of all.

        Raises InputError at the place where the bag is damaged.
        """
        with _readable(self.path, ""):
            messages = iter(self._reader.messages(connections))
        while True:
            with _readable(self.path, " any further"):
                found = next(messages, None)
            if found is None:
                return
            yield found

    def count(self, connections: Sequence[Connection]) -> int:
        """Messages of a topic; those of an .mcap file alone are read for it, up to where it is damaged."""
        count = sum(each.msgcount for each in connections)
        if not count:
            with suppress(InputError):
                for _ in self.messages(connections):
                    count += 1
        return count

    def close(self) -> None:
        """Once."""
        self._reader.close()


def by_topic(connections: Sequence[Connection], kinds: Collection[str]) -> dict[str, list[Connection]]:
    """Topic → its connections of these types."""
    found: dict[str, list[Connection]] = {}
    for each in connections:
        if each.msgtype in kinds:
            found.setdefault(each.topic, []).append(each)
    return found


@contextmanager
def _readable(path: Path, how_far: str) -> Iterator[None]:
    """Wraps library calls only: its parsers raise exceptions of any type for a damaged file."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"no bag at {path}; give the folder with metadata.yaml, or an .mcap file") from None
    except Exception as error:
        reason = " ".join(why(error).split())
        if not isinstance(error, OSError | ReaderError):  # a parser's, such as KeyError: "7"
            reason = f"it is damaged ({type(error).__name__}: {reason})"
        if reason == _UNFINISHED:
            reason += " The recording was not finished, or the file was cut off; `mcap recover` can repair it"
        raise InputError(f"cannot read bag {path}{how_far}: {reason}") from error


class Skipped:
    """Messages that are left out. Of each topic and kind of error, the first is reported when it comes."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report
        self._counts: Counter[tuple[str, str]] = Counter()

    def add(self, topic: str, time_ns: int, error: PamError) -> None:
        """`time_ns`: of recording."""
        key = (topic, kind_of(str(error)))
        self._counts[key] += 1
        if self._counts[key] == 1:
            self._report(f"{topic} at {time_ns / 1e9:.3f} s was skipped: {error}")

    def end(self) -> None:
        """Reports how many were like the first."""
        for (topic, _), count in self._counts.items():
            if count > 1:
                self._report(f"{topic}: {count} messages were skipped for that reason")
        self._counts.clear()
