"""Logs warnings about a bad input stream, rate-limited by kind: a flood of messages does not flood the log.

rclpy throttles by call site, so that one noisy topic would hide what is wrong with another.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from typing import TYPE_CHECKING

from pam_ros.runtime.failures import kind_of

if TYPE_CHECKING:
    from rclpy.impl.rcutils_logger import RcutilsLogger

PAUSE_S = 5.0  # between two lines of one kind
MOST_LINES = 60  # within a pause, of all kinds together
_MOST_KINDS = 256  # remembered
_MOST_CHARACTERS = 4000  # of a line


class ThrottledLog:
    """Safe to use from any thread. Messages of one kind differ in numbers and quoted names only."""

    def __init__(self, logger: RcutilsLogger) -> None:
        self._logger = logger
        self._lock = threading.Lock()
        # kind → when it was logged, seconds of the monotonic clock, and how many were left out since
        self._kinds: OrderedDict[str, tuple[float, int]] = OrderedDict()
        self._recent_s: deque[float] = deque(maxlen=MOST_LINES)

    def warn(self, message: str) -> None:
        """Logs a warning, unless one of its kind was logged within the last five seconds."""
        if line := self._line(message):
            self._logger.warning(line)

    def error(self, message: str) -> None:
        """Logs an error in the same way."""
        if line := self._line(message):
            self._logger.error(line)

    def warn_once(self, message: str) -> None:
        """Logs a warning, unless one of its kind was logged before."""
        if self._is_new(message):
            self._logger.warning(message)

    def inform_once(self, message: str) -> None:
        """Logs information, unless some of its kind was logged before."""
        if self._is_new(message):
            self._logger.info(message)

    def _line(self, message: str) -> str:
        """What is to be logged; empty if nothing is."""
        message = shortened(message, _MOST_CHARACTERS)
        kind, now_s = kind_of(message), time.monotonic()
        with self._lock:
            logged_s, left_out = self._kinds.pop(kind, (-PAUSE_S, 0))
            full = len(self._recent_s) == MOST_LINES and now_s - self._recent_s[0] < PAUSE_S
            if now_s - logged_s < PAUSE_S or full:
                self._remember(kind, (logged_s, left_out + 1))
                return ""
            self._remember(kind, (now_s, 0))
            self._recent_s.append(now_s)
        were = "was" if left_out == 1 else "were"
        return f"{message} ({left_out} more like this {were} left out)" if left_out else message

    def _is_new(self, message: str) -> bool:
        kind = kind_of(message)
        with self._lock:
            if kind in self._kinds:
                return False
            self._remember(kind, (float("inf"), 0))
        return True

    def _remember(self, kind: str, entry: tuple[float, int]) -> None:
        self._kinds[kind] = entry
        if len(self._kinds) > _MOST_KINDS:
            self._kinds.popitem(last=False)


def shortened(text: str, most: int) -> str:
    """The text, or its first `most` characters and how long it was: it may hold what came over the wire."""
    return text if len(text) <= most else f"{text[:most]} … ({len(text)} characters)"
