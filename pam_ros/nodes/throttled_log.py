"""Logs each distinct warning of a bad input stream once in a while, not at every message.

rclpy throttles by call site, so that one noisy topic would hide what is wrong with another.
"""

from __future__ import annotations

import time

from rclpy.impl.rcutils_logger import RcutilsLogger

_PAUSE_S = 5.0
_MOST_REMEMBERED = 256  # messages; numbers in them may never repeat


class ThrottledLog:
    """Safe to use from any thread: at worst a line is logged twice."""

    def __init__(self, logger: RcutilsLogger) -> None:
        self._logger = logger
        self._logged_s: dict[str, float] = {}  # message → when, seconds of the monotonic clock

    def warn(self, message: str) -> None:
        """Logs a warning, unless it was logged within the last five seconds."""
        now_s = time.monotonic()
        if now_s - self._logged_s.get(message, -_PAUSE_S) < _PAUSE_S:
            return
        if len(self._logged_s) >= _MOST_REMEMBERED:
            self._logged_s.clear()
        self._logged_s[message] = now_s
        self._logger.warning(message)

    def warn_once(self, message: str) -> None:
        """Logs a warning, unless it was logged before."""
        if self._is_new(message):
            self._logger.warning(message)

    def inform_once(self, message: str) -> None:
        """Logs information, unless it was logged before."""
        if self._is_new(message):
            self._logger.info(message)

    def _is_new(self, message: str) -> bool:
        if message in self._logged_s:
            return False
        self._logged_s[message] = float("inf")
        return True
