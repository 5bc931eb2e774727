"""The launch file: its arguments; what it starts, if ROS's launch is installed."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "launch" / "pam.launch.py"
RVIZ_FILE = ROOT / "config" / "pam.rviz"

EXPECTED = {  # argument → default; None: any
    "namespace": "",
    "params_file": None,
    "use_sim_time": "false",
    "autostart": "true",
    "log_level": "info",
    "use_respawn": "false",
    "model": "",
    "device": "",
    "pam_model": "",
    "pam_device": "",
    "pam_image": "",
    "cameras": "",
    "image_transport": "",
    "depth_transport": "",
    "image": "image",
    "camera_info": "camera_info",
    "depth": "depth",
    "detections": "detections",
    "markers": "",
    "rviz": "false",
    "rviz_config": None,
    "fixed_frame": "",
}


def declared() -> dict[str, list[object]]:
    """Argument → its default and description, read from the source; None if it is not a literal."""
    found = {}
    for node in ast.walk(ast.parse(FILE.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "declare":
            name, *rest = [part.value if isinstance(part, ast.Constant) else None for part in node.args]
            found[str(name)] = rest[:2]
    return found


def test_arguments_are_declared_with_default_and_description() -> None:
    arguments = declared()
    assert {name: default for name, (default, _) in arguments.items()} == EXPECTED
    assert all(description for _, description in arguments.values())


def test_the_example_passes_arguments_that_exist() -> None:
    """`robot_example.launch.py` includes the launch file; what it passes is read from its source."""
    source = (FILE.parent / "robot_example.launch.py").read_text()
    (passed,) = [it for it in ast.walk(ast.parse(source)) if isinstance(it, ast.Dict)]
    names = {key.value for key in passed.keys if isinstance(key, ast.Constant)}
    assert names <= set(EXPECTED)
    assert {"namespace", "model", "image"} <= names
    assert FILE.name in source


def test_the_example_can_be_described_by_launch() -> None:
    pytest.importorskip("launch", reason="ROS's launch is not among the Python wheels")
    pytest.importorskip("launch_ros")
    path = FILE.parent / "robot_example.launch.py"
    spec = importlib.util.spec_from_file_location("robot_example", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert len(module.generate_launch_description().entities) == 4


def constant(name: str) -> tuple[str, ...]:
    """The value of a constant of the launch file."""
    for node in ast.parse(FILE.read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == name:
            return tuple(ast.literal_eval(node.value))
    raise AssertionError(f"{FILE.name} has no {name}")


def literals(function: str) -> set[str]:
    """The literals x of every `function(x)` and `function[x]` in the file."""
    tree = ast.parse(FILE.read_text())
    calls = [(call.func, call.args[0]) for call in ast.walk(tree) if isinstance(call, ast.Call) and call.args]
    items = [(item.value, item.slice) for item in ast.walk(tree) if isinstance(item, ast.Subscript)]
    return {
        str(key.value)
        for what, key in calls + items
        if isinstance(what, ast.Name) and what.id == function and isinstance(key, ast.Constant)
    }


def test_every_argument_is_used() -> None:
    prefixed = {f"pam_{name}" for name in constant("PREFIXED")}
    assert set(EXPECTED) == {*constant("STRINGS"), *constant("TOPICS"), *literals("value"), *prefixed}


def test_rviz_is_given_every_topic_of_its_configuration() -> None:
    """The function without ROS's launch: its source is run alone."""
    tree = ast.parse(FILE.read_text())
    (function,) = [it for it in tree.body if getattr(it, "name", "") == "rviz_remappings"]
    names: dict[str, Any] = {}
    exec(compile(ast.Module([function], []), str(FILE), "exec"), names)
    rename = names["rviz_remappings"]
    topics = {"image": "image", "depth": "depth", "camera_info": "camera_info"}
    assert rename([], topics) == [("/camera_info", "camera_info")]
    camera = {"image": "/cam/color/image_raw", "depth": "/cam/depth/image", "camera_info": "camera_info"}
    assert rename(["front"], camera) == [
        ("image", "/cam/color/image_raw"),
        ("depth", "/cam/depth/image"),
        ("/camera_info", "/cam/color/camera_info"),
    ]
    assert ("/camera_info", "/cam/info") in rename([], camera | {"camera_info": "/cam/info"})
    several = dict(rename(["front", "rear"], topics | {"image": "color/image"}))
    assert several == {
        "image": "front/color/image",
        "depth": "front/depth",
        "/camera_info": "front/color/camera_info",
        "pam/overlay": "pam_front/overlay",
        "pam/markers": "pam_front/markers",
        "clicked_point": "front/clicked_point",
        "clicked_point_negative": "front/clicked_point_negative",
    }
    texts = RVIZ_FILE.read_text()
    used = set(re.findall(r"(?:Value|Topic): (image|depth|pam/\w+|clicked_point\w*)$", texts, re.MULTILINE))
    assert used == several.keys() - {"/camera_info"}


