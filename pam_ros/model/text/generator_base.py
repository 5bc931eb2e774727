"""What the text generators have in common: the defaults of `interface.TextGenerator`.

Letter: T what a generator keeps of a text.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any, Generic, TypeVar

from pam_ros.model.projector import Projector
from pam_ros.model.text.confidence import ConfidenceModel
from pam_ros.model.text.language_model import LanguageModel
from pam_ros.model.text.open_prompts import OpenPrompts

T = TypeVar("T")


class GeneratorBase(Generic[T]):
    """A generator that needs nothing but this process, and works when it is stepped."""

    def __init__(self, language: LanguageModel, *, max_new_tokens: int = 512) -> None:
        """`max_new_tokens` bounds every text, as the model's description says."""
        self.max_new_tokens = max_new_tokens
        self.confidence = ConfidenceModel()  # replaced by what was calibrated with the model
        self._language = language
        self._ids = count(1)
        self._unfinished: dict[int, T] = {}  # texts that are not final, by id

    @property
    def busy(self) -> bool:
        """True while a text is not final."""
        return bool(self._unfinished)

    @property
    def problem(self) -> str:
        """Why no text can be generated now; empty if texts can."""
        return ""

    @property
    def in_background(self) -> bool:
        """True if texts grow on another thread or machine, so that `step` returns immediately."""
        return False

    def notify(self, wake: Callable[[], None]) -> None:
        """In the background, calls `wake` on another thread whenever `step` has something to report."""


class PromptKeeper(GeneratorBase[T]):
    """A generator that keeps the embeddings of prompts until their texts start."""

    def __init__(self, language: LanguageModel, projector: Projector, *, max_new_tokens: int = 512) -> None:
        """See GeneratorBase."""
        super().__init__(language, max_new_tokens=max_new_tokens)
        self._prompts = OpenPrompts(language, projector)

    def open_prompt(self, *, clip: bool, frames: int = 1) -> int:
        """Starts a prompt about one frame, or about a clip; returns its id."""
        return self._prompts.open(clip=clip)

    def extend_prompt(self, prompt_id: int, embeddings: Any) -> None:
        """Appends one frame's embeddings, oldest first."""
        self._prompts.extend(prompt_id, embeddings)

    def release_prompt(self, prompt_id: int) -> None:
        """No more texts will branch off this prompt. Running texts have what they need."""
        self._prompts.release(prompt_id)
