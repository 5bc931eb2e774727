"""What the node says about the graph around it: topics without images, lost images, twins, refusals."""

from __future__ import annotations

import time

import numpy as np
import pytest

pytest.importorskip("pam_ros.msg", reason="needs the built ROS interfaces")

from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from ros_harness import (
    FAKE_ACTIVE,
    FAKE_NODE,
    Camera,
    Diagnostics,
    click,
    image_of,
    jpeg_of,
    new_frames,
    pam,
    stamp_of,
    wait_until,
)
from sensor_msgs.msg import CompressedImage, Image
from vision_msgs.msg import BoundingBox2D, Detection2D, Detection2DArray, Point2D, Pose2D

from pam_ros.action import CaptionClip
from pam_ros.msg import RegionArray, Status, StreamingCaption
from pam_ros.nodes.tools.processes import Processes
from pam_ros.runtime.statistics import GapCounter

WARN = b"\x01"
BEST_EFFORT = QoSProfile(depth=1, reliability=QoSReliabilityPolicy.BEST_EFFORT)


def test_the_log_says_when_the_node_is_active_and_what_it_reads() -> None:
    with pam(*FAKE_ACTIVE, "cameras:=[front,rear]") as (_, process):
        line = process.wait_for_log("active: ")
        assert "/pam_front reads /front/image, /pam_rear reads /rear/image" in line


def test_a_wrong_image_topic_is_told_with_the_right_ones() -> None:
    with pam(*FAKE_ACTIVE) as (robot, process):
        robot.node.create_publisher(Image, "/camera/color/image_raw", BEST_EFFORT)
        robot.node.create_publisher(CompressedImage, "/camera/color/image_raw/compressed", 1)
        line = process.wait_for_log("no image has arrived on /image for 5 s: nobody publishes it")
        assert "/camera/color/image_raw (sensor_msgs/msg/Image, best effort)" in line
        assert "/camera/color/image_raw/compressed (sensor_msgs/msg/CompressedImage, reliable)" in line
        assert "-r image:=TOPIC" in line
        assert "/pam/" not in line.partition("Image topics here")[2]
        with Camera(robot):
            process.wait_for_log("images arrive on /image")
        process.wait_for_log("it has 1 publisher, but nothing is sent")
        assert process.log().count("no image has arrived") == 2
        with Camera(robot, dies=True):
            wait_until(lambda: process.log().count("images arrive on /image") == 2, "images")
        process.wait_for_log(
            "no image has arrived on /image for 5 s: its publisher has gone; start the camera"
        )


def test_an_image_topic_of_another_type_or_reliability() -> None:
    strict = "qos_overrides./image.subscription.reliability:=reliable"
    with pam(*FAKE_ACTIVE, strict) as (robot, process):
        robot.node.create_publisher(Image, "/image", BEST_EFFORT)
        process.wait_for_log("its publishers are best effort, but qos_overrides ask for reliable ones")
    with pam(*FAKE_ACTIVE) as (robot, process):
        robot.publisher(CompressedImage, "/image", subscribers=0).publish(
            jpeg_of(np.zeros((48, 64, 3), np.uint8))
        )
        line = process.wait_for_log("it is published as sensor_msgs/msg/CompressedImage")
        assert "image_transport:=compressed" in line


def test_images_that_do_not_arrive_are_counted() -> None:
    """The camera skips stamps as if messages had been lost: 7 of 11, irregularly, after 60 frames."""
    with pam(*FAKE_ACTIVE) as (robot, process):
        diagnostics = Diagnostics.of(robot)
        images = robot.publisher(Image, "/image", 1)
        robot.wait_for_active()
        stamp_ns = time.time_ns()
        gaps = [1] * 60 + [3, 1, 5, 2] * 12
        for gap in gaps:
            message = image_of(np.full((48, 64, 3), 90, np.uint8))
            stamp_ns += gap * 33_333_333
            message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp_ns, 10**9)
            images.publish(message)
            time.sleep(0.02)
        status = diagnostics.wait_for("/pam: camera", lambda status: status.level == WARN)
        assert "of the images do not arrive; see docs/transport.md" in status.message
        assert 56 <= int(Diagnostics.values(status)["images missed"]) <= 84
        process.wait_for_log("of the images on /image do not arrive, as gaps in their stamps show")


