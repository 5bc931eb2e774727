"""The worker of the text engine: what fails on its thread ends neither the thread nor other texts."""

from __future__ import annotations

import logging
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pam_ros.model.text.fast.text_worker import TextWorker

WAIT_S = 10.0


class Engine:
    """Has one text, which ends when a step says so."""

    board = SimpleNamespace(device=SimpleNamespace(device=torch.device("cpu")))

    def __init__(self) -> None:
        self.idle = True
        self.fails = False

    def step(self, tokens: int) -> list[str]:
        self.idle = True
        if self.fails:
            raise ValueError("the step failed")
        return ["grown"]


def fail() -> None:
    raise ValueError("it failed")


def make() -> tuple[TextWorker, Engine, list[Any], list[Exception]]:
    engine, grown, errors = Engine(), [], []
    worker = TextWorker(engine, on_growth=grown.append, on_error=errors.append)  # type: ignore[arg-type]
    return worker, engine, grown, errors


def done(worker: TextWorker) -> threading.Event:
    """Set once the thread has run what was submitted before."""
    event = threading.Event()
    worker.submit(event.set)
    return event


def test_a_command_that_fails_is_reported_and_the_next_one_runs() -> None:
    worker, engine, grown, errors = make()
    worker.submit(fail)
    worker.submit(lambda: setattr(engine, "idle", False))
    assert done(worker).wait(WAIT_S)
    worker.close()
    assert [str(error) for error in errors] == ["it failed"]
    assert grown == [["grown"]]


def test_a_step_that_fails_is_reported_and_the_thread_goes_on() -> None:
    worker, engine, grown, errors = make()
    engine.fails = True
    worker.submit(lambda: setattr(engine, "idle", False))
    assert done(worker).wait(WAIT_S)
    assert done(worker).wait(WAIT_S)
    engine.fails = False
    worker.submit(lambda: setattr(engine, "idle", False))
    assert done(worker).wait(WAIT_S)
    worker.close()
    assert [str(error) for error in errors] == ["the step failed"]
    assert grown == [["grown"]]


def test_a_preparation_that_fails_is_logged_and_the_others_run(caplog: pytest.LogCaptureFixture) -> None:
    worker, _, _, errors = make()
    prepared = threading.Event()
    with caplog.at_level(logging.ERROR):
        worker.prepare([fail, prepared.set])
        assert prepared.wait(WAIT_S)
        worker.close()
    assert errors == []
    assert "preparing the text engine failed" in caplog.text
