"""Nothing grows: containers and memory stay bounded over thousands of frames and prompts."""

import gc
import tracemalloc
from collections import deque

import pytest
from fakes import FakeEmbeddings, FakeMemory, FakeModel, FakeObservation
from stepped_engine import click, make_frame, ns, stepped

from pam_ros.records import Detection, Language, Task
from pam_ros.runtime.options import EngineOptions
from pam_ros.runtime.requests import PromptRequest
from pam_ros.runtime.statistics import RateMeter


def busy_rig():
    rig = stepped(
        "front",
        "rear",
        model=FakeModel(words=4, max_calls=0),
        streaming=True,
        caption_period_s=0.5,
        clip_frames=4,
        frame_history=5,
        lost_timeout_s=2.0,
        max_regions=4,
        max_queued_requests=8,
    )
    rig.events.limit = 0
    return rig


def live(rig, first, count):
    """Submits frames of two cameras with prompts, requests, recordings, detections and removals."""
    for k in range(first, first + count):
        for camera in ("front", "rear"):
            rig.engine.submit_frame(make_frame(k / 10, 0 if k % 97 < 30 else 100, camera, size=(8, 12)))
        camera = ("front", "rear")[k % 2]
        # The fake model finds nothing in black frames, and regions time out after two seconds.
        rig.request(click(k % 12, k % 8), camera, tasks=(Task.LABEL, Task.BRIEF))
        rig.request(click(3, 3), camera, stamp_ns=ns((k - 3) / 10))
        rig.request(click(3, 3), camera, image=make_frame(0, size=(8, 12)).image)
        rig.engine.caption_now(camera, k % 50, Language.EN)
        if k % 3 == 0:
            handle = rig.engine.caption_clip(
                camera, PromptRequest(click(2, 2)), 1.0, Language.ZH, lambda *_: None
            )
            if k % 2:
                handle.cancel()
        rig.engine.detections(
            camera,
            [Detection(each) for each in [(k % 9, 1, k % 9 + 3, 6)]],
            ns((k - 2) / 10),
            (Task.LABEL,),
            (Language.EN,),
        )
        if k % 7 == 0:
            rig.engine.clear_regions(camera)
        rig.turn()
        rig.turn()


def containers(value, seen, prefix):
    """(path, length) of every list, dict, set and deque that the package's objects reach."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, (list, dict, set, deque, tuple, frozenset)):
        yield prefix, len(value)
        for each in list(value.values()) + list(value.keys()) if isinstance(value, dict) else list(value):
            yield from containers(each, seen, prefix + "[]")
        return
    if not type(value).__module__.startswith(("pam_ros.", "fakes")):
        return
    names = [name for base in type(value).__mro__ for name in getattr(base, "__slots__", ())]
    for name in [*names, *getattr(value, "__dict__", {})]:
        yield from containers(getattr(value, name, None), seen, f"{prefix}.{name}")


def test_containers_stay_bounded():
    rig = busy_rig()
    live(rig, 0, 1200)
    lengths = {}
    for path, length in containers(rig.engine, set(), "engine"):
        lengths[path] = max(lengths.get(path, 0), length)
    assert any("_waiting" in path for path in lengths)
    assert any("regions" in path for path in lengths)
    too_long = {path: length for path, length in lengths.items() if length > 40}
    assert too_long == {}
    assert all(next(camera.ids) > 50 for camera in rig.engine._flow._cameras.values()), (
        "no regions were created"
    )


def counted():
    """Numbers of all objects, and of those of fake models; other tests may have left some alive."""
    gc.collect()
    kinds = (FakeMemory, FakeObservation, FakeEmbeddings)
    objects = [type(value) for value in gc.get_objects()]
    return len(objects), sum(objects.count(kind) for kind in kinds)


def test_objects_and_memory_do_not_grow():
    before = counted()[1]
    rig = busy_rig()
    live(rig, 0, 400)
    rig.settle()
    objects, of_model = counted()
    tracemalloc.start()
    try:
        live(rig, 400, 97)
        gc.collect()
        early = tracemalloc.get_traced_memory()[0]
        live(rig, 497, 97 * 5)
        rig.settle()
        gc.collect()
        late = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    objects_later, of_model_later = counted()
    assert of_model_later - before <= 4 * 2 * 40  # the regions of two cameras with their clips and texts
    assert abs(of_model_later - of_model) < 100
    assert objects_later - objects < 300
    assert late - early < 60_000


def test_removed_regions_leave_nothing_behind():
    before = counted()[1]
    rig = busy_rig()
    live(rig, 0, 300)
    rig.settle()
    for camera in ("front", "rear"):
        rig.engine.clear_regions(camera)
    rig.settle()
    assert counted()[1] == before
    assert rig.engine._flow._captions._rolling == {}
    assert rig.engine._flow._recorder.count == 0
    assert not rig.engine._handles
    assert rig.model.prompts == {}


def test_a_stop_leaves_nothing_behind():
    before = counted()[1]
    rig = busy_rig()
    live(rig, 0, 100)
    rig.engine.stop()
    rig.engine._flow.leave()  # the thread's last action
    assert counted()[1] == before
    assert rig.engine._flow._recorder.count == 0
    assert rig.engine._inbox.counters("front")[2] is None


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("max_regions", (0, 257)),
        ("frame_history", (0, 301)),
        ("stamp_tolerance_s", (-0.1, float("nan"))),
        ("lost_timeout_s", (0, float("inf"))),
        ("detection_iou", (-0.1, 1.1)),
        ("max_new_tokens", (0, 5000)),
        ("max_queued_requests", (0, 2000)),
        ("caption_period_s", (0, 1e6)),
        ("clip_frames", (0, 65)),
    ],
)
def test_errors_of_options_name_the_value_and_its_range(name, values):
    for value in values:
        with pytest.raises(ValueError, match=rf"{name} is .*; allowed: ") as caught:
            EngineOptions(**{name: value})
        assert str(value) in str(caught.value)


def test_rates_rise_at_once_and_fall_without_events():
    meter = RateMeter()
    assert meter.rate_hz(0.0) == 0.0
    for k in range(10):
        meter.add(k / 10)
    assert meter.rate_hz(0.9) == pytest.approx(10, rel=0.15)
    assert meter.rate_hz(20.0) < 0.01
