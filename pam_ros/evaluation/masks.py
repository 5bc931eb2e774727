"""Masks of pictures: IoU with the truth from a tight box, and from one click in the middle."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np

from pam_ros.evaluation.cases import Case, Findings
from pam_ros.evaluation.pictures import image_case
from pam_ros.evaluation.samples import SUFFIX, EvaluationImage, Mask
from pam_ros.model.interface import PerceptionModel
from pam_ros.records import Prompt, Region, crop_mask
from pam_ros.runtime.offline import region_of
from pam_ros.runtime.tracks import is_in_view

SMALLEST_OBJECT = 0.0015  # of the picture's area: what the data ask about (data.dataset.SMALLEST_OBJECT)
WHOLE_KEYS = ("mask_iou_box", "mask_iou_click")
NO_MASKS = "these data have boxes, no masks"


def mask_iou(truth: Mask, found: Mask) -> float:
    """Intersection over union of two (H, W) bool masks, 0..1; 1 where both are empty."""
    union = int(np.count_nonzero(truth | found))
    return int(np.count_nonzero(truth & found)) / union if union else 1.0


def inner_point(mask: Mask) -> tuple[float, float]:
    """(x, y) pixel farthest from the outside of a mask that is not empty.

    What lies beyond the picture's edge is outside. SAM's protocol for the first click (Kirillov et al., 2023,
    appendix D.1).
    """
    padded = np.pad(mask.astype(np.uint8), 1)
    distance = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    y, x = np.unravel_index(int(distance.argmax()), distance.shape)
    return float(x) - 1, float(y) - 1


def evaluate_masks(
    model: PerceptionModel,
    images: Sequence[EvaluationImage],
    findings: Findings,
    progress: Callable[[str], None] = lambda line: None,
) -> None:
    """Adds `mask_iou_box` and `mask_iou_click` (whole objects), and both with `_parts` and `_background`.

    Per region: the IoU at full picture resolution of its visible pixels with the model's one answer (the
    runtime's mask, not the best of several) to the tight box of those pixels, or to one click on the
    pixel farthest inside. The smallest regions are `SMALLEST_OBJECT` of the picture.
    """
    for number, image in enumerate(images, 1):
        progress(f"masks of picture {number} of {len(images)}")
        _evaluate_image(model, image, findings)
    for key in WHOLE_KEYS:
        findings.lack(key, NO_MASKS if images else "there are no pictures")


def _evaluate_image(model: PerceptionModel, image: EvaluationImage, findings: Findings) -> None:
    pixels = image.image()
    asked = [
        (place, mask)
        for place, mask in enumerate(image.masks())
        if mask is not None and np.count_nonzero(mask) >= max(1.0, SMALLEST_OBJECT * mask.size)
    ]
    if not asked:
        return
    boxes = [Prompt.from_clicks(box_xyxy=crop_mask(mask)[0]) for _, mask in asked]
    clicks = [Prompt.from_clicks([inner_point(mask)]) for _, mask in asked]
    features = model.encode(pixels)
    prompts = boxes + clicks
    found = model.segment(features, prompts, [model.new_memory() for _ in prompts])
    for i, observation in enumerate(found):
        place, truth = asked[i % len(asked)]
        region = image.regions[place]
        kind = "box" if i < len(asked) else "click"
        answer = region_of(1, observation, present=is_in_view(observation, prompted=True))
        findings.add(
            Case(
                metric=f"mask_iou_{kind}{SUFFIX[region.kind]}",
                sample=f"{image.name} {region.name}",
                score=mask_iou(truth, full_mask(answer, truth.shape)),
                truth=region.category,
                picture=image_case(image, place, prompts[i], answer),
            )
        )


def full_mask(region: Region, size: tuple[int, ...]) -> Mask:
    """(H, W) bool of a region's mask at its place in a picture of this size."""
    mask = np.zeros(size, np.bool_)
    x1, y1, x2, y2 = region.box_xyxy.astype(int)
    mask[y1:y2, x1:x2] = region.mask
    return mask
