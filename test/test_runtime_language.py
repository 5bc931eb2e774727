"""Text generation beside tracking: turns, limits, cancellation, failures."""

from dataclasses import replace

import pytest
from fakes import FakeModel
from stepped_engine import ALL_TEXTS, click, error_of, make_frame, stepped

from pam_ros.errors import CancelledError, CapacityError, InferenceError, TextServerError
from pam_ros.model.interface import TextDelta
from pam_ros.records import Detection, Language, Task
from pam_ros.runtime.generation_queue import MAX_BATCHES_IN_BACKGROUND


def rig_with_regions(count, **options):
    rig = stepped(**options)
    rig.frame(1.0)
    for k in range(count):
        rig.region(click(5 + 8 * k))
    rig.model.calls.clear()
    return rig


def request_one_by_one(rig, count, **more):
    """One request in each turn, so that each has its own batch."""
    handles = []
    for k in range(count):
        handles.append(rig.request(region_id=1 + k % len(rig.engine._flow._cameras["front"].regions), **more))
        rig.turn()
    return handles


def finals(rig):
    return [event.region_id for event in rig.events.texts if event.final]


def test_running_batches_take_turns():
    rig = rig_with_regions(3)
    rig.model.words = 6
    rig.model.stepping.clear()
    request_one_by_one(rig, 3)
    rig.model.stepping.set()
    rig.settle()
    assert sorted(finals(rig)) == [1, 2, 3]
    order = [event.region_id for event in rig.events.texts]
    for k in range(0, len(order), 3):
        assert sorted(order[k : k + 3]) == [1, 2, 3]  # none is a word ahead


def test_a_new_request_does_not_wait_for_a_long_text_to_end():
    rig = rig_with_regions(2)
    rig.model.words = 1000
    long = rig.request(region_id=1, tasks=(Task.DETAIL,))
    for _ in range(10):
        rig.turn()
    rig.engine.options = replace(rig.engine.options, max_new_tokens=2)
    short = rig.request(region_id=2)
    for _ in range(5):  # a prefill step and two words, every other step
        assert not short.future.done()
        rig.turn()
    assert short.future.done()
    assert not long.future.done()


def test_four_batches_run_at_once_and_the_others_queue():
    rig = rig_with_regions(1)
    rig.model.stepping.clear()
    handles = request_one_by_one(rig, 7)
    statistics = rig.engine.statistics()
    assert (statistics.generating, statistics.queued) == (4, 3)
    assert len(rig.model.batches) == 4
    rig.model.stepping.set()
    done = []
    for k, handle in enumerate(handles):
        handle.future.add_done_callback(lambda _, k=k: done.append(k))
    rig.settle()
    assert sorted(done) == list(range(7))
    assert done[-1] == 6
    assert rig.engine.statistics().generating == rig.engine.statistics().queued == 0


def test_the_queue_behind_running_batches_is_bounded():
    rig = rig_with_regions(1, max_queued_requests=2)
    rig.model.stepping.clear()
    handles = request_one_by_one(rig, 7)
    assert [handle.future.done() for handle in handles] == [False] * 6 + [True]
    assert isinstance(error_of(handles[6]), CapacityError)
    assert "2 requests are waiting, the limit is 2" in str(error_of(handles[6]))


def test_requests_taken_by_the_worker_count_as_waiting():
    rig = rig_with_regions(1, max_queued_requests=2)
    refused = []

    def request_more(name, details):
        if name == "embedded_stride2":
            refused.append(rig.request(region_id=1))

    rig.model.fault = request_more
    for _ in range(2):
        rig.request(region_id=1)
    rig.turn()
    assert isinstance(error_of(refused[0]), CapacityError)


def test_cancelling_a_request_ends_only_its_texts():
    rig = rig_with_regions(2)
    rig.model.words = 50
    first, second = rig.request(region_id=1, **ALL_TEXTS), rig.request(region_id=2)
    for _ in range(4):
        rig.turn()
    assert rig.engine.statistics().generating == 5
    first.cancel()
    rig.events.texts.clear()
    rig.turn()
    assert rig.engine.statistics().generating == 1
    assert {event.region_id for event in rig.events.texts} == {2}
    assert rig.model.cancelled == {
        text.text_id for text in rig.model.batches[0] if text.embeddings[0].region == 1
    }
    rig.settle()
    assert isinstance(error_of(first), CancelledError)
    assert second.future.result(0).texts


def test_a_batch_without_requests_is_dropped():
    rig = rig_with_regions(1)
    rig.model.words = 10_000
    handle = rig.request(region_id=1)
    for _ in range(4):
        rig.turn()
    handle.cancel()
    assert rig.turn() is False
    assert rig.engine.statistics().generating == 0


def test_a_queued_request_can_be_cancelled():
    rig = rig_with_regions(1)
    rig.model.stepping.clear()
    handles = request_one_by_one(rig, 6)
    handles[5].cancel()
    rig.turn()
    assert rig.engine.statistics().queued == 1
    rig.model.stepping.set()
    rig.settle()
    assert len(rig.model.batches) == 5


def test_texts_stop_at_max_new_tokens():
    rig = rig_with_regions(1, max_new_tokens=2)
    rig.model.words = 50
    handle = rig.request(region_id=1)
    rig.settle()
    assert handle.future.result(0).texts[Task.LABEL, Language.EN].text == "label-en-r1s100 w"


