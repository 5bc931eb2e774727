"""Frames and masks of samples at the size of a model's input.

Letters: T frames, R regions, S side of the input. Everything, or a crop of it, is resized to S × S without
keeping the aspect ratio.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pam_ros.datasets.rle import WHOLE, RleMask, filled_box, sampled
from pam_ros.datasets.schema import Kind, Picture, Sample, SampleRegion
from pam_ros.geometry import CropBox, Mask


@lru_cache(maxsize=4)
def _opened(picture: Picture) -> Image.Image:
    """Decoded once for all crops of an image."""
    return Image.fromarray(picture.read())


def load_pixels(sample: Sample, frames: Sequence[int], size: int, crop: CropBox = WHOLE) -> NDArray[np.uint8]:
    """(T, S, S, 3) uint8 RGB, resized by the same filter as at inference."""
    return np.stack([_resized(_opened(sample.frames[frame]), size, crop) for frame in frames])


def _resized(picture: Image.Image, size: int, crop: CropBox) -> NDArray[np.uint8]:
    width, height = picture.size
    box = (crop[0] * width, crop[1] * height, crop[2] * width, crop[3] * height)
    return np.asarray(picture.resize((size, size), box=box))


def load_masks(
    sample: Sample, regions: Sequence[int], frames: Sequence[int], size: int, crop: CropBox = WHOLE
) -> NDArray[np.bool_]:
    """(R, T, S, S) bool. If the data have no masks: filled boxes, each of the nearest prompted frame."""
    masks = np.zeros((len(regions), len(frames), size, size), np.bool_)
    for row, place in enumerate(regions):
        for column, frame in enumerate(frames):
            masks[row, column] = _mask(sample, sample.regions[place], frame, size, crop)
    return masks


def _mask(sample: Sample, region: SampleRegion, frame: int, size: int, crop: CropBox) -> Mask:
    if region.masks:
        mask = region.masks[frame]
        return np.zeros((size, size), np.bool_) if mask is None else sampled(mask.decode(), size, crop)
    boxed = [each for each, prompt in region.prompts.items() if prompt.box_xyxy is not None]
    if not boxed:
        return np.zeros((size, size), np.bool_)
    box = region.prompts[min(boxed, key=lambda each: abs(each - frame))].box_xyxy
    assert box is not None
    width, height = _opened(sample.frames[frame]).size
    return filled_box(box, height, width, size, crop)


def load_owners(sample: Sample, frame: int, size: int) -> NDArray[np.int16]:
    """(S, S): number of the whole object that each pixel belongs to, 0 for none; small ones lie in front.

    An object with a region has its `object_id`, others have numbers above.
    """
    masks: list[tuple[int, RleMask]] = []
    for region in sample.regions:
        mask = region.masks[frame] if region.masks else None
        if mask is not None and region.object_id and region.kind is not Kind.PART:
            masks.append((region.object_id, mask))
    first = 1 + max((region.object_id for region in sample.regions), default=0)
    for number, others in enumerate(sample.other_masks, first):
        if (mask := others[frame]) is not None:
            masks.append((number, mask))
    owners = np.zeros((size, size), np.int16)
    for number, mask in sorted(masks, key=lambda each: -each[1].area):
        owners[sampled(mask.decode(), size)] = number
    return owners
