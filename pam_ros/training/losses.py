"""SAM 2's losses: focal and dice on masks, L1 on the IoU estimate, cross entropy on presence.

Letters: A answers, B regions, K mask tokens (0 alone, 1..3 as alternatives), L side of the compared grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pam_ros.model.vision.segmenter import SegmentedBatch

# SAM 2 has dice 1 and alpha 0.25. Without pretraining, and with small regions, that gives empty masks first.
FOCAL_WEIGHT, DICE_WEIGHT, IOU_WEIGHT, PRESENCE_WEIGHT = 20.0, 5.0, 1.0, 2.0
FOCAL_ALPHA, FOCAL_GAMMA = 0.5, 2.0


@dataclass(frozen=True, slots=True)
class MaskLosses:
    """Scalars; `total` is optimised, the others are figures for the curves."""

    total: Tensor
    iou_first: Tensor  # true IoU of mask token 0 over the regions in view, in the first answer
    iou_last: Tensor  # and in the last
    presence_accuracy: Tensor


def compare_masks(masks: Tensor, truth: Tensor, loss_size: int) -> tuple[Tensor, Tensor]:
    """Mask logits (M, K, h, w) and their true masks (M, S, S) bool → (M, K) losses, (M, K) true IoUs."""
    size = (loss_size, loss_size)
    target = F.adaptive_avg_pool2d(truth.float()[:, None], loss_size)  # soft at the border
    logits = F.interpolate(masks.float(), size=size, mode="bilinear", align_corners=False)  # (M, K, L, L)
    losses = FOCAL_WEIGHT * _focal(logits, target) + DICE_WEIGHT * _dice(logits, target)
    return losses, _ious(logits.detach() > 0, target > 0.5)


def mask_losses(
    answers: Sequence[SegmentedBatch],
    truths: Sequence[Tensor],
    *,
    loss_size: int,
    compare: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]] = compare_masks,
) -> MaskLosses:
    """The losses of A answers about B regions each, with true masks (B, S, S) bool; answers weigh the same.

    A region without a pixel is absent; its mask is not compared. All answers are compared at once, since many
    small steps would leave a GPU idle. `compare`: `compare_masks`, or its compiled version.
    """
    truth = torch.stack(list(truths))  # (A, B, S, S)
    count = truth.shape[0]
    in_view = truth.flatten(2).any(2).float()  # (A, B)
    seen = in_view.sum(1).clamp(min=1)

    masks = torch.cat([answer.masks for answer in answers])
    per_mask, true_ious = compare(masks, truth.flatten(0, 1), loss_size)  # (A·B, K)
    iou_errors = (torch.cat([answer.ious for answer in answers]).float() - true_ious).abs()
    best = per_mask[:, 1:].argmin(1, keepdim=True)
    mask_loss = per_mask[:, 0] + per_mask[:, 1:].gather(1, best)[:, 0]
    iou_loss = iou_errors[:, 0] + iou_errors[:, 1:].mean(1)
    per_region = (mask_loss + IOU_WEIGHT * iou_loss).reshape(count, -1)
    presence_logit = torch.cat([answer.presence for answer in answers]).float().reshape(count, -1)
    presence = F.binary_cross_entropy_with_logits(presence_logit, in_view)
    ious = (true_ious[:, 0].reshape(count, -1) * in_view).sum(1) / seen
    return MaskLosses(
        total=((per_region * in_view).sum(1) / seen).mean() + PRESENCE_WEIGHT * presence,
        iou_first=ious[0],
        iou_last=ious[-1],
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
