"""The real worker thread: starting, stopping in the middle of everything, callers on many threads."""

import threading
import time
from concurrent.futures import wait

import numpy as np
import pytest
from fakes import Costs, FakeModel, Recorder
from stepped_engine import click, make_frame

from pam_ros.errors import CancelledError, NotActiveError, PamError
from pam_ros.records import Detection, Language, Task
from pam_ros.runtime.engine import Engine
from pam_ros.runtime.failures import FaultLog
from pam_ros.runtime.options import EngineOptions
from pam_ros.runtime.requests import PromptRequest
from pam_ros.runtime.worker import TEXT_FRACTION, Worker


@pytest.fixture
def events():
    return Recorder()


@pytest.fixture
def engines(events):
    made = []

    def make(model=None, cameras=("front",), **options):
        engine = Engine(
            model=model or FakeModel(), cameras=cameras, options=EngineOptions(**options), listener=events
        )
        made.append(engine)
        engine.start()
        return engine

    yield make
    for engine in made:
        engine.stop()


def workers():
    return [thread for thread in threading.enumerate() if thread.name == "pam_worker"]


def test_one_thread_owns_the_model_and_answers(engines, events):
    model = FakeModel()
    engine = engines(model)
    engine.start()
    assert len(workers()) == 1
    engine.submit_frame(make_frame(1.0))
    handle = engine.perceive("front", PromptRequest(prompt=click()))
    assert handle.future.result(20).texts
    assert model.threads == {workers()[0].ident}
    assert threading.get_ident() not in model.threads


def test_long_generation_does_not_delay_frames(engines, events):
    model = FakeModel(words=10_000, costs=Costs(step_s=0.002))
    engine = engines(model)
    engine.submit_frame(make_frame(0.0))
    handle = engine.perceive("front", PromptRequest(prompt=click(), tasks=(Task.DETAIL,)))
    events.wait_for(lambda: len(events.texts) > 2)
    before = len(events.frames)
    for k in range(1, 51):
        engine.submit_frame(make_frame(float(k)))
        events.wait_for(lambda k=k: events.frames[-1].stamp_ns == k * 10**9)
    assert not handle.future.done()
    assert len(events.frames) - before == 50
    assert all(result.regions for result in events.frames[before:])
    assert engine.statistics().cameras[0].dropped == 0
    assert max(result.latency_s for result in events.frames[before:]) < 2  # the text takes 20 s
    assert model.steps > 50


def test_stop_with_every_kind_of_work_in_progress(engines, events):
    model = FakeModel(words=10**6, costs=Costs(step_s=0.001))
    engine = engines(model, streaming=True, caption_period_s=0.5, clip_frames=2)
    for stamp_s in (0.0, 1.0):
        engine.submit_frame(make_frame(stamp_s))
        events.wait_for(lambda: bool(events.frames))
    handles = [engine.perceive("front", PromptRequest(prompt=click(5 + 8 * k))) for k in range(6)]
    events.wait_for(lambda: bool(events.texts))
    handles.append(engine.caption_now("front", 1, Language.EN))
    handles.append(
        engine.caption_clip("front", PromptRequest(None, region_id=1), 100.0, Language.EN, lambda *_: None)
    )
    handles.append(engine.perceive("front", PromptRequest(prompt=click(), image=make_frame(0).image)))
    for k in range(2, 6):
        engine.submit_frame(make_frame(float(k)))
    started_s = time.monotonic()
    engine.stop()
    assert time.monotonic() - started_s < 5  # the texts would take a quarter of an hour
    assert all(isinstance(handle.future.exception(0), CancelledError) for handle in handles)
    assert workers() == []
    reported_by_then = len(events.order)
    statistics = engine.statistics()
    assert (statistics.generating, statistics.queued) == (0, 0)
    assert (statistics.cameras[0].regions_tracked, statistics.cameras[0].last_stamp_ns) == (0, None)
    engine.submit_frame(make_frame(9.0))
    assert isinstance(
        engine.perceive("front", PromptRequest(prompt=click())).future.exception(0), NotActiveError
    )
    engine.stop()
    assert len(events.order) == reported_by_then
    assert not engine._handles
    assert engine._flow._recorder.count == 0


