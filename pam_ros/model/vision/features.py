"""What the segmenter computes: features of a frame, decoder features and masks of a region in it.

Letters: B regions, C model width, S input size, h = w = S / 16.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from sam2.modeling.sam2_base import NO_OBJ_SCORE
from torch import Tensor
from torch.nn.functional import interpolate


@dataclass(frozen=True, slots=True)
class FrameFeatures:
    """One encoded frame, or B of them as one batch."""

    size: tuple[int, int]  # (height, width) of the frame, pixels
    embedding: Tensor  # (1, C, h, w)
    position: Tensor  # (1, C, h, w) sine position code
    high_resolution: tuple[Tensor, ...]  # (1, C/8, 4h, 4w), (1, C/4, 2h, 2w)
    image: NDArray[np.uint8] | None = None  # (H, W, 3) RGB, kept if small regions may be cropped from it


def of_regions(features: FrameFeatures, frame_of: Tensor | slice | list[int]) -> FrameFeatures:
    """Features of N frames → of B regions; `frame_of` (B,) says on which frame each region lies."""
    return FrameFeatures(
        size=features.size,
        embedding=features.embedding[frame_of],
        position=features.position[frame_of],
        high_resolution=tuple(level[frame_of] for level in features.high_resolution),
    )


def split_regions(x: Tensor) -> list[Tensor]:
    """(B, …) → B tensors (1, …). Copies, so that one region does not keep the batch's memory."""
    return [x] if len(x) == 1 else [each.clone() for each in torch.split(x, 1)]


@dataclass(frozen=True, slots=True)
class DecoderFeatures:
    """What the Semantic Perceiver reads of B regions, from inside the mask decoder (see `PerceiverInput`)."""

    image: Tensor  # (B, C, h, w)
    tokens: Tensor  # (B, 2, C): the stability pick, then mask token 0

    def split(self) -> list[DecoderFeatures]:
        """Those of each region, see `split_regions`."""
        return list(map(DecoderFeatures, split_regions(self.image), split_regions(self.tokens)))


@dataclass(frozen=True, slots=True)
class RegionCrop:
    """A small region, segmented once more in a crop of its frame (see `region_crop`)."""

    box_xyxy: tuple[int, int, int, int]  # the crop, pixels of the frame; x2, y2 exclusive
    mask_logits: Tensor  # (1, 1, 4h, 4w) over the crop
    decoder_features: DecoderFeatures


@dataclass(frozen=True)
class Observation:
    """One region in one frame. Device tensors; `mask` and the scores copy to the host when first read."""

    size: tuple[int, int]  # (height, width) of the frame, pixels
    mask_logits: Tensor  # (1, 1, 4h, 4w) over the frame; far below 0 everywhere if the object is absent
    mask_iou: Tensor  # () the model's estimate
    presence_logit: Tensor  # ()
    decoder_features: DecoderFeatures
    given: NDArray[np.bool_] | None = None  # (H, W) a mask prompt: returned as it came, not resized twice
    image: NDArray[np.uint8] | None = None  # see `FrameFeatures.image`
    crop: RegionCrop | None = None

    def mask_logits_at_frame_size(self) -> Tensor:
        """(H, W) float32 mask logits at the frame's size; those of the crop if there is one."""
        if self.crop is None:
            return _resized_logits(self.mask_logits, self.size)
        x1, y1, x2, y2 = self.crop.box_xyxy
        logits = self.mask_logits.new_full(self.size, NO_OBJ_SCORE, dtype=torch.float32)
        logits[y1:y2, x1:x2] = _resized_logits(self.crop.mask_logits, (y2 - y1, x2 - x1))
        return logits

    @cached_property
    def mask(self) -> NDArray[np.bool_]:
        """(H, W) bool at the frame's size."""
        if self.given is not None:
            return self.given
        mask: NDArray[np.bool_] = (self.mask_logits_at_frame_size() > 0).cpu().numpy()
        return mask

    @cached_property
    def mask_score(self) -> float:
        """The model's own estimate of the mask's IoU, 0..1."""
        return float(self.mask_iou.clamp(0, 1))

    @cached_property
    def presence_score(self) -> float:
        """Probability that the object is in view, 0..1."""
        return float(self.presence_logit.float().sigmoid())


def _resized_logits(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)[0, 0]
