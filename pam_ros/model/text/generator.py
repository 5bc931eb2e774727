"""`InProcessGenerator`: prompts that grow frame by frame, and texts that branch off them, in this process."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence

import torch

from pam_ros.model.interface import TextDelta, TextRequest
from pam_ros.model.projector import Projector
from pam_ros.model.text.batch import GenerationBatch, TextSequence
from pam_ros.model.text.generator_base import PromptKeeper
from pam_ros.model.text.language_model import LanguageModel
from pam_ros.model.text.open_prompts import task_suffix


class InProcessGenerator(PromptKeeper[TextSequence]):
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
        by_length: dict[int, list[tuple[int, TextSequence]]] = defaultdict(list)
        for prompt_id, request in requests:
            length = len(prompts[prompt_id])
            by_length[length].append((prompt_id, self._sequence(request, length)))
        batches = []
        for members in by_length.values():
            own = list(dict.fromkeys(prompt_id for prompt_id, _ in members))
            for prompt_id, sequence in members:
                sequence.prompt = own.index(prompt_id)
            stacked = torch.stack([prompts[prompt_id] for prompt_id in own])
            sequences = [sequence for _, sequence in members]
            batches.append(GenerationBatch(self._language, stacked, sequences, self._language.stop_ids))
        self._batches.extendleft(reversed(batches))
        started = [sequence for members in by_length.values() for _, sequence in members]
        self._unfinished |= {sequence.text_id: sequence for sequence in started}
        return sorted(sequence.text_id for sequence in started)  # ids rise in the order of the requests

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
        for sequence in changed:
            if sequence.finished:
                del self._unfinished[sequence.text_id]
        return [
            TextDelta(sequence.text_id, self._language.decode_text(sequence.tokens), final=sequence.finished)
            for sequence in changed
        ]

    def cancel(self, text_id: int) -> None:
        """Ends a text without a report. Does nothing if it has ended already."""
        sequence = self._unfinished.pop(text_id, None)
        if sequence is not None:
            sequence.finished = True
        self._batches = deque(batch for batch in self._batches if batch.busy)

    def _failed(self, sequence: TextSequence, error: Exception) -> TextDelta:
        sequence.finished = True
        del self._unfinished[sequence.text_id]
        return TextDelta(
            sequence.text_id, self._language.decode_text(sequence.tokens), final=False, error=error
        )

    def _sequence(self, request: TextRequest, prompt_length: int) -> TextSequence:
        suffix, room = task_suffix(self._language, request, prompt_length, self._language.context_length)
        return TextSequence(
            text_id=next(self._ids),
            prompt=0,
            suffix=suffix,
            max_new_tokens=min(request.max_new_tokens, self.max_new_tokens, room),
            temperature=request.temperature,
        )
