"""Each test belongs to exactly one tier, and the tables of conftest.py match what the modules need."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import MODEL, ROS

MODULES = {path.stem: path.read_text(encoding="utf-8") for path in Path(__file__).parent.rglob("test_*.py")}
NEEDS_ROS = re.compile(r'^ *(from|import) (ros_harness|rclpy)\b|prefix_of\(|"pam_ros\.msg"', re.MULTILINE)
USES_GPU = re.compile(r"\bcuda\.is_available\(\)|\bimport .*\bDEVICE\b")
MARKED = re.compile(r"\bpytest\.mark\.cuda\b")
COMPUTES = re.compile(
    r"^from tiny_models import|\b(SceneRenderer|image_sample|video_sample|render_samples)\(", re.MULTILINE
)


def test_every_test_has_exactly_one_tier(request: pytest.FixtureRequest) -> None:
    for item in request.session.items:
        tiers = [mark.name for mark in item.iter_markers() if mark.name in ("unit", "model", "ros")]
        assert len(tiers) == 1, f"{item.nodeid} is in {tiers}"


def test_the_tables_name_modules_that_exist() -> None:
    assert MODULES.keys() > MODEL | ROS
    assert not MODEL & ROS


def test_modules_that_need_ros_are_in_its_tier() -> None:
    found = {name for name, text in MODULES.items() if NEEDS_ROS.search(text)}
    assert len(found) > 5
    assert found <= ROS


def test_what_depends_on_a_gpu_is_run_where_there_is_one() -> None:
    found = {name for name, text in MODULES.items() if USES_GPU.search(text)}
    assert len(found) > 5
    assert found == {name for name, text in MODULES.items() if MARKED.search(text)}


def test_unit_tests_neither_compute_with_a_network_nor_render() -> None:
    found = {name for name, text in MODULES.items() if COMPUTES.search(text)}
    assert len(found) > 5
    assert found <= MODEL | ROS
