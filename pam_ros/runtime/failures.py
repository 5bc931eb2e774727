"""Contains faults: the affected request fails; other requests and the worker continue."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from pam_ros.errors import InferenceError, PamError, without_frames
from pam_ros.runtime.events import CaptionEvent, FrameResult, Listener, TextEvent

T = TypeVar("T")
R = TypeVar("R")

_LOG = logging.getLogger(__name__)
_VARYING = re.compile(r"""(?<!\w)'[^']*'|"[^"]*"|[-+]?\d+(?:[.,:]\d+)*(?:e[-+]?\d+)?|\b(?:nan|inf)\b""")
_MOST_KINDS = 3  # named in one line
LOG_PERIOD_S = 5.0  # a fault that repeats with every frame is written out this often, not more


def kind_of(message: str) -> str:
    """The message without its numbers and quoted names: messages of one kind differ in these only."""
    return _VARYING.sub("#", message)


def once_a_kind(report: Callable[[str], None]) -> Callable[[str], None]:
    """Passes on the first message of each kind."""
    seen: set[str] = set()

    def first(message: str) -> None:
        if (kind := kind_of(message)) not in seen:
            seen.add(kind)
            report(message)

    return first


def rejected_detections(problems: Sequence[str]) -> str:
    """One line about any number of rejected detections: the first problem of each kind, and how many."""
    kinds: dict[str, list[str]] = {}
    for problem in problems:
        kinds.setdefault(kind_of(problem), []).append(problem)
    reasons = [f"{each[0]}{f' ({len(each)} times)' if len(each) > 1 else ''}" for each in kinds.values()]
    if len(reasons) > _MOST_KINDS:
        reasons[_MOST_KINDS:] = [f"and {len(reasons) - _MOST_KINDS} other reasons"]
    count = "a detection was" if len(problems) == 1 else f"{len(problems)} detections were"
    return f"{count} rejected: {'; '.join(reasons)}"


class FaultLog:
    """Logs exceptions with their traceback, at most one every few seconds for each place in the code."""

    def __init__(self) -> None:
        self._logged_s: dict[str, float] = {}  # place → when

    def add(self, place: str, error: BaseException) -> None:
        """`place` says what failed, e.g. "tracking"."""
        now_s = time.monotonic()
        if now_s - self._logged_s.get(place, -LOG_PERIOD_S) < LOG_PERIOD_S:
            return
        self._logged_s[place] = now_s
        _LOG.error("%s failed: %s", place, error, exc_info=error)

    def attempt(self, place: str, call: Callable[[], R]) -> R | PamError:
        """`call()`, or the error that its caller gets, see `as_pam_error`."""
        try:
            return call()
        except Exception as error:  # noqa: BLE001 - whatever the model raises must not end the worker
            return without_frames(self.as_pam_error(place, error))

    def as_pam_error(self, place: str, error: Exception) -> PamError:
        """Passes a PamError through; anything else is logged and becomes an InferenceError."""
        if isinstance(error, PamError):
            return error
        self.add(place, error)
        return InferenceError(f"{place} failed: {type(error).__name__}: {error}; the log has the traceback")

    def batched(
        self, place: str, call: Callable[[Sequence[T]], Sequence[R]], items: Sequence[T]
    ) -> list[R | PamError]:
        """`call(items)`; if that fails, `call([item])` one by one, so that only the items at fault fail."""
        if not items:
            return []
        results = self.attempt(place, lambda: call(items))
        if not isinstance(results, PamError):
            assert len(results) == len(items), f"{place}: {len(results)} results for {len(items)} items"
            return list(results)
        if len(items) == 1:
            return [results]
        return [self.batched(place, call, [item])[0] for item in items]


class GuardedListener:
    """Passes events on while `active`; logs a listener's exceptions."""

    def __init__(self, listener: Listener, faults: FaultLog, active: Callable[[], bool]) -> None:
        self._listener = listener
        self._faults = faults
        self._active = active

    def on_frame(self, result: FrameResult) -> None:
        """See Listener."""
        self._call("listener.on_frame", lambda: self._listener.on_frame(result))

    def on_text(self, event: TextEvent) -> None:
        """See Listener."""
        self._call("listener.on_text", lambda: self._listener.on_text(event))

    def on_caption(self, event: CaptionEvent) -> None:
        """See Listener."""
        self._call("listener.on_caption", lambda: self._listener.on_caption(event))

    def on_warning(self, camera: str, message: str) -> None:
        """See Listener."""
        self._call("listener.on_warning", lambda: self._listener.on_warning(camera, message))

    def on_progress(self, report: Callable[[], None]) -> None:
        """Runs a caller's own report in the same way."""
        self._call("on_progress", report)

    def _call(self, place: str, report: Callable[[], None]) -> None:
        if not self._active():
            return
        try:
            report()
        except Exception as error:  # noqa: BLE001 - a listener's fault must not end the worker
            self._faults.add(place, error)
