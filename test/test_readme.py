"""The README's script runs against the node, and docs/parameters.md lists the node's parameters."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pam_ros.msg", reason="needs the built ROS interfaces")

from ros_harness import FAKE_ACTIVE, Camera, click, pam, wait_until

from pam_ros.msg import Status
from pam_ros.nodes.parameters import markdown

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_script_that_asks_the_node_runs(tmp_path: Path):
    (snippet,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(snippet.splitlines()) <= 25
    (tmp_path / "request.py").write_text(snippet, encoding="utf-8")
    with pam(*FAKE_ACTIVE) as (robot, _), Camera(robot, size=(480, 640)):
        robot.wait_for_active()
        wait_until(lambda: robot.perceive(click(3, 3)).status.code == Status.OK, "a first frame")
        done = subprocess.run(
            [sys.executable, "request.py"],
            cwd=tmp_path,
            env=os.environ | {"ROS_DOMAIN_ID": str(robot.domain)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    first, *texts = done.stdout.splitlines()
    assert re.fullmatch(r"region \d+: a mask of \d+x\d+ pixels", first)
    assert [line[:3] for line in texts] == ["en:", "zh:"]


def test_the_parameter_table_is_current():
    page = (ROOT / "docs" / "parameters.md").read_text(encoding="utf-8")
    assert page.endswith(markdown()), "replace the table by: python -m pam_ros.nodes.parameters"
