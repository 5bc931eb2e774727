"""How processes end: by a signal in any state, by a second one, by a kill. What was made can be read."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

pytest.importorskip("pam_ros.msg", reason="needs the built ROS interfaces")

from ros_harness import REAL_NODE, Camera, pam, wait_until
from sensor_msgs.msg import Image
from test_bag import IMAGES, images, read_bag, write_bag

from pam_ros import videos
from pam_ros.msg import RegionArray
from pam_ros.nodes.conversions import stamp_ns
from pam_ros.shared_memory import held_by
from pam_ros.signals import REPEAT_S

CLIP = Path(__file__).resolve().parents[1] / "config" / "demo" / "clip.mp4"
KETTLE = ("--box", "329,193,452,313")
END_S = 6.0  # five, and one for a busy machine to say so
STUCK = """
import sys, threading, time
from pam_ros.signals import stopped_by_signals
stopped = stopped_by_signals()
print("up", flush=True)
stopped.wait()
print("asked", flush=True)
time.sleep(60)
"""


@contextmanager
def command(*arguments: str, cwd: Path) -> Iterator[subprocess.Popen[str]]:
    """`pam …` in a session of its own; whatever is left of it is killed."""
    with (cwd / "said").open("w") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "pam_ros.cli.main", *arguments],
            cwd=cwd,
            stdout=said,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    try:
        yield process
    finally:
        for child in children(process):
            child.kill()
        process.kill()
        process.wait()


def children(process: subprocess.Popen[str]) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def said(cwd: Path) -> str:
    return (cwd / "said").read_text()


def wait_for(cwd: Path, words: str, process: subprocess.Popen[str]) -> None:
    wait_until(
        lambda: words in said(cwd) or process.poll() is not None, lambda: f"{words}:\n{said(cwd)}", 120
    )
    assert words in said(cwd), said(cwd)


def end(process: subprocess.Popen[str], number: signal.Signals) -> int:
    """Sends a signal; the exit code. The process and its children are gone in time."""
    family = children(process)
    begun_s = time.monotonic()
    process.send_signal(number)
    code = process.wait(30)
    wait_until(lambda: not any(alive(each) for each in family), "the end of the children")
    assert time.monotonic() - begun_s < END_S
    return code


def alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


# ---- the signals themselves, in a process that does not finish


@pytest.fixture
def stuck(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", STUCK], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    yield process
    process.kill()
    process.wait()


def test_two_signals_within_a_second_are_one_request(stuck: subprocess.Popen[str]) -> None:
    begun_s = time.monotonic()
    stuck.send_signal(signal.SIGINT)
    time.sleep(0.3)
    stuck.send_signal(signal.SIGINT)
    assert stuck.wait(30) == 0  # it had its time to finish
    assert 4.0 < time.monotonic() - begun_s < END_S


def test_a_later_signal_ends_it_at_once(stuck: subprocess.Popen[str]) -> None:
    stuck.send_signal(signal.SIGINT)
    time.sleep(REPEAT_S + 0.2)
    begun_s = time.monotonic()
    stuck.send_signal(signal.SIGTERM)
    assert stuck.wait(30) == -signal.SIGTERM
    assert time.monotonic() - begun_s < 2.0


# ---- the node


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_two_signals_to_an_active_node_are_one_request(number: signal.Signals) -> None:
    with pam("model:=fake:words=1000,step_s=0.02", "autostart:=true") as (robot, process):
        robot.wait_for_active()
        own = held_by(process.pid)
        with Camera(robot):
            process.send(number)
            time.sleep(0.2)
            assert process.end(number) == 0
        assert "Traceback" not in process.log()
        assert own and not any(segment.exists() for segment in own)


def test_a_model_that_loads_in_native_code_does_not_hold_the_node() -> None:
    with pam("model:=fake:stuck_s=60", "autostart:=true") as (_, process):
        process.wait_for_log("loading in native code")
        own = held_by(process.pid)
        begun_s = time.monotonic()
        assert process.end(signal.SIGTERM) == 0
        assert time.monotonic() - begun_s < END_S
        assert own and not any(segment.exists() for segment in own)


@pytest.mark.timeout(200)
def test_compiled_networks_do_not_hold_the_node() -> None:
    """Python's finalization takes seconds with them."""
    with pam("model:=pam-tiny", "device:=cpu", "autostart:=true", script=REAL_NODE) as (_, process):
        process.wait_for_log("active:", 150)
        begun_s = time.monotonic()
        assert process.end(signal.SIGINT) == 0
        assert time.monotonic() - begun_s < END_S


# ---- `pam caption`


def readable(out: Path) -> tuple[int, int]:
    """Frames of the film and lines of regions.jsonl; raises if a file cannot be read."""
    for line in (out / "captions.jsonl").read_text().splitlines():
        json.loads(line)
    lines = [json.loads(line) for line in (out / "regions.jsonl").read_text().splitlines()]
    return len(list(videos.read_video(out / "overlay.mp4"))), len(lines)


def lines_of(out: Path) -> int:
    with suppress(FileNotFoundError):  # before the results, it comes and goes: can it be written?
        return (out / "regions.jsonl").read_text().count("\n")
    return 0


def reaches(count: int, out: Path, process: subprocess.Popen[str]) -> Callable[[], bool]:
    return lambda: lines_of(out) >= count or process.poll() is not None


