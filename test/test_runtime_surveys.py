"""Surveys: everything in view, known regions, budgets, purposes, faults; the grid and its filters."""

from __future__ import annotations

import numpy as np
import pytest
from fakes import FakeModel
from stepped_engine import box, error_of, picture, stepped

from pam_ros.errors import (
    CancelledError,
    InferenceError,
    InputError,
    NoFrameError,
    PromptError,
    TaskError,
    UnknownRegionError,
)
from pam_ros.model.vision.grid import Candidates, GridFilter, grid_points, kept_boxes
from pam_ros.records import Language, Task
from pam_ros.runtime.masks import ONCE_AT_A_TIME
from pam_ros.runtime.requests import SurveyRequest
from pam_ros.runtime.survey import POINTS_AT_ONCE

THINGS = [(4.0, 4.0, 20.0, 20.0), (30.0, 10.0, 50.0, 30.0)]


def rig(**options):
    found = stepped(model=FakeModel(things=list(THINGS)), **options)
    found.frame(1.0)
    return found


def survey(it, **request):
    handle = it.engine.survey("front", SurveyRequest(**request))
    it.settle()
    return handle


def boxes_of(result):
    return sorted(tuple(region.box_xyxy.tolist()) for region in result.regions)


# ---- the flow


def test_everything_in_view_is_answered_once_and_not_kept():
    it = rig()
    result = survey(it, tasks=(Task.LABEL,)).future.result(0)
    assert boxes_of(result) == THINGS
    assert [region.region_id for region in result.regions] == [0, 0]
    assert all((Task.LABEL, Language.EN) in region.texts for region in result.regions)
    assert (result.left_out, result.complete, result.stamp_ns) == (0, True, 10**9)
    assert it.reported_ids == [[]]
    assert it.model.count("encode") == 1


def test_a_survey_of_many_boxes_holds_nobody_up():
    it = stepped(max_regions=256)
    it.frame(1.0, size=(400, 600))
    boxes = tuple((20.0 * x, 20.0 * y, 20.0 * x + 9, 20.0 * y + 9) for x in range(20) for y in range(12))
    survey = it.engine.survey("front", SurveyRequest(boxes_xyxy=boxes, max_regions=240))
    it.turn()
    click = it.request(box(300, 300, 309, 309), tasks=())
    it.turn()
    assert click.future.result(0).region_id == 1
    assert not survey.future.done()
    it.settle()
    assert len(survey.future.result(0).regions) == 240
    assert max(it.model.sizes("segment")) == ONCE_AT_A_TIME


def test_a_cancelled_survey_segments_no_more_boxes():
    it = stepped()
    it.frame(1.0, size=(400, 600))
    boxes = tuple((20.0 * x, 20.0 * y, 20.0 * x + 9, 20.0 * y + 9) for x in range(20) for y in range(12))
    survey = it.engine.survey("front", SurveyRequest(boxes_xyxy=boxes))
    for _ in range(4):
        it.turn()
    survey.cancel()
    it.settle()
    assert it.model.count("segment") <= 4


def test_kept_regions_are_tracked_and_published():
    it = rig()
    result = survey(it, keep=True).future.result(0)
    assert sorted(region.region_id for region in result.regions) == [1, 2]
    it.frame(1.1)
    assert it.reported_ids[-1] == [1, 2]


def test_a_kept_survey_describes_a_known_region_instead_of_doubling_it():
    it = rig()
    known = it.region(box(*THINGS[0]))
    result = survey(it, keep=True, tasks=(Task.LABEL,)).future.result(0)
    assert known.region_id in {region.region_id for region in result.regions}
    assert len(result.regions) == 2
    it.frame(1.1)
    assert it.reported_ids[-1] == [1, 2]


def test_kept_regions_stay_within_the_limit_and_the_rest_is_counted():
    it = rig(max_regions=1)
    result = survey(it, keep=True).future.result(0)
    assert (len(result.regions), result.left_out) == (1, 1)


def test_the_answer_holds_no_more_regions_than_asked_for():
    result = survey(rig(), max_regions=1).future.result(0)
    assert (len(result.regions), result.left_out) == (1, 1)


def test_boxes_replace_the_search():
    it = rig()
    result = survey(it, boxes_xyxy=((10.0, 10.0, 25.0, 30.0),)).future.result(0)
    assert boxes_of(result) == [(10, 10, 25, 30)]
    assert it.model.count("candidates") == 0


