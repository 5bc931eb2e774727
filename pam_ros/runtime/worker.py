"""The one thread that owns the model: masks first, then texts, one bounded step at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable

from pam_ros.errors import PamError
from pam_ros.runtime.failures import FaultLog

# Of a frame's own time, for texts after it: what they get at least if the next frame waits already.
TEXT_FRACTION = 0.3


class Worker:
    """Takes turns until it is stopped. One thread needs no locks around the model and has a known order."""

    def __init__(
        self,
        *,
        masks: Callable[[], bool],
        texts: Callable[[], bool],
        idle: Callable[[], None],
        leave: Callable[[], None],
        clock: Callable[[], float],
        faults: FaultLog,
    ) -> None:
        """Args:
        masks, texts: do one piece of work and return whether there was any.
        idle: waits a little for more work.
        leave: runs last, on the thread itself.
        clock: steady seconds.
        """
        self._masks = masks
        self._texts = texts
        self._idle = idle
        self._leave = leave
        self._clock = clock
        self._faults = faults
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()

    def start(self) -> None:
        """Starts taking turns. Idempotent."""
        with self._lock:
            if self._thread is not None:
                if not self._stopping.is_set():
                    return
                self._thread.join()  # it was stopped from within and is about to end
            self._stopping = threading.Event()
            self._thread = threading.Thread(
                target=self._run, args=(self._stopping,), name="pam_worker", daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        """Ends after the current piece of work and waits for that, unless called on the thread itself."""
        thread = self._thread
        self._stopping.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join()
            self._thread = None

    def turn(self) -> bool:
        """A waiting frame first, then texts: one step, or more until `TEXT_FRACTION` of its time is over.

        Between frames every turn is a step of texts. So texts use all the time that frames leave over, and
        progress even if frames arrive faster than they can be processed; a frame waits for that fraction or
        one step at most. Returns False if there was nothing to do.
        """
        began_s = self._clock()
        processed = self._did("processing a frame", self._masks)
        masks_done_s = self._clock()
        until_s = masks_done_s
        if processed:
            until_s += TEXT_FRACTION * (masks_done_s - began_s)
        stepped = more = self._did("generating text", self._texts)
        while more and self._clock() < until_s and not self._stopping.is_set():
            more = self._did("generating text", self._texts)
        return processed or stepped

    def _did(self, place: str, work: Callable[[], bool]) -> bool:
        done = self._faults.attempt(place, work)
        return not isinstance(done, PamError) and done is True

    def _run(self, stopping: threading.Event) -> None:
        while not stopping.is_set():
            if not self.turn():
                self._idle()
        self._faults.attempt("stopping", self._leave)
