"""The steps that `pam parity` compares, on both paths: `PlainParity` and `FastParity`.

Letters: L tokens, H width of the language model, V its vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from pam_ros.evaluation.fixed_texts import finish, open_prompt, plain_texts
from pam_ros.model.engines import Engines
from pam_ros.model.interface import VisionModel
from pam_ros.model.pam import Pam
from pam_ros.model.vision.fast.engine_vision import EngineVision
from pam_ros.records import Prompt


class ParityPath(Protocol):
    """One path through a model."""

    vision: Any  # `interface.VisionModel`

    def embeddings(self, observation: Any, stride: int) -> Tensor:
        """A region in one frame as the language model reads it, (L, H)."""

    def presence_logit(self, observation: Any) -> float:
        """The logit that the object is in view."""

    def logits(self, embeddings: Tensor) -> Tensor:
        """Embeddings (L, H) → logits (V) of the next token."""

    def greedy_tokens(self, prefix: Tensor, suffix: Sequence[int], count: int) -> list[int]:
        """`count` greedy tokens after embeddings `prefix` (L, H) and ids `suffix`, without a stop token."""


def observe(vision: VisionModel, features: Sequence[Any], prompt: Prompt) -> list[Any]:
    """Segments the prompt on the first encoded frame and tracks it through the others."""
    memory = vision.new_memory()
    observations = list(vision.segment(features[0], [prompt], [memory]))
    for frame in features[1:]:
        observations += vision.track(frame, [memory])
    return observations


class PlainParity:
    """`Pam`, on any device."""

    def __init__(self, model: Pam) -> None:
        self.vision: Any = model
        self._model = model

    def embeddings(self, observation: Any, stride: int) -> Tensor:
        """See `ParityPath`."""
        return self._model.embeddings([observation], stride=stride)[0].tensor

    def presence_logit(self, observation: Any) -> float:
        """See `ParityPath`."""
        return float(observation.presence_logit)

    @torch.inference_mode()
    def logits(self, embeddings: Tensor) -> Tensor:
        """See `ParityPath`."""
        return self._model.language.logits(embeddings)

    def greedy_tokens(self, prefix: Tensor, suffix: Sequence[int], count: int) -> list[int]:
        """See `ParityPath`."""
        (tokens,) = plain_texts(self._model.language, prefix[None], [(0, count)], suffix)
        return tokens


class FastParity:
    """The engines; on a CUDA device with kernels and graphs."""

    def __init__(self, model: Pam) -> None:
        self._engines = engines = Engines(model)
        if model.device.type == "cuda":
            engines.warm_up(batches=(1,))
        self.vision: Any = EngineVision(
            engines.vision, engines.encode, engines.region_embeddings, model.segmenter
        )

    def embeddings(self, observation: Any, stride: int) -> Tensor:
        """See `ParityPath`."""
        (found,) = self.vision.embeddings([observation], stride=stride)
        if found.ready is not None:
            found.ready.wait()
        tensor: Tensor = found.tensor
        return tensor

    def presence_logit(self, observation: Any) -> float:
        """See `ParityPath`."""
        return float(torch.tensor(observation.presence_score, dtype=torch.float64).logit())

    @torch.inference_mode()
    def logits(self, embeddings: Tensor) -> Tensor:
        """See `ParityPath`."""
        return self._engines.text.logits(embeddings)

    def greedy_tokens(self, prefix: Tensor, suffix: Sequence[int], count: int) -> list[int]:
        """See `ParityPath`."""
        engine = self._engines.text
        prompt = open_prompt(engine, prefix)
        text = engine.generate(prompt, suffix, max_new_tokens=count)
        finish(engine, [prompt])
        return text.tokens
