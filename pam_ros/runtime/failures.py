"""Keeps faults where they belong: one request fails, the others and the worker go on."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from pam_ros.errors import InferenceError, PamError
from pam_ros.runtime.events import CaptionEvent, FrameResult, Listener, TextEvent

T = TypeVar("T")
R = TypeVar("R")

_LOG = logging.getLogger(__name__)
LOG_PERIOD_S = 5.0  # a fault that repeats with every frame is written out this often, not more


class FaultLog:
    """Logs exceptions with their traceback; repeated ones of the same place only now and then."""

    def __init__(self) -> None:
        self._logged_s: dict[str, float] = {}  # place → when; as many as there are places in the code

    def add(self, place: str, error: BaseException) -> None:
        """`place` says what was being done, e.g. "tracking"."""
        now_s = time.monotonic()
        if now_s - self._logged_s.get(place, -LOG_PERIOD_S) < LOG_PERIOD_S:
            return
        self._logged_s[place] = now_s
        _LOG.error("%s failed: %s", place, error, exc_info=error)

    def attempt(self, place: str, call: Callable[[], R]) -> R | PamError:
        """`call()`, or the error its caller gets: a PamError as it is, else logged and as InferenceError."""
        try:
            return call()
        except PamError as error:
            return error
        except Exception as error:  # noqa: BLE001 - whatever the model raises must not end the worker
            self.add(place, error)
            return InferenceError(f"{place} failed: {type(error).__name__}: {error}. The log has the details")

    def batched(
        self, place: str, call: Callable[[Sequence[T]], Sequence[R]], items: Sequence[T]
    ) -> list[R | PamError]:
        """`call(items)`; when it fails, `call([item])` one by one, so that only the guilty items fail."""
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
    """Passes events on while `active`; a listener's exception ends in the log."""

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
