"""`RemoteGenerator`: texts that a vLLM server generates from embeddings which are made here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import torch

from pam_ros.errors import TextServerError
from pam_ros.model.interface import TextDelta, TextRequest
from pam_ros.model.projector import Projector
from pam_ros.model.text.language_model import LanguageModel, TextStream
from pam_ros.model.text.open_prompts import OpenPrompts, task_suffix
from pam_ros.model.text.text_server import Completion, TextServer


class RemoteGenerator:
    """Implements `interface.TextGenerator` with a server.

    Every text is a request of its own with its whole prompt; the server's prefix cache computes what texts
    have in common once. Embeddings leave the device when a frame arrives, not when a text starts.
    """

    def __init__(
        self, language: LanguageModel, projector: Projector, server: TextServer, *, max_new_tokens: int
    ) -> None:
        """`language` needs no decoder; `max_new_tokens` bounds every text."""
        self.max_new_tokens = max_new_tokens
        self.server = server
        self._language = language
        self._prompts = OpenPrompts(language, projector)
        self._ids = count(1)  # of texts
        self._texts: dict[int, TextStream] = {}  # not final yet

    @property
    def busy(self) -> bool:
        """True while a text is not final."""
        return bool(self._texts)

    @property
    def in_background(self) -> bool:
        """True: the server does the work."""
        return True

    @property
    def problem(self) -> str:
        """Why no text can be generated now; empty if texts can."""
        return self.server.problem

    def notify(self, wake: Callable[[], None]) -> None:
        """Calls `wake`, on another thread, whenever `step` has something to report."""
        self.server.notify(wake)

    def open_prompt(self, *, clip: bool, frames: int = 1) -> int:
        """Starts a prompt about one frame, or about a clip; returns its id."""
        return self._prompts.open(clip=clip)

    def extend_prompt(self, prompt_id: int, embeddings: Any) -> None:
        """Appends one frame's embeddings, oldest first."""
        self._prompts.extend(prompt_id, embeddings)

    def release_prompt(self, prompt_id: int) -> None:
        """No more texts will branch off this prompt. Running texts have what they need."""
        self._prompts.release(prompt_id)

    @torch.inference_mode()
    def generate(self, requests: Sequence[tuple[int, TextRequest]]) -> list[int]:
        """Starts texts that branch off prompts; returns an id for each.

        Raises TextServerError, and starts none, while the server cannot be used; CapacityError if a prompt
        and its answer do not fit into the context of the model or of the server.
        """
        if problem := self.server.problem:
            raise TextServerError(problem)
        context_length = min(
            self._language.context_length, self.server.context_length or self._language.context_length
        )
        prompts = {
            prompt_id: self._prompts.parts(prompt_id)
            for prompt_id in dict.fromkeys(prompt_id for prompt_id, _ in requests)
        }
        completions = []
        for prompt_id, request in requests:
            parts = prompts[prompt_id]
            suffix, room = task_suffix(self._language, request, sum(map(len, parts)), context_length)
            completions.append(
                Completion(
                    prompt=(*parts, self._language.embed(suffix)),
                    max_tokens=min(request.max_new_tokens, self.max_new_tokens, room),
                    temperature=request.temperature,
                )
            )
        started = []
        for completion in completions:
            text_id = next(self._ids)
            self._texts[text_id] = TextStream(self._language)
            self.server.start(text_id, completion)
            started.append(text_id)
        return started

    def step(self) -> list[TextDelta]:
        """Takes what has arrived; returns the texts that changed, at once."""
        changed: dict[int, TextDelta] = {}
        for arrival in self.server.take():
            text = self._texts.get(arrival.text_id)
            if text is None:  # cancelled
                continue
            before = changed.get(arrival.text_id)
            if arrival.finished or arrival.error is not None:
                del self._texts[arrival.text_id]
            changed[arrival.text_id] = TextDelta(
                arrival.text_id,
                text.add(arrival.tokens),
                final=arrival.finished,
                error=arrival.error,
                new_tokens=arrival.count + (0 if before is None else before.new_tokens),
            )
        return list(changed.values())

    def cancel(self, text_id: int) -> None:
        """Ends a text without a report and closes its stream. Does nothing if it has ended already."""
        if self._texts.pop(text_id, None) is not None:
            self.server.cancel(text_id)
