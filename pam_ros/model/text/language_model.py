"""Qwen2.5 (transformers): prefill once, sequence tasks off the shared prefix, decode in a batch, stream tokens.

Letters: R prefixes, P rows of a prefix, N sequences, L tokens, H width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedTokenizerBase, Qwen2ForCausalLM

from pam_ros.model.interface import TextDelta

# Rows prefilled in one step: bounds how long a step may keep a waiting frame.
PREFILL_TOKENS = {"cpu": 256, "cuda": 4096}
NOWHERE = 2**40  # position of padding: after every query, so that nothing sees it
REPLACEMENT = "\ufffd"  # what an unfinished UTF-8 sequence decodes to
STOP_TOKENS = ("<|im_end|>", "<|endoftext|>")  # end an answer


@dataclass(slots=True)
class TextSequence:
    """One text to decode after a prefix."""

    index: int  # the caller's number for it
    prefix: int  # which of the prefixes it continues
    suffix: list[int]  # token ids between the prefix and the answer
    max_new_tokens: int
    temperature: float = 0.0  # 0 = greedy
    tokens: list[int] = field(default_factory=list)  # the answer so far, without the stop token
    finished: bool = False


class LanguageModel(nn.Module):
    """A Qwen2 decoder with its tokenizer; rows in, text out."""

    def __init__(
        self, transformer: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerBase | None, window: int | None
    ) -> None:
        """`window`: how many rows back (itself included) a row attends to; None = all of them."""
        super().__init__()
        self.transformer = transformer
        self.tokenizer = tokenizer
        config = transformer.config
        self.width: int = config.hidden_size
        longest = getattr(config, "tokenizer_model_max_length", None)
        self.context_length = int(
            longest or config.max_position_embeddings
        )  # of a prompt and its answer together
        self.window = window
        vocabulary = {} if tokenizer is None else tokenizer.get_vocab()
        self.stop_ids = frozenset(vocabulary[name] for name in STOP_TOKENS if name in vocabulary)
        # Checkpoints hold rows that no token stands for; the reference cuts them off after loading.
        self.tokens = config.vocab_size if tokenizer is None else min(len(tokenizer), config.vocab_size)

    def encode_text(self, text: str) -> list[int]:
        """Token ids of a piece of prompt; special tokens in it are parsed."""
        assert self.tokenizer is not None
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def decode_text(self, tokens: Sequence[int]) -> str:
        """Text of an answer, grown or cut short anywhere; an unfinished character at its end is held back."""
        assert self.tokenizer is not None
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True)).rstrip(REPLACEMENT).strip()

    def embed(self, ids: Sequence[int]) -> Tensor:
        """Token ids → rows (L, H)."""
        weight = self.transformer.model.embed_tokens.weight
        rows: Tensor = self.transformer.model.embed_tokens(torch.tensor(list(ids), device=weight.device))
        return rows

    def mask(self, queries: Tensor, keys: Tensor, *, padded: bool = False) -> Tensor | None:
        """Positions of queries (N, L) and keys (N, K) → who sees whom (N, 1, L, K) bool; None = plain causal.

        By position, not by index: padding between a sequence's rows does not move its window.
        """
        window = self.window or 0
        if not padded and (not window or keys.shape[1] <= window):
            return None
        age = queries[:, :, None] - keys[:, None, :]
        seen = age >= 0
        if window:
            seen &= age < window
        return seen[:, None]

    def logits(self, rows: Tensor) -> Tensor:
        """Rows (P, H) → logits (V,) of the next token, without a cache."""
        positions = torch.arange(len(rows), device=rows.device)[None]
        hidden = self.transformer.model(
            inputs_embeds=rows[None], attention_mask=self.mask(positions, positions), use_cache=False
        ).last_hidden_state
        logits: Tensor = self.transformer.lm_head(hidden[0, -1])
        return logits


class GenerationBatch:
    """Branches off prefixes of equal length, prefilled and decoded as one batch."""

    def __init__(
        self,
        language: LanguageModel,
        prefixes: Tensor,
        sequences: Sequence[TextSequence],
        stop_ids: Iterable[int],
    ) -> None:
        self.language = language
        self.running = list(sequences)
        self._stop_ids = frozenset(stop_ids)
        self._prefixes = prefixes  # (R, P, H)
        self._filled = 0  # rows prefilled
        self._cache = DynamicCache()
        self._started = False  # whether the suffixes are in
        self._padded = False  # whether some rows of the cache are padding
        # (N, K) positions of the rows in the cache, and (N, 1) of each sequence's next token
        self._keys = torch.zeros(len(prefixes), 0, dtype=torch.long, device=prefixes.device)
        self._next = self._keys

    @torch.inference_mode()
    def step(self) -> list[TextSequence]:
        """One prefill chunk, or one more token for every running sequence; returns those that grew or ended."""
        self._drop_finished()
        if not self.running:
            return []
        if self._filled < self._prefixes.shape[1]:
            self._prefill_chunk()
            return []
        logits = self._feed_tokens() if self._started else self._feed_suffixes()
        return self._choose(logits)

    def _prefill_chunk(self) -> None:
        count, length, _ = self._prefixes.shape
        device = self._prefixes.device
        chunk = max(1, PREFILL_TOKENS.get(device.type, PREFILL_TOKENS["cpu"]) // count)
        end = min(self._filled + chunk, length)
        positions = torch.arange(self._filled, end, device=device)[None].expand(count, -1)
        self._forward(self._prefixes[:, self._filled : end], positions, positions)
        self._filled = end

    def _feed_suffixes(self) -> Tensor:
        """Branches the cache and feeds every sequence's suffix, padded on the right → logits (N, V)."""
        device, length = self._prefixes.device, self._prefixes.shape[1]
        prefix_of = torch.tensor([sequence.prefix for sequence in self.running], device=device)
        self._started = True
        self._cache.batch_select_indices(prefix_of)
        self._keys = self._keys[prefix_of]
        sizes = torch.tensor([len(sequence.suffix) for sequence in self.running], device=device)
        longest = int(sizes.max())
        ids = [
            sequence.suffix + sequence.suffix[-1:] * (longest - len(sequence.suffix))
            for sequence in self.running
        ]
        steps = torch.arange(longest, device=device).expand(len(ids), -1)
        valid = steps < sizes[:, None]  # (N, L)
        self._padded = any(len(sequence.suffix) != longest for sequence in self.running)
        embedded = self.language.transformer.model.embed_tokens(torch.tensor(ids, device=device))
        hidden = self._forward(embedded, length + steps, torch.where(valid, length + steps, NOWHERE))
        self._next = (length + sizes)[:, None]
        return self._head(hidden[torch.arange(len(ids), device=device), sizes - 1])

    def _feed_tokens(self) -> Tensor:
        """Feeds each sequence's newest token → logits (N, V)."""
        ids = torch.tensor([[sequence.tokens[-1]] for sequence in self.running], device=self._prefixes.device)
        hidden = self._forward(self.language.transformer.model.embed_tokens(ids), self._next, self._next)
        self._next = self._next + 1
        return self._head(hidden[:, -1])

    def _forward(self, rows: Tensor, positions: Tensor, key_positions: Tensor) -> Tensor:
        """Rows (N, L, H) at positions (N, L) → hidden states (N, L, H); the cache grows by them."""
        self._keys = torch.cat([self._keys, key_positions], dim=1)
        hidden: Tensor = self.language.transformer.model(
            inputs_embeds=rows,
            attention_mask=self.language.mask(positions, self._keys, padded=self._padded),
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state
        return hidden

    def _head(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.language.transformer.lm_head(hidden)
        return logits.float()

    def _choose(self, logits: Tensor) -> list[TextSequence]:
        """Takes the next token of every sequence from logits (N, V)."""
        logits = logits[:, : self.language.tokens]
        greedy = logits.argmax(-1).tolist()
        for row, (sequence, token) in enumerate(zip(self.running, greedy, strict=True)):
            if sequence.temperature > 0:
                odds = (logits[row] / sequence.temperature).softmax(-1)
                token = int(torch.multinomial(odds, 1))
            if token in self._stop_ids:
                sequence.finished = True
            else:
                sequence.tokens.append(token)
                sequence.finished = len(sequence.tokens) >= sequence.max_new_tokens
        return list(self.running)

    def _drop_finished(self) -> None:
        """Takes ended and cancelled sequences out of the batch, so that they cost nothing more."""
        kept = [row for row, sequence in enumerate(self.running) if not sequence.finished]
        if len(kept) == len(self.running):
            return
        self.running = [self.running[row] for row in kept]
        if self._started and kept:
            rows = torch.tensor(kept, device=self._prefixes.device)
            self._cache.batch_select_indices(rows)
            self._keys, self._next = self._keys[rows], self._next[rows]


class TextGeneration:
    """Several batches, stepped in turn. Implements `interface.Decode`."""

    def __init__(self, language: LanguageModel, batches: Sequence[GenerationBatch]) -> None:
        self._language = language
        self._batches = list(batches)
        self._sequences = {sequence.index: sequence for batch in batches for sequence in batch.running}

    @property
    def done(self) -> bool:
        """True once every sequence is final or cancelled."""
        return all(sequence.finished for sequence in self._sequences.values())

    def step(self) -> list[TextDelta]:
        """Steps the next batch; reports the texts that changed."""
        if not self._batches:
            return []
        batch = self._batches.pop(0)
        changed = batch.step()
        if any(not sequence.finished for sequence in batch.running):
            self._batches.append(batch)
        return [
            TextDelta(
                index=sequence.index,
                text=self._language.decode_text(sequence.tokens),
                final=sequence.finished,
            )
            for sequence in changed
        ]

    def cancel(self, index: int) -> None:
        """Stops one sequence; it is reported no more."""
        self._sequences[index].finished = True
