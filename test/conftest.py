"""The three tiers of tests: `unit`, `model` and `ros`; each module belongs to exactly one.

`unit` is the tier of every module that is not listed here: no network that computes, no rendering, no ROS.
`pytest -m unit` runs it alone (`make test-unit`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# What this machine has fetched must not change what tests see: `model: auto` takes pam-tiny. Set before the
# hub's library is imported, and inherited by the processes that tests start.
os.environ["PAM_MODELS"] = os.environ["HF_HUB_CACHE"] = "/nonexistent/models"


def pytest_configure(config: pytest.Config) -> None:
    """Hides GPUs from all tests, and the processes they start, but those of `-m cuda`: `auto` is the CPU."""
    if config.getoption("markexpr") != "cuda":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


# Networks compute, or scenes are rendered.
MODEL = {
    "test_ablations",
    "test_api",
    "test_bench",
    "test_checkpoint",
    "test_checkpoint_hostile",
    "test_checkpoint_refused",
    "test_cli",
    "test_confidence",
    "test_doctor",
    "test_engines",
    "test_evaluation_run",
    "test_fast_model",
    "test_kernel_compiler",
    "test_loader_memory",
    "test_model_choice",
    "test_model_language",
    "test_model_pam",
    "test_model_perceiver",
    "test_model_segmenter",
    "test_notebook",
    "test_open_meshes",
    "test_openvino",
    "test_pam_tiny",
    "test_parity",
    "test_preprocessing",
    "test_purposes",
    "test_quantization",
    "test_region_crop",
    "test_remote_text",
    "test_scenes",
    "test_surface_accuracy",
    "test_text_engine",
    "test_training",
    "test_videos",
    "test_vision_engine",
    "test_vllm",
}

# The built interfaces, the installed executables or a browser are needed.
ROS = {
    "test_fuzz",
    "test_bench_node",
    "test_bag",
    "test_bag_damaged",
    "test_annotations",
    "test_calibration",
    "test_caption_order",
    "test_conversions",
    "test_dds_profile",
    "test_demo",
    "test_doctor_ros",
    "test_endings",
    "test_examples",
    "test_images",
    "test_inputs",
    "test_launch",
    "test_markers",
    "test_outputs",
    "test_packaging",
    "test_readme",
    "test_soak",
    "test_ros_bad_input",
    "test_ros_floods",
    "test_ros_lifecycle",
    "test_ros_markers",
    "test_ros_model",
    "test_ros_parameters",
    "test_ros_points",
    "test_ros_security",
    "test_ros_services",
    "test_ros_surroundings",
    "test_ros_text_server",
    "test_ros_topics",
    "test_ros_transforms",
    "test_ros_view",
    "test_view_page",
    "test_site",
    "test_surface_outputs",
}

UNIT_TIMEOUT_S = 120  # a unit test takes a second at most; the rest is for a busy machine


def tier_of(module: str) -> str:
    """The tier of a test module, e.g. "test_scenes"."""
    return "model" if module in MODEL else "ros" if module in ROS else "unit"


@pytest.fixture(scope="module")
def active(request: pytest.FixtureRequest) -> Iterator[tuple[Any, Any]]:
    """A robot's client and the process of an active node, started with the module's PARAMETERS."""
    import ros_harness

    with ros_harness.pam(*getattr(request.module, "PARAMETERS", ros_harness.FAKE_ACTIVE)) as (robot, process):
        robot.wait_for_active()
        yield robot, process
        assert process.end() == 0


@pytest.fixture
def robot(active: tuple[Any, Any]) -> Iterator[Any]:
    """The client of `active`; the test's regions are removed."""
    from pam_ros.srv import ClearRegions

    yield active[0]
    active[0].call(ClearRegions, "/pam/clear_regions", ClearRegions.Request())


def pytest_sessionfinish() -> None:
    """Processes that tests have killed leave shared memory."""
    from pam_ros.shared_memory import remove_abandoned

    remove_abandoned()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks every test with its tier."""
    for item in items:
        tier = tier_of(Path(item.path).stem)
        item.add_marker(tier)
        if tier == "unit" and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(UNIT_TIMEOUT_S))
