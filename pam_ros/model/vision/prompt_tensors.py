"""Prompts as SAM 2 reads them: clicks in encoder pixels, masks as logits.

Letters: B prompts, K clicks each, S input size of the encoder, h = w = S / 16.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from pam_ros.records import Prompt

MASK_PROMPT_LOGIT = 10.0  # SAM 2 takes a mask prompt as logits of ±10
REFINE_LOGIT_CLAMP = 32.0  # SAM 2 clamps the logits it feeds back when clicks refine a mask

T = TypeVar("T")


def click_arrays(
    image_size: int, sizes: Sequence[tuple[int, ...]], prompts: Sequence[Prompt]
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Prompts of K clicks each → points (B, K, 2) (x, y) in encoder pixels and labels (B, K).

    Labels: 1 inside, 0 outside, 2 and 3 corners of a box. `sizes`: (height, width) of each prompt's image.
    Boxes are cut at its edges (the reference does not cut them): detectors' boxes reach beyond.
    """
    points, labels = [], []
    for (height, width), prompt in zip(sizes, prompts, strict=True):
        scale = np.array([image_size / width, image_size / height], np.float32)
        box = np.zeros((0, 2), np.float32) if prompt.box is None else prompt.box.reshape(2, 2)
        corners = np.clip(box, 0, np.array([width, height], np.float32))
        points.append(np.concatenate([corners, prompt.points]) * scale)
        labels.append(np.concatenate([np.array([2, 3], np.int32)[: len(corners)], prompt.labels]))
    return np.stack(points), np.stack(labels)


def click_count(prompt: Prompt) -> int:
    """Number of clicks, two for a box."""
    return len(prompt.points) + (2 if prompt.box is not None else 0)


def in_batches(
    indices: Sequence[int], key: Callable[[int], Hashable], run: Callable[[list[int]], list[T]]
) -> list[T]:
    """Runs items of equal key as one batch and puts the results back in order."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for i in indices:
        groups[key(i)].append(i)
    results: dict[int, T] = {}
    for group in groups.values():
        results.update(zip(group, run(group), strict=True))
    return [results[i] for i in indices]


def fed_back(logits: Tensor) -> Tensor:
    """Mask logits as SAM 2 feeds them back in as a dense prompt; float32."""
    return logits.float().clamp(-REFINE_LOGIT_CLAMP, REFINE_LOGIT_CLAMP)


def binary_masks(masks: Tensor, image_size: int) -> Tensor:
    """Mask prompts (B, 1, H, W), 0 or 1 → (B, 1, S, S), 0.0 or 1.0.

    SAM 2 thresholds at 0.5 and loses what is thinner than its pixels; here the fullest pixels stay.
    """
    masks = _resized(masks.float(), image_size)
    return (masks >= masks.amax((2, 3), keepdim=True).clamp(max=0.5)).float()


def mask_answer(masks: Tensor, side: int) -> Tensor:
    """`binary_masks` (B, 1, S, S) → mask logits (B, 1, side, side) that stand in for the decoder's."""
    return _resized((2 * masks - 1) * MASK_PROMPT_LOGIT, side)


def _resized(masks: Tensor, side: int) -> Tensor:
    return interpolate(masks, size=(side, side), mode="bilinear", align_corners=False, antialias=True)
