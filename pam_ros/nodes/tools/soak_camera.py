"""The camera of `pam soak`: it pans over the demo's first frame; the stamp alone says where the kettle is."""

from __future__ import annotations

import functools
import math
import time

import cv2
import numpy as np
import rclpy
from numpy.typing import NDArray
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from pam_ros import videos
from pam_ros.nodes.conversions import stamp_ns
from pam_ros.nodes.images import image_message
from pam_ros.nodes.tools.demo import default_input
from pam_ros.nodes.tools.tool_node import tool_node
from pam_ros.signals import leave

RATE_HZ = 10.0
SIZE = (240, 320)  # (height, width), pixels, at scale 1
SCENE = (300, 400)  # (height, width), pixels: the frame, of which an image shows a part
TURN = 0.05  # radians a second: slow enough for a machine that sees a frame in two seconds
MIDDLE, ARC = 1.8, 1.0  # of the arc on which the camera swings, radians


def _corner(time_ns: int) -> tuple[int, int]:
    """(x, y) in the scene of the image's first pixel. pam-tiny is sure of the kettle on this arc."""
    angle = MIDDLE + ARC * math.sin(TURN * (time_ns % (10**9 * 10**6)) / 1e9)
    room_y, room_x = SCENE[0] - SIZE[0], SCENE[1] - SIZE[1]
    return round(room_x * (0.75 + 0.25 * math.cos(angle))), round(room_y * (0.5 + 0.5 * math.sin(angle)))


def object_box(time_ns: int, scale: float = 1.0) -> tuple[float, ...]:
    """(x1, y1, x2, y2) in pixels of the kettle in the image of that stamp. Random clicks miss it."""
    box = (np.reshape(_scene()[1], (2, 2)) - _corner(time_ns)) * scale
    return tuple(box.flatten().tolist())


@functools.cache
def _scene() -> tuple[NDArray[np.uint8], tuple[float, ...]]:
    """(H, W, 3) RGB: the demo's first frame, and the (x1, y1, x2, y2) of its prompt in it, pixels."""
    demo = default_input()
    frame = next(videos.read_video(demo.clip)).image
    scale = SCENE[1] / frame.shape[1]
    picture = cv2.resize(frame, SCENE[::-1], interpolation=cv2.INTER_AREA).astype(np.uint8)
    return picture, tuple(side * scale for side in demo.box_xyxy)


def picture_at(time_ns: int, scale: int = 1) -> NDArray[np.uint8]:
    """(H, W, 3) RGB: the image of that stamp."""
    x, y = _corner(time_ns)
    picture = _scene()[0][y : y + SIZE[0], x : x + SIZE[1]]
    return picture.repeat(scale, axis=0).repeat(scale, axis=1)


class SoakCamera(Node):
    """`soak_camera`. Parameters, which may change at any time: rate_hz, scale (of the image's size)."""

    def __init__(self) -> None:
        super().__init__("soak_camera")
        self.declare_parameter("rate_hz", RATE_HZ)
        self.declare_parameter("scale", 1)
        self._publisher = self.create_publisher(Image, "image", qos_profile_sensor_data)

    def send(self) -> float:
        """Sends an image; seconds until the next one."""
        stamp = self.get_clock().now().to_msg()
        picture = picture_at(stamp_ns(stamp), int(self.get_parameter("scale").value))
        header = Header(stamp=stamp, frame_id="soak_optical_frame")
        self._publisher.publish(image_message(picture, "rgb8", header))
        return 1.0 / float(self.get_parameter("rate_hz").value)


def run() -> int:
    """Sends images until a signal."""
    with tool_node(SoakCamera) as (camera, stopped):
        due_s = time.monotonic()
        while not stopped.is_set():
            if time.monotonic() >= due_s:
                due_s = max(due_s, time.monotonic() - 1.0) + camera.send()
            rclpy.spin_once(camera, timeout_sec=max(0.0, min(0.2, due_s - time.monotonic())))
    return 0


def main() -> None:
    """Started by `pam soak`."""
    leave(run())


if __name__ == "__main__":
    main()
