"""Floods of messages to a real `pam_node`: services are answered, tracks are kept, the log stays short."""

from __future__ import annotations

import array
import importlib.util
import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest

pytest.importorskip("pam_ros.msg", reason="needs the built ROS interfaces")

from geometry_msgs.msg import PointStamped, TransformStamped
from rclpy.serialization import serialize_message
from ros_harness import FAKE_ACTIVE, Camera, Client, Process, click, image_of, mouse, pam, wait_until
from sensor_msgs.msg import CameraInfo, Image
from tf2_msgs.msg import TFMessage
from vision_msgs.msg import (
    BoundingBox2D,
    Detection2D,
    Detection2DArray,
    ObjectHypothesis,
    ObjectHypothesisWithPose,
    Point2D,
    Pose2D,
)

from pam_ros.msg import Prompt, RegionArray, Status

MESSAGES = 100


def detections(count: int, x: float = 9.0, words: int = 1) -> Detection2DArray:
    """So many boxes of 4 x 4 pixels around (x, 9)."""
    centre = Pose2D(position=Point2D(x=x, y=9.0))
    hypothesis = ObjectHypothesisWithPose(hypothesis=ObjectHypothesis(class_id="cup" * words, score=0.5))
    box = BoundingBox2D(center=centre, size_x=4.0, size_y=4.0)
    return Detection2DArray(detections=[Detection2D(bbox=box, results=[hypothesis])] * count)


FLOODS: dict[str, tuple[str, Callable[[], object], str]] = {
    "3,000 boxes": ("/detections", lambda: detections(3000), "bytes; at most 1048576 are allowed"),
    "20,000 NaN boxes": ("/detections", lambda: detections(20_000, math.nan), "at most 1048576 are allowed"),
    "1,000 boxes": ("/detections", lambda: detections(1000), "the 256 with the highest scores are read"),
    "250 NaN boxes": ("/detections", lambda: detections(250, math.nan), "(nan, 9.0) and size 4.0 x 4.0"),
    "a long class": (
        "/detections",
        lambda: detections(1, words=9999),
        "class of 29997 characters; allowed: 256",
    ),
    "clicks beside the image": ("/image_mouse_left", lambda: mouse(900, 3), "outside the 64x48 image"),
    "prompts of 1,000 clicks": (
        "/pam/prompt",
        lambda: Prompt(points=[Point2D()] * 1000),
        "points has 1000 entries; at most 64 are allowed",
    ),
    "prompts of 100,000 clicks": (
        "/pam/prompt",
        lambda: Prompt(points=[Point2D()] * 100_000),
        "at most 68608 are allowed",
    ),
    "truncated images": (
        "/image",
        lambda: Image(height=9, width=9, encoding="rgb8", step=27, data=[1]),
        "trunc",
    ),
    "images of a long frame_id": (
        "/image",
        lambda: long_frame_id(),
        "frame_id has 99999 entries; at most 256 are allowed",
    ),
    "a long calibration": (
        "/camera_info",
        lambda: CameraInfo(d=array.array("d", [0.1] * 99_999)),
        "are allowed",
    ),
    "transforms": (
        "/tf",
        lambda: TFMessage(transforms=[TransformStamped(child_frame_id="x")] * 9999),
        "at most 262144 are allowed",
    ),
}


def long_frame_id() -> Image:
    message = image_of(np.full((48, 64, 3), 90, np.uint8))
    message.header.frame_id = "x" * 99_999
    return message


@pytest.fixture(scope="module")
def active() -> Iterator[tuple[Client, Process, int]]:
    """A running node that has a camera, and a region that no flood may disturb."""
    with pam(*FAKE_ACTIVE) as (robot, process):
        robot.wait_for_active()
        robot.publisher(PointStamped, "/clicked_point")  # who can click makes the node listen to transforms
        with Camera(robot, rate_hz=20):
            region_id = robot.perceive(click(50, 40)).region.id
            yield robot, process, region_id
        assert process.exit_code is None
        assert "Traceback" not in process.log()
        assert process.end() == 0


@pytest.mark.parametrize("name", list(FLOODS))
def test_services_are_answered_during_a_flood(active: tuple[Client, Process, int], name: str) -> None:
    if name == "transforms" and importlib.util.find_spec("tf2_ros"):
        pytest.skip("tf2_ros listens to transforms here")
    robot, process, region_id = active
    topic, make, words = FLOODS[name]
    message = make()
    frames = robot.collect(RegionArray, "/pam/regions")
    publisher = robot.publisher(type(message), topic)
    before = len(process.lines)
    data = serialize_message(message)
    for number in range(MESSAGES):
        publisher.publish(data)
        if number % 10 == 0:
            answer = robot.perceive(Prompt(region_id=region_id))
            assert (answer.status.code, answer.region.id) == (Status.OK, region_id), answer.status

    def logged() -> bool:
        publisher.publish(data)  # best effort: some may be lost
        return any(words in line for line in process.lines[before:])

    wait_until(logged, f"a line with {words!r}")
    assert sum("[WARN]" in line for line in process.lines[before:]) <= 8, process.lines[before:]
    seen = len(frames)
    wait_until(lambda: len(frames) > seen + 2, "results after the flood")
    (kept,) = [region for region in frames[-1].regions if region.id == region_id]
    assert kept.state == kept.TRACKED
