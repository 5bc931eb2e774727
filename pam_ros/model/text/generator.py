"""`InProcessGenerator`: prompts that grow frame by frame, and texts that branch off them, in this process."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pam_ros.model.interface import TextDelta, TextRequest
from pam_ros.model.projector import Projector
from pam_ros.model.text.batch import GenerationBatch, TextSequence
from pam_ros.model.text.generator_base import PromptKeeper
from pam_ros.model.text.language_model import LanguageModel
from pam_ros.model.text.open_prompts import task_suffix


@dataclass(frozen=True, slots=True)
class _Running:
    """A text that is generated.

    Attributes:
        beginning: tokens of the text that were given.
        looks: see `ConfidenceModel.looks`.
    """

    sequence: TextSequence
    beginning: list[int]
    request: TextRequest
    looks: Tensor | None


class InProcessGenerator(PromptKeeper[_Running]):
    """Implements `interface.TextGenerator` with the model's own language model.

    A prompt is prefilled when its texts start. Texts that start together and whose prompts are equally long
    form one batch; batches take turns.
    """

    def __init__(self, language: LanguageModel, projector: Projector) -> None:
        super().__init__(language, projector)
        self._batches: deque[GenerationBatch] = deque()  # whose turn it is, first in line first

    @torch.inference_mode()
    def generate(self, requests: Sequence[tuple[int, TextRequest]]) -> list[int]:
        """Starts texts that branch off prompts; returns an id for each.

        Raises CapacityError, and starts none, if a prompt and its answer do not fit into the model's context.
        """
        prompts = {  # id → embeddings (P, H)
            prompt_id: self._prompts.embeddings(prompt_id)
            for prompt_id in dict.fromkeys(prompt_id for prompt_id, _ in requests)
        }
        looks = {prompt_id: self.confidence.looks(self._prompts.frames(prompt_id)) for prompt_id in prompts}
        by_length: dict[int, list[tuple[int, TextSequence]]] = defaultdict(list)
        started: list[_Running] = []
        for prompt_id, request in requests:
            length = len(prompts[prompt_id])
            started.append(self._start(request, length, looks[prompt_id]))
            by_length[length].append((prompt_id, started[-1].sequence))
        batches = []
        for members in by_length.values():
            own = list(dict.fromkeys(prompt_id for prompt_id, _ in members))
            for prompt_id, sequence in members:
                sequence.prompt = own.index(prompt_id)
            stacked = torch.stack([prompts[prompt_id] for prompt_id in own])
            sequences = [sequence for _, sequence in members]
            batches.append(GenerationBatch(self._language, stacked, sequences, self._language.stop_ids))
        self._batches.extendleft(reversed(batches))
        self._unfinished |= {running.sequence.text_id: running for running in started}
        return [running.sequence.text_id for running in started]

    def step(self) -> list[TextDelta]:
        """Steps the batch whose turn it is; reports the texts that changed. See `interface.TextGenerator`."""
        while self._batches:
            batch = self._batches.popleft()
            if batch.busy:
                break
        else:
            return []
        try:
            changed = batch.step()
        except Exception as error:  # noqa: BLE001 - the runtime must learn whose texts failed
            return [self._failed(sequence, error) for sequence in batch.running if not sequence.finished]
        if batch.busy:
            self._batches.append(batch)
        return [self._delta(sequence) for sequence in changed]

    def cancel(self, text_id: int) -> None:
        """Ends a text without a report. Does nothing if it has ended already."""
        running = self._unfinished.pop(text_id, None)
        if running is not None:
            running.sequence.finished = True
        self._batches = deque(batch for batch in self._batches if batch.busy)

    def _delta(self, sequence: TextSequence) -> TextDelta:
        running = self._unfinished[sequence.text_id]
        text = self._language.decode_text([*running.beginning, *sequence.tokens])
        if not sequence.finished:
            return TextDelta(sequence.text_id, text, final=False)
        del self._unfinished[sequence.text_id]
        sure = self.confidence.of(running.request, sequence.log_probabilities, running.looks)
        return TextDelta(sequence.text_id, text, final=True, confidence=sure)

    def _failed(self, sequence: TextSequence, error: Exception) -> TextDelta:
        sequence.finished = True
        del self._unfinished[sequence.text_id]
        return TextDelta(
            sequence.text_id, self._language.decode_text(sequence.tokens), final=False, error=error
        )

    def _start(self, request: TextRequest, prompt_length: int, looks: Tensor | None) -> _Running:
        suffix = task_suffix(self._language, request, prompt_length, self._language.context_length)
        sequence = TextSequence(
            text_id=next(self._ids),
            prompt=0,
            suffix=suffix.ids,
            max_new_tokens=min(request.max_new_tokens, self.max_new_tokens, suffix.room),
            temperature=request.temperature,
        )
        return _Running(sequence, suffix.beginning, request, looks)
