"""Qwen2.5 (transformers) with its tokenizer: text ↔ tokens, embeddings, attention masks.

Letters: N sequences, L queries, K keys, H width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tokenizers.decoders import DecodeStream
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM

from pam_ros.model.text.quantized import QuantizedLinear

REPLACEMENT = "\ufffd"  # what an unfinished UTF-8 sequence decodes to
STOP_TOKENS = ("<|im_end|>", "<|endoftext|>")  # end an answer


def context_length(config: Mapping[str, Any]) -> int:
    """config.json → tokens of a prompt and its answer together."""
    return int(config.get("tokenizer_model_max_length") or config["max_position_embeddings"])


class EmbeddingTable(nn.Module):
    """What is left of a Qwen2 model if a server runs its decoder; its weights have the same name here."""

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__()
        self.config = config
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)


class LanguageModel(nn.Module):
    """A Qwen2 decoder, or its embedding table alone, with its tokenizer."""

    def __init__(
        self, transformer: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerBase | None, window: int | None
    ) -> None:
        """`transformer` may be an EmbeddingTable, for `encode_text`, `decode_text` and `embed` only.

        `window`: how many tokens back (itself included) a token attends to; None = all of them.
        """
        super().__init__()
        self.transformer = transformer
        self.tokenizer = tokenizer
        config = transformer.config
        self.width: int = config.hidden_size
        self.context_length = context_length(config.to_dict())
        self.window = window
        vocabulary = {} if tokenizer is None else tokenizer.get_vocab()
        self.stop_ids = frozenset(vocabulary[name] for name in STOP_TOKENS if name in vocabulary)
        # Checkpoints have vocabulary rows without a token; the reference cuts them off after loading.
        self.tokens = config.vocab_size if tokenizer is None else min(len(tokenizer), config.vocab_size)

    @property
    def parameter_count(self) -> int:
        """Parameters, quantised weights included."""
        quantised = (each.matrix for each in self.modules() if isinstance(each, QuantizedLinear))
        plain = sum(parameter.numel() for parameter in self.parameters())
        return plain + sum(matrix.shape.numel() for matrix in quantised)

    @property
    def device(self) -> torch.device:
        """Where the embedding table is."""
        device: torch.device = self.transformer.model.embed_tokens.weight.device
        return device

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
        embeddings: Tensor = self.transformer.model.embed_tokens(torch.tensor(list(ids), device=self.device))
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


class TextStream:
    """Decodes an answer as its tokens come, in constant time for each; see `LanguageModel.decode_text`."""

    def __init__(self, language: LanguageModel) -> None:
        self._language = language
        self._stream = DecodeStream(skip_special_tokens=True)
        self.tokens: list[int] = []  # so far
        self._said = ""

    @property
    def text(self) -> str:
        """The answer so far; an unfinished character at its end is held back."""
        return self._said.strip()

    def add(self, tokens: Sequence[int]) -> str:
        """Appends tokens; returns `text`."""
        tokenizer = self._language.tokenizer
        assert tokenizer is not None
        self.tokens += tokens
        try:
            for token in tokens:
                self._said += self._stream.step(tokenizer.backend_tokenizer, token) or ""
        except Exception:  # noqa: BLE001 - it refuses byte sequences that are no characters
            self._stream = DecodeStream(self.tokens, skip_special_tokens=True)
            self._said = self._language.decode_text(self.tokens)
        return self.text
