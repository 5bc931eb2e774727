"""A box head: trains features and tokens to encode their region's position. Letters: K regions, S side."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pam_ros.training.prompting import tight_boxes

IN_VIEW_WEIGHT = 0.1  # of whether a region is in view, relative to its box


def normalised_boxes(masks: Tensor) -> Tensor:
    """(…, S, S) bool → (…, 5): centre x, y, width, height as fractions of the image; 1 in view, 0 not."""
    corners = tight_boxes(masks) / masks.shape[-1]
    low, high = corners[..., :2], corners[..., 2:]
    return torch.cat([(low + high) / 2, high - low, masks.any(-1).any(-1)[..., None].float()], dim=-1)


def box_head(width: int) -> nn.Module:
    """(…, width) → (…, 5) as `normalised_boxes`; not part of the model: it only trains its inputs."""
    hidden = 2 * width
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, 5))


def box_loss(found: Tensor, truth: Tensor) -> Tensor:
    """(K, 5) and `normalised_boxes` (K, 5) → the loss of boxes and of what is in view, a scalar."""
    in_view = truth[:, 4]
    off = (found[:, :4].float() - truth[:, :4]).abs().mean(1)
    doubt = F.binary_cross_entropy_with_logits(found[:, 4].float(), in_view)
    return (off * in_view).sum() / in_view.sum().clamp(min=1) + IN_VIEW_WEIGHT * doubt
