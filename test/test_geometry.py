"""Boxes and masks: from mask to box and back, intersection over union."""

from __future__ import annotations

import numpy as np
import pytest

from pam_ros.geometry import box_ious, crop_mask, distinct_boxes, full_mask, mask_iou


def test_a_mask_is_cropped_to_its_tight_box_and_restored() -> None:
    mask = np.zeros((5, 8), np.bool_)
    mask[1, 2] = mask[3, 6] = True
    box_xyxy, cropped = crop_mask(mask)
    assert box_xyxy.tolist() == [2, 1, 7, 4]  # x2 and y2 exclusive
    assert cropped.shape == (3, 5)
    assert np.array_equal(full_mask(box_xyxy, cropped, mask.shape), mask)
    mask[:] = False
    assert cropped[0, 0] and cropped[2, 4]  # a copy


def test_an_empty_mask_has_an_empty_box() -> None:
    box_xyxy, cropped = crop_mask(np.zeros((5, 8), np.bool_))
    assert box_xyxy.tolist() == [0, 0, 0, 0]
    assert cropped.shape == (0, 0)
    assert not full_mask(box_xyxy, cropped, (5, 8)).any()


def test_iou_of_masks() -> None:
    a = np.array([[True, True], [False, False]])
    assert mask_iou(a, a) == 1
    assert mask_iou(a, ~a) == 0
    assert mask_iou(a, np.ones((2, 2), np.bool_)) == 0.5
    assert mask_iou(~a & a, ~a & a) == 1  # both empty


def test_iou_of_boxes() -> None:
    boxes = np.array(
        [(0, 0, 4, 2), (2, 0, 6, 2), (1, 0, 3, 2), (4, 0, 8, 2), (5, 5, 6, 6), (1, 1, 1, 1)], np.float32
    )
    first = [1.0, 4 / 12, 0.5, 0.0, 0.0, 0.0]  # the fourth touches it, the last has no area
    ious = box_ious(boxes[:1], boxes)
    assert ious.shape == (1, 6)
    assert ious[0] == pytest.approx(first)
    assert box_ious(boxes, boxes[:1])[:, 0] == pytest.approx(first)
    assert box_ious(boxes[5:], boxes[5:]).tolist() == [[0.0]]
    assert box_ious(boxes[:0], boxes).shape == (0, 6)


def test_of_overlapping_boxes_the_first_stays() -> None:
    boxes = np.array([(0, 0, 4, 2), (1, 0, 5, 2), (2, 0, 6, 2), (0, 0, 4, 2), (9, 9, 9, 9)], np.float32)
    assert distinct_boxes(boxes, 0.5) == [0, 2, 4]  # the second overlaps the first by 0.6
    assert distinct_boxes(boxes, 0.7) == [0, 1, 2, 4]
    assert distinct_boxes(boxes[:0], 0.5) == []
