"""How your robot's launch file includes PAM: one camera in the robot's namespace, captions as events.

ros2 launch pam_ros robot_example.launch.py robot:=spot model:=pam-3b
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, GroupAction, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

PAM = str(Path(get_package_share_directory("pam_ros")) / "launch" / "pam.launch.py")


def generate_launch_description() -> LaunchDescription:
    """Called by `ros2 launch`."""
    return LaunchDescription(
        [
            DeclareLaunchArgument("robot", default_value="robot", description="namespace of the robot"),
            DeclareLaunchArgument("model", default_value="", description="as in pam.launch.py"),
            # A group of its own: your file's arguments do not reach the included one, nor do its reach yours.
            GroupAction(
                [IncludeLaunchDescription(PythonLaunchDescriptionSource(PAM))],
                scoped=True,
                forwarding=False,
                launch_configurations={
                    "namespace": LaunchConfiguration("robot"),
                    "model": LaunchConfiguration("model"),
                    "image": "camera/color/image_raw",  # relative: in the robot's namespace
                    "camera_info": "camera/color/camera_info",
                    "depth": "camera/aligned_depth_to_color/image_raw",
                    "detections": "detector/detections",
                },
            ),
            Node(
                package="pam_ros",
                executable="caption_events",
                namespace=LaunchConfiguration("robot"),
                remappings=[("/pam/streaming_captions", "pam/streaming_captions")],
                output="screen",
            ),
        ]
    )
