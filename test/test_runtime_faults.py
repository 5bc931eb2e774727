"""Bad input and model failures: only the affected request fails."""

import gc

import numpy as np
import pytest
from fakes import FakeModel
from stepped_engine import click, error_of, make_frame, ns, stepped

from pam_ros.errors import (
    CapacityError,
    InferenceError,
    LanguageError,
    NotActiveError,
    PromptError,
    TaskError,
    UnknownRegionError,
)
from pam_ros.records import Detection, Language, Prompt, RegionState, Task

# ---- bad input


def test_refusals_leave_no_work_for_the_garbage_collector():
    """What a refused request saw, e.g. a frame's features, goes at once, not when garbage is collected."""

    def fault(call: str, details: object) -> None:
        if call == "segment" and rig.model.count("segment") > 3:
            raise RuntimeError("no memory")

    rig = stepped(max_regions=2, streaming=True, caption_period_s=1.0, clip_frames=2)
    rig.frame(1.0)
    rig.region()
    rig.model.fault = fault
    gc.collect()
    gc.disable()
    try:
        for step in range(5):
            for prompt in (click(60, 10), click(-1, 5), Prompt.from_mask(np.ones((10, 10))), click(10)):
                rig.request(prompt)
            rig.request(None, region_id=9)
            rig.request(click(), languages=())
            rig.request(click()).cancel()
            rig.detect((5, 5, 4, 4), (70, 50, 80, 60), stamp_s=9.0)
            rig.frame(2.0 + step)
            rig.settle()
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        kept = [each for each in gc.garbage if type(each).__module__.startswith(("pam_ros", "fakes"))]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not kept


def test_invalid_requests_fail_at_once():
    rig = stepped()
    rig.frame(1.0)
    errors = [
        error_of(rig.request(click(), tasks=(Task.CLIP,))),
        error_of(rig.request(click(), languages=())),
        error_of(rig.request(None)),
        error_of(rig.request(None, region_id=9)),
        error_of(rig.request(click(), region_id=9)),
    ]
    assert [type(error) for error in errors] == [
        TaskError,
        LanguageError,
        PromptError,
        UnknownRegionError,
        UnknownRegionError,
    ]
    assert not rig.turn()


def test_prompts_outside_the_image_fail_alone():
    rig = stepped()
    rig.frame(1.0, size=(40, 60))
    bad = [rig.request(click(60, 10)), rig.request(Prompt.from_mask(np.ones((10, 10))))]
    good = rig.request(click(59, 39), tasks=())
    rig.settle()
    assert [type(error_of(handle)) for handle in bad] == [PromptError, PromptError]
    assert good.future.result(0).region_id == 1


def test_a_mask_prompt_gives_its_box():
    rig = stepped()
    rig.frame(1.0)
    mask = np.zeros((40, 60), bool)
    mask[10:20, 30:50] = True
    assert rig.region(Prompt.from_mask(mask)).box_xyxy.tolist() == [30, 10, 50, 20]


def test_more_regions_than_allowed():
    rig = stepped(max_regions=2)
    rig.frame(1.0)
    handles = [rig.request(click(x), tasks=()) for x in (10, 20, 30)]
    rig.settle()
    assert [handle.future.exception(0) is None for handle in handles] == [True, True, False]
    error = error_of(handles[2])
    assert isinstance(error, CapacityError)
    assert "has 2 regions, the limit is 2" in str(error)
    assert rig.region(click(30), region_id=2).region_id == 2  # refining needs no room
    rig.engine.remove_region("front", 1)
    assert rig.region(click(30)).region_id == 3


def test_more_requests_than_may_wait():
    rig = stepped(max_queued_requests=3)
    rig.frame(1.0)
    handles = [rig.request(click(x)) for x in (10, 20, 30, 40)]
    assert isinstance(error_of(handles[3]), CapacityError)
    assert rig.engine.statistics().queued == 3
    rig.settle()
    assert all(handle.future.exception(0) is None for handle in handles[:3])
    assert rig.engine.statistics().queued == 0


def test_an_inactive_engine_refuses_requests():
    rig = stepped()
    rig.engine.stop()
    rig.engine.submit_frame(make_frame(1.0))
    rig.engine.detections("front", [Detection(each) for each in [(1, 1, 5, 5)]], None, (), ())
    assert isinstance(error_of(rig.request(click())), NotActiveError)
    assert isinstance(error_of(rig.engine.caption_now("front", 1, Language.EN)), NotActiveError)
    assert rig.engine.clear_regions("front") == 0
    with pytest.raises(UnknownRegionError, match="no region 1"):
        rig.engine.remove_region("front", 1)
    assert rig.engine.statistics().cameras[0].received == 0


