"""Starts PAM: one process with the perception node(s) and the lifecycle manager.

    ros2 launch pam_ros pam.launch.py image:=/camera/camera/color/image_raw model:=pam-3b

Empty arguments keep the values of params_file. A launch file that includes this one passes its own arguments
on, whatever they mean: include it as robot_example.launch.py does, or give pam_model, pam_device, pam_image.
"""

import os
from pathlib import Path

from ament_index_python.packages import PackageNotFoundError, get_package_prefix, get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

CONFIG = Path(get_package_share_directory("pam_ros")) / "config"
PARAMS_FILE = str(CONFIG / "pam.yaml")
RVIZ_CONFIG = str(CONFIG / "pam.rviz")
# Fast DDS loses images without it, see docs/transport.md. Holds for whatever starts after this file, too.
FASTDDS_VARIABLES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")  # of Fast DDS 2, 3
FASTDDS_PROFILE = str(CONFIG / "fastdds.xml")
BOOLEANS = ["true", "false"]
LEVELS = ["debug", "info", "warn", "error", "fatal"]

# The node ends its lifecycle in order within 10 s of SIGINT; a second signal kills it.
STOP_TIMEOUT_S = "12"

# Arguments that set the parameter of the same name, if not empty.
STRINGS = ("model", "device", "image_transport", "depth_transport")
# Arguments that many launch files have, too. pam_<name> counts instead, if not empty.
PREFIXED = ("model", "device", "image")
# Arguments that remap the input topic of the same name; with several cameras <camera>/image and so on.
TOPICS = ("image", "camera_info", "depth", "detections")


def generate_launch_description() -> LaunchDescription:
    """Called by `ros2 launch`."""
    return LaunchDescription(
        [
            declare("namespace", "", "namespace of the nodes and of relative topics"),
            declare("params_file", PARAMS_FILE, "YAML file of parameters"),
            declare("use_sim_time", "false", "use simulation time from /clock", BOOLEANS),
            declare("autostart", "true", "configure and activate at start", BOOLEANS),
            declare("log_level", "info", "minimum log level", LEVELS),
            declare("use_respawn", "false", "restart the process if it exits", BOOLEANS),
            declare("model", "", "auto, pam-3b, pam-1.5b, pam-tiny, a hub id or a folder"),
            declare("device", "", "auto, cpu, cuda, cuda:1, …"),
            declare("pam_model", "", "overrides model, for launch files with a model argument of their own"),
            declare("pam_device", "", "overrides device, likewise"),
            declare("pam_image", "", "overrides image, likewise"),
            declare("cameras", "", "comma-separated camera names, e.g. front,rear; one node per camera"),
            declare("image_transport", "", "raw or compressed"),
            declare("depth_transport", "", "raw or compressedDepth"),
            declare("image", "image", "image topic; with several cameras relative to <camera>/"),
            declare(
                "camera_info",
                "camera_info",
                "calibration of the image, for clicks in RViz and for depth; default: beside the image topic",
            ),
            declare(
                "depth",
                "depth",
                "depth aligned to the image, 32FC1 in metres or 16UC1 in millimetres; with several cameras "
                "relative to <camera>/",
            ),
            declare(
                "detections",
                "detections",
                "topic of a detector's boxes; with several cameras relative to <camera>/",
            ),
            declare(
                "markers", "", "what ~/markers shows: none, regions or all", ["", "none", "regions", "all"]
            ),
            declare("rviz", "false", "open RViz on the (first) camera; needs the package rviz2", BOOLEANS),
            declare("rviz_config", RVIZ_CONFIG, "RViz configuration"),
            declare(
                "fixed_frame",
                "",
                "RViz's fixed frame: the images' frame_id (the view faces the image), or any frame that TF "
                "connects to it",
            ),
            *profile_variables(),
            OpaqueFunction(function=start),
        ]
    )


def profile_variables() -> list[SetEnvironmentVariable]:
    """Fast DDS's profile by the names of all its versions; none if the user has set one."""
    if any(name in os.environ for name in FASTDDS_VARIABLES):
        return []
    return [SetEnvironmentVariable(name, FASTDDS_PROFILE) for name in FASTDDS_VARIABLES]


