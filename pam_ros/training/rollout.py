"""SAM 2 over a batch of regions of different pictures or videos: the steps of `Segmenter`, with gradients.

Letters: B regions, C width, M memory width, T frames, S input side, h = w = S / 16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from sam2.modeling.position_encoding import PositionEmbeddingRandom
from sam2.modeling.sam2_base import NO_OBJ_SCORE
from sam2.modeling.sam2_utils import LayerNorm2d
from torch import Tensor, nn

from pam_ros.model.vision.memory_bank import MemoryEntry, RegionMemory, memory_tokens
from pam_ros.model.vision.segmenter import (
    REFINE_LOGIT_CLAMP,
    DecoderFeatures,
    FrameFeatures,
    Segmenter,
    _Decoded,
    picked,
)
from pam_ros.training.prompting import Clicks

FEW_CHANNELS = 16


@dataclass(frozen=True, slots=True)
class Found:
    """What the mask decoder says about B regions in one frame."""

    masks: Tensor  # (B, 4, 4h, 4w) logits of mask tokens 0..3, not gated by presence
    ious: Tensor  # (B, 4)
    presence: Tensor  # (B, 1) logit
    decoder_features: DecoderFeatures


def fit_for_training(module: nn.Module) -> None:
    """Makes SAM 2's parts compute the same in fewer steps; position codes in float32 also under autocast."""
    for part in module.modules():
        if isinstance(part, PositionEmbeddingRandom):
            _keep_codes_exact(part)
        elif isinstance(part, LayerNorm2d):
            part.forward = partial(_normalise, part)


def _normalise(norm: LayerNorm2d, x: Tensor) -> Tensor:
    """(B, C, h, w), normalised over C by one kernel, where the package's own forward takes nine.

    That kernel gives each pixel a block of threads. With few channels and many pixels, as at the start of
    the mask downsampler, that took a third of a video step (H200), so there the nine come back.
    """
    if x.shape[1] <= FEW_CHANNELS:
        normed: Tensor = LayerNorm2d.forward(norm, x)
        return normed
    last = F.layer_norm(x.permute(0, 2, 3, 1), norm.weight.shape, norm.weight, norm.bias, norm.eps)
    return last.permute(0, 3, 1, 2)


def _keep_codes_exact(part: PositionEmbeddingRandom) -> None:
    """bfloat16 would lose a pixel. The grid's code, which never changes, is computed once."""
    part.forward = lru_cache(partial(PositionEmbeddingRandom.forward, part))
    original = PositionEmbeddingRandom._pe_encoding

    def exact(coordinates: Tensor) -> Tensor:
        with torch.autocast(coordinates.device.type, enabled=False):
            code: Tensor = original(part, coordinates.float())
            return code

    part._pe_encoding = exact


def normalised(segmenter: Segmenter, pixels: Tensor) -> Tensor:
    """(N, 3, S, S) uint8 or float 0..255 → what the encoder takes."""
    return (pixels.float() / 255 - segmenter.pixel_mean) / segmenter.pixel_std


def prompt(
    segmenter: Segmenter,
    features: FrameFeatures,
    memory: RegionMemory,
    groups: Sequence[Clicks],
    *,
    last: bool = False,
) -> Found:
    """Segments prompted regions, as `Segmenter.segment` does; `groups` cover the B regions in order.

    `last`: nothing will be tracked from here, so only the mask is remembered, for corrections.
    """
    previous = None
    if memory.index <= 0:
        backbone = segmenter.without_memory(features)
    else:
        tokens = memory_tokens(segmenter.sam2, memory, memory.index)
        backbone = segmenter._attend_memory(features, tokens)
    if memory.mask_logits is not None:
        previous = memory.mask_logits.float().clamp(-REFINE_LOGIT_CLAMP, REFINE_LOGIT_CLAMP)
    parts, start = [], 0
    for clicks in groups:
        rows = slice(start, start + len(clicks.points))
        start = rows.stop
        parts.append(
            segmenter._decode_masks(
                picked(features, rows),
                backbone[rows],
                (clicks.points, clicks.labels),
                None if previous is None else previous[rows],
            )
        )
    return _remembered(segmenter, features, memory, parts, prompted=True, last=last)


def track(segmenter: Segmenter, features: FrameFeatures, memory: RegionMemory) -> Found:
    """Finds remembered regions in the next frame, as `Segmenter.track` does."""
    tokens = memory_tokens(segmenter.sam2, memory, memory.index + 1)
    decoded = segmenter._decode_masks(features, segmenter._attend_memory(features, tokens), None, None)
    return _remembered(segmenter, features, memory, [decoded], prompted=False, last=False)


def _remembered(
    segmenter: Segmenter,
    features: FrameFeatures,
    memory: RegionMemory,
    parts: Sequence[_Decoded],
    *,
    prompted: bool,
    last: bool,
) -> Found:
    decoded = _Decoded(
        masks=torch.cat([part.masks for part in parts]),
        ious=torch.cat([part.ious for part in parts]),
        presence=torch.cat([part.presence for part in parts]),
        mask_tokens=torch.cat([part.mask_tokens for part in parts]),
        image=torch.cat([part.image for part in parts]),
    )
    present = decoded.presence > 0  # (B, 1)
    logits = torch.where(present[..., None, None], decoded.masks[:, :1], NO_OBJ_SCORE)
    memory.mask_logits = logits.detach()
    if last:
        return Found(decoded.masks, decoded.ious, decoded.presence, segmenter._decoder_features(decoded))
    spatial = segmenter._encode_memory(features, logits, present, prompted)
    if memory.is_empty or not prompted:
        memory.index += 1
    entry = MemoryEntry(memory.index, segmenter._pointers(decoded), spatial)
    (memory.add_conditioning if prompted else memory.add_recent)(entry)
    return Found(decoded.masks, decoded.ious, decoded.presence, segmenter._decoder_features(decoded))
