"""SAM 2's mask decoder, step by step, so that the features the Semantic Perceiver reads are returned.

Package sam2's own `predict_masks` keeps them inside. The weights and the steps are the same.

Letters: B regions, C model width, N output tokens, h = w = the stride-16 grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

STABILITY_DELTA = 0.05  # PAM's flags for the stability pick
STABILITY_THRESHOLD = 0.98


@dataclass(frozen=True, slots=True)
class DecodedMasks:
    """What the mask decoder predicts for B regions."""

    masks: Tensor  # (B, 4, 4h, 4w) logits of mask tokens 0..3
    ious: Tensor  # (B, 4) estimates of each mask's IoU
    presence: Tensor  # (B, 1) logit
    mask_tokens: Tensor  # (B, 4, C)
    image: Tensor  # (B, C, h, w) image embedding after the two-way transformer


def decode_masks(
    decoder: Any,
    embedding: Tensor,
    position: Tensor,
    sparse: Tensor,
    dense: Tensor,
    high_resolution: Sequence[Tensor],
) -> DecodedMasks:
    """Runs the decoder on B regions.

    Args:
        decoder: sam2's `MaskDecoder`, with object scores and high-resolution features.
        embedding: (B, C, h, w) image embedding, fused with memory.
        position: (1, C, h, w) position code of the grid.
        sparse: (B, S, C) embedded clicks.
        dense: (B, C, h, w) embedded mask prompt.
        high_resolution: (B or 1, C/8, 4h, 4w) and (B or 1, C/4, 2h, 2w) encoder features.
    """
    count, channels, height, width = embedding.shape
    own = torch.cat([decoder.obj_score_token.weight, decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([own[None].expand(count, -1, -1), sparse], dim=1)
    states, image = decoder.transformer(embedding + dense, position.expand(count, -1, -1, -1), tokens)
    image = image.transpose(1, 2).reshape(count, channels, height, width)  # from (B, h*w, C)
    mask_tokens = states[:, 2 : 2 + decoder.num_mask_tokens]
    finest, finer = high_resolution
    upscale_1, norm, activate_1, upscale_2, activate_2 = decoder.output_upscaling
    upscaled = activate_1(norm(upscale_1(image) + finer))
    upscaled = activate_2(upscale_2(upscaled) + finest)  # (B, C/8, 4h, 4w)
    weights = torch.stack(
        [mlp(mask_tokens[:, i]) for i, mlp in enumerate(decoder.output_hypernetworks_mlps)], dim=1
    )
    masks = (weights @ upscaled.flatten(2)).unflatten(2, upscaled.shape[2:])
    return DecodedMasks(
        masks=masks,
        ious=decoder.iou_prediction_head(states[:, 1]),
        presence=decoder.pred_obj_score_head(states[:, 0]),
        mask_tokens=mask_tokens,
        image=image,
    )


def stability_pick(decoded: DecodedMasks, tokens: Tensor) -> Tensor:
    """Of mask tokens (B, 4, C): token 0 if its mask is stable, else the best of 1 to 3 → (B, C)."""
    first = decoded.masks[:, 0].flatten(1)  # (B, 4h*4w)
    inner = (first > STABILITY_DELTA).sum(1).float()
    outer = (first > -STABILITY_DELTA).sum(1).float()
    stable = torch.where(outer > 0, inner / outer, 1.0) >= STABILITY_THRESHOLD
    best = torch.where(stable, 0, decoded.ious[:, 1:].argmax(1) + 1)  # (B,)
    index = best[:, None, None].expand(-1, 1, tokens.shape[2])
    return tokens.gather(1, index)[:, 0]