def test_qos_overrides_change_one_of_two_cameras() -> None:
    strict = "qos_overrides./front/image.subscription.reliability:=reliable"
    with pam(*FAKE_ACTIVE, "cameras:=[front,rear]", strict) as (robot, _):
        robot.wait_for_active()
        found = {}
        for camera in ("front", "rear"):
            for name in ("image", "depth", "camera_info"):
                topic = f"/{camera}/{name}"
                (info,) = wait_until(
                    lambda topic=topic: robot.node.get_subscriptions_info_by_topic(topic),
                    f"who reads {topic}",
                )
                found[topic] = info.qos_profile.reliability.name
        assert found.pop("/front/image") == "RELIABLE"
        assert set(found.values()) == {"BEST_EFFORT"}
        with Camera(robot, "/rear/image"):  # sends best effort
            assert robot.perceive(click(30, 20), "/pam_rear").status.code == Status.OK


def test_best_effort_detectors_are_heard() -> None:
    with pam(*FAKE_ACTIVE) as (robot, _), Camera(robot):
        robot.wait_for_active()
        frames = robot.collect(RegionArray, "/pam/regions")
        wait_until(lambda: frames, "the first result")
        detector = robot.publisher(Detection2DArray, "/detections", BEST_EFFORT)
        centre = Pose2D(position=Point2D(x=20.0, y=20.0))
        box = Detection2D(id="7", bbox=BoundingBox2D(center=centre, size_x=8.0, size_y=8.0))

        def found() -> bool:
            detector.publish(Detection2DArray(detections=[box]))
            return bool(frames[-1].regions)

        wait_until(found, "the detection's region")
        assert [region.source_id for region in frames[-1].regions] == ["7"]


def test_zero_stamps_and_simulated_time_that_stands_still() -> None:
    parameters = ("use_sim_time:=true", "streaming.enabled:=true", "streaming.period_s:=0.5")
    with pam(*FAKE_ACTIVE, *parameters) as (robot, process):
        robot.wait_for_active()
        frames = robot.collect(RegionArray, "/pam/regions")
        captions = robot.collect(StreamingCaption, "/pam/streaming_captions")
        images = robot.publisher(Image, "/image", 1)
        picture = image_of(np.full((48, 64, 3), 90, np.uint8))  # its stamp is zero

        def played(condition) -> bool:
            images.publish(picture)
            time.sleep(0.05)
            return condition()

        wait_until(lambda: played(lambda: frames), "the first result")
        assert robot.perceive(click(30, 20)).status.code == Status.OK
        wait_until(lambda: played(lambda: sum(it.final for it in captions) >= 2), "two captions")
        stamps = [stamp_of(frame) for frame in new_frames(frames)]
        assert stamps == sorted(stamps)
        assert abs(stamps[-1] - time.time_ns()) < 60 * 10**9
        goal = robot.send_goal(CaptionClip.Goal(prompt=click(30, 20), duration_s=0.5))
        wait_until(lambda: played(lambda: goal.done), "the clip")
        assert goal.result()[1].status.code == Status.OK
        line = process.wait_for_log("images on /image have zero stamps")
        assert "this machine's time, as use_sim_time is set but no /clock arrives" in line