def test_start_stop_start(engines, events):
    engine = engines()
    for round_ in range(3):
        engine.start()
        events.frames.clear()
        engine.submit_frame(make_frame(1.0))
        events.wait_for(lambda: bool(events.frames))
        assert events.frames[-1].regions == ()  # earlier regions are forgotten
        region = engine.perceive("front", PromptRequest(prompt=click())).future.result(20)
        assert region.region_id == round_ + 1  # and their ids are not reused
        engine.stop()
    assert workers() == []
    assert engine.statistics().cameras[0].received == 3


def test_stop_fails_queued_requests(events):
    engine = Engine(model=FakeModel(), cameras=["front"], options=EngineOptions(), listener=events)
    engine._inbox.open()  # no thread takes requests
    engine.submit_frame(make_frame(1.0))
    handles = [engine.perceive("front", PromptRequest(prompt=click())) for _ in range(3)]
    engine.stop()
    assert all(isinstance(handle.future.exception(0), CancelledError) for handle in handles)


def test_a_callback_may_call_the_engine_and_even_stop_it(engines, events):
    engine = engines()
    engine.submit_frame(make_frame(1.0))
    done = threading.Event()

    def on_done(_):
        engine.remove_region("front", 1)
        engine.stop()
        done.set()

    engine.perceive("front", PromptRequest(prompt=click(), tasks=())).future.add_done_callback(on_done)
    assert done.wait(20)
    engine.start()
    engine.submit_frame(make_frame(2.0))
    events.wait_for(lambda: events.frames[-1].stamp_ns == 2 * 10**9)
    assert len(workers()) == 1


def test_stop_waits_only_for_the_current_model_call(engines, events):
    model = FakeModel(words=10**6, costs=Costs(encode_s=0.1))
    engine = engines(model)
    engine.submit_frame(make_frame(1.0))
    handle = engine.perceive("front", PromptRequest(prompt=click()))
    while not model.calls:
        time.sleep(0.001)
    engine.stop()
    assert isinstance(handle.future.exception(0), CancelledError)
    assert model.count("encode") == 1
    assert events.frames == []  # nothing is reported after the stop


def test_many_threads_at_once(engines, events):
    engine = engines(cameras=("a", "b"), max_regions=64, max_queued_requests=1000, streaming=True)
    errors = []

    def use(seed):
        random = np.random.default_rng(seed)
        handles = []
        try:
            for k in range(60):
                camera = "ab"[int(random.integers(2))]
                engine.submit_frame(make_frame(k / 10 + 1, camera=camera))
                action = random.integers(6)
                if action < 2:
                    handles.append(
                        engine.perceive(camera, PromptRequest(prompt=click(*random.uniform(5, 35, 2))))
                    )
                elif action == 2:
                    engine.detections(
                        camera,
                        [Detection(each) for each in [(5, 5, 20, 20)]],
                        None,
                        (Task.LABEL,),
                        (Language.EN,),
                    )
                elif action == 3 and handles:
                    handles[int(random.integers(len(handles)))].cancel()
                elif action == 4:
                    handles.append(engine.caption_now(camera, int(random.integers(1, 20)), Language.EN))
                elif random.integers(10) == 0:
                    engine.clear_regions(camera)
                engine.statistics()
            undone = wait([handle.future for handle in handles], 10).not_done
            assert not undone
            for handle in handles:
                assert handle.future.exception() is None or isinstance(handle.future.exception(), PamError)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=use, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert errors == []
    assert not engine._handles
    assert len(workers()) == 1


class TickingClock:
    """Advances by a tenth of a second at each reading."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 0.1
        return self.now_s


def test_texts_get_their_fraction_of_a_frames_time():
    clock, done = TickingClock(), []

    def masks() -> bool:
        clock.now_s += 0.9  # with the two readings around it the frame takes a second
        return True

    def language() -> bool:
        done.append(clock.now_s)
        return True

    worker = Worker(
        masks=masks,
        texts=language,
        idle=lambda: None,
        leave=lambda: None,
        clock=clock,
        faults=FaultLog(),
    )
    assert worker.turn()
    assert len(done) == round(10 * TEXT_FRACTION)
