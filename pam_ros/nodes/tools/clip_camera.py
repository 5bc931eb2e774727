"""Plays a video file once as a camera on `image`, each frame at its own time, then exits.

With the parameter `hold` it repeats the first frame until the service `~/play` is called, so that there is
time to prompt an object on it. The message of the answer is the stamp at which it starts, nanoseconds.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from std_srvs.srv import Trigger

from pam_ros import videos
from pam_ros.errors import PamError
from pam_ros.nodes.images import image_message
from pam_ros.records import Frame


class ClipCamera(Node):
    """`clip_camera`. Parameters: clip (path), rate (1 = original speed), hold (bool), frame_id."""

    def __init__(self) -> None:
        super().__init__("clip_camera")
        clip = Path(self.declare_parameter("clip", "").value)
        self._rate = float(self.declare_parameter("rate", 1.0).value)
        self._holding = bool(self.declare_parameter("hold", False).value)
        self._frame_id = str(self.declare_parameter("frame_id", "camera_optical_frame").value)
        stamps = videos.video_stamps_ns(clip)
        self._period_s = (stamps[-1] - stamps[0]) / max(len(stamps) - 1, 1) / 1e9 / self._rate or 0.1
        self._frames: Iterator[Frame] = videos.read_video(clip, self.get_logger().warning)
        self._frame = next(self._frames)
        self._start_s: float | None = None  # of the clip, on the monotonic clock; None before it plays
        self._publisher = self.create_publisher(Image, "image", qos_profile_sensor_data)
        self.create_service(Trigger, "~/play", self._play)
        self._timer = self.create_timer(self._period_s, self._tick)
        self.finished = False

    def _play(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._holding = False
        response.success, response.message = True, str(self.get_clock().now().nanoseconds)
        return response

    def _tick(self) -> None:
        header = Header(stamp=self.get_clock().now().to_msg(), frame_id=self._frame_id)
        self._publisher.publish(image_message(self._frame.image, "rgb8", header))
        if self._holding:
            return
        following = next(self._frames, None)
        if following is None:
            self.finished = True
            return
        now_s = time.monotonic()
        if self._start_s is None:
            self._start_s = now_s - self._frame.stamp_ns / 1e9 / self._rate
        self._frame = following
        wait_s = self._start_s + following.stamp_ns / 1e9 / self._rate - now_s
        self._timer.timer_period_ns = max(1, round(wait_s * 1e9))
        self._timer.reset()


def main() -> int:
    """Plays the clip; exit code 0 at its end, 2 if it cannot be read."""
    rclpy.init(args=sys.argv)
    try:
        camera = ClipCamera()
    except PamError as error:
        print(f"clip_camera: {error}", file=sys.stderr)
        return 2
    with suppress(KeyboardInterrupt, ExternalShutdownException):
        while rclpy.ok() and not camera.finished:
            rclpy.spin_once(camera, timeout_sec=0.5)
    camera.destroy_node()
    rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
