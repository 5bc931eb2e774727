"""Prompts that are open: the embeddings of their frames, and what stands before and after them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor

from pam_ros.errors import CapacityError
from pam_ros.model.interface import TextRequest
from pam_ros.model.projector import Projector
from pam_ros.model.text.language_model import LanguageModel
from pam_ros.model.text.prompts import TEXT_BEFORE_IMAGE, text_after_image


class OpenPrompts:
    """Open prompts by id. Their embeddings are kept where the embedding table is."""

    def __init__(self, language: LanguageModel, projector: Projector) -> None:
        self._language = language
        self._projector = projector
        self._ids = count(1)
        self._prompts: dict[int, tuple[bool, list[Tensor]]] = {}  # id → clip?, a tensor (tokens, H) a frame

    def __len__(self) -> int:
        """Number of open prompts."""
        return len(self._prompts)

    def open(self, *, clip: bool) -> int:
        """Starts a prompt about one frame, or about a clip; returns its id."""
        prompt_id = next(self._ids)
        self._prompts[prompt_id] = (clip, [])
        return prompt_id

    def extend(self, prompt_id: int, embeddings: Any) -> None:
        """Appends one frame's embeddings, oldest first. Waits until they are made, if another stream does."""
        if (ready := getattr(embeddings, "ready", None)) is not None:
            ready.synchronize()
        self._prompts[prompt_id][1].append(embeddings.tensor.to(self._language.device))

    def release(self, prompt_id: int) -> None:
        """Forgets a prompt. Idempotent."""
        self._prompts.pop(prompt_id, None)

    def embeddings(self, prompt_id: int) -> Tensor:
        """Everything before the task's text → (P, H)."""
        return torch.cat(self.parts(prompt_id))

    def frames(self, prompt_id: int) -> list[Tensor]:
        """The embeddings (L, H) of each frame, oldest first."""
        return self._prompts[prompt_id][1]

    def parts(self, prompt_id: int) -> list[Tensor]:
        """`embeddings` before they are joined: (L, H) each."""
        clip, frames = self._prompts[prompt_id]
        before = self._language.embed(self._language.encode_text(TEXT_BEFORE_IMAGE))
        return [before, *self._projector.prompt_parts(frames, clip=clip)]


@dataclass(frozen=True, slots=True)
class Suffix:
    """What stands between a prompt and what is generated.

    Attributes:
        ids: tokens of the task's text and of the answer's beginning.
        beginning: the latter alone.
        room: tokens that are left for the rest of the answer; at least one.
    """

    ids: list[int]
    beginning: list[int]
    room: int


def task_suffix(
    language: LanguageModel, request: TextRequest, prompt_length: int, context_length: int
) -> Suffix:
    """A request → what follows the prompt. `context_length`: of prompt and answer together, tokens.

    Raises CapacityError if no token is left for the answer.
    """
    text = text_after_image(request.task, request.language, request.previous_caption)
    beginning = language.encode_text(request.beginning) if request.beginning else []
    ids = language.encode_text(text) + beginning
    room = context_length - prompt_length - len(ids)
    if room < 1:
        raise CapacityError(
            f"the prompt has {prompt_length + len(ids)} tokens and leaves no room for an answer "
            f"(context length {context_length}); use fewer frames or a shorter previous caption"
        )
    return Suffix(ids, beginning, room)
