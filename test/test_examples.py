"""The examples run against the real node."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pam_ros.msg", reason="needs the built ROS interfaces")

from ros_harness import FAKE_ACTIVE, Camera, click, pam, wait_until

from pam_ros.msg import Status


def run(robot, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pam_ros.examples.perceive_region", *arguments],
        cwd=folder,  # not the checkout, whose pam_ros has no interfaces
        env=os.environ | {"ROS_DOMAIN_ID": str(robot.domain)},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def test_perceive_region_prints_the_answer_or_the_reason(tmp_path: Path):
    with pam(*FAKE_ACTIVE) as (robot, _), Camera(robot, size=(480, 640)):
        robot.wait_for_active()
        wait_until(lambda: robot.perceive(click(3, 3)).status.code == Status.OK, "a first frame")
        clicked = run(robot, tmp_path, "--click", "320", "240", "--languages", "zh", "en")
        boxed = run(robot, tmp_path, "--box", "10", "20", "200", "220")
        outside = run(robot, tmp_path, "--click", "900", "10")
    assert clicked.returncode == 0, clicked.stderr
    first, *texts = clicked.stdout.splitlines()
    assert first.startswith("region ") and ", mask score " in first
    assert [line[:3] for line in texts] == ["zh:", "en:"]
    assert boxed.returncode == 0, boxed.stderr
    assert boxed.stdout.splitlines()[1].startswith("en: ")
    assert (outside.returncode, outside.stdout) == (1, "")
    assert "outside the 640x480 image" in outside.stderr
    absent = run(robot, tmp_path, "--click", "1", "1", "--timeout", "1")
    assert absent.returncode == 1
    assert "did not answer within 1 s" in absent.stderr
