"""The real `pam_node` with pam-tiny: a model that cannot be loaded says why; texts do not hold up masks."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("pam_ros.msg", reason="needs the built ROS interfaces")

from action_msgs.msg import GoalStatus
from ros_harness import (
    REAL_NODE,
    Camera,
    Client,
    Process,
    click,
    image_of,
    new_frames,
    pam,
    stamp_of,
    wait_until,
)

from pam_ros.action import CaptionClip
from pam_ros.model.loading.options import LoadOptions
from pam_ros.msg import Prompt, RegionArray, Status

SLOW_S = 120.0  # to load a model on a busy machine


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Good and broken copies of pam-tiny as files on disk."""
    from safetensors.torch import load_file, save_file

    from pam_ros.model.loading.checkpoint import load_model, save_model

    root = tmp_path_factory.mktemp("models")
    good = root / "good"
    save_model(load_model(LoadOptions("pam-tiny", device="cpu")), good)
    made = {"good": good}
    for name in ("truncated", "misshaped", "incomplete"):
        made[name] = root / name
        shutil.copytree(good, made[name])
    weights = "model.safetensors"
    content = (good / weights).read_bytes()
    (made["truncated"] / weights).write_bytes(content[: len(content) // 2])
    tensors = load_file(good / weights)
    separator = "model.image_newline"
    save_file(tensors | {separator: tensors[separator][:-1].contiguous()}, made["misshaped"] / weights)
    del tensors[separator]
    save_file(tensors, made["incomplete"] / weights)
    return made


@pytest.fixture(scope="module")
def node() -> Iterator[tuple[Client, Process]]:
    with pam(script=REAL_NODE) as (robot, process):
        yield robot, process
        assert process.end() == 0
        assert "Traceback" not in process.log()


@pytest.mark.parametrize(
    ("case", "changes", "words"),
    [
        ("no such model", {"model": "pam-huge"}, ["ModelNotFoundError", "'pam-huge'", "pam-tiny"]),
        ("no such folder", {"model": "/nowhere/pam"}, ["ModelNotFoundError", "/nowhere/pam"]),
        ("truncated", {}, ["CheckpointError", "model.safetensors"]),
        ("misshaped", {}, ["CheckpointError", "model.image_newline"]),
        ("incomplete", {}, ["CheckpointError", "model.image_newline"]),
        ("unknown device", {"device": "warp"}, ["DeviceError", "'warp'", "cpu"]),
        ("absent device", {"device": "cuda:31"}, ["DeviceError", "cuda:31", "cpu"]),
        ("too little memory", {"memory_limit_gib": 0.01}, ["MemoryLimitError", "GiB are free", "0.01"]),
    ],
)  # fmt: skip
def test_a_model_that_cannot_be_loaded_says_why(
    node: tuple[Client, Process],
    folders: dict[str, Path],
    case: str,
    changes: dict[str, object],
    words: list[str],
) -> None:
    robot, process = node
    settings = {
        "model": str(folders.get(case, "pam-tiny")),
        "device": "cpu",
        "memory_limit_gib": 0.0,
    } | changes
    for name, value in settings.items():
        assert robot.set_parameter("/pam_manager", name, value) == ""
    logged = len(process.lines)
    assert not robot.transition("configure", SLOW_S)
    assert robot.state() == "unconfigured"
    line = wait_until(
        lambda: next((it for it in process.lines[logged:] if "configure failed" in it), None), "the cause"
    )
    answer = robot.perceive(click(3, 3)).status
    assert answer.code == Status.NOT_ACTIVE
    for word in words:
        assert word in line
        assert word in answer.message


def test_masks_texts_and_memory_of_the_real_model(node: tuple[Client, Process]) -> None:
    """After all these failures the same process loads, works, and gives its memory back."""
    robot, process = node
    settings = {"model": "pam-tiny", "device": "cpu", "memory_limit_gib": 0.0, "texts.max_new_tokens": 24}
    for name, value in settings.items():
        assert robot.set_parameter("/pam_manager", name, value) == ""
    # torch itself stays; what a second round adds must go again.
    for _ in range(2):
        empty_mib = process.resident_mib()
        assert robot.transition("configure", SLOW_S)
        assert robot.transition("activate")
        messages = robot.collect(RegionArray, "/pam/regions")
        with Camera(robot, rate_hz=4, size=(120, 160), block_xyxy=(40, 30, 100, 90)) as camera:
            wait_until(lambda messages=messages: messages, "results", SLOW_S)
            answer = robot.perceive(Prompt(box=[40.0, 30.0, 100.0, 90.0]), timeout_s=SLOW_S)
            assert answer.status.code == Status.OK, answer.status
            assert answer.region.mask_score >= 0.0
            _assert_masks_go_on_during_a_caption(robot, camera, messages, answer.region.id)
        assert robot.transition("deactivate", SLOW_S)
        assert robot.transition("cleanup", SLOW_S)
    wait_until(
        lambda: process.resident_mib() < empty_mib + 60,
        lambda: f"memory back to about {empty_mib:.0f} MiB, it is {process.resident_mib():.0f}",
    )


def _assert_masks_go_on_during_a_caption(
    robot: Client, camera: Camera, messages: list[RegionArray], region_id: int
) -> None:
    goal = robot.send_goal(CaptionClip.Goal(prompt=Prompt(region_id=region_id), duration_s=1.0))
    wait_until(lambda: any(it.partial_text for it in goal.feedback) or goal.done, "the first words", SLOW_S)
    sent, received = len(camera.sent_ns), len(messages)
    status, result = goal.result(SLOW_S)
    assert (status, result.status.code) == (GoalStatus.STATUS_SUCCEEDED, Status.OK), result.status
    assert result.caption.frame_count >= 1
    assert stamp_of(result.caption) in camera.sent_ns
    sent, frames = len(camera.sent_ns) - sent, len(new_frames(messages, received))
    assert frames >= 0.5 * sent - 1, f"{frames} results of {sent} frames while the caption was generated"


def test_a_model_of_ones_own_folder(node: tuple[Client, Process], folders: dict[str, Path]) -> None:
    """Several regions at once, and a picture of the caller's own."""
    robot, _ = node
    settings = {
        "model": str(folders["good"]),
        "device": "cpu",
        "memory_limit_gib": 0.0,
        "texts.max_new_tokens": 8,
    }
    for name, value in settings.items():
        assert robot.set_parameter("/pam_manager", name, value) == ""
    assert robot.transition("configure", SLOW_S)
    assert robot.transition("activate")
    with Camera(robot, rate_hz=4, size=(120, 160)):
        messages = robot.collect(RegionArray, "/pam/regions")
        wait_until(lambda: messages, "results", SLOW_S)
        for x in (30, 80, 130):
            answer = robot.perceive(
                click(x, 60, tasks=["label", "brief"], languages=["en", "zh"]), timeout_s=SLOW_S
            )
            assert answer.status.code == Status.OK, answer.status
            assert [text.language for text in answer.region.texts] == ["en", "zh"]
        wait_until(lambda: len(messages[-1].regions) == 3, "three regions")
        noise = np.random.default_rng(0).integers(0, 255, (90, 70, 3), np.uint8)
        own = image_of(cv2.blur(noise, (9, 9)))
        answer = robot.perceive(Prompt(box=[10.0, 10.0, 50.0, 60.0]), image=own, timeout_s=SLOW_S)
        assert (answer.status.code, answer.region.id) == (Status.OK, 0)
    assert robot.transition("deactivate", SLOW_S)
    assert robot.transition("cleanup", SLOW_S)
