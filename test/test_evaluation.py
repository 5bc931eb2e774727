"""Masks, tracking and speed: a perfect model scores 1, an empty one 0, known errors their known values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_world import Mask, Rectangle, SeeingModel, empty, shifted_by_5, square, write_shards
from fakes import FakeModel

from pam_ros.evaluation.cases import Findings
from pam_ros.evaluation.masks import SMALLEST_OBJECT, evaluate_masks, inner_point, mask_iou
from pam_ros.evaluation.samples import read_data
from pam_ros.evaluation.speed import evaluate_speed
from pam_ros.evaluation.video import absences_in, boundary, boundary_f, evaluate_video
from pam_ros.records import Task
from pam_ros.simulator.samples import SMALLEST_OBJECT as ASKED_ABOUT


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write_shards(tmp_path / "shards")
    return tmp_path / "shards"


# ---- values worked out by hand


def test_iou_by_hand() -> None:
    assert mask_iou(square(40, 40), square(40, 40)) == 1
    assert mask_iou(square(40, 40), square(45, 40)) == pytest.approx(300 / 500)
    assert mask_iou(square(40, 40), square(60, 40)) == 0
    assert mask_iou(square(0, 0, 0), square(0, 0, 0)) == 1 and mask_iou(square(40, 40), square(0, 0, 0)) == 0


def test_the_click_lies_farthest_inside_and_the_edge_is_outside() -> None:
    assert inner_point(square(40, 40, 21)) == (50, 50)
    corner = square(0, 0, 21)
    assert inner_point(corner) == (10, 10)
    spoon = square(10, 10, 30) | square(39, 39, 2)
    x, y = inner_point(spoon)
    assert 23 <= x <= 26 and 23 <= y <= 26


def test_the_boundary_is_davis_s_ring() -> None:
    # Rows and columns 39..59: a ring of 21 x 21, half a pixel towards the origin.
    ring = boundary(square(40, 40))
    assert ring.sum() == 80 and ring[39, 39:60].all() and ring[59, 39:60].all() and not ring[60].any()
    assert not boundary(np.ones((9, 9), np.bool_)).any()


def test_boundary_accuracy_by_hand() -> None:
    truth = square(40, 40)  # 0.008 of the 141-pixel diagonal: 2 pixels of tolerance
    assert boundary_f(truth, truth) == 1
    assert boundary_f(truth, square(41, 40)) == 1  # within the tolerance
    # Of the ring's 80 pixels: 13 above and 13 below lie within 2 pixels of the other ring, and 4 of its side.
    assert boundary_f(truth, square(50, 40)) == pytest.approx(30 / 80)
    assert boundary_f(truth, square(75, 75)) == 0
    assert boundary_f(truth, np.zeros_like(truth)) == 0 == boundary_f(np.zeros_like(truth), truth)
    assert boundary_f(np.zeros_like(truth), np.zeros_like(truth)) == 1


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ([0.1] * 3 + [0] * 4 + [0.1] * 4, [(range(3, 7), range(7, 11))]),
        ([0.1] * 3 + [0] * 3 + [0.1] * 5, []),  # too short an absence
        ([0.1] * 3 + [0] * 4 + [0.1] * 3, []),  # too short a return
        ([0.1] * 3 + [0] * 9, []),  # never back
        ([0.1] + [0.00005] * 4 + [0.001] * 2 + [0.1] * 12, [(range(1, 5), range(7, 15))]),  # slowly back
        (
            [0.1] + [0] * 4 + [0.1] * 4 + [0] * 5 + [0.1] * 9,
            [(range(1, 5), range(5, 9)), (range(9, 14), range(14, 22))],
        ),
        ([0.1] + [0] * 4 + [0.001] * 2 + [0] * 4 + [0.1] * 4, [(range(7, 11), range(11, 15))]),
    ],
)  # fmt: skip
def test_absences(visible: list[float], expected: list[tuple[range, range]]) -> None:
    assert absences_in(visible) == expected


# ---- masks of pictures


def masks_of(shards: Path, model: SeeingModel) -> Findings:
    findings = Findings()
    evaluate_masks(model, read_data(shards).images, findings)
    return findings


def test_a_perfect_model_has_iou_1_and_each_kind_its_key(shards: Path) -> None:
    model = SeeingModel()
    findings = masks_of(shards, model)
    keys = [f"mask_iou_{kind}{of}" for kind in ("box", "click") for of in ("", "_parts", "_background")]
    assert {key: findings.scores()[key] for key in keys} == dict.fromkeys(keys, 1.0)
    assert findings.counts()["mask_iou_box"] == 2 and findings.counts()["mask_iou_box_parts"] == 1
    boxes = [prompt.box.tolist() for prompt in model.prompts if prompt.box is not None]
    assert [20, 20, 46, 40] in boxes and [40, 24, 46, 36] in boxes  # an object's box holds its parts
    clicks = [prompt.points for prompt in model.prompts if prompt.box is None]
    assert len(clicks) == 4 and all(points.shape == (1, 2) for points in clicks)


def test_an_empty_and_a_shifted_model_have_their_iou(shards: Path) -> None:
    assert masks_of(shards, SeeingModel(blur=empty)).scores()["mask_iou_box"] == 0
    scores = [case.score for case in masks_of(shards, SeeingModel(blur=shifted_by_5)).of("mask_iou_box")]
    assert scores == pytest.approx([300 / 500, (20 * 15 + 6 * 7 + 6 * 5) / (2 * 472 - 372)], abs=0.02)


def test_an_absent_region_has_no_mask(shards: Path) -> None:
    assert masks_of(shards, SeeingModel(presence=lambda mask: False)).scores()["mask_iou_box"] == 0


def test_regions_that_are_too_small_are_not_asked_about(shards: Path) -> None:
    assert SMALLEST_OBJECT == ASKED_ABOUT  # the data's own limit
    nothing, part = Rectangle(3, (0, 0, 0, 0), background=True), Rectangle(1, (0, 0, 0, 0), part=1)
    write_shards(shards, [nothing, Rectangle(1, (20, 20, 24, 24)), part, Rectangle(2, (70, 30, 75, 35))])
    # 16 and 25 of 10800 pixels
    cases = masks_of(shards, SeeingModel()).of("mask_iou_box")
    assert [case.sample for case in cases] == ["image 7 region 4"]


# ---- tracking


def video_of(shards: Path, model: SeeingModel) -> Findings:
    findings = Findings()
    evaluate_video(model, read_data(shards).videos, findings)
    return findings


def test_a_perfect_tracker_scores_1(shards: Path) -> None:
    scores = video_of(shards, SeeingModel()).scores()
    for key in ("jf_video", "region_j_video", "boundary_f_video", "jf_video_moving", "recovery_rate"):
        assert scores[key] == 1.0, key
    assert video_of(shards, SeeingModel()).counts()["jf_video_moving"] == 1
    assert video_of(shards, SeeingModel(max_regions=1)).scores() == scores  # one object after the other


def test_an_empty_tracker_scores_only_while_the_object_is_hidden(shards: Path) -> None:
    findings = video_of(shards, SeeingModel(blur=empty))
    assert [case.score for case in findings.of("jf_video")] == [0, 6 / 20]
    assert findings.scores()["recovery_rate"] == 0  # said lost, but never found


def test_a_mask_of_a_hidden_object_costs_its_frames(shards: Path) -> None:
    model = SeeingModel(blur=lambda mask, frame: mask if mask.any() else square(0, 0, 9, mask.shape))
    findings = video_of(shards, model)
    assert [case.score for case in findings.of("jf_video")] == [14 / 20, 1]
    assert findings.scores()["recovery_rate"] == 0  # never said lost


@pytest.mark.parametrize(("lost_frames", "expected"), [(3, 1.0), (2, 0.0)])
def test_lost_must_be_reported_in_half_of_the_gone_frames(
    shards: Path, lost_frames: int, expected: float
) -> None:
    def invents_later(mask: Mask, frame: int) -> Mask:
        return mask if mask.any() or frame < 6 + lost_frames else square(0, 0, 9, mask.shape)

    assert video_of(shards, SeeingModel(blur=invents_later)).scores()["recovery_rate"] == expected


@pytest.mark.parametrize(("found_after", "expected"), [(7, 1.0), (8, 0.0)])
def test_it_must_be_found_again_within_eight_frames(shards: Path, found_after: int, expected: float) -> None:
    def blind(mask: Mask, frame: int) -> Mask:
        return empty(mask, frame) if 12 <= frame < 12 + found_after else mask

    assert video_of(shards, SeeingModel(blur=blind)).scores()["recovery_rate"] == expected


def test_videos_of_absences_count_for_the_recovery_rate_only(shards: Path) -> None:
    findings = Findings()
    evaluate_video(SeeingModel(), (), findings, absences=read_data(shards).videos)
    assert findings.scores() == {"recovery_rate": 1.0, "jf_video": None}


# ---- speed, on the real Engine with a model that takes its time


def test_speed_goes_through_the_engine(shards: Path) -> None:
    model, findings, samples = FakeModel(), Findings(), read_data(shards)
    model.costs.track_s = 0.004
    threads = torch.get_num_threads()
    evaluate_speed(model, samples.images, samples.videos, findings)
    scores = findings.scores()
    assert 0 < scores["tracked_fps"] < 1 / 0.004 and scores["label_latency_s"] > 0.004
    assert max(model.sizes("track")) <= 2 and 1 in model.sizes("track")  # the clicked region is taken away
    assert all(each.task is Task.LABEL for batch in model.batches for each in batch)
    assert len(model.batches) == findings.counts()["label_latency_s"] + 1
    assert torch.get_num_threads() == threads


def test_speed_without_data_is_missing() -> None:
    findings = Findings()
    evaluate_speed(FakeModel(), (), (), findings)
    assert findings.scores() == {"tracked_fps": None, "label_latency_s": None}