def test_every_parameter_that_is_passed_is_one() -> None:
    parameters = pytest.importorskip("pam_ros.nodes.parameters", reason="needs the built ROS interfaces")
    declared_names = {it.name for it in (*parameters.MANAGER, *parameters.PERCEPTION)}
    passed = {*constant("STRINGS"), *literals("parameters")}
    assert passed - {"use_sim_time"} <= declared_names  # every node has use_sim_time
    assert {"autostart", "cameras", "model"} <= passed


@pytest.mark.parametrize(("cameras", "prefix"), [("[front]", ""), ("[front,rear]", "rear/")])
def test_every_topic_that_is_renamed_is_one(cameras: str, prefix: str) -> None:
    harness = pytest.importorskip("ros_harness", reason="needs the built ROS interfaces")
    renamed = {f"{prefix}{name}": f"/renamed/{name}" for name in constant("TOPICS")}
    arguments = [part for inner, outer in renamed.items() for part in ("-r", f"{inner}:={outer}")]
    with harness.pam("model:=fake", f"cameras:={cameras}", arguments=arguments) as (robot, _):
        for topic in renamed.values():
            harness.wait_until(
                lambda topic=topic: robot.node.count_subscribers(topic), f"a subscriber of {topic}"
            )


# --- with ROS's launch


