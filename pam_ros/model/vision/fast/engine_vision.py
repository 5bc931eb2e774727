"""`EngineVision`: `interface.VisionModel` on the engines, on a CUDA stream that goes before texts."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pam_ros.errors import PromptError
from pam_ros.model.vision.fast.memory_slots import RegionSlots
from pam_ros.model.vision.fast.vision_engine import EncodedFrame, MaskBatch, VisionEngine
from pam_ros.model.vision.features import DecoderFeatures, split_regions
from pam_ros.model.vision.grid import Candidates
from pam_ros.model.vision.prompt_tensors import click_arrays, click_count, in_batches
from pam_ros.model.vision.segmenter import Segmenter
from pam_ros.records import Prompt


@dataclass(frozen=True, slots=True, eq=False)
class EngineObservation:
    """One region in one frame; implements `interface.Observation`. Masks are on the host already."""

    mask: NDArray[np.bool_]  # (H, W)
    mask_score: float
    presence_score: float
    decoder_features: DecoderFeatures  # of this region alone, on the device


@dataclass(frozen=True, slots=True, eq=False)
class EngineEmbeddings:
    """One region in one frame as the language model reads it."""

    tensor: Tensor  # (L, H)
    ready: torch.cuda.Event | None  # recorded once the tensor is made; None on a CPU

    def __len__(self) -> int:
        return self.tensor.shape[0]


class EngineVision:
    """Implements `interface.VisionModel`. Not thread-safe: one thread owns it."""

    def __init__(
        self,
        engine: VisionEngine,
        encode: Callable[[NDArray[np.uint8]], EncodedFrame],
        embed: Callable[..., Tensor],
        segmenter: Segmenter,
    ) -> None:
        """Args:
        encode: (H, W, 3) uint8 RGB → features.
        embed: decoder features, at a stride → (B, L, H).
        segmenter: decodes masks at many points, which is bound by arithmetic, not by launches.
        """
        self._engine, self._encode, self._embed, self._segmenter = engine, encode, embed, segmenter
        self._stream: torch.cuda.Stream | None = None
        if engine.device.type == "cuda":
            self._stream = torch.cuda.Stream(engine.device, priority=-1)  # type: ignore[no-untyped-call]

    def _streamed(self) -> AbstractContextManager[object]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def encode(self, image: NDArray[np.uint8]) -> EncodedFrame:
        """(H, W, 3) uint8 RGB → features. One encoder pass serves every region of the frame."""
        with self._streamed():
            return self._encode(image)

    def new_memory(self) -> RegionSlots:
        """An empty memory for a new region. Raises CapacityError if every slot of the bank is in use."""
        return self._engine.open()

    def saved(self, memory: RegionSlots) -> Callable[[], None]:
        """See `interface.VisionModel`."""
        with self._streamed():
            restore = self._engine.saved(memory)

        def streamed() -> None:
            with self._streamed():
                restore()

        return streamed

    def segment(
        self, features: EncodedFrame, prompts: Sequence[Prompt], memories: Sequence[RegionSlots]
    ) -> list[EngineObservation]:
        """See `interface.VisionModel`. Prompts of one kind run as one batch."""
        for prompt in prompts:
            prompt.check_size(*features.size)

        def kind(i: int) -> Hashable:
            memory = memories[i]
            return prompts[i].mask is not None, click_count(prompts[i]), memory.is_empty, min(memory.index, 1)

        def run(chosen: list[int]) -> list[EngineObservation]:
            return self._segment_alike(features, [prompts[i] for i in chosen], [memories[i] for i in chosen])

        with self._streamed(), _all_or_nothing(memories):
            return in_batches(range(len(prompts)), kind, run)

    @torch.inference_mode()
    def candidates(self, features: EncodedFrame, points_xy: NDArray[np.float32]) -> Candidates:
        """See `interface.VisionModel`."""
        with self._streamed():
            return self._segmenter.candidates(self._engine.plain_features(features), points_xy)

    def _segment_alike(
        self, features: EncodedFrame, prompts: list[Prompt], memories: list[RegionSlots]
    ) -> list[EngineObservation]:
        if prompts[0].mask is not None:
            masks = [prompt.mask for prompt in prompts if prompt.mask is not None]
            return _observations(self._engine.segment_masks(features, np.stack(masks), memories), masks)
        clicks = click_arrays(self._engine.sam2.image_size, [features.size] * len(prompts), prompts)
        run = self._engine.segment if memories[0].is_empty else self._engine.refine
        return _observations(run(features, *clicks, memories))

    def track(self, features: EncodedFrame, memories: Sequence[RegionSlots]) -> list[EngineObservation]:
        """See `interface.VisionModel`."""
        if any(memory.is_empty for memory in memories):
            raise PromptError("the region has no memory yet; prompt it before tracking")
        with self._streamed(), _all_or_nothing(memories):
            return _observations(self._engine.track(features, memories)) if memories else []

    def embeddings(
        self, observations: Sequence[Any], *, stride: int, crop: bool = False
    ) -> list[EngineEmbeddings]:
        """See `interface.VisionModel`. `crop` has no effect: models that crop do not run on the engines."""
        if not observations:
            return []
        features = [observation.decoder_features for observation in observations]
        with self._streamed():
            joined = DecoderFeatures(
                torch.cat([each.image for each in features]), torch.cat([each.tokens for each in features])
            )
            tensors = split_regions(self._embed(joined, stride=stride))
            ready = None
            if self._stream is not None:
                ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
                ready.record(self._stream)
        return [EngineEmbeddings(tensor[0], ready) for tensor in tensors]


@contextmanager
def _all_or_nothing(memories: Sequence[RegionSlots]) -> Iterator[None]:
    """If the block fails, the memories hold nothing of its frame: its caller tries again, one by one."""
    restores = [memory.saved() for memory in memories]
    try:
        yield
    except BaseException:
        for restore in restores:
            restore()
        raise


def _observations(
    batch: MaskBatch, given: Sequence[NDArray[np.bool_]] | None = None
) -> list[EngineObservation]:
    """`given`: mask prompts, which are returned as they came."""
    host, alone = batch.to_host(), len(batch.logits) == 1
    decoder_features = batch.features.split()
    return [
        EngineObservation(
            mask=given[i] if given is not None else host.masks[i] if alone else host.masks[i].copy(),
            mask_score=float(host.mask_scores[i]),
            presence_score=float(host.presence_scores[i]),
            decoder_features=decoder_features[i],
        )
        for i in range(len(batch.logits))
    ]
