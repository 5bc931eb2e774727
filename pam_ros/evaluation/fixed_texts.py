"""Greedy texts straight from a language model or a text engine, for `pam bench` and `pam parity`.

Letters: R prompts, P their length in tokens, L tokens, H width of the language model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from pam_ros.model.text.batch import GenerationBatch, TextSequence
from pam_ros.model.text.fast.text_engine import CachedPrompt, TextEngine
from pam_ros.model.text.language_model import LanguageModel

BURST_TOKENS = 8  # decoding steps of the engine between two checks of the result


@torch.inference_mode()
def plain_texts(
    language: LanguageModel,
    prompts: Tensor,
    texts: Sequence[tuple[int, int]],
    suffix: Sequence[int],
    stop_ids: Iterable[int] = (),
) -> list[list[int]]:
    """Prompts (R, P, H) and texts, (prompt, most tokens) each, that follow ids `suffix` → their tokens."""
    sequences = [
        TextSequence(text_id=i, prompt=prompt, suffix=list(suffix), max_new_tokens=tokens)
        for i, (prompt, tokens) in enumerate(texts)
    ]
    batch = GenerationBatch(language, prompts, sequences, stop_ids)
    while not all(each.finished for each in sequences):
        batch.step()
    return [each.tokens for each in sequences]


@torch.inference_mode()
def open_prompt(engine: TextEngine, embeddings: Tensor, capacity: int | None = None) -> CachedPrompt:
    """A prompt that begins with embeddings (L, H); `capacity`: maximum number of its tokens (None: L)."""
    prompt = engine.open(capacity or len(embeddings))
    engine.extend(prompt, embeddings)
    return prompt


@torch.inference_mode()
def finish(engine: TextEngine, prompts: Sequence[CachedPrompt] = ()) -> None:
    """Releases prompts and runs the engine until nothing is left to do."""
    for prompt in prompts:
        engine.release(prompt)
    while not engine.idle:
        engine.step(BURST_TOKENS)
