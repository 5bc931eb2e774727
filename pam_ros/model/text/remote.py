"""`RemoteGenerator`: texts that a vLLM server generates from embeddings which are made here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pam_ros.errors import TextServerError
from pam_ros.model.interface import TextDelta, TextRequest
from pam_ros.model.projector import Projector
from pam_ros.model.text.generator_base import PromptKeeper
from pam_ros.model.text.language_model import LanguageModel, TextStream
from pam_ros.model.text.open_prompts import task_suffix
from pam_ros.model.text.text_server import Arrival, Completion, TextServer


@dataclass(slots=True)
class _Running:
    """A text that is generated.

    Attributes:
        looks: see `ConfidenceModel.looks`.
        log_probabilities: of the tokens so far; None if the server does not say.
    """

    stream: TextStream
    request: TextRequest
    looks: Tensor | None
    log_probabilities: list[float] | None = field(default_factory=list)

    def take(self, arrival: Arrival) -> None:
        """Appends what has arrived."""
        self.stream.add(arrival.tokens)
        if len(arrival.log_probabilities) < len(arrival.tokens):
            self.log_probabilities = None
        if self.log_probabilities is not None:
            self.log_probabilities += arrival.log_probabilities


class RemoteGenerator(PromptKeeper[_Running]):
    """Implements `interface.TextGenerator` with a server.

    Every text is a request of its own with its whole prompt; the server's prefix cache computes what texts
    have in common once. Embeddings leave the device when a frame arrives, not when a text starts.
    """

    def __init__(
        self, language: LanguageModel, projector: Projector, server: TextServer, *, max_new_tokens: int
    ) -> None:
        """`language` needs no decoder; `max_new_tokens` bounds every text."""
        super().__init__(language, projector, max_new_tokens=max_new_tokens)
        self.server = server

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
        looks = {prompt_id: self.confidence.looks(self._prompts.frames(prompt_id)) for prompt_id in prompts}
        prepared: list[tuple[_Running, Completion]] = []
        for prompt_id, request in requests:
            parts = prompts[prompt_id]
            suffix = task_suffix(self._language, request, sum(map(len, parts)), context_length)
            completion = Completion(
                prompt=(*parts, self._language.embed(suffix.ids)),
                max_tokens=min(request.max_new_tokens, self.max_new_tokens, suffix.room),
                temperature=request.temperature,
            )
            stream = TextStream(self._language)
            stream.add(suffix.beginning)
            prepared.append((_Running(stream, request, looks[prompt_id]), completion))
        started = []
        for running, completion in prepared:
            text_id = next(self._ids)
            self._unfinished[text_id] = running
            self.server.start(text_id, completion)
            started.append(text_id)
        return started

    def step(self) -> list[TextDelta]:
        """Takes what has arrived without waiting; returns the texts that changed."""
        changed: dict[int, TextDelta] = {}
        for arrival in self.server.take():
            text = self._unfinished.get(arrival.text_id)
            if text is None:  # cancelled
                continue
            text.take(arrival)
            before = changed.get(arrival.text_id)
            if arrival.finished or arrival.error is not None:
                del self._unfinished[arrival.text_id]
            sure = None
            if arrival.finished and text.log_probabilities is not None:
                sure = self.confidence.of(text.request, text.log_probabilities, text.looks)
            changed[arrival.text_id] = TextDelta(
                arrival.text_id,
                text.stream.text,
                final=arrival.finished,
                error=arrival.error,
                new_tokens=arrival.count + (0 if before is None else before.new_tokens),
                confidence=sure,
            )
        return list(changed.values())

    def cancel(self, text_id: int) -> None:
        """Ends a text without a report and closes its stream. Does nothing if it has ended already."""
        if self._unfinished.pop(text_id, None) is not None:
            self.server.cancel(text_id)
