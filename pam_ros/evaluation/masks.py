"""Masks of images: IoU with the truth, from a tight box and from one click in the middle."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from pam_ros.datasets.schema import Sample, SampleSource
from pam_ros.evaluation.cases import Case, Findings
from pam_ros.evaluation.pictures import image_case
from pam_ros.evaluation.samples import SUFFIX
from pam_ros.geometry import Mask, crop_mask, full_mask, mask_iou
from pam_ros.model.interface import PerceptionModel
from pam_ros.records import Prompt
from pam_ros.runtime.offline import perceive_image

SMALLEST_OBJECT = 0.0015  # of the image's area, as in simulator.samples
WHOLE_KEYS = ("mask_iou_box", "mask_iou_click")
NO_MASKS = "these data have boxes, no masks"


def inner_point(mask: Mask) -> tuple[float, float]:
    """(x, y) pixel farthest from the outside of a mask that is not empty.

    Everything beyond the image's edge is outside. As SAM's first click: Kirillov et al., 2023,
    appendix D.1.
    """
    padded = np.pad(mask.astype(np.uint8), 1)
    distance = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    y, x = np.unravel_index(int(distance.argmax()), distance.shape)
    return float(x) - 1, float(y) - 1


def evaluate_masks(
    model: PerceptionModel,
    images: SampleSource,
    findings: Findings,
    progress: Callable[[str], None] = lambda line: None,
) -> None:
    """Adds `mask_iou_box` and `mask_iou_click` (whole objects), and both with `_parts` and `_background`.

    Per region: the IoU at full image resolution of its visible pixels with the model's one answer (the
    runtime's mask, not the best of several) to the tight box of those pixels, or to one click on the
    pixel farthest inside. The smallest regions are `SMALLEST_OBJECT` of the image.
    """
    for number, image in enumerate(images, 1):
        progress(f"masks of image {number} of {len(images)}")
        _evaluate_image(model, image, findings)
    for key in WHOLE_KEYS:
        findings.lack(key, NO_MASKS if images else "there are no images")


def _evaluate_image(model: PerceptionModel, image: Sample, findings: Findings) -> None:
    pixels = image.image()
    asked = [
        (place, mask)
        for place, mask in enumerate(region.mask() for region in image.regions)
        if mask is not None and np.count_nonzero(mask) >= max(1.0, SMALLEST_OBJECT * mask.size)
    ]
    if not asked:
        return
    boxes = [Prompt.from_clicks(box_xyxy=crop_mask(mask)[0]) for _, mask in asked]
    clicks = [Prompt.from_clicks([inner_point(mask)]) for _, mask in asked]
    prompts = boxes + clicks
    for i, answer in enumerate(perceive_image(model, pixels, prompts, (), ())):
        place, truth = asked[i % len(asked)]
        region = image.regions[place]
        kind = "box" if i < len(asked) else "click"
        findings.add(
            Case(
                metric=f"mask_iou_{kind}{SUFFIX[region.kind]}",
                sample=f"{image.name} {region.name}",
                score=mask_iou(truth, full_mask(answer.box_xyxy, answer.mask, truth.shape)),
                truth=region.category,
                picture=image_case(image, place, prompts[i], answer),
            )
        )
