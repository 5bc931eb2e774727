"""Masks at points become candidates: boxes, IoU, stability and area, as SAM defines them."""

import numpy as np
import pytest
import torch

from pam_ros.model.vision.candidates import mask_candidates
from pam_ros.model.vision.mask_decoder import DecodedMasks


def test_candidates_are_tokens_1_to_3_with_box_iou_stability_and_area():
    masks = torch.full((1, 4, 8, 8), -9.0)
    masks[0, 1, 2:4, 1:5] = 9.0  # 8 pixels, all certain
    masks[0, 2, 0, 0:4] = torch.tensor([9.0, 9.0, 0.5, -0.5])  # of 4 pixels above -1, 2 are above 1
    ious = torch.tensor([[0.1, 0.9, 0.7, 1.2]])
    found = mask_candidates(_decoded(masks, ious, presence=3.0), (16, 32))
    assert found.boxes_xyxy.tolist() == [[4, 4, 20, 8], [0, 0, 12, 2], [0, 0, 0, 0]]
    assert found.ious.tolist() == pytest.approx([0.9, 0.7, 1.0])
    assert found.stabilities.tolist() == pytest.approx([1.0, 0.5, 0.0])
    assert found.areas.tolist() == pytest.approx([8 / 64, 3 / 64, 0.0])


def test_points_on_nothing_have_no_iou():
    masks = torch.full((2, 4, 8, 8), 9.0)
    found = mask_candidates(_decoded(masks, torch.full((2, 4), 0.9), presence=-3.0), (8, 8))
    assert found.ious.tolist() == [0.0] * 6
    assert found.boxes_xyxy.dtype == np.float32


def _decoded(masks: torch.Tensor, ious: torch.Tensor, presence: float) -> DecodedMasks:
    count = len(masks)
    return DecodedMasks(
        masks=masks,
        ious=ious,
        presence=torch.full((count, 1), presence),
        mask_tokens=torch.zeros(count, 4, 2),
        image=torch.zeros(count, 2, 2, 2),
    )
