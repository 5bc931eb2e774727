"""Qwen2.5 (transformers) with its tokenizer: text ↔ tokens, embeddings, attention masks.

Letters: N sequences, L queries, K keys, H width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, Qwen2ForCausalLM

REPLACEMENT = "\ufffd"  # what an unfinished UTF-8 sequence decodes to
STOP_TOKENS = ("<|im_end|>", "<|endoftext|>")  # end an answer


class LanguageModel(nn.Module):
    """A Qwen2 decoder with its tokenizer."""

    def __init__(
        self, transformer: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerBase | None, window: int | None
    ) -> None:
        """`window`: how many tokens back (itself included) a token attends to; None = all of them."""
        super().__init__()
        self.transformer = transformer
        self.tokenizer = tokenizer
        config = transformer.config
        self.width: int = config.hidden_size
        longest = getattr(config, "tokenizer_model_max_length", None)
        # Tokens of a prompt and its answer together.
        self.context_length = int(longest or config.max_position_embeddings)
        self.window = window
        vocabulary = {} if tokenizer is None else tokenizer.get_vocab()
        self.stop_ids = frozenset(vocabulary[name] for name in STOP_TOKENS if name in vocabulary)
        # Checkpoints have vocabulary rows without a token; the reference cuts them off after loading.
        self.tokens = config.vocab_size if tokenizer is None else min(len(tokenizer), config.vocab_size)

    def encode_text(self, text: str) -> list[int]:
        """Token ids of a piece of prompt; special tokens in it are parsed."""
        assert self.tokenizer is not None
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def decode_text(self, tokens: Sequence[int]) -> str:
        """Text of an answer that may end anywhere; an unfinished character at its end is held back."""
        assert self.tokenizer is not None
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True)).rstrip(REPLACEMENT).strip()

    def embed(self, ids: Sequence[int]) -> Tensor:
        """Token ids → embeddings (L, H)."""
        weight = self.transformer.model.embed_tokens.weight
        embeddings: Tensor = self.transformer.model.embed_tokens(
            torch.tensor(list(ids), device=weight.device)
        )
        return embeddings

    def mask(self, queries: Tensor, keys: Tensor, *, padded: bool = False) -> Tensor | None:
        """Positions of queries (N, L) and keys (N, K) → attention mask (N, 1, L, K); None = plain causal.

        By position, not by index: padding within a sequence does not move its window.
        """
        window = self.window or 0
        if not padded and (not window or keys.shape[1] <= window):
            return None
        age = queries[:, :, None] - keys[:, None, :]
        seen = age >= 0
        if window:
            seen &= age < window
        return seen[:, None]

    def logits(self, embeddings: Tensor) -> Tensor:
        """Embeddings (L, H) → logits (V,) of the next token, without a cache."""
        positions = torch.arange(len(embeddings), device=embeddings.device)[None]
        hidden = self.transformer.model(
            inputs_embeds=embeddings[None], attention_mask=self.mask(positions, positions), use_cache=False
        ).last_hidden_state
        logits: Tensor = self.transformer.lm_head(hidden[0, -1])
        return logits