def test_an_own_image_is_surveyed_without_the_camera():
    it = stepped(model=FakeModel(things=list(THINGS)))
    result = survey(it, image=picture(50)).future.result(0)
    assert boxes_of(result) == THINGS
    assert it.reported_ids == []


def test_nothing_in_view_is_an_answer():
    it = stepped()
    it.frame(1.0)
    result = survey(it, tasks=(Task.LABEL,)).future.result(0)
    assert (result.regions, result.complete) == ((), True)


def test_a_spent_budget_answers_with_what_was_found():
    it = rig(all_points_per_side=8)
    handle = it.engine.survey("front", SurveyRequest(budget_s=0.5))
    it.turn()  # the survey begins
    it.turn()  # the first batch of points covers the whole frame
    it.clock.now_s += 1.0
    it.settle()
    result = handle.future.result(0)
    assert not result.complete
    assert boxes_of(result) == THINGS
    assert it.model.sizes("candidates") == [POINTS_AT_ONCE]


def test_frames_are_processed_between_the_batches_of_a_grid():
    it = rig(all_points_per_side=16)
    it.engine.survey("front", SurveyRequest())
    for k in range(4):
        it.frame(1.1 + k / 10)
    assert len(it.events.frames) == 5
    assert 0 < it.model.count("candidates") < 16


# ---- purposes


def test_regions_are_ranked_by_how_well_they_fit():
    it = rig()
    for thing in THINGS:
        it.region(box(*thing))
    result = survey(it, purpose="none of them", region_ids=(1, 2)).future.result(0)
    assert (result.scores, result.fitting(0.5)) == ((0.1, 0.1), 0)
    explanation = result.regions[1].texts[Task.EXPLAIN, Language.EN].text
    assert explanation != result.regions[0].texts[Task.EXPLAIN, Language.EN].text
    result = survey(it, purpose=explanation, region_ids=(1, 2)).future.result(0)
    assert (result.scores, result.fitting(0.5)) == ((1.0, 0.1), 1)
    assert [region.region_id for region in result.regions] == [2, 1]
    assert it.model.count("candidates") == 0


def test_a_tracked_region_is_described_as_the_survey_finds_it():
    it = rig()
    known = it.region(box(6, 6, 20, 20))  # a mask that is not the thing's
    result = survey(it, tasks=(Task.LABEL,), keep=True).future.result(0)
    found = next(region for region in result.regions if region.region_id == known.region_id)
    assert tuple(found.box_xyxy.tolist()) == THINGS[0] != tuple(known.box_xyxy.tolist())
    assert (found.created_ns, found.last_visible_ns, result.stamp_ns) == (10**9, 10**9, 10**9)
    assert (Task.LABEL, Language.EN) in found.texts
    assert it.reported_ids[-1] == [1, 2]
    assert it.events.frames[-1].regions[0].box_xyxy.tolist() == known.box_xyxy.tolist()  # tracking goes on


def test_tracked_and_new_regions_are_listed_in_one_order():
    it = rig()
    kept = survey(it, keep=True).future.result(0)
    last = kept.regions[-1]
    it.engine.remove_region("front", kept.regions[0].region_id)
    it.settle()
    again = survey(it, keep=True).future.result(0)
    assert [tuple(each.box_xyxy) for each in again.regions] == [tuple(each.box_xyxy) for each in kept.regions]
    assert [each.region_id for each in again.regions] == [3, last.region_id]


def test_known_regions_are_ranked_as_they_are_in_the_newest_frame():
    it = rig()
    for thing in THINGS:
        it.region(box(*thing))
    it.frame(1.1)
    handle = it.engine.survey("front", SurveyRequest(purpose="any", region_ids=(1, 2), stamp_ns=10**9))
    assert not handle.framed.done()
    it.frame(1.2)
    it.settle()
    assert handle.framed.result(0) == handle.future.result(0).stamp_ns == 12 * 10**8
    grid = it.engine.survey("front", SurveyRequest())
    it.frame(1.3)
    assert grid.framed.result(0) == 12 * 10**8  # of its acceptance


def test_only_new_regions_that_fit_are_kept():
    it = rig()
    known = it.region(box(2, 25, 10, 35))
    it.model.things.append((2.0, 25.0, 10.0, 35.0))
    result = survey(it, purpose="nothing like it", keep=True).future.result(0)
    assert sorted(region.region_id for region in result.regions) == [0, 0, known.region_id]
    it.frame(1.1)
    assert it.reported_ids[-1] == [known.region_id]
    result = survey(it, purpose="explain", keep=True).future.result(
        0
    )  # all of the fake's explanations hold it
    assert len({region.region_id for region in result.regions} - {0}) == 3


