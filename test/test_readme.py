"""The README tells the truth: its tree is the package's, its table the parameters'."""

from __future__ import annotations

import ast
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


def tree() -> dict[str, str]:
    """Path → remark of every line of the README's file tree."""
    (block,) = re.findall(r"<!-- tree -->\n+```\n(.*?)```", README, re.DOTALL)
    entries: dict[str, str] = {}
    folders: list[str] = []
    for line in block.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name, _, remark = line.strip().partition("  ")
        folders = [*folders[:depth], name]
        entries["".join(folders)] = remark.strip()
    return entries


def first_line(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.split("\n\n")[0].replace("\n", " ").strip()


def test_every_file_of_the_tree_exists():
    missing = [path for path in tree() if not (ROOT / path).exists()]
    assert not missing


def test_every_module_is_in_the_tree_with_its_own_first_line():
    modules = {
        path.relative_to(ROOT).as_posix(): first_line(path) for path in (ROOT / "pam_ros").rglob("*.py")
    }
    described = {path: line for path, line in modules.items() if not path.endswith("__init__.py")}
    listed = {
        path: remark
        for path, remark in tree().items()
        if path.endswith(".py") and path.startswith("pam_ros/")
    }
    assert listed == described


def test_the_snippet_that_asks_the_node_runs(tmp_path: Path):
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
    assert re.fullmatch(r"region \d+, a mask of \d+x\d+ pixels", first)
    assert [line[:3] for line in texts] == ["en:", "zh:"]


def test_the_parameter_table_is_that_of_the_code():
    assert markdown().strip() in README