@pytest.mark.timeout(200)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_caption_leaves_what_it_made(number: signal.Signals, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with command("caption", str(CLIP), *KETTLE, "--out", "out", cwd=tmp_path) as process:
        wait_until(reaches(12, out, process), "frames", 120)
        assert end(process, number) == 128 + number
    film, lines = readable(out)
    last = said(tmp_path).splitlines()[-1]
    assert f"stopped by {number.name}: out/ has the results of " in last
    assert "Traceback" not in said(tmp_path)
    (told,) = re.findall(r"of (\d+) of 120 frames", last)
    assert int(told) <= film <= int(told) + 1
    assert int(told) <= lines <= int(told) + 1


@pytest.mark.timeout(200)
def test_caption_that_is_killed_leaves_what_it_made(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with command("caption", str(CLIP), *KETTLE, "--out", "out", cwd=tmp_path) as process:
        wait_until(reaches(25, out, process), "frames", 120)
        process.kill()
        process.wait()
    film, lines = readable(out)
    assert lines >= 25
    assert film >= lines - 10


# ---- `pam bag`


@pytest.mark.timeout(200)
def test_bag_leaves_a_bag_that_can_be_read(tmp_path: Path) -> None:
    number = signal.SIGTERM
    write_bag(tmp_path / "bag", images(250))
    arguments = ("bag", "bag", "--box", "4,4,20,20", "--model", "pam-tiny", "--device", "cpu", "--out", "out")
    with command(*arguments, cwd=tmp_path) as process:
        wait_until(lambda: (tmp_path / "out").exists() or process.poll() is not None, "the bag", 120)
        time.sleep(2.0)  # some images
        assert end(process, number) == 128 + number
    (told,) = re.findall(rf"stopped by {number.name}: out/ has the results of (\d+) of 250 ", said(tmp_path))
    stamps = {stamp_ns(m.header.stamp) for _, m in read_bag(tmp_path / "out", "/pam/regions", RegionArray)}
    assert int(told) <= len(stamps) <= int(told) + 1
    assert len(read_bag(tmp_path / "out", IMAGES, Image)) >= len(stamps) > 0


# ---- `pam soak`


@pytest.mark.timeout(200)
@pytest.mark.parametrize(
    ("arguments", "processes", "number"),
    [
        (("--hostile", "--model", "pam-tiny"), 4, signal.SIGTERM),  # node, camera, client, second node
        (("--simulated-hours", "100"), 1, signal.SIGINT),
    ],
    ids=["hostile", "simulated"],
)
def test_soak_leaves_what_it_measured(
    arguments: tuple[str, ...], processes: int, number: signal.Signals, tmp_path: Path
) -> None:
    samples = tmp_path / "out" / "samples.jsonl"
    with command("soak", *arguments, "--out", "out", cwd=tmp_path) as process:
        wait_until(
            lambda: process.poll() is not None or (samples.is_file() and samples.read_text().count("\n") > 3),
            lambda: f"samples:\n{said(tmp_path)}",
            120,
        )
        assert len(children(process)) == processes
        assert end(process, number) == 128 + number
    assert f"stopped by {number.name}: out/ has the node's log and what was measured" in said(tmp_path)
    assert "Traceback" not in said(tmp_path)
    for path in (tmp_path / "out").glob("*.jsonl"):
        assert [json.loads(line) for line in path.read_text().splitlines()]


# ---- the demo


@pytest.mark.timeout(200)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_demo_ends_while_the_model_is_loading(number: signal.Signals, tmp_path: Path) -> None:
    with command("demo", "--out", "out", cwd=tmp_path) as process:
        wait_for(tmp_path, "loading model", process)
        assert end(process, number) == 128 + number
    assert f"stopped by {number.name}: " in said(tmp_path)
    assert "Traceback" not in said(tmp_path)


@pytest.mark.timeout(300)
def test_the_demo_ends_while_it_plays(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with command("demo", "--out", "out", cwd=tmp_path) as process:
        wait_for(tmp_path, "playing", process)
        wait_until(reaches(15, out, process), "frames", 120)
        assert len(children(process)) == 3
        assert end(process, signal.SIGTERM) == 143
    film, lines = readable(out)
    assert film >= 10 and lines >= 15
    assert "stopped by SIGTERM: out/ has what came so far: overlay.mp4" in said(tmp_path)


@pytest.mark.timeout(200)
def test_a_demo_that_is_killed_leaves_no_process(tmp_path: Path) -> None:
    with command("demo", "--out", "out", cwd=tmp_path) as process:
        wait_for(tmp_path, "loading model", process)
        family = children(process)
        assert len(family) == 3
        process.kill()
        process.wait()
        wait_until(lambda: not any(alive(each) for each in family), "the end of the children")


# ---- a full disk


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    """A limit on the size of files stands in for it: writing fails in the same place."""
    arguments = ["caption", str(CLIP), *KETTLE, "--out", "out"]
    script = (
        "import resource, sys; from pam_ros.cli.main import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))\n"
        f"sys.argv = ['pam', *{arguments!r}]; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=150, check=False
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    error = done.stderr.splitlines()[-1]
    assert error.startswith("error: cannot write out/overlay.mp4: File too large; what was written before")
    film, lines = readable(tmp_path / "out")
    assert film >= 5 and lines >= 5