def test_a_purpose_is_judged_in_its_language():
    result = survey(rig(), purpose="用来喝水的东西", languages=(Language.ZH,)).future.result(0)
    assert len(result.scores) == len(result.regions) == 2
    assert all((Task.EXPLAIN, Language.ZH) in region.texts for region in result.regions)


# ---- faults and bad input


def test_a_failing_model_fails_the_survey_alone():
    it = rig()

    def fault(call, details):
        if call == "candidates":
            raise RuntimeError("no kernel")

    it.model.fault = fault
    assert isinstance(error_of(survey(it)), InferenceError)
    it.model.fault = None
    assert len(survey(it).future.result(0).regions) == 2


def test_a_cancelled_survey_stops_its_texts():
    it = rig()
    handle = it.engine.survey("front", SurveyRequest(tasks=(Task.DETAIL,)))
    while not it.engine.statistics().generating:
        assert it.turn()
    handle.cancel()
    it.settle()
    assert isinstance(error_of(handle), CancelledError)
    assert it.engine.statistics().generating == 0
    assert it.engine.statistics().queued == 0


def test_a_stopped_engine_ends_its_surveys():
    it = rig()
    handle = it.engine.survey("front", SurveyRequest())
    it.turn()
    it.engine.stop()
    assert isinstance(error_of(handle), CancelledError)


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        ({"tasks": (Task.CLIP,)}, TaskError),
        ({"region_ids": (7,)}, UnknownRegionError),
        ({"region_ids": (1,), "boxes_xyxy": ((0, 0, 1, 1),)}, PromptError),
        ({"keep": True, "image": picture()}, PromptError),
        ({"max_regions": 300}, InputError),
        ({"budget_s": float("nan")}, InputError),
        ({"boxes_xyxy": ((5.0, 5.0, 4.0, 9.0),)}, PromptError),
        ({"boxes_xyxy": ((500.0, 5.0, 510.0, 9.0),)}, PromptError),
        ({"purpose": "x" * 501}, InputError),
        ({"purpose": "x", "min_score": 1.5}, InputError),
    ],
)
def test_bad_surveys_are_refused_with_the_reason(request_, error):
    it = rig()
    assert isinstance(error_of(it.engine.survey("front", SurveyRequest(**request_))), error)


def test_a_survey_needs_a_frame():
    it = stepped()
    assert isinstance(error_of(it.engine.survey("front", SurveyRequest())), NoFrameError)


def test_surveys_are_bounded():
    it = rig(max_queued_requests=2)
    handles = [it.engine.survey("front", SurveyRequest()) for _ in range(3)]
    assert "limit is 2" in str(error_of(handles[2]))
    it.settle()
    assert all(handle.future.result(0).regions for handle in handles[:2])


# ---- the grid


def test_the_grid_covers_the_frame_and_its_beginning_does_too():
    points = grid_points((40, 60), 8)
    assert points.shape == (64, 2)
    assert len(np.unique(points, axis=0)) == 64
    assert points.min() >= 0
    assert (points.max(0) <= [59, 39]).all()
    first = points[:4]
    assert {(x < 30, y < 20) for x, y in first} == {
        (True, True),
        (True, False),
        (False, True),
        (False, False),
    }


def test_filters_drop_what_is_unsure_unstable_too_small_too_large_or_doubled():
    boxes = np.array(
        [
            [0, 0, 10, 10],
            [0, 0, 10, 11],  # nearly the first, less sure
            [20, 20, 30, 30],  # unsure
            [40, 0, 50, 10],  # unstable
            [0, 30, 2, 32],  # small
            [0, 0, 60, 40],  # large
            [0, 0, 0, 0],  # empty
            [30, 30, 50, 40],
        ],
        np.float32,
    )
    ious = np.array([0.9, 0.8, 0.3, 0.9, 0.9, 0.9, 0.9, 0.95], np.float32)
    stabilities = np.array([0.9, 0.9, 0.9, 0.2, 0.9, 0.9, 0.9, 0.9], np.float32)
    areas = np.array([0.04, 0.04, 0.04, 0.04, 0.001, 1.0, 0.0, 0.08], np.float32)
    rule = GridFilter(min_iou=0.6, min_stability=0.5, max_box_iou=0.7, min_area=0.002, max_area=0.9)
    kept = kept_boxes([Candidates(boxes, ious, stabilities, areas)], rule)
    assert kept.tolist() == [boxes[7].tolist(), boxes[0].tolist()]
    assert kept_boxes([], rule).shape == (0, 4)