# ---- a model that fails


def fail_where(call, guilty):
    """A fault that makes `call` raise if one of its items is guilty."""

    def fault(name, details):
        if name == call and any(guilty(item) for item in details):
            raise RuntimeError("numbers ran out")

    return fault


def test_a_prompt_the_model_fails_on_fails_alone():
    rig = stepped()
    rig.frame(1.0)
    rig.model.fault = fail_where("segment", lambda prompt: prompt.points[0, 0] == 20)
    handles = [rig.request(click(x), tasks=()) for x in (10, 20, 30)]
    rig.settle()
    error = error_of(handles[1])
    assert isinstance(error, InferenceError)
    assert "segmenting failed: RuntimeError: numbers ran out" in str(error)
    assert [handles[k].future.result(0).region_id for k in (0, 2)] == [1, 2]


def test_a_region_the_model_cannot_track_is_lost_alone():
    rig = stepped()
    rig.frame(1.0)
    for x in (10, 20, 30):
        rig.region(click(x))
    rig.model.fault = fail_where("track", lambda memory: memory.number == 2)
    rig.frame(1.1)
    assert [region.state.name for region in rig.events.frames[-1].regions] == ["TRACKED", "LOST", "TRACKED"]
    assert "region 2 cannot be tracked" in rig.events.warnings[-1][1]
    rig.model.fault = None
    rig.frame(1.2)
    assert [region.state.name for region in rig.events.frames[-1].regions] == ["TRACKED"] * 3


def test_a_frame_the_model_cannot_encode():
    rig = stepped()
    rig.frame(1.0)
    rig.region()
    rig.model.fault = fail_where("encode", lambda shade: shade == 50)
    rig.engine.submit_frame(make_frame(1.1, 50))
    handle = rig.request(click())
    rig.settle()
    assert isinstance(error_of(handle), InferenceError)
    assert rig.events.frames[-1].regions[0].state is RegionState.LOST
    rig.frame(1.2)
    assert rig.events.frames[-1].regions[0].state is RegionState.TRACKED


def test_embeddings_the_model_cannot_compute():
    rig = stepped()
    rig.frame(1.0)
    rig.model.fault = fail_where("embedded_stride2", lambda seen: seen.region == 1)
    bad, good = rig.request(click(10)), rig.request(click(20))
    rig.settle()
    assert isinstance(error_of(bad), InferenceError)
    assert good.future.result(0).texts
    assert rig.reported_ids[-1] == [1, 2]  # its mask is unaffected


def test_an_internal_error_fails_every_waiting_request(monkeypatch):
    rig = stepped()
    rig.frame(1.0)
    rig.region()
    monkeypatch.setattr(rig.engine._flow, "_publish", lambda *_: 1 / 0)
    handles = [rig.request(click()), rig.engine.caption_now("front", 1, Language.EN)]
    rig.turn()
    assert [type(error_of(handle)) for handle in handles] == [InferenceError] * 2


def test_a_listener_that_raises_is_logged(caplog):
    rig = stepped(model=FakeModel())
    rig.events._record = lambda *_: 1 / 0
    rig.engine.submit_frame(make_frame(1.0))
    handle = rig.request(click())
    rig.settle()
    assert handle.future.result(0).texts
    assert "listener.on_frame failed" in caplog.text
    assert len(caplog.records) == 2  # on_frame and on_text once each, however many events


def test_a_region_that_cannot_be_found_in_the_earlier_frame_is_not_refined_there():
    rig = stepped()
    for k in range(3):
        rig.frame(1.0 + k / 10, 100 + k)
    rig.region()
    rig.model.fault = fail_where("track", lambda memory: memory.number == 1)
    refined = rig.request(click(40, 30), region_id=1, stamp_ns=ns(1.0), tasks=())
    new = rig.request(click(10, 30), stamp_ns=ns(1.0), tasks=())
    rig.settle()
    assert isinstance(error_of(refined), InferenceError)
    assert new.future.result(0).region_id == 2
    assert rig.events.frames[-1].regions[0].box_xyxy.tolist() == [26, 16, 34, 24]
