"""The one thread that owns the model: masks first and never late, language one bounded step at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable

from pam_ros.errors import PamError
from pam_ros.runtime.failures import FaultLog


class Worker:
    """Takes turns until it is stopped. One thread means no locks around the model and a known order."""

    def __init__(
        self,
        *,
        masks: Callable[[], bool],
        language: Callable[[], bool],
        idle: Callable[[], None],
        leave: Callable[[], None],
        share: Callable[[], float],
        clock: Callable[[], float],
        faults: FaultLog,
    ) -> None:
        """`masks` and `language` do one piece of work and say whether there was any.

        `idle` waits a little for more; `leave` runs last, on the thread itself. `share` says how long
        language may go on after a frame, as a part of the time the frame took; `clock` gives seconds.
        """
        self._masks = masks
        self._language = language
        self._idle = idle
        self._leave = leave
        self._share = share
        self._clock = clock
        self._faults = faults
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()

    def start(self) -> None:
        """Begins to take turns; nothing happens where it does so already."""
        with self._lock:
            if self._thread is not None:
                if not self._stopping.is_set():
                    return
                self._thread.join()  # it was stopped from within and is on its way out
            self._stopping = threading.Event()
            self._thread = threading.Thread(
                target=self._run, args=(self._stopping,), name="pam_worker", daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        """Ends after the piece of work at hand, and waits for that (unless called on the thread itself)."""
        thread = self._thread
        self._stopping.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join()
            self._thread = None

    def turn(self) -> bool:
        """A waiting frame first, then language: one step, or more until its share of the frame's time is up.

        So masks are never later than that share or one step, and texts never stand still, even where frames
        come faster than they are seen. False where nothing was to do.
        """
        began_s = self._clock()
        seen = self._did("seeing", self._masks)
        told_s = self._clock()
        until_s = told_s + self._share() * (told_s - began_s) if seen else told_s
        told = self._did("telling", self._language)
        more = told
        while more and self._clock() < until_s and not self._stopping.is_set():
            more = self._did("telling", self._language)
        return seen or told

    def _did(self, place: str, work: Callable[[], bool]) -> bool:
        done = self._faults.attempt(place, work)
        return not isinstance(done, PamError) and done is True

    def _run(self, stopping: threading.Event) -> None:
        while not stopping.is_set():
            if not self.turn():
                self._idle()
        self._faults.attempt("leaving", self._leave)