def test_a_clip_that_is_cut_short_says_so() -> None:
    with pam(*FAKE_ACTIVE) as (robot, _), Camera(robot, rate_hz=10) as camera:
        robot.wait_for_active()
        wait_until(lambda: robot.perceive(click(30, 20)).status.code == Status.OK, "a frame")
        goal = robot.send_goal(CaptionClip.Goal(prompt=click(30, 20), duration_s=60.0))
        wait_until(lambda: goal.feedback and goal.feedback[-1].recorded_s > 0.2, "a part of the clip")
        camera.send(time.time_ns() - 3600 * 10**9)
        _, result = goal.result()
        assert result.status.code == Status.OK
        assert result.status.message.endswith("of 60 s: the camera's stamps jumped back")
        assert result.caption.final and result.caption.text


def gap_counter(*intervals: float) -> GapCounter:
    """A counter that saw frames after these intervals, seconds."""
    counter, now_s = GapCounter(), 100.0
    for interval in (0.0, *intervals):
        now_s += interval
        counter.add(round(now_s * 1e9))
    return counter


def test_gaps_are_counted_against_the_measured_period() -> None:
    rng = np.random.default_rng(0)
    jitter = (0.033 * rng.uniform(0.75, 1.25, 300)).tolist()
    assert gap_counter(*jitter).missed == 0
    assert gap_counter(*[0.1] * 50, 0.3, 0.1, 0.5, *[0.1] * 12).missed == 2 + 4
    assert gap_counter(*[0.1] * 50, 30.0, 0.1, -70.0, *[0.1] * 50).missed == 0  # a pause, and a new beginning
    assert gap_counter(*[0.1] * 5).missing_fraction == 0.0
    for slower in (1 / 15, 1 / 7.5, 1 / 5, 1 / 60):  # a camera in the dark exposes longer
        assert gap_counter(*[1 / 30] * 200, *[slower] * 300, *[1 / 30] * 200).missed == 0
    assert gap_counter(*[1 / 30] * 200, *[2 / 30] * 100, 6 / 30, *[2 / 30] * 20).missed == 2
    assert gap_counter(*[0.001, 0.065] * 200).missed == 0  # frames in pairs
    assert gap_counter(*[1 / 30] * 200, -60.0, *[0.1] * 100).missed == 0  # time starts over, at another rate
    sent = rng.random(3000) > 0.75  # three in four frames are lost, at random
    counter = GapCounter()
    for number in np.flatnonzero(sent):
        counter.add(int(number) * 33_333_333)
    assert counter.missed == pytest.approx(2250, rel=0.05)
    assert counter.missing_fraction == pytest.approx(0.75, abs=0.1)


@pytest.mark.parametrize(
    "transition",
    [
        Transition(id=Transition.TRANSITION_ACTIVATE),
        Transition(id=Transition.TRANSITION_CONFIGURE),
        Transition(id=99),
        Transition(label="fly"),
        Transition(label="activate"),
    ],
    ids=["activate", "configure", "unknown id", "unknown label", "label"],
)
def test_a_transition_that_is_not_allowed_is_answered(active: tuple, transition: Transition) -> None:
    robot, process = active
    request = ChangeState.Request(transition=transition)
    assert not robot.call(ChangeState, "/pam_manager/change_state", request).success
    process.wait_for_log("is not allowed in state active; allowed: deactivate (4), shutdown (7)")
    assert robot.state() == "active"
    assert "Traceback" not in process.log()


def test_a_second_node_of_the_same_name_is_told(tmp_path) -> None:
    with pam(*FAKE_ACTIVE) as (robot, process):
        robot.wait_for_active()
        environment = {"RCUTILS_LOGGING_USE_STDOUT": "1", "ROS_DOMAIN_ID": str(robot.domain)}
        with Processes(tmp_path, environment) as others:
            twin = others.start("twin", FAKE_NODE, ros_arguments=["-p", "model:=fake"], log=True)
            for each in (process, twin):
                line = each.wait_for_log("another node is called ")
                assert "/pam and /pam_manager: requests reach either of them" in line
            twin.kill()
        assert process.log().count("another node is called") == 1
