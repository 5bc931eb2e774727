"""Prompts of clips, which the generator may prefill while the frames arrive; one owner releases them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from pam_ros.errors import PamError
from pam_ros.model.interface import TextGenerator
from pam_ros.runtime.embedding_plan import EmbeddedFrame
from pam_ros.runtime.failures import FaultLog

Holder = Callable[[], Iterable["ClipPrompt | None"]]


class ClipPrompt:
    """A clip's prompt; made by `ClipPrompts.open`."""

    def __init__(self, generator: TextGenerator, faults: FaultLog, max_frames: int) -> None:
        self._generator = generator
        self._faults = faults
        self._max_frames = max_frames
        self._prompt_id: int | None = None
        self._frames: list[EmbeddedFrame] = []
        self._broken = False

    def extend(self, frame: EmbeddedFrame) -> None:
        """Appends a frame. If the generator fails, texts will start from a prompt of their own."""
        if not self._broken:
            failure = self._faults.attempt("extending a prompt", lambda: self._extend(frame))
            self._broken = isinstance(failure, PamError)
        self._frames.append(frame)

    def holds(self, frames: Sequence[EmbeddedFrame]) -> int | None:
        """The prompt's id if it is about these frames and nothing else."""
        return self._prompt_id if not self._broken and self._frames == list(frames) else None

    def release(self) -> None:
        """No further text will start from it."""
        if self._prompt_id is not None:
            self._generator.release_prompt(self._prompt_id)
        self._prompt_id, self._broken = None, True

    def _extend(self, frame: EmbeddedFrame) -> None:
        if self._prompt_id is None:
            self._prompt_id = self._generator.open_prompt(clip=True, frames=self._max_frames)
        self._generator.extend_prompt(self._prompt_id, frame.embeddings)


class ClipPrompts:
    """Owns the prompts of clips: each is released when no holder has it."""

    def __init__(self, generator: TextGenerator, faults: FaultLog) -> None:
        self._generator = generator
        self._faults = faults
        self._opened: list[ClipPrompt] = []
        self._holders: list[Holder] = []

    def open(self, max_frames: int) -> ClipPrompt:
        """A prompt that is extended while a clip is recorded, by `max_frames` at most."""
        self._opened.append(ClipPrompt(self._generator, self._faults, max_frames))
        return self._opened[-1]

    def add_holder(self, holder: Holder) -> None:
        """`holder` returns the prompts of clips that may still be extended or captioned."""
        self._holders.append(holder)

    def release_unheld(self) -> None:
        """Releases the prompts that no holder returns."""
        if not self._opened:
            return
        held = {id(prompt) for holder in self._holders for prompt in holder()}
        for prompt in self._opened:
            if id(prompt) not in held:
                self._faults.attempt("releasing a prompt", prompt.release)
        self._opened = [prompt for prompt in self._opened if id(prompt) in held]
