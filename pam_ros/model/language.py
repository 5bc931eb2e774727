"""Qwen2.5 (transformers): prefill once, branch tasks off the shared prefix, decode in a batch, stream tokens.

Letters: R prefixes, P rows of a prefix, N branches, L tokens, H width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedTokenizerBase, Qwen2ForCausalLM

from pam_ros.model.interface import TextDelta

# Rows prefilled in one step: bounds how long a step may keep a waiting frame.
PREFILL_ROWS = {"cpu": 256, "cuda": 4096}
NOWHERE = 2**40  # position of padding: after every query, so that nothing sees it
REPLACEMENT = "\ufffd"  # what an unfinished UTF-8 sequence decodes to
STOP_TOKENS = ("<|im_end|>", "<|endoftext|>")  # end an answer


@dataclass(slots=True)
class Branch:
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
        self.max_rows = int(longest or config.max_position_embeddings)  # of a prompt and its answer together
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

        By position, not by index: padding between a branch's rows does not move its window.
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


class Cohort:
    """Branches off prefixes of equal length, prefilled and decoded as one batch."""

    def __init__(
        self, language: LanguageModel, prefixes: Tensor, branches: Sequence[Branch], stop_ids: Iterable[int]
    ) -> None:
        self.language = language
        self.running = list(branches)
        self._stop_ids = frozenset(stop_ids)
        self._prefixes = prefixes  # (R, P, H)
        self._filled = 0  # rows prefilled
        self._cache = DynamicCache()
        self._started = False  # whether the suffixes are in
        self._padded = False  # whether some rows of the cache are padding
        # (N, K) positions of the rows in the cache, and (N, 1) of each branch's next token
        self._keys = torch.zeros(len(prefixes), 0, dtype=torch.long, device=prefixes.device)
        self._next = self._keys

    @torch.inference_mode()
    def step(self) -> list[Branch]:
        """One prefill chunk, or one more token for every running branch; returns those that grew or ended."""
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
        chunk = max(1, PREFILL_ROWS.get(device.type, PREFILL_ROWS["cpu"]) // count)
        end = min(self._filled + chunk, length)
        positions = torch.arange(self._filled, end, device=device)[None].expand(count, -1)
        self._forward(self._prefixes[:, self._filled : end], positions, positions)
        self._filled = end

    def _feed_suffixes(self) -> Tensor:
        """Branches the cache and feeds every branch's suffix, padded on the right → logits (N, V)."""
        device, length = self._prefixes.device, self._prefixes.shape[1]
        prefix_of = torch.tensor([branch.prefix for branch in self.running], device=device)
        self._started = True
        self._cache.batch_select_indices(prefix_of)
        self._keys = self._keys[prefix_of]
        sizes = torch.tensor([len(branch.suffix) for branch in self.running], device=device)
        longest = int(sizes.max())
        ids = [branch.suffix + branch.suffix[-1:] * (longest - len(branch.suffix)) for branch in self.running]
        steps = torch.arange(longest, device=device).expand(len(ids), -1)
        valid = steps < sizes[:, None]  # (N, L)
        self._padded = any(len(branch.suffix) != longest for branch in self.running)
        embedded = self.language.transformer.model.embed_tokens(torch.tensor(ids, device=device))
        hidden = self._forward(embedded, length + steps, torch.where(valid, length + steps, NOWHERE))
        self._next = (length + sizes)[:, None]
        return self._head(hidden[torch.arange(len(ids), device=device), sizes - 1])

    def _feed_tokens(self) -> Tensor:
        """Feeds each branch's newest token → logits (N, V)."""
        ids = torch.tensor([[branch.tokens[-1]] for branch in self.running], device=self._prefixes.device)
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

    def _choose(self, logits: Tensor) -> list[Branch]:
        """Takes the next token of every branch from logits (N, V)."""
        logits = logits[:, : self.language.tokens]
        greedy = logits.argmax(-1).tolist()
        for row, (branch, token) in enumerate(zip(self.running, greedy, strict=True)):
            if branch.temperature > 0:
                odds = (logits[row] / branch.temperature).softmax(-1)
                token = int(torch.multinomial(odds, 1))
            if token in self._stop_ids:
                branch.finished = True
            else:
                branch.tokens.append(token)
                branch.finished = len(branch.tokens) >= branch.max_new_tokens
        return list(self.running)

    def _drop_finished(self) -> None:
        """Takes ended and cancelled branches out of the batch, so that they cost nothing more."""
        kept = [row for row, branch in enumerate(self.running) if not branch.finished]
        if len(kept) == len(self.running):
            return
        self.running = [self.running[row] for row in kept]
        if self._started and kept:
            rows = torch.tensor(kept, device=self._prefixes.device)
            self._cache.batch_select_indices(rows)
            self._keys, self._next = self._keys[rows], self._next[rows]


class TextDecode:
    """Several cohorts, stepped in turn. Implements `interface.Decode`."""

    def __init__(self, language: LanguageModel, cohorts: Sequence[Cohort]) -> None:
        self._language = language
        self._cohorts = list(cohorts)
        self._branches = {branch.index: branch for cohort in cohorts for branch in cohort.running}

    @property
    def done(self) -> bool:
        """True once every branch is final or cancelled."""
        return all(branch.finished for branch in self._branches.values())

    def step(self) -> list[TextDelta]:
        """Steps the next cohort; reports the texts that changed."""
        if not self._cohorts:
            return []
        cohort = self._cohorts.pop(0)
        changed = cohort.step()
        if any(not branch.finished for branch in cohort.running):
            self._cohorts.append(cohort)
        return [
            TextDelta(
                index=branch.index,
                text=self._language.decode_text(branch.tokens),
                final=branch.finished,
            )
            for branch in changed
        ]

    def cancel(self, index: int) -> None:
        """Stops one branch; it is reported no more."""
        self._branches[index].finished = True
