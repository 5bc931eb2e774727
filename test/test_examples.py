"""The examples run against the real node, as their users start them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

pytest.importorskip("pam_ros.msg", reason="needs the built ROS interfaces")

from diagnostic_msgs.msg import DiagnosticArray
from ros_harness import FAKE_ACTIVE, Camera, Client, click, pam, wait_until
from std_msgs.msg import String

from pam_ros.msg import RegionArray, Status, StreamingCaption
from pam_ros.srv import ClearRegions

ROOT = Path(__file__).resolve().parents[1]
SIZE = (480, 640)
BLOCK = (300, 100, 420, 200)  # red


@pytest.fixture(scope="module")
def robot() -> Iterator[Client]:
    with pam(*FAKE_ACTIVE) as (client, _), Camera(client, size=SIZE, block_xyxy=BLOCK):
        client.wait_for_active()
        wait_until(lambda: client.perceive(click(3, 3)).status.code == Status.OK, "a first frame")
        yield client


@pytest.fixture(autouse=True)
def no_regions(robot: Client) -> Iterator[None]:
    yield
    robot.call(ClearRegions, "/pam/clear_regions", ClearRegions.Request())


def environment(robot: Client) -> dict[str, str]:
    return os.environ | {"ROS_DOMAIN_ID": str(robot.domain), "PYTHONUNBUFFERED": "1"}


def run(robot: Client, folder: Path, example: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"pam_ros.examples.{example}", *arguments],
        cwd=folder,  # not the checkout, whose pam_ros has no interfaces
        env=environment(robot),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


@contextmanager
def running(robot: Client, folder: Path, example: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The example as a process, ended by SIGINT, as by Ctrl-C; its exit status must be 0."""
    command = [sys.executable, "-m", f"pam_ros.examples.{example}", *arguments]
    with (folder / "output").open("w") as output:
        process = subprocess.Popen(command, cwd=folder, env=environment(robot), stdout=output, stderr=output)
        try:
            yield process
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0, (folder / "output").read_text()
        finally:
            process.kill()
            process.wait()


def test_perceive_region_prints_the_answer_or_the_reason(robot: Client, tmp_path: Path) -> None:
    clicked = run(robot, tmp_path, "perceive_region", "--click", "320,240", "--languages", "zh", "en")
    boxed = run(robot, tmp_path, "perceive_region", "--box", "10,20,200,220")
    outside = run(robot, tmp_path, "perceive_region", "--click", "900,10")
    assert clicked.returncode == 0, clicked.stderr
    first, *texts = clicked.stdout.splitlines()
    assert first.startswith("region ") and ", mask score " in first
    assert [line[:3] for line in texts] == ["zh:", "en:"]
    assert boxed.returncode == 0, boxed.stderr
    assert boxed.stdout.splitlines()[1].startswith("en: ")
    assert (outside.returncode, outside.stdout) == (1, "")
    assert "outside the 640x480 image" in outside.stderr
    wrong = run(robot, tmp_path, "perceive_region", "--click", "320")
    assert wrong.returncode == 2
    assert "argument --click: takes 2 comma-separated numbers, not '320'" in wrong.stderr
    absent = run(robot, tmp_path, "perceive_region", "--click", "1,1", "--timeout", "1", "--service", "/no")
    assert absent.returncode == 1
    assert "did not answer within 1 s" in absent.stderr