def test_a_failed_step_fails_only_the_request_that_caused_it():
    rig = rig_with_regions(3)

    def fault(name, details):
        if (
            name == "step"
            and any(request.embeddings[0].region == 2 for request in details)
            and rig.model.steps > 2
        ):
            raise RuntimeError("numbers ran out")

    rig.model.fault = fault
    handles = [rig.request(region_id=k) for k in (1, 2, 3)]
    rig.settle()
    assert isinstance(error_of(handles[1]), InferenceError)
    assert [handles[k].future.exception(0) for k in (0, 2)] == [None, None]
    assert [len(batch) for batch in rig.model.batches] == [3, 1, 1, 1]
    assert sorted(finals(rig)) == [1, 3]


def test_a_batch_that_cannot_start_is_split():
    rig = rig_with_regions(3)

    def fault(name, details):
        if name == "generate" and any(request.embeddings[0].region == 2 for request in details):
            raise CapacityError("the prompt is too long")

    rig.model.fault = fault
    handles = [rig.request(region_id=k) for k in (1, 2, 3)]
    rig.settle()
    assert str(error_of(handles[1])) == "the prompt is too long"  # a PamError reaches its caller unchanged
    assert all(handles[k].future.result(0).texts for k in (0, 2))


def test_generation_without_a_final_text_fails_its_request(monkeypatch):
    rig = rig_with_regions(1)
    handle = rig.request(region_id=1)
    rig.turn()
    text_id = rig.model.batches[0][0].text_id
    monkeypatch.setattr(
        rig.model, "step", lambda: rig.model._running.clear() or [TextDelta(text_id, "half", False)]
    )
    rig.settle()
    assert "without a final text" in str(error_of(handle))


def test_deltas_after_the_final_one_are_ignored(monkeypatch):
    rig = rig_with_regions(2)
    first, second = rig.request(region_id=1), rig.request(region_id=2)
    rig.turn()
    text_id = rig.model.batches[0][0].text_id
    reports = [TextDelta(text_id, "a", True), TextDelta(text_id, "b", True), TextDelta(text_id, "c", False)]
    monkeypatch.setattr(rig.model, "step", lambda: reports)
    rig.turn()
    rig.turn()
    assert [(event.text, event.final) for event in rig.events.texts] == [("a", True)]
    assert first.future.done()
    assert not second.future.done()


def test_a_failed_text_of_a_detection_is_a_warning():
    rig = stepped()
    rig.frame(1.0)

    def fault(name, details):
        if name == "step":
            raise RuntimeError("no words")

    rig.model.fault = fault
    rig.engine.detections(
        "front", [Detection(each) for each in [(5, 5, 15, 15)]], None, (Task.LABEL,), (Language.EN,)
    )
    rig.settle()
    assert "region 1 gets no text" in rig.events.warnings[-1][1]
    assert rig.reported_ids[-1] == [1]


def test_statistics_include_latency_and_speed():
    rig = rig_with_regions(1)
    rig.model.words = 20
    before = rig.engine.statistics()
    assert (before.tokens_per_s, before.text_latency_s) == (0.0, 0.0)
    handle = rig.request(region_id=1)
    for _ in range(21):
        rig.clock.now_s += 0.1
        rig.turn()
    assert handle.future.done()
    after = rig.engine.statistics()
    assert after.text_latency_s == pytest.approx(2.1)
    assert after.tokens_per_s == pytest.approx(10.0, rel=0.1)
    rig.clock.now_s += 60
    assert rig.engine.statistics().tokens_per_s < 0.01


def test_frame_statistics():
    rig = stepped()
    camera = rig.engine.statistics().cameras[0]
    assert (camera.last_stamp_ns, camera.age_s, camera.rate_hz) == (None, float("inf"), 0.0)
    for k in range(100):
        rig.engine.submit_frame(make_frame(k / 20))
        rig.clock.now_s += 0.03
        rig.turn()
        rig.clock.now_s += 0.02
    camera = rig.engine.statistics().cameras[0]
    assert camera.rate_hz == pytest.approx(20, rel=0.05)
    assert camera.mask_latency_s == pytest.approx(0.03)
    assert camera.last_stamp_ns == 4_950_000_000
    assert camera.age_s == pytest.approx(0.05)


def test_texts_that_cannot_start_do_not_make_the_others_wait():
    def fault(name, details):
        if name == "generate":
            raise TextServerError("the server is down")

    rig = rig_with_regions(3)
    rig.model.fault = fault
    handles = [rig.request(region_id=1 + k) for k in range(3)]
    rig.engine.run_pending()
    assert [type(error_of(handle)) for handle in handles] == [TextServerError] * 3


def test_texts_that_are_lost_in_the_background_do_not_make_the_others_wait():
    class Background(FakeModel):
        in_background = True
        busy = True

        def step(self):
            return []

    rig = stepped(model=Background())
    rig.frame(1.0)
    rig.region()
    handles = request_one_by_one(rig, MAX_BATCHES_IN_BACKGROUND + 1)
    rig.model.busy = False
    rig.engine.run_pending()
    assert [type(error_of(handle)) for handle in handles] == [InferenceError] * len(handles)
