"""Generates texts on a thread and a CUDA stream of their own, so that frames never wait for them."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from pam_ros.model.text.fast.text_engine import TextEngine

IDLE_WAIT_S = 0.0002
BURST_TOKENS = 4  # decoding steps between two looks at the callers' commands


class TextWorker:
    """Steps a text engine on a thread and a stream of its own."""

    def __init__(self, engine: TextEngine) -> None:
        self._engine = engine
        self._commands: deque[Callable[[], None]] = deque()
        self._closing = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def submit(self, command: Callable[[], None], *tensors: Tensor) -> None:
        """Runs `command` on the thread before its next step, once the caller's stream has made `tensors`."""
        ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
        ready.record()

        def run() -> None:
            stream = torch.cuda.current_stream()
            stream.wait_event(ready)
            for tensor in tensors:
                tensor.record_stream(stream)
            command()

        self._commands.append(run)

    def close(self) -> None:
        """Finishes all texts and ends the thread."""
        self._closing = True
        self._thread.join()

    def _run(self) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
            while not (self._closing and self._engine.idle and not self._commands):
                while self._commands:
                    self._commands.popleft()()
                if self._engine.idle:
                    time.sleep(IDLE_WAIT_S)
                else:
                    self._engine.step(BURST_TOKENS)