def test_a_question_that_nobody_answers_says_so_and_ends_at_a_signal(robot: Client, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pam_ros.examples.perceive_region", "--click", "1,1", "--service", "/no"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(robot), stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("nobody serves /no yet; waiting: start pam_node")
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == "stopped before /no answered\n"
    assert process.returncode == 1


def test_pick_by_function_prints_the_best_region_or_that_none_fits(robot: Client, tmp_path: Path) -> None:
    none = run(robot, tmp_path, "pick_by_function", "no such thing")
    assert (none.returncode, none.stderr) == (1, "")
    assert none.stdout == "nothing fits 'no such thing'; the best of 2 scores 0.10\n"
    found = run(robot, tmp_path, "pick_by_function", "explain")  # the fake's explanations hold their task
    assert found.returncode == 0, found.stderr
    first, centre = found.stdout.splitlines()
    assert first.startswith("region ") and "score 1.00: label-en" in first
    assert centre in {
        "centre 12, 12 px in the image of camera_optical",
        "centre 45, 20 px in the image of camera_optical",
    }


def test_watch_region_shows_feedback_and_the_caption(robot: Client, tmp_path: Path) -> None:
    seen = run(robot, tmp_path, "watch_region", "--box", "10,20,200,220", "--seconds", "1")
    assert seen.returncode == 0, seen.stderr
    *feedback, caption = seen.stdout.splitlines()
    assert any("s recorded" in line for line in feedback)
    assert caption.split(" frames: ")[0].isdigit()


def test_watch_region_cancels_when_its_patience_ends_or_it_is_interrupted(
    robot: Client, tmp_path: Path
) -> None:
    box = ("--box", "10,20,200,220", "--seconds", "60")
    late = run(robot, tmp_path, "watch_region", *box, "--patience", "4")
    assert late.returncode == 1
    assert "was cancelled" in late.stderr
    command = [sys.executable, "-m", "pam_ros.examples.watch_region", *box]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment(robot),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert "s recorded" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "was cancelled" in errors


def test_caption_events_publishes_what_captions_say(robot: Client, tmp_path: Path) -> None:
    with running(robot, tmp_path, "caption_events"):
        captions = robot.publisher(StreamingCaption, "/pam/streaming_captions")
        events = robot.collect(String, "/caption_events/events")
        captions.publish(StreamingCaption(region_id=3, text="The mug disappears."))  # not final
        captions.publish(StreamingCaption(region_id=4, final=True, text="The mug is uncovered."))
        captions.publish(StreamingCaption(region_id=5, final=True, text="The mug disappears under a box."))
        wait_until(lambda: events, "an event")
    assert [event.data for event in events] == ["hidden 5"]
    said = (tmp_path / "output").read_text()
    assert "region 4: The mug is uncovered." in said
    assert "The mug disappears.\n" not in said


@pytest.mark.parametrize("example", ["caption_events", "colour_detector"])
def test_examples_without_options_of_their_own_explain_themselves(
    robot: Client, tmp_path: Path, example: str
) -> None:
    helped = run(robot, tmp_path, example, "--help")
    assert (helped.returncode, helped.stderr) == (0, "")
    assert f"ros2 run pam_ros {example}" in helped.stdout
    assert run(robot, tmp_path, example, "extra").returncode == 2


def test_colour_detector_makes_regions_that_carry_its_ids(robot: Client, tmp_path: Path) -> None:
    regions = robot.collect(RegionArray, "/pam/regions")
    with running(robot, tmp_path, "colour_detector"):
        wait_until(lambda: any(each.source_id for each in _newest(regions)), "a region of the detector")
        wait_until(lambda: any(each.texts for each in _newest(regions)), "its label")
        region = next(each for each in _newest(regions) if each.source_id)
    assert (region.source_id, region.source_class) == ("blob 0", "coloured")
    assert (region.bbox.size_x, region.bbox.size_y) == (120, 100)


def test_the_leaf_of_a_behaviour_tree_succeeds_and_fails(robot: Client, tmp_path: Path) -> None:
    pytest.importorskip("py_trees", reason="needs py_trees")
    found = run(robot, tmp_path, "find_tree", "explain")
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith("success: region ")
    none = run(robot, tmp_path, "find_tree", "no such thing")
    assert (none.returncode, none.stdout) == (1, "failure: nothing fits 'no such thing'\n")


def test_the_aggregator_file_matches_every_status(robot: Client) -> None:
    file = yaml.safe_load((ROOT / "config" / "diagnostics_aggregator.yaml").read_text(encoding="utf-8"))
    (prefix,) = file["/**"]["ros__parameters"]["pam"]["find_and_remove_prefix"]
    messages = robot.collect(DiagnosticArray, "/diagnostics")
    wait_until(lambda: messages, "diagnostics")
    names = [status.name for status in messages[-1].status]
    assert len(names) == 2
    assert all(name.startswith(prefix) for name in names)


def _newest(messages: list[RegionArray]) -> list:
    return list(messages[-1].regions) if messages else []
