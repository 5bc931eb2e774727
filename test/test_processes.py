"""Processes for demo, soak and tests: domains of their own, logs, exits. Plain Python processes, no ROS."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from pam_ros.errors import StateError
from pam_ros.nodes.tools.processes import Process, Processes, wait_until

# Prints "up", then waits until SIGINT, which ends it with code 0.
WAITING = """
import signal, sys, time
signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
print("up", flush=True)
time.sleep(60)
"""


def start(processes: Processes, code: str, name: str = "node") -> Process:
    return processes.start(name, ["-c", code], log=True)


def test_every_group_has_a_domain_of_its_own(tmp_path: Path) -> None:
    groups = [Processes(tmp_path) for _ in range(20)]
    assert len({group.domain for group in groups}) == 20
    for group in groups:
        group.__exit__(None, None, None)


def test_parameters_and_domain_reach_the_process(tmp_path: Path) -> None:
    with Processes(tmp_path, {"COLOUR": "red"}) as processes:
        code = "import os,sys; print(os.environ['ROS_DOMAIN_ID'], os.environ['COLOUR'], *sys.argv[1:])"
        process = processes.start(
            "node", ["-c", code], parameters={"rate": 2}, ros_arguments=["-r", "a:=b"], log=True
        )
        line = process.wait_for_log("red")
    assert line == f"{processes.domain} red --ros-args -r a:=b -p rate:=2\n"


def test_a_process_ends_by_a_signal_and_its_log_stays(tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        process = start(processes, WAITING)
        assert process.wait_for_log("up") == "up\n"
        assert process.resident_mib() > 1.0
        assert process.end(signal.SIGINT) == 0
        assert process.log() == "up\n"


def test_leaving_ends_what_still_runs(tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        running = [start(processes, WAITING, name) for name in ("one", "two")]
        for process in running:
            process.wait_for_log("up")
    assert [process.exit_code for process in running] == [0, 0]


def test_a_process_that_fails_is_reported_with_its_log(tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        process = start(processes, "print('no memory', flush=True); raise SystemExit(3)")
        with pytest.raises(StateError, match=r"process node exited with code 3; its log:\nno memory"):
            process.wait_for_log("ready")
        with pytest.raises(StateError, match="exited with code 3"):
            processes.check()


def test_a_process_that_ignores_the_signal_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[Process.__module__], "END_TIMEOUT_S", 0.3)
    with Processes(tmp_path) as processes:
        code = "import signal,time; signal.signal(2, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
        process = start(processes, code)
        process.wait_for_log("up")
        with pytest.raises(StateError, match="did not stop"):
            process.end()
        assert process.exit_code == -signal.SIGKILL


def test_waiting_says_what_did_not_happen() -> None:
    assert wait_until(lambda: 7, "a number") == 7
    with pytest.raises(StateError, match=r"timed out after 0\.05 s waiting for rain"):
        wait_until(lambda: None, "rain", timeout_s=0.05)
