"""The parameters: one default each, the engine's ranges, bad values refused, files generated."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import pytest

pytest.importorskip("pam_ros.msg", reason="needs the built ROS interfaces")

from rcl_interfaces.srv import DescribeParameters, GetParameters
from ros_harness import FAKE_ACTIVE, Camera, Client, click, pam

from pam_ros.msg import Status
from pam_ros.nodes.parameters import MANAGER, PERCEPTION, Effect, Parameter, markdown, yaml
from pam_ros.runtime.options import EngineOptions

ALL = (*MANAGER, *PERCEPTION)
CONFIG = Path(__file__).resolve().parents[1] / "config" / "pam.yaml"
RANGED = [it for it in MANAGER if it.field and it.low is not None]


def test_every_engine_option_is_a_parameter_with_its_default() -> None:
    by_field = {it.field: it for it in MANAGER if it.field}
    # stamps of one video, which a camera does not have in advance; a single image
    files_only = {"decode_times_ns", "tracking"}
    assert set(by_field) == {field.name for field in fields(EngineOptions)} - files_only
    for name, parameter in by_field.items():
        default = getattr(EngineOptions(), name)
        assert parameter.default == getattr(default, "value", default)


@pytest.mark.parametrize("parameter", RANGED, ids=lambda it: it.name)
def test_ranges_are_those_of_the_engine(parameter: Parameter) -> None:
    assert parameter.low is not None
    assert parameter.high is not None
    step = 1 if isinstance(parameter.default, int) else 1e-6
    kind = type(parameter.default)
    for good in (parameter.low, parameter.high):
        replace(EngineOptions(), **{parameter.field: kind(good)})
    for bad in (parameter.low - step, parameter.high + step):
        with pytest.raises(ValueError, match=parameter.field):
            replace(EngineOptions(), **{parameter.field: kind(bad)})


def test_names_differ_and_everything_is_described() -> None:
    assert len({it.name for it in ALL}) == len(ALL)
    for it in ALL:
        assert it.description
        assert it.problem(list(it.default) if isinstance(it.default, tuple) else it.default) == ""
        is_number = isinstance(it.default, int | float) and not isinstance(it.default, bool)
        assert is_number == (it.low is not None), it.name


def test_parameters_file_is_generated() -> None:
    assert CONFIG.read_text() == yaml(), "run: python -m pam_ros.nodes.parameters --yaml > config/pam.yaml"


def test_table_names_every_parameter() -> None:
    lines = markdown().splitlines()
    assert len(lines) == 2 + len(ALL)
    assert {line.count("|") for line in lines} == {8}


@pytest.fixture(scope="module")
def robot() -> Iterator[Client]:
    """Started with the default parameters file, then with a fake model instead of the default one."""
    files = ("--params-file", str(CONFIG))
    with pam(*FAKE_ACTIVE, arguments=files) as (robot, process):
        robot.wait_for_active()
        yield robot
        assert "unknown parameter" not in process.log()
        assert process.end() == 0


@pytest.mark.parametrize(("node", "table"), [("/pam_manager", MANAGER), ("/pam", PERCEPTION)])
def test_descriptors_and_values_of_the_running_nodes(
    robot: Client, node: str, table: tuple[Parameter, ...]
) -> None:
    names = [it.name for it in table]
    described = robot.call(
        DescribeParameters, f"{node}/describe_parameters", DescribeParameters.Request(names=names)
    ).descriptors
    for parameter, descriptor in zip(table, described, strict=True):
        assert parameter.description in descriptor.description
        assert descriptor.read_only == (parameter.effect is Effect.START)
        ranges = [*descriptor.integer_range, *descriptor.floating_point_range]
        if parameter.low is not None:
            assert (ranges[0].from_value, ranges[0].to_value) == (parameter.low, parameter.high)
        for choice in parameter.choices:
            assert choice in descriptor.additional_constraints
    values = robot.call(GetParameters, f"{node}/get_parameters", GetParameters.Request(names=names)).values
    held = dict(zip(names, values, strict=True))
    if "regions.max" in held:
        assert held["regions.max"].integer_value == EngineOptions().max_regions
        assert held["streaming.period_s"].double_value == EngineOptions().caption_period_s


@pytest.mark.parametrize(
    ("node", "name", "value", "reason"),
    [
        ("/pam_manager", "regions.max", 0, "regions.max"),
        ("/pam_manager", "regions.max", 2.5, "type"),
        ("/pam_manager", "streaming.period_s", -1.0, "streaming.period_s"),
        ("/pam_manager", "streaming.period_s", math.nan, "nan"),
        ("/pam_manager", "streaming.language", "tlh", "allowed: en, zh"),
        ("/pam_manager", "dtype", "int4", "allowed: auto, float32"),
        ("/pam_manager", "model", "", "empty"),
        ("/pam_manager", "texts.server", "localhost:8000", "one like http://host:8000"),
        ("/pam_manager", "texts.server", "http://", "one like http://host:8000"),
        ("/pam_manager", "cameras", ["other"], "read-only"),
        ("/pam", "prompt.tasks", ["label", "juggle"], "'juggle'; allowed: label"),
        ("/pam", "prompt.languages", ["tlh"], "allowed: en, zh"),
        ("/pam", "image_transport", "compressed", "read-only"),
        ("/pam", "overlay.opacity", 1.5, "overlay.opacity"),
        ("/pam", "overlay.font_file", "/nowhere.ttf", "not a font file"),
        ("/pam", "overlay.font_file", "/dev/zero", "there is no regular file of this name"),
    ],
)
def test_bad_values_are_refused_with_the_reason(
    robot: Client, node: str, name: str, value: object, reason: str
) -> None:
    assert reason in robot.set_parameter(node, name, value)


def test_more_regions_than_the_model_has_memory_for_wait_for_the_next_configure() -> None:
    with pam("model:=fake:slots=1", "autostart:=true", "regions.max:=2") as (robot, process):
        robot.wait_for_active()
        assert robot.set_parameter("/pam_manager", "regions.max", 3) == ""
        process.wait_for_log("regions.max stays 2 until the next configure: the model has no memory for more")
        with Camera(robot):
            for x in (10, 30):
                assert robot.perceive(click(x, 20)).status.code == Status.OK
            refused = robot.perceive(click(50, 20)).status
            assert (refused.code, "the limit is 2" in refused.message) == (Status.CAPACITY, True)
        for transition in ("deactivate", "cleanup", "configure", "activate"):
            assert robot.transition(transition)
        with Camera(robot):
            for x in (10, 30, 50):
                assert robot.perceive(click(x, 20)).status.code == Status.OK
        assert process.end() == 0
