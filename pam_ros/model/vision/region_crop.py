"""Small regions are segmented once more, in a crop of the frame that shows them larger.

Not in the paper, whose SAM 2 sees 1024 pixels; for models with a smaller input, which say so by
`PerceiverConfig.crop_small_regions`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pam_ros.geometry import CropBox, crop_mask
from pam_ros.model.vision.features import Observation
from pam_ros.records import Prompt

# A crop's side in sides of its region: the surroundings of an object belong to its description.
CONTEXT = 2.5
SMALLEST, LARGEST = 0.5, 0.8  # fractions of the frame: smaller crops blur, larger ones add nothing
SMALLEST_CROP_PX = 16  # side of the smallest crop that is worth encoding, pixels


def crop_around(
    box: CropBox, *, scale: float = 1.0, shift: tuple[float, float] = (0.0, 0.0)
) -> CropBox | None:
    """The crop for a region in `box`, inside the frame and of its aspect ratio; None for a large region.

    Training varies it: `scale` scales it, `shift` moves it by fractions of its side.
    """
    x1, y1, x2, y2 = box
    extent = max(x2 - x1, y2 - y1)
    side = max(SMALLEST, CONTEXT * extent)
    if side > LARGEST or extent <= 0:
        return None
    side = min(max(side * scale, extent), 1.0)
    left, top = (
        min(max((low + high - side) / 2 + moved * side, 0.0), 1 - side)
        for low, high, moved in ((x1, x2, shift[0]), (y1, y2, shift[1]))
    )
    return left, top, left + side, top + side


@dataclass(frozen=True, slots=True)
class CropRequest:
    """A crop of a frame, and the prompt for the region in it."""

    box_xyxy: tuple[int, int, int, int]  # pixels of the frame; x2, y2 exclusive
    image: NDArray[np.uint8]  # (h, w, 3) RGB
    prompt: Prompt  # in pixels of the crop


def crop_request(observation: Observation, prompt: Prompt | None) -> CropRequest | None:
    """The crop to segment for an observed region, prompted by its mask's box or by `prompt`.

    None if the region is large, absent or already cropped, or if the frame was not kept.
    """
    image = observation.image
    if image is None or observation.crop is not None:
        return None
    height, width = observation.size
    box = crop_mask(observation.mask)[0]
    x1, y1, x2, y2 = (float(side) for side in box / np.array([width, height] * 2))
    fractions = crop_around((x1, y1, x2, y2))
    if fractions is None:
        return None
    left, top, right, bottom = (
        round(fraction * length) for fraction, length in zip(fractions, (width, height) * 2, strict=True)
    )
    if min(right - left, bottom - top) < SMALLEST_CROP_PX:
        return None
    pixels = np.ascontiguousarray(image[top:bottom, left:right])
    inside = _within(prompt, (left, top, right, bottom)) if prompt is not None else None
    corner = np.array([left, top] * 2, np.float32)
    return CropRequest((left, top, right, bottom), pixels, inside or Prompt(box=box - corner))


def _within(prompt: Prompt, box_xyxy: tuple[int, int, int, int]) -> Prompt | None:
    """The prompt in pixels of a crop, without what lies outside; None for a mask or if nothing is left."""
    left, top, right, bottom = box_xyxy
    limits = np.array([right - left, bottom - top] * 2, np.float32)
    points = prompt.points - np.array([left, top], np.float32)
    inside = ((points >= 0) & (points < limits[:2])).all(1)
    box = None
    if prompt.box is not None:
        box = np.clip(prompt.box - np.array([left, top] * 2, np.float32), 0, limits)
    if prompt.mask is not None or (box is not None and (box[:2] >= box[2:]).any()):
        return None
    if box is None and not (prompt.labels[inside] == 1).any():
        return None
    return Prompt(points=points[inside], labels=prompt.labels[inside], box=box)