def declare(
    name: str, default: str, description: str, choices: list[str] | None = None
) -> DeclareLaunchArgument:
    """One argument, as `ros2 launch --show-args` lists it."""
    return DeclareLaunchArgument(name, default_value=default, description=description, choices=choices)


def start(context: LaunchContext) -> list[Node]:
    """The process, configured by the arguments."""

    def value(name: str) -> str:
        prefixed: str = LaunchConfiguration(f"pam_{name}").perform(context) if name in PREFIXED else ""
        return prefixed or str(LaunchConfiguration(name).perform(context))

    if not Path(value("params_file")).is_file():
        raise FileNotFoundError(f"params_file:={value('params_file')} is not a file; give a YAML file")
    if value("rviz") == "true":
        require("rviz2")
    cameras = [camera for camera in value("cameras").replace(" ", "").split(",") if camera]
    parameters: dict[str, object] = {
        # Always strings: a device may be called "0".
        name: ParameterValue(value(name), value_type=str)
        for name in STRINGS
        if value(name)
    }
    if value("markers"):
        parameters["markers.show"] = value("markers")
    parameters["autostart"] = value("autostart") == "true"
    parameters["use_sim_time"] = value("use_sim_time") == "true"
    if cameras:
        parameters["cameras"] = cameras
    topics = {name: value(name) for name in TOPICS}
    # No `name`: it would rename every node of the process.
    pam = Node(
        package="pam_ros",
        executable="pam_node",
        namespace=value("namespace"),
        parameters=[value("params_file"), parameters],
        remappings=remappings(cameras, topics),
        arguments=["--ros-args", "--log-level", value("log_level")],
        respawn=value("use_respawn") == "true",
        respawn_delay=2.0,
        sigterm_timeout=STOP_TIMEOUT_S,
        output="screen",
        emulate_tty=True,
    )
    if value("rviz") != "true":
        return [pam]
    frame = ["--fixed-frame", value("fixed_frame")] if value("fixed_frame") else []
    rviz = Node(
        package="rviz2",
        executable="rviz2",
        name="rviz",
        namespace=value("namespace"),
        parameters=[{"use_sim_time": value("use_sim_time") == "true"}],
        remappings=rviz_remappings(cameras, topics),
        arguments=["--display-config", value("rviz_config"), *frame],
    )
    return [pam, rviz]


def require(package: str) -> None:
    """Raises if the package is absent: before the node starts, as launch leaves behind what runs already."""
    try:
        get_package_prefix(package)
    except PackageNotFoundError:
        raise RuntimeError(f"rviz:=true needs {package}: apt install ros-$ROS_DISTRO-{package}") from None


def remappings(cameras: list[str], topics: dict[str, str]) -> list[tuple[str, str]]:
    """(topic name in the node, topic to use) of every topic that is to be renamed."""
    changed = {inner: outer for inner, outer in topics.items() if outer != inner}
    if len(cameras) < 2:
        return list(changed.items())
    for inner, outer in changed.items():
        if outer.startswith("/"):
            raise ValueError(
                f"{inner}:={outer} is one topic for {len(cameras)} cameras; use a relative one (no leading /)"
            )
    return [
        (f"{camera}/{inner}", f"{camera}/{outer}") for camera in cameras for inner, outer in changed.items()
    ]


def rviz_remappings(cameras: list[str], topics: dict[str, str]) -> list[tuple[str, str]]:
    """(topic name in config/pam.rviz, topic to use), for the only or the first camera."""
    several = len(cameras) > 1
    prefix, node = (f"{cameras[0]}/", f"pam_{cameras[0]}") if several else ("", "pam")
    image = f"{prefix}{topics['image']}"
    # RViz looks for the calibration beside the depth, from the root: it makes "depth" into "/camera_info".
    beside = f"{image.rpartition('/')[0]}/camera_info" if "/" in image else "camera_info"
    info = beside if topics["camera_info"] == "camera_info" else f"{prefix}{topics['camera_info']}"
    renamed = {"image": image, "depth": f"{prefix}{topics['depth']}", "/camera_info": info}
    if several:
        renamed |= {f"pam/{name}": f"{node}/{name}" for name in ("overlay", "markers")}
        renamed |= {name: f"{prefix}{name}" for name in ("clicked_point", "clicked_point_negative")}
    return [(inner, outer) for inner, outer in renamed.items() if outer != inner]
