"""The manager's lifecycle in a real process: transitions, failing configures, memory, signals, autostart."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("pam_ros.msg", reason="needs the built ROS interfaces")

from action_msgs.msg import GoalStatus
from geometry_msgs.msg import Point
from ros_harness import (
    FAKE_ACTIVE,
    FAKE_NODE,
    LATCHED,
    Camera,
    Client,
    Diagnostics,
    click,
    image_of,
    mouse,
    pam,
    wait_until,
)
from sensor_msgs.msg import Image
from vision_msgs.msg import LabelInfo

from pam_ros.action import CaptionClip
from pam_ros.errors import StateError
from pam_ros.msg import Prompt, RegionArray, Status
from pam_ros.nodes.manager_node import ManagerNode
from pam_ros.nodes.outputs.diagnostics import Phase
from pam_ros.srv import CaptionNow, ClearRegions, PerceiveRegion, RemoveRegion

OK, WARN, ERROR = b"\x00", b"\x01", b"\x02"


def assert_not_active(robot: Client, words: str) -> None:
    """Every service and the action answer at once that it is not active, and what to do."""
    begun_s = time.monotonic()
    statuses = [
        robot.call(PerceiveRegion, "/pam/perceive", PerceiveRegion.Request(prompt=click(3, 3))).status,
        robot.call(RemoveRegion, "/pam/remove_region", RemoveRegion.Request(region_id=1)).status,
        robot.call(ClearRegions, "/pam/clear_regions", ClearRegions.Request()).status,
        robot.call(CaptionNow, "/pam/caption_now", CaptionNow.Request(region_id=1)).status,
    ]
    goal_status, result = robot.send_goal(CaptionClip.Goal(prompt=click(3, 3), duration_s=1.0)).result()
    assert goal_status == GoalStatus.STATUS_ABORTED
    for status in (*statuses, result.status):
        assert status.code == Status.NOT_ACTIVE
        assert words in status.message
        assert "ros2 lifecycle set /pam_manager activate" in status.message
    assert time.monotonic() - begun_s < 5.0


def test_every_transition_and_the_memory() -> None:
    """configure → activate → deactivate → activate → cleanup → configure → shutdown."""
    with pam("model:=fake:ballast_mib=300") as (robot, process):
        assert robot.state() == "unconfigured"
        diagnostics = Diagnostics.of(robot)
        messages = robot.collect(RegionArray, "/pam/regions")
        names = robot.collect(LabelInfo, "/pam/label_info", LATCHED)
        empty_mib = process.resident_mib()
        assert_not_active(robot, "unconfigured")
        diagnostics.wait_for(
            "model", lambda status: status.level == WARN and "unconfigured" in status.message
        )

        with Camera(robot):
            process.wait_for_log("/image ignored: not active")
            robot.publisher(Point, "/image_mouse_left").publish(mouse(3, 3))
            process.wait_for_log("/image_mouse_left ignored: not active")

            assert robot.transition("configure")
            assert robot.state() == "inactive"
            assert process.resident_mib() > empty_mib + 250
            assert_not_active(robot, "inactive")
            assert not messages

            assert robot.transition("activate")
            wait_until(lambda: messages, "the first result")
            region = robot.perceive(click(3, 3)).region
            assert region.id == 1
            status = diagnostics.wait_for("model", lambda status: status.message == "active")
            values = diagnostics.values(status)
            assert (values["model"], values["device"], values["state"]) == ("fake", "cpu", "active")
            wait_until(lambda: names and names[-1].class_map, "the region's name")

            waiting = robot.send_goal(CaptionClip.Goal(prompt=Prompt(region_id=region.id), duration_s=60.0))
            wait_until(lambda: waiting.feedback, "feedback")
            assert robot.transition("deactivate")
            goal_status, result = waiting.result()
            assert (goal_status, result.status.code) == (GoalStatus.STATUS_ABORTED, Status.CANCELLED)
            assert robot.state() == "inactive"
            assert_not_active(robot, "inactive")
            wait_until(lambda: not names[-1].class_map, "no name of a forgotten region")
            count = len(messages)
            time.sleep(0.3)
            assert len(messages) == count, "it went on"
            assert process.resident_mib() > empty_mib + 250, "deactivate keeps the model"

            assert robot.transition("activate")
            wait_until(lambda: len(messages) > count, "results")
            assert robot.perceive(Prompt(region_id=region.id)).status.code == Status.UNKNOWN_REGION
            assert robot.perceive(click(3, 3)).status.code == Status.OK

        # There is no direct transition from active: cleanup needs inactive.
        assert not _refused(robot, "cleanup")
        assert robot.transition("deactivate")
        assert robot.transition("cleanup")
        assert robot.state() == "unconfigured"
        wait_until(
            lambda: process.resident_mib() < empty_mib + 60,
            lambda: f"memory back to about {empty_mib:.0f} MiB, it is {process.resident_mib():.0f}",
        )
        assert_not_active(robot, "unconfigured")

        assert robot.transition("configure")
        assert process.resident_mib() > empty_mib + 250
        assert robot.transition("shutdown when inactive")
        assert robot.state() == "finalized"
        wait_until(lambda: process.resident_mib() < empty_mib + 60, "memory back after shutdown")
        assert_finalized(robot)
        assert process.end() == 0


def test_deactivate_forgets_the_range_of_16_bit_images() -> None:
    with pam(*FAKE_ACTIVE) as (robot, process):
        robot.wait_for_active()
        images = robot.publisher(Image, "/image", 1)

        def shown(value: int) -> str:
            """The label of a region of such an image; it names the shade."""
            images.publish(image_of(np.full((48, 64), value, np.uint16), "mono16"))
            region = robot.perceive(click(3, 3)).region
            return str(region.texts[0].label) if region.texts else ""

        wait_until(lambda: "100" in shown(400), "an image of 10 bits")
        wait_until(lambda: "234" in shown(60_000), "an image of 16 bits")
        wait_until(lambda: "100" not in shown(400), "the dark image")
        process.wait_for_log("/image: an image has values of 16 bits, those before it had 10")
        assert robot.transition("deactivate")
        assert robot.transition("activate")
        wait_until(lambda: "100" in shown(400), "an image of 10 bits again")


def _refused(robot: Client, label: str) -> bool:
    """Whether a transition that does not exist from here succeeded; the node must survive it."""
    try:
        return robot.transition(label, timeout_s=2.0)
    except StateError:  # rclpy gives no answer to it
        return False


def assert_finalized(robot: Client) -> None:
    answer = robot.perceive(click(3, 3))
    assert answer.status.code == Status.NOT_ACTIVE
    assert "finalized" in answer.status.message


@pytest.mark.parametrize(
    "error", ["ModelNotFoundError", "CheckpointError", "DeviceError", "MemoryLimitError"]
)
def test_failing_configure_names_its_cause_and_can_be_mended(error: str) -> None:
    with pam(f"model:=fail:{error}") as (robot, process):
        diagnostics = Diagnostics.of(robot)
        empty_mib = process.resident_mib()
        assert not robot.transition("configure")
        assert robot.state() == "unconfigured"
        cause = f"{error}: {error} was asked for, 100 MiB were read"
        assert cause in process.wait_for_log("configure failed")
        assert_not_active(robot, cause)
        diagnostics.wait_for("model", lambda status: status.level == ERROR and cause in status.message)
        assert process.resident_mib() < empty_mib + 60, "the failure did not free what it had read"

        assert robot.set_parameter("/pam_manager", "model", "fake") == ""
        assert robot.transition("configure")
        assert robot.transition("activate")
        diagnostics.wait_for("model", lambda status: "active" in status.message)
        with Camera(robot):
            assert robot.perceive(click(3, 3)).status.code == Status.OK
        assert process.end() == 0


def test_a_fault_in_configure_ends_unconfigured_with_nothing_held() -> None:
    """An unforeseen exception goes through error processing."""
    with pam("model:=fail:RuntimeError") as (robot, process):
        assert not robot.transition("configure")
        assert robot.state() == "unconfigured"
        process.wait_for_log("Traceback")
        assert_not_active(robot, "RuntimeError")
        assert robot.set_parameter("/pam_manager", "model", "fake") == ""
        assert robot.transition("configure")
        assert process.end() == 0


def test_a_fault_in_freeing_still_frees_the_node() -> None:
    with pam("model:=fake:close=fails") as (robot, process):
        assert robot.transition("configure")
        assert robot.transition("cleanup")
        assert robot.state() == "unconfigured"
        process.wait_for_log("closing the model failed")
        assert robot.transition("configure")
        assert process.end() == 0


def test_services_and_diagnostics_answer_while_the_model_loads() -> None:
    with pam("model:=fake:load_s=4") as (robot, process):
        diagnostics = Diagnostics.of(robot)
        assert_not_active(robot, "unconfigured")
        configuring = robot.start_transition("configure")
        process.wait_for_log("loading the fake")
        assert_not_active(robot, "configuring (loading the fake)")
        diagnostics.wait_for(
            "model", lambda status: status.level == WARN and "loading the fake" in status.message
        )
        assert not configuring.done(), "the model was there too soon for this test"
        wait_until(configuring.done, "the end of configure")
        assert configuring.result().success
        assert process.end() == 0


def test_autostart_goes_through_the_real_lifecycle() -> None:
    with pam(*FAKE_ACTIVE) as (robot, process):
        robot.wait_for_active()
        assert robot.transition("deactivate")
        assert robot.state() == "inactive", "autostart happens once"
        assert process.end() == 0


def test_images_before_autostart_has_loaded_are_no_failure() -> None:
    with pam("model:=fake:load_s=3", "autostart:=true") as (robot, process), Camera(robot):
        process.wait_for_log("receiving images")
        answer = robot.perceive(click(3, 3))
        assert answer.status.code == Status.NOT_ACTIVE
        assert "autostart will activate it" in answer.status.message
        assert robot.perceive(click(3, 3)).status.code == Status.NOT_ACTIVE
        robot.wait_for_active()
        wait_until(lambda: robot.perceive(click(3, 3)).status.code == Status.OK, "an answer")
        assert process.log().count("receiving images") == 1
        assert "ros2 lifecycle set" not in process.log()
        assert "image ignored" not in process.log()
        assert process.log().count("refused until") == 1, "repeated requests are normal at start"
        assert "INFO" in process.wait_for_log("refused until")
        assert robot.transition("deactivate")  # from now on the user is responsible
        assert "ros2 lifecycle set" in process.wait_for_log("image ignored: not active")


def test_autostart_stops_at_a_failing_configure() -> None:
    with pam("model:=fail:DeviceError", "autostart:=true") as (robot, process):
        assert "fix the cause, then run" in process.wait_for_log("configure failed")
        assert robot.state() == "unconfigured"
        assert_not_active(robot, "DeviceError")
        assert process.end() == 0


@pytest.mark.parametrize(
    ("phase", "triggered"),
    [
        (Phase.UNCONFIGURED, ["configure", "activate"]),
        (Phase.INACTIVE, ["activate"]),
        (Phase.ACTIVE, []),
        (Phase.FAILED, []),
    ],
)
def test_autostart_goes_on_where_another_client_has_begun(phase: Phase, triggered: list[str]) -> None:
    """That client's request may have waited before autostart's turn."""

    class Manager:
        _autostart_timer = SimpleNamespace(cancel=lambda: None)
        _health = SimpleNamespace(phase=phase)
        _starting = True

        def __init__(self) -> None:
            self.done: list[str] = []

        def trigger_configure(self) -> None:
            self.done.append("configure")
            self._health = SimpleNamespace(phase=Phase.INACTIVE)

        def trigger_activate(self) -> None:
            self.done.append("activate")

    manager = Manager()
    ManagerNode._autostart(manager)  # type: ignore[arg-type]
    assert manager.done == triggered
    assert not manager._starting


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_an_active_node_cleanly(number: signal.Signals) -> None:
    with pam("model:=fake:words=1000,step_s=0.02", "autostart:=true") as (robot, process):
        robot.wait_for_active()
        with Camera(robot):
            request = PerceiveRegion.Request(prompt=click(3, 3))
            waiting = robot.start_call(PerceiveRegion, "/pam/perceive", request)
            time.sleep(0.3)
            assert process.end(number) == 0
            assert "Traceback" not in process.log()
            wait_until(waiting.done, "the answer to the pending request")
            assert waiting.result().status.code == Status.CANCELLED
        left = {"pam", "pam_manager"}  # DDS would forget a node that does not say goodbye after 20 s
        wait_until(lambda: not left & set(robot.node.get_node_names()), "the nodes to leave the graph", 10.0)


def test_signals_end_an_unconfigured_node_cleanly() -> None:
    with pam("model:=fake") as (robot, process):
        assert robot.state() == "unconfigured"
        assert process.end(signal.SIGTERM) == 0
        assert "Traceback" not in process.log()


def test_a_signal_while_loading_does_not_wait_for_the_model() -> None:
    with pam("model:=fake:load_s=60", "autostart:=true") as (_, process):
        process.wait_for_log("loading the fake")
        begun_s = time.monotonic()
        assert process.end(signal.SIGTERM) == 0
        assert time.monotonic() - begun_s < 8.0
        assert "Traceback" not in process.log()


def test_without_autostart_the_log_says_what_to_do() -> None:
    with pam("model:=fake") as (_, process):
        line = process.wait_for_log("ros2 lifecycle set /pam_manager configure")
        assert "INFO" in line and "unconfigured" in line and "autostart:=true" in line


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--help"], 0, "-p NAME:=VALUE"),
        (["--hlep"], 2, "unknown arguments: --hlep"),
        (["--ros-args", "--nope"], 2, "--nope"),
        (["--ros-args", "-p"], 2, "-p flag"),
        (["--ros-args", "--params-file", "/nowhere.yaml"], 2, "there is no parameters file /nowhere.yaml"),
        (["--ros-args", "--params-file", __file__], 2, "Couldn't parse params file"),
    ],
)
def test_arguments_that_start_nothing(arguments: list[str], code: int, words: str) -> None:
    command = [sys.executable, *FAKE_NODE, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code
    assert words in (done.stderr if code else done.stdout)
    about_file = "--params-file" in arguments
    assert ("pam_node --ros-args -p autostart:=true" in done.stdout + done.stderr) != about_file
    assert not about_file or len(done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stderr and ".c:" not in done.stderr


def test_misspelt_parameters_are_named_with_what_may_be_meant() -> None:
    wrong = ("streaming.perod_s:=5.0", "overlay.opacty:=0.3", "xyzzy:=1")
    with pam("model:=fake", "streaming.period_s:=4.0", *wrong) as (_, process):
        assert "did you mean streaming.period_s" in process.wait_for_log("'streaming.perod_s'")
        assert "did you mean overlay.opacity" in process.wait_for_log("'overlay.opacty'")
        assert "config/pam.yaml" in process.wait_for_log("'xyzzy'")
        assert process.log().count("unknown parameter") == len(wrong)


def test_bad_parameters_at_start_say_why() -> None:
    for parameter, words in (
        ("regions.max:=0", "regions.max"),
        ("dtype:=int4", "allowed: auto, float32"),
        ("cameras:=[a,a]", "distinct"),
        ("image_transport:=theora", "allowed: raw, compressed"),
        ("streaming.period_s:=5000", "streaming.period_s is 5000.0; allowed: 0.1 … 3600"),
        ("cameras:=[]", "cameras: must be a non-empty list of distinct names"),
        ("cameras:=5", "cameras is 5; it must be a list of strings"),
        ("regions.max:=2.5", "regions.max is 2.5; it must be an integer"),
        ("prompt.tasks:=[1,2]", "prompt.tasks is [1, 2]; it must be a list of strings"),
        ("prompt.languages:=[]", "prompt.languages: must not be empty"),
    ):
        with pam("model:=fake", parameter) as (_, process):
            assert words in process.wait_for_log("invalid parameter")
            wait_until(lambda process=process: process.exit_code is not None, "the end of the process")
            assert process.exit_code == 2
            assert "Traceback" not in process.log()


def test_integers_stand_for_floats_and_lists_may_be_empty() -> None:
    numbers = ("streaming.period_s:=3", "overlay.opacity:=1", "memory_limit_gib:=8")
    with pam("model:=fake", "prompt.tasks:=[]", *numbers) as (robot, process):
        process.wait_for_log("unconfigured")
        assert robot.get_parameter("/pam_manager", "streaming.period_s") == 3.0
        assert robot.get_parameter("/pam", "overlay.opacity") == 1.0
        assert robot.get_parameter("/pam", "prompt.tasks") == []
        assert robot.set_parameter("/pam_manager", "streaming.period_s", 7) == ""
        assert robot.get_parameter("/pam_manager", "streaming.period_s") == 7.0
        assert robot.set_parameter("/pam", "prompt.tasks", ["brief"]) == ""
        assert robot.set_parameter("/pam", "prompt.tasks", []) == ""
        assert robot.get_parameter("/pam", "prompt.tasks") == []
        assert "must not be empty" in robot.set_parameter("/pam", "prompt.languages", [])
        assert process.end() == 0


def test_parameters_in_a_section_that_has_no_use_for_them(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(
        "pam_manager: {ros__parameters: {model: fake, prompt.tasks: [brief], device: cpu}}\n"
        "/pam: {ros__parameters: {regions.max: 3, overlay.opacity: 0.25,\n"
        "  prompt.languages: !!python/tuple [en, zh]}}\n"  # as launch_ros writes a list
        "/pam_mangaer: {ros__parameters: {device: cpu}}\n"
        "robot: {pam: {ros__parameters: {overlay.opacity: 0.5}}}\n"
        "/**/pam_manager: {ros__parameters: {dtype: float32}}\n"
    )
    with pam(arguments=("--params-file", str(file))) as (robot, process):
        process.wait_for_log("unconfigured")
        wrong = [line.partition("]: ")[2].strip() for line in process.lines if "is ignored" in line]
        assert wrong == [
            "parameter 'prompt.tasks' is ignored: it is given for /pam_manager, but belongs to /pam; "
            "move it to that section, or to /**",
            "parameter 'regions.max' is ignored: it is given for /pam, but belongs to /pam_manager; "
            "move it to that section, or to /**",
            f"{file}: section '/pam_mangaer' is ignored: no node has this name; "
            "the nodes here: /pam_manager, /pam",
            f"{file}: section '/robot/pam' is ignored: no node has this name; "
            "the nodes here: /pam_manager, /pam",
        ]
        assert robot.get_parameter("/pam", "overlay.opacity") == 0.25
        assert list(robot.get_parameter("/pam", "prompt.languages")) == ["en", "zh"]
        assert robot.get_parameter("/pam_manager", "dtype") == "float32"


def test_one_name_for_all_nodes_is_refused() -> None:
    with pam("model:=fake", arguments=("-r", "__node:=mine")) as (_, process):
        process.wait_for_log("pam_manager:__node:=")
        wait_until(lambda: process.exit_code is not None, "the end of the process")
        assert process.exit_code == 2


def test_namespace_and_node_names() -> None:
    with pam(*FAKE_ACTIVE, arguments=("-r", "__ns:=/robot1")) as (robot, process):
        manager = "/robot1/pam_manager"
        wait_until(lambda: robot.state(manager) == "active", "the manager is active")
        with Camera(robot, "/robot1/image"):
            assert robot.perceive(click(3, 3), "/robot1/pam").status.code == Status.OK
        assert process.end() == 0
