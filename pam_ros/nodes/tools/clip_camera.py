"""Plays a video file once as a camera on `image`, each frame at its own time, then exits.

    clip_camera --ros-args -p clip:=video.mp4 -p hold:=true

With the parameter `hold` it shows the first frame until the service `~/play` is called, or Enter is pressed
in its terminal, so that there is time to prompt an object on it. The message of the service's answer is the
stamp at which it starts, nanoseconds.

With the parameter `follow`, the name of a perception node, no frame is sent before the node has answered the
one before, and none while a caption lags behind: the node sees every frame, however slow the machine is, and
stamps are those of the clip. It ends with a line that says how many frames the node saw, and how fast.

Further parameters: rate (1 = original speed), frame_id, and max_lag_s (how far captions may lag behind the
frames, seconds of the clip).
"""

from __future__ import annotations

import math
import os
import select
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import rclpy
from rcl_interfaces.msg import ParameterDescriptor
from rclpy.node import Node
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from std_srvs.srv import Trigger

from pam_ros import videos
from pam_ros.errors import InputError, PamError
from pam_ros.msg import RegionArray, StreamingCaption
from pam_ros.nodes.conversions import stamp_ns, time_message
from pam_ros.nodes.images import image_message
from pam_ros.nodes.tools.tool_node import only_ros_arguments, tool_node
from pam_ros.records import Frame
from pam_ros.runtime.pace import LOOK_S, Pace
from pam_ros.signals import leave

SHOW_AGAIN_S = 0.2  # how often the first frame is sent while it is held


class ClipCamera(Node):
    """`clip_camera`; its parameters are described above."""

    def __init__(self) -> None:
        super().__init__("clip_camera")
        clip = Path(_given(self.declare_parameter("clip", "").value))
        self._holding = bool(self.declare_parameter("hold", False).value)
        self._frame_id = str(self.declare_parameter("frame_id", "camera_optical_frame").value)
        followed = str(self.declare_parameter("follow", "").value)
        self._pace = Pace(
            rate=self._number("rate", 1.0, above=0.0),
            follow=bool(followed),
            max_lag_s=self._number("max_lag_s", 1.0, above=0.0),
        )
        videos.video_stamps_ns(clip)  # raises if nothing can be played
        self._frames: Iterator[Frame] = videos.read_video(clip, self.get_logger().warning)
        self._frame: Frame | None = next(self._frames)
        self._begin_ns: int | None = None  # stamp of the clip's start; None before it plays
        self._shown_s = -SHOW_AGAIN_S  # when the first frame was sent last, while it is held
        profile = QoSProfile(depth=2) if followed else qos_profile_sensor_data
        self._publisher = self.create_publisher(Image, "image", profile)
        if followed:
            self.create_subscription(RegionArray, f"{followed}/regions", self._on_regions, 10)
            self.create_subscription(StreamingCaption, f"{followed}/streaming_captions", self._on_caption, 50)
        self.create_service(Trigger, "~/play", self._play)
        waits = f"; it starts when {self.get_fully_qualified_name()}/play is called" if self._holding else ""
        enter = ", or Enter pressed" if self._holding and sys.stdin.isatty() else ""
        self.get_logger().info(f"publishing {clip} on {self._publisher.topic_name}{waits}{enter}")
        self.create_timer(LOOK_S, self._tick)

    @property
    def finished(self) -> bool:
        """True once the last frame was sent and, if a node is followed, answered."""
        return self._frame is None and self._pace.answered

    def report(self) -> str:
        """How many frames the node saw, and how fast; empty if none is followed."""
        return self._pace.report() if self._pace.follow else ""

    def _number(self, name: str, default: float, *, above: float) -> float:
        """Declares a parameter that integers can be given for, too. Raises InputError."""
        value = self.declare_parameter(name, default, ParameterDescriptor(dynamic_typing=True)).value
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"{name} is {value!r}; allowed: a number")
        if not above < value < math.inf:
            raise InputError(f"{name} is {value}; allowed: a finite number above {above:g}")
        return float(value)

    def _play(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._start()
        response.success, response.message = True, str(self._begin_ns)
        return response

    def _start(self) -> None:
        """Idempotent."""
        self._holding = False
        if self._begin_ns is None:
            self._begin_ns = self.get_clock().now().nanoseconds
            self._pace.begin(self._begin_ns)

    def _tick(self) -> None:
        if self._holding and not _enter_pressed():
            self._show()
            return
        self._start()
        assert self._begin_ns is not None
        if self._frame is not None and self._pace.due(self._frame.stamp_ns):
            # A node that is not followed gets the time at which a frame is sent, as from a real camera.
            now_ns = self.get_clock().now().nanoseconds
            self._send(self._begin_ns + self._frame.stamp_ns if self._pace.follow else now_ns)
            self._frame = next(self._frames, None)

    def _show(self) -> None:
        """The first frame, again and again; a node that is followed gets it until it has answered once."""
        now_s = time.monotonic()
        if now_s - self._shown_s >= SHOW_AGAIN_S and not (self._pace.follow and self._pace.frames_seen):
            self._shown_s = now_s
            self._send(self.get_clock().now().nanoseconds)

    def _send(self, time_ns: int) -> None:
        assert self._frame is not None
        header = Header(stamp=time_message(time_ns), frame_id=self._frame_id)
        self._pace.sent(time_ns)
        self._publisher.publish(image_message(self._frame.image, "rgb8", header))

    def _on_regions(self, message: RegionArray) -> None:
        self._pace.saw(stamp_ns(message.header.stamp), (region.id for region in message.regions))

    def _on_caption(self, message: StreamingCaption) -> None:
        key = (message.region_id, message.sequence)
        self._pace.caption(key, stamp_ns(message.clip_end), final=message.final)


def _enter_pressed() -> bool:
    """Whether a line waits in the terminal; never in the background, where reading it stops a process."""
    if not sys.stdin.isatty():
        return False
    with suppress(OSError):  # not the terminal that controls this process
        if os.tcgetpgrp(sys.stdin.fileno()) != os.getpgrp():
            return False
    return bool(select.select([sys.stdin], [], [], 0)[0]) and bool(sys.stdin.readline())


def _given(clip: str) -> str:
    """Raises InputError if no clip is named."""
    if not clip:
        raise InputError("no video file is given; use --ros-args -p clip:=PATH")
    return clip


def run() -> int:
    """Plays the clip; exit code 0 at its end or after a signal, 2 if it cannot be read."""
    only_ros_arguments(__doc__)
    try:
        with tool_node(ClipCamera) as (camera, stopped):
            while not (stopped.is_set() or camera.finished):
                rclpy.spin_once(camera, timeout_sec=0.2)
            if camera.finished:
                camera.get_logger().info("the clip has ended")
            if report := camera.report():
                print(report, flush=True)
    except PamError as error:
        print(f"clip_camera: {error}", file=sys.stderr, flush=True)
        return 2
    return 0


def main() -> None:
    """The executable; a second signal finds no half-finalized Python."""
    leave(run())


if __name__ == "__main__":
    main()