@pytest.fixture
def launch_file() -> ModuleType:
    pytest.importorskip("launch", reason="ROS's launch is not among the Python wheels")
    pytest.importorskip("launch_ros")
    spec = importlib.util.spec_from_file_location("pam_launch", FILE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def started(launch_file: ModuleType, monkeypatch: pytest.MonkeyPatch, **arguments: str) -> dict[str, Any]:
    """The keyword arguments of the node that is started."""
    from launch import LaunchContext
    from launch.utilities import perform_substitutions

    context = LaunchContext()
    for entity in launch_file.generate_launch_description().get_launch_arguments():
        context.launch_configurations[entity.name] = perform_substitutions(context, entity.default_value)
    context.launch_configurations.update(arguments)
    monkeypatch.setattr(launch_file, "Node", dict)
    keywords, *others = launch_file.start(context)
    assert len(others) == (arguments.get("rviz") == "true")
    assert (keywords["package"], keywords["executable"]) == ("pam_ros", "pam_node")
    assert "name" not in keywords, "it would rename every node of the process"
    return dict(keywords)


def test_defaults_start_one_process_with_autostart(
    launch_file: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    keywords = started(launch_file, monkeypatch)
    params_file, parameters = keywords["parameters"]
    assert Path(params_file).is_file()
    assert parameters == {"autostart": True, "use_sim_time": False}
    assert keywords["remappings"] == []
    assert not keywords["respawn"]


def test_arguments_reach_the_node(launch_file: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    keywords = started(
        launch_file,
        monkeypatch,
        namespace="robot",
        image="/camera/image_raw",
        device="0",
        autostart="false",
        use_sim_time="true",
        use_respawn="true",
        log_level="debug",
    )
    parameters = keywords["parameters"][1]
    assert keywords["namespace"] == "robot"
    assert keywords["remappings"] == [("image", "/camera/image_raw")]
    assert keywords["arguments"] == ["--ros-args", "--log-level", "debug"]
    assert keywords["respawn"]
    assert (parameters["autostart"], parameters["use_sim_time"]) == (False, True)
    assert parameters["device"].value_type is str, "not a number"


def test_rviz_opens_with_its_configuration(launch_file: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[dict[str, Any]] = []
    real = launch_file.rviz_remappings
    monkeypatch.setattr(launch_file, "rviz_remappings", lambda *a: opened.append(real(*a)) or real(*a))
    monkeypatch.setattr(launch_file, "get_package_prefix", lambda package: f"/opt/{package}")
    keywords = started(launch_file, monkeypatch, rviz="true", markers="regions", fixed_frame="base_link")
    assert keywords["parameters"][1]["markers.show"] == "regions"
    assert opened


def test_without_rviz_nothing_is_started(launch_file: ModuleType) -> None:
    with pytest.raises(RuntimeError, match=r"apt install ros-.*-no_such_viewer"):
        launch_file.require("no_such_viewer")


def test_several_cameras_are_renamed_one_by_one(
    launch_file: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    keywords = started(launch_file, monkeypatch, cameras="front, rear", image="color/image_raw")
    assert keywords["parameters"][1]["cameras"] == ["front", "rear"]
    assert keywords["remappings"] == [
        ("front/image", "front/color/image_raw"),
        ("rear/image", "rear/color/image_raw"),
    ]
    with pytest.raises(ValueError, match="one topic for 2 cameras"):
        started(launch_file, monkeypatch, cameras="front,rear", image="/color/image_raw")


def included(monkeypatch: pytest.MonkeyPatch, *entities: Any, **arguments: str) -> list[dict[str, Any]]:
    """Describes what a launch file of these entities starts, given these arguments; starts nothing."""
    import launch_ros.actions
    from launch import Action, LaunchContext, LaunchDescription

    nodes: list[dict[str, Any]] = []

    class Recorded(Action):
        def __init__(self, **keywords: Any) -> None:
            super().__init__()
            nodes.append(keywords)

        def execute(self, context: LaunchContext) -> None:
            pass

    def visit(entity: Any) -> None:
        for each in entity.visit(context) or ():
            visit(each)

    monkeypatch.setattr(launch_ros.actions, "Node", Recorded)
    monkeypatch.setenv("FASTRTPS_DEFAULT_PROFILES_FILE", "")
    context = LaunchContext()
    context.launch_configurations.update(arguments)
    visit(LaunchDescription(list(entities)))
    return nodes


def test_arguments_of_a_file_that_includes_pam_do_not_leak_in(
    launch_file: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from launch.actions import DeclareLaunchArgument, GroupAction, IncludeLaunchDescription
    from launch.launch_description_sources import PythonLaunchDescriptionSource

    own = [
        DeclareLaunchArgument("model", default_value="/robot.urdf"),
        DeclareLaunchArgument("device", default_value="/dev/ttyUSB0"),
        DeclareLaunchArgument("image", default_value="/splash.png"),
    ]
    source = PythonLaunchDescriptionSource(str(FILE))  # loads the file once
    group = GroupAction(
        [IncludeLaunchDescription(source)], forwarding=False, launch_configurations={"image": "/camera/image"}
    )
    (pam,) = included(monkeypatch, *own, group)
    assert pam["parameters"][1] == {"autostart": True, "use_sim_time": False}
    assert pam["remappings"] == [("image", "/camera/image")]

    source = PythonLaunchDescriptionSource(str(FILE))
    prefixed = {"pam_model": "pam-tiny", "pam_device": "cpu", "pam_image": "/camera/image"}
    (pam,) = included(monkeypatch, *own, IncludeLaunchDescription(source, launch_arguments=prefixed.items()))
    parameters = {name: getattr(value, "value", value) for name, value in pam["parameters"][1].items()}
    assert (parameters["model"], parameters["device"]) == ("pam-tiny", "cpu")
    assert pam["remappings"] == [("image", "/camera/image")]


def test_the_example_shows_the_safe_way_to_include(
    launch_file: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from launch.actions import IncludeLaunchDescription
    from launch.launch_description_sources import PythonLaunchDescriptionSource

    example = PythonLaunchDescriptionSource(str(FILE.parent / "robot_example.launch.py"))
    foreign = {"device": "/dev/ttyUSB0", "depth": "/other/depth", "log_level": "silent"}
    events, pam = included(monkeypatch, IncludeLaunchDescription(example), robot="spot", **foreign)
    assert pam["namespace"] == "spot"
    assert "device" not in pam["parameters"][1]
    assert ("image", "camera/color/image_raw") in pam["remappings"]
    assert pam["arguments"] == ["--ros-args", "--log-level", "info"]
    assert events["executable"] == "caption_events"


def test_a_parameters_file_that_is_missing_is_told(
    launch_file: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileNotFoundError, match=r"params_file:=/nowhere.yaml is not a file"):
        started(launch_file, monkeypatch, params_file="/nowhere.yaml")


def test_ros2_launch_brings_pam_up_and_down(launch_file: ModuleType, tmp_path: Path) -> None:
    ros2 = shutil.which("ros2")
    if ros2 is None:
        pytest.skip("there is no command ros2 here")
    command = [ros2, "launch", "pam_ros", "pam.launch.py", "namespace:=launched", "device:=cpu"]
    log = tmp_path / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "cameras:=front,rear"],
            cwd=tmp_path,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "ROS_LOG_DIR": str(tmp_path), "PYTHONUNBUFFERED": "1"},
        )
        try:
            end_s = time.monotonic() + 120.0
            while "is ready" not in log.read_text() and process.poll() is None and time.monotonic() < end_s:
                time.sleep(0.5)
            process.send_signal(signal.SIGINT)
            process.wait(timeout=30.0)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    text = log.read_text()
    assert "is ready" in text, text
    assert "process has finished cleanly" in text, text
