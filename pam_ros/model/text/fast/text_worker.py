"""Steps a text engine on a thread and a CUDA stream of their own, so that frames never wait for texts."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from pam_ros.model.text.fast.text_engine import Growth, TextEngine

LOGGER = logging.getLogger(__name__)
BURST_TOKENS = 4  # decoding steps between two looks at the callers' commands
STEPS_BETWEEN_PREPARATIONS = 16  # while texts are generated

Command = Callable[[], None]


class TextWorker:
    """Owns a text engine: callers submit commands that use it, and hear of its results on the thread."""

    def __init__(
        self,
        engine: TextEngine,
        *,
        on_growth: Callable[[Sequence[Growth]], None] = lambda grown: None,
        on_error: Callable[[Exception], None] | None = None,
    ) -> None:
        """Starts the thread.

        Args:
            on_growth: receives what each step added.
            on_error: receives what a step or a command raised; without it the thread ends.
        """
        self._engine = engine
        self._on_growth, self._on_error = on_growth, on_error
        self._preparations = deque[Command]()
        self._commands: deque[Command] = deque()
        self._woken = threading.Event()
        self._closing = self._dropping = False
        self._thread = threading.Thread(target=self._run, name="pam_texts", daemon=True)
        self._thread.start()

    def prepare(self, pieces: Iterable[Command]) -> None:
        """Runs the pieces one by one while the engine is idle, and now and then between its steps."""
        self.submit(lambda: self._preparations.extend(pieces))

    def submit(self, command: Command, *tensors: Tensor, ready: torch.cuda.Event | None = None) -> None:
        """Runs `command` on the thread before its next step, once `tensors` are there.

        `ready`: recorded after they were made; without it, what the caller's stream holds now is waited for.
        """
        cuda = [tensor for tensor in tensors if tensor.is_cuda]
        if cuda and ready is None:
            ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            ready.record(torch.cuda.current_stream(cuda[0].device))

        def run() -> None:
            if cuda and ready is not None:
                stream = torch.cuda.current_stream()
                stream.wait_event(ready)
                for tensor in cuda:
                    tensor.record_stream(stream)
            command()

        self._commands.append(run if cuda else command)
        self._woken.set()

    def close(self, *, drop: bool = False) -> None:
        """Finishes all texts, or drops them, and ends the thread."""
        self._closing, self._dropping = True, drop
        self._woken.set()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        device = self._engine.board.device.device
        stream: AbstractContextManager[object] = nullcontext()
        if device.type == "cuda":
            torch.cuda.set_device(device)
            stream = torch.cuda.stream(torch.cuda.Stream())  # type: ignore[no-untyped-call]
        with stream:
            steps = 0
            while True:
                self._woken.clear()
                while self._commands:
                    self._guarded(self._commands.popleft())
                if self._closing and (self._dropping or self._engine.idle):
                    return
                if self._preparations and (self._engine.idle or steps > STEPS_BETWEEN_PREPARATIONS):
                    steps = 0
                    try:
                        self._preparations[0]()
                    except Exception:  # what is not prepared stays as it is
                        LOGGER.exception("preparing the text engine failed")
                    self._preparations.popleft()
                if self._engine.idle:
                    if not self._preparations:
                        self._woken.wait()
                    continue
                steps += 1
                self._step()

    def _step(self) -> None:
        self._guarded(lambda: self._on_growth(self._engine.step(BURST_TOKENS)))

    def _guarded(self, work: Command) -> None:
        try:
            work()
        except Exception as error:
            if self._on_error is None:
                raise
            self._on_error(error)
