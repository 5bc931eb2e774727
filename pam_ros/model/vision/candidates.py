"""Masks decoded at single points → the candidates that `grid` filters, in one copy to the host.

Letters: N points, M = 3N masks, h = w = the mask decoder's output size.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pam_ros.model.vision.grid import Candidates
from pam_ros.model.vision.mask_decoder import DecodedMasks

STABILITY_LOGIT = 1.0  # SAM's stability_score_offset


def mask_candidates(decoded: DecodedMasks, size: tuple[int, int]) -> Candidates:
    """Mask tokens 1 to 3 of every point: whole, part and subpart, as SAM takes them for a single click.

    `size`: (height, width) of the frame, pixels.
    """
    logits = decoded.masks[:, 1:].flatten(0, 1).float()  # (M, h, w)
    ious = decoded.ious[:, 1:].float().clamp(0, 1)
    ious = torch.where(decoded.presence > 0, ious, 0.0).flatten()
    inner = (logits > STABILITY_LOGIT).flatten(1).sum(1).float()
    outer = (logits > -STABILITY_LOGIT).flatten(1).sum(1).float()
    inside = logits > 0
    boxes = torch.cat([_extent(inside.any(1), size[1]), _extent(inside.any(2), size[0])], dim=1)
    numbers = torch.cat(
        [
            boxes[:, [0, 2, 1, 3]],
            ious[:, None],
            (inner / outer.clamp(min=1))[:, None],
            inside.flatten(1).float().mean(1, keepdim=True),
        ],
        dim=1,
    )
    host = numbers.cpu().numpy().astype(np.float32)
    return Candidates(host[:, :4], host[:, 4], host[:, 5], host[:, 6])


def _extent(filled: Tensor, pixels: int) -> Tensor:
    """(M, w) bool → (M, 2): first and one past the last filled place, scaled to `pixels`; or zeros."""
    width = filled.shape[1]
    place = torch.arange(width, device=filled.device)
    first = torch.where(filled, place, width).amin(1)
    end = torch.where(filled, place + 1, 0).amax(1)
    return torch.stack([torch.where(end > 0, first, 0), end], dim=1) * (pixels / width)
