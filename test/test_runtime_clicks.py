"""Clicks of people: on a region they refine it, elsewhere a positive one makes a region."""

from __future__ import annotations

import pytest
from stepped_engine import box, click, error_of, ns, stepped

from pam_ros.errors import NothingFoundError, PromptError
from pam_ros.records import Prompt


def off(x: float, y: float = 20) -> Prompt:
    """One negative click."""
    return Prompt.from_clicks([(x, y)], [0])


def test_a_click_on_a_region_refines_it_and_elsewhere_makes_another():
    rig = stepped()
    rig.frame(1.0)
    first = rig.region(box(10, 10, 30, 30), refine_hit=True)
    refined = rig.region(click(25), refine_hit=True)
    assert refined.region_id == first.region_id
    assert refined.box_xyxy.tolist() == [21, 16, 29, 24]  # the fake's answer to the new click
    assert rig.region(click(50), refine_hit=True).region_id != first.region_id


def test_the_smallest_region_under_a_click_is_meant():
    rig = stepped()
    rig.frame(1.0)
    large = rig.region(box(5, 5, 55, 35))
    small = rig.region(box(20, 10, 40, 30))
    assert rig.region(click(30), refine_hit=True).region_id == small.region_id
    assert rig.region(click(7, 8), refine_hit=True).region_id == large.region_id


def test_without_the_wish_a_click_on_a_region_makes_another():
    rig = stepped()
    rig.frame(1.0)
    first = rig.region(box(10, 10, 30, 30))
    assert rig.region(click(20)).region_id != first.region_id


def test_a_negative_click_refines_the_region_that_it_hits():
    rig = stepped()
    rig.frame(1.0)
    region = rig.region(box(10, 10, 30, 30))
    assert rig.region(off(20), refine_hit=True).region_id == region.region_id
    assert rig.region(off(5), region_id=region.region_id).region_id == region.region_id  # named, not hit
    assert rig.reported_ids[-1] == [1]


@pytest.mark.parametrize(
    ("more", "words"),
    [({}, "needs a positive click, a box or a mask"), ({"refine_hit": True}, "is on no region; click on")],
)
def test_a_negative_click_alone_makes_no_region(more: dict[str, bool], words: str):
    rig = stepped()
    rig.frame(1.0)
    handle = rig.request(off(20), **more)
    rig.settle()
    error = error_of(handle)
    assert isinstance(error, PromptError) and words in str(error)
    assert not any(rig.reported_ids)


def test_a_lost_region_is_not_hit():
    rig = stepped()
    rig.frame(1.0)
    lost = rig.region(box(10, 10, 30, 30))
    rig.frame(1.1, shade=0)
    rig.frame(1.2, shade=0)
    rig.model.hidden.add(1)
    rig.frame(1.3)
    assert rig.region(click(20), refine_hit=True).region_id != lost.region_id


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("second", [click(32), off(28)])
def test_a_second_click_refines_what_the_first_has_just_made(second: Prompt, together: bool):
    rig = stepped()
    rig.frame(1.0)
    handles = []
    for prompt in (click(30), second, click(50)):
        handles.append(rig.request(prompt, refine_hit=True, tasks=()))
        if not together:
            rig.turn()
    rig.settle()
    assert [handle.future.result(0).region_id for handle in handles] == [1, 1, 2]
    assert rig.reported_ids[-1] == [1, 2]


def test_a_click_refines_what_a_box_before_it_has_made():
    rig = stepped()
    rig.frame(1.0)
    handles = [rig.request(box(10, 10, 30, 30), tasks=()), rig.request(click(20), refine_hit=True, tasks=())]
    other = rig.request(box(40, 10, 50, 30), tasks=())
    rig.turn()
    assert [handle.future.result(0).region_id for handle in (*handles, other)] == [1, 1, 2]


def test_two_clicks_on_an_earlier_frame_make_one_region_there():
    rig = stepped()
    for k in range(3):
        rig.frame(1.0 + k / 10, 100 + k)
    handles = [rig.request(click(x), refine_hit=True, stamp_ns=ns(1.0), tasks=()) for x in (30, 32)]
    rig.turn()
    assert [handle.future.result(0).region_id for handle in handles] == [1, 1]
    assert rig.engine._flow._cameras["front"].regions[1].memory.shades == [100, 100, 102]


def test_a_refused_click_leaves_the_next_one_to_make_a_region():
    rig = stepped()
    rig.frame(1.0)
    rig.model.hidden.add(1)
    handles = [rig.request(click(30), refine_hit=True, tasks=()) for _ in range(2)]
    rig.turn()
    assert isinstance(error_of(handles[0]), NothingFoundError)
    assert handles[1].future.result(0).region_id == 2
