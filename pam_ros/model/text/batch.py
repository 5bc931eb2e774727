"""Texts that branch off prompts of equal length, prefilled and decoded as one batch.

Letters: R prompts, P tokens of a prompt, N sequences, L tokens, K keys, H width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import DynamicCache

from pam_ros.model.text.language_model import LanguageModel

# Tokens prefilled in one step: bounds how long a step delays a waiting frame.
PREFILL_TOKENS = {"cpu": 256, "cuda": 4096}
NOWHERE = 2**40  # position of padding: after every query, so that nothing attends to it


@dataclass(slots=True)
class TextSequence:
    """One text that continues a prompt."""

    text_id: int
    prompt: int  # index among the batch's prompts
    suffix: list[int]  # token ids between the prompt and what is generated
    max_new_tokens: int
    temperature: float = 0.0  # 0 = greedy
    tokens: list[int] = field(default_factory=list)  # the answer so far, without the stop token
    log_probabilities: list[float] = field(default_factory=list)  # of each of them, whatever the temperature
    finished: bool = False


class GenerationBatch:
    """Prefills R prompts in chunks, then adds a token to each of N sequences, step by step."""

    def __init__(
        self,
        language: LanguageModel,
        prompts: Tensor,
        sequences: Sequence[TextSequence],
        stop_ids: Iterable[int],
    ) -> None:
        """`prompts`: (R, P, H) embeddings."""
        self.running = list(sequences)
        self._language = language
        self._stop_ids = frozenset(stop_ids)
        self._prompts = prompts
        self._prefilled = 0  # tokens of each prompt
        self._cache = DynamicCache()
        self._suffixes_fed = False
        self._padded = False  # whether the cache holds padding
        # (N, K) positions of what the cache holds, and (N, 1) of each sequence's next token
        self._keys = torch.zeros(len(prompts), 0, dtype=torch.long, device=prompts.device)
        self._next = self._keys

    @property
    def busy(self) -> bool:
        """True while a sequence is unfinished."""
        return any(not sequence.finished for sequence in self.running)

    @torch.inference_mode()
    def step(self) -> list[TextSequence]:
        """Prefills one chunk, or adds a token to every running sequence; returns those that grew or ended."""
        self._drop_finished()
        if not self.running:
            return []
        if self._prefilled < self._prompts.shape[1]:
            self._prefill_chunk()
            return []
        return self._choose(self._feed_tokens() if self._suffixes_fed else self._feed_suffixes())

    def _prefill_chunk(self) -> None:
        count, length, _ = self._prompts.shape
        device = self._prompts.device
        chunk = max(1, PREFILL_TOKENS.get(device.type, PREFILL_TOKENS["cpu"]) // count)
        end = min(self._prefilled + chunk, length)
        positions = torch.arange(self._prefilled, end, device=device)[None].expand(count, -1)
        self._forward(self._prompts[:, self._prefilled : end], positions, positions)
        self._prefilled = end

    def _feed_suffixes(self) -> Tensor:
        """Branches the cache and feeds every sequence's suffix, padded on the right → logits (N, V)."""
        device, length = self._prompts.device, self._prompts.shape[1]
        prompt_of = torch.tensor([sequence.prompt for sequence in self.running], device=device)
        self._suffixes_fed = True
        self._cache.batch_select_indices(prompt_of)
        self._keys = self._keys[prompt_of]
        suffixes = [sequence.suffix for sequence in self.running]
        sizes = torch.tensor([len(suffix) for suffix in suffixes], device=device)
        longest = int(sizes.max())
        ids = [suffix + suffix[-1:] * (longest - len(suffix)) for suffix in suffixes]
        steps = torch.arange(longest, device=device).expand(len(ids), -1)
        valid = steps < sizes[:, None]  # (N, L)
        self._padded = any(len(suffix) != longest for suffix in suffixes)
        embedded = self._language.transformer.model.embed_tokens(torch.tensor(ids, device=device))
        hidden = self._forward(embedded, length + steps, torch.where(valid, length + steps, NOWHERE))
        self._next = (length + sizes)[:, None]
        return self._head(hidden[torch.arange(len(ids), device=device), sizes - 1])

    def _feed_tokens(self) -> Tensor:
        """Feeds each sequence's newest token → logits (N, V)."""
        ids = torch.tensor([[sequence.tokens[-1]] for sequence in self.running], device=self._prompts.device)
        hidden = self._forward(self._language.transformer.model.embed_tokens(ids), self._next, self._next)
        self._next = self._next + 1
        return self._head(hidden[:, -1])

    def _forward(self, embeddings: Tensor, positions: Tensor, key_positions: Tensor) -> Tensor:
        """Embeddings (N, L, H) at positions (N, L) → hidden states (N, L, H); the cache grows by them."""
        self._keys = torch.cat([self._keys, key_positions], dim=1)
        hidden: Tensor = self._language.transformer.model(
            inputs_embeds=embeddings,
            attention_mask=self._language.mask(positions, self._keys, padded=self._padded),
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state
        return hidden

    def _head(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self._language.transformer.lm_head(hidden)
        return logits.float()

    def _choose(self, logits: Tensor) -> list[TextSequence]:
        """Takes the next token of every sequence from logits (N, V); one copy to the host."""
        logits = logits[:, : self._language.tokens]
        tokens = logits.argmax(-1)
        for row, sequence in enumerate(self.running):
            if sequence.temperature > 0:
                tokens[row] = torch.multinomial((logits[row] / sequence.temperature).softmax(-1), 1)[0]
        odds = logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(-1)
        chosen, log_probabilities = torch.stack([tokens.double(), odds.double()]).tolist()
        for sequence, token, log_probability in zip(self.running, chosen, log_probabilities, strict=True):
            if int(token) in self._stop_ids:
                sequence.finished = True
            else:
                sequence.tokens.append(int(token))
                sequence.log_probabilities.append(log_probability)
                sequence.finished = len(sequence.tokens) >= sequence.max_new_tokens
        return list(self.running)

    def _drop_finished(self) -> None:
        """Takes ended and cancelled sequences out of the batch, so that they cost nothing more."""
        kept = [row for row, sequence in enumerate(self.running) if not sequence.finished]
        if len(kept) == len(self.running):
            return
        self.running = [self.running[row] for row in kept]
        if self._suffixes_fed and kept:
            rows = torch.tensor(kept, device=self._prompts.device)
            self._cache.batch_select_indices(rows)
            self._keys, self._next = self._keys[rows], self._next[rows]
