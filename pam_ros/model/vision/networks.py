"""SAM 2's four networks as `Segmenter` calls them, by PyTorch; `OpenVinoNetworks` computes the same.

Letters: B regions, C model width, M memory width, S input size, h = w = S / 16.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor

from pam_ros.model.vision.features import FrameFeatures
from pam_ros.model.vision.mask_decoder import DecodedMasks, decode_masks
from pam_ros.model.vision.memory_bank import MemoryTokens, attend_memory, encode_memory


class Networks(Protocol):
    """Image encoder, memory attention, mask decoder and memory encoder."""

    def encode(self, pixels: Tensor) -> list[Tensor]:
        """(B, 3, S, S) normalised pixels → levels of the feature pyramid, finest first."""
        ...

    def attend(self, features: FrameFeatures, memory: MemoryTokens) -> Tensor:
        """The frame's image embedding, fused with the memories of B regions → (B, C, h, w)."""
        ...

    def decode(
        self, embedding: Tensor, sparse: Tensor, dense: Tensor, high_resolution: Sequence[Tensor]
    ) -> DecodedMasks:
        """Fused embeddings, embedded clicks and mask prompts of B regions → masks; see `decode_masks`."""
        ...

    def remember(self, embedding: Tensor, logits: Tensor, present: Tensor, *, binarise: bool) -> Tensor:
        """Masks of B regions → their spatial memories (B, M, h, w); see `encode_memory`."""
        ...


class TorchNetworks:
    """By PyTorch, on any device, with gradients."""

    def __init__(self, sam2: SAM2Base) -> None:
        self._sam2 = sam2

    def encode(self, pixels: Tensor) -> list[Tensor]:
        """See `Networks`."""
        sam2 = self._sam2
        found = sam2.forward_image(pixels)["backbone_fpn"][-sam2.num_feature_levels :]
        return [level.to(pixels.dtype) for level in found]  # the neck adds in float32 and leaves it so

    def attend(self, features: FrameFeatures, memory: MemoryTokens) -> Tensor:
        """See `Networks`."""
        return attend_memory(self._sam2, features, memory)

    def decode(
        self, embedding: Tensor, sparse: Tensor, dense: Tensor, high_resolution: Sequence[Tensor]
    ) -> DecodedMasks:
        """See `Networks`."""
        position = self._sam2.sam_prompt_encoder.get_dense_pe().to(embedding.dtype)
        return decode_masks(self._sam2.sam_mask_decoder, embedding, position, sparse, dense, high_resolution)

    def remember(self, embedding: Tensor, logits: Tensor, present: Tensor, *, binarise: bool) -> Tensor:
        """See `Networks`."""
        return encode_memory(self._sam2, embedding, logits, present, binarise=binarise)
