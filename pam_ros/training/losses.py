"""SAM 2's losses: focal and dice on masks, L1 on the IoU estimate, cross entropy on presence.

Letters: B regions, K mask tokens (0 alone, 1..3 as alternatives), L side of the grid of comparison.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pam_ros.training.rollout import Found

# SAM 2 has dice 1 and alpha 0.25; from nothing, and with small regions, that begins with empty masks.
FOCAL_WEIGHT, DICE_WEIGHT, IOU_WEIGHT, PRESENCE_WEIGHT = 20.0, 5.0, 1.0, 1.0
FOCAL_ALPHA, FOCAL_GAMMA = 0.5, 2.0


@dataclass(frozen=True, slots=True)
class MaskLosses:
    """Scalars; `total` is optimised, the others are for the curves."""

    total: Tensor
    iou: Tensor  # true IoU of mask token 0 over the regions in view
    presence_accuracy: Tensor


def mask_losses(found: Found, truth: Tensor, *, loss_size: int) -> MaskLosses:
    """`truth` is (B, S, S) bool; a region without a pixel is absent and has no mask to compare."""
    target = F.adaptive_avg_pool2d(truth.float()[:, None], loss_size)  # (B, 1, L, L), soft at the rim
    size = (loss_size, loss_size)
    logits = F.interpolate(
        found.masks.float(), size=size, mode="bilinear", align_corners=False
    )  # (B, K, L, L)
    in_view = truth.flatten(1).any(1).float()  # (B,)
    count = in_view.sum().clamp(min=1)

    per_mask = FOCAL_WEIGHT * _focal(logits, target) + DICE_WEIGHT * _dice(logits, target)  # (B, K)
    with torch.no_grad():
        true_ious = _ious(logits > 0, target > 0.5)  # (B, K)
    iou_errors = (found.ious.float() - true_ious).abs()
    best = per_mask[:, 1:].argmin(1, keepdim=True)
    masks = per_mask[:, 0] + per_mask[:, 1:].gather(1, best)[:, 0]
    ious = iou_errors[:, 0] + iou_errors[:, 1:].mean(1)
    presence_logit = found.presence.float()[:, 0]
    presence = F.binary_cross_entropy_with_logits(presence_logit, in_view)
    total = ((masks + IOU_WEIGHT * ious) * in_view).sum() / count + PRESENCE_WEIGHT * presence
    return MaskLosses(
        total=total,
        iou=(true_ious[:, 0] * in_view).sum() / count,
        presence_accuracy=((presence_logit > 0) == (in_view > 0)).float().mean(),
    )


def _focal(logits: Tensor, target: Tensor) -> Tensor:
    """(B, K, L, L), (B, 1, L, L) → (B, K)."""
    target = target.expand_as(logits)
    probability = logits.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    missed = probability + target - 2 * probability * target
    alpha = FOCAL_ALPHA * target + (1 - FOCAL_ALPHA) * (1 - target)
    return (alpha * missed**FOCAL_GAMMA * entropy).mean((2, 3))


def _dice(logits: Tensor, target: Tensor) -> Tensor:
    """(B, K, L, L), (B, 1, L, L) → (B, K)."""
    probability = logits.sigmoid()
    overlap = (probability * target).sum((2, 3))
    return 1 - (2 * overlap + 1) / (probability.sum((2, 3)) + target.sum((2, 3)) + 1)


def _ious(found: Tensor, truth: Tensor) -> Tensor:
    """(B, K, L, L) and (B, 1, L, L) bool → (B, K)."""
    overlap, union = (found & truth).sum((2, 3)), (found | truth).sum((2, 3))
    return overlap / union.clamp(min=1)
