"""Starts PAM: one process that holds the perception node(s) and the lifecycle manager.

    ros2 launch pam_ros pam.launch.py image:=/camera/color/image_raw model:=pam-3b

An argument left empty is not passed on: the parameter keeps what params_file says.
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

PARAMS_FILE = str(Path(get_package_share_directory("pam_ros")) / "config" / "pam.yaml")
BOOLEANS = ["true", "false"]
LEVELS = ["debug", "info", "warn", "error", "fatal"]

# The node ends its lifecycle in order within 10 s of SIGINT; a second signal would end it at once.
STOP_TIMEOUT_S = "12"

# Arguments that become the parameter of their name when not empty.
STRINGS = ("model", "device", "image_transport")
# Arguments that rename the input of their name; with several cameras <camera>/image and so on.
TOPICS = ("image", "detections")


def generate_launch_description() -> LaunchDescription:
    """Called by `ros2 launch`."""
    return LaunchDescription(
        [
            declare("namespace", "", "namespace of the nodes and of relative topics"),
            declare("params_file", PARAMS_FILE, "YAML file of parameters"),
            declare("use_sim_time", "false", "take time from /clock", BOOLEANS),
            declare("autostart", "true", "configure and activate at start; false leaves it to you", BOOLEANS),
            declare("log_level", "info", "least severity that is logged", LEVELS),
            declare("use_respawn", "false", "start the process again when it ends", BOOLEANS),
            declare("model", "", "pam-tiny, pam-1.5b, pam-3b, a hub id or a folder"),
            declare("device", "", "auto, cpu, cuda, cuda:1, …"),
            declare("cameras", "", "names of the cameras, as in front,rear; one node each"),
            declare("image_transport", "", "raw or compressed"),
            declare("image", "image", "topic of the images; with several cameras, below <camera>/"),
            declare("detections", "detections", "topic of a detector's boxes, likewise"),
            OpaqueFunction(function=start),
        ]
    )


def declare(
    name: str, default: str, description: str, choices: list[str] | None = None
) -> DeclareLaunchArgument:
    """One argument, for `ros2 launch --show-args`."""
    return DeclareLaunchArgument(name, default_value=default, description=description, choices=choices)


def start(context: LaunchContext) -> list[Node]:
    """The process, with what the arguments say."""

    def value(name: str) -> str:
        text: str = LaunchConfiguration(name).perform(context)
        return text

    cameras = [camera for camera in value("cameras").replace(" ", "").split(",") if camera]
    parameters: dict[str, object] = {
        # As strings, whatever they look like: a device may be called "0".
        name: ParameterValue(value(name), value_type=str)
        for name in STRINGS
        if value(name)
    }
    parameters["autostart"] = value("autostart") == "true"
    parameters["use_sim_time"] = value("use_sim_time") == "true"
    if cameras:
        parameters["cameras"] = cameras
    return [
        # No `name`: it would give every node of the process the same one.
        Node(
            package="pam_ros",
            executable="pam_node",
            namespace=value("namespace"),
            parameters=[value("params_file"), parameters],
            remappings=remappings(cameras, {name: value(name) for name in TOPICS}),
            arguments=["--ros-args", "--log-level", value("log_level")],
            respawn=value("use_respawn") == "true",
            respawn_delay=2.0,
            sigterm_timeout=STOP_TIMEOUT_S,
            output="screen",
            emulate_tty=True,
        )
    ]


def remappings(cameras: list[str], topics: dict[str, str]) -> list[tuple[str, str]]:
    """(the node's name of an input, the topic it shall be), for what is not the same already."""
    changed = {inner: outer for inner, outer in topics.items() if outer != inner}
    if len(cameras) < 2:
        return list(changed.items())
    for inner, outer in changed.items():
        if outer.startswith("/"):
            raise ValueError(
                f"{inner}:={outer} would be one topic for {len(cameras)} cameras; give it without the first /"
            )
    return [
        (f"{camera}/{inner}", f"{camera}/{outer}") for camera in cameras for inner, outer in changed.items()
    ]
