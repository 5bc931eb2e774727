"""Every kind of bad input to a real `pam_node`: a clear answer, and other regions are unaffected."""

from __future__ import annotations

import array
import math
import time
from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("pam_ros.msg", reason="needs the built ROS interfaces")

from action_msgs.msg import GoalStatus
from geometry_msgs.msg import Point
from ros_harness import (
    FAKE_ACTIVE,
    Camera,
    Client,
    Diagnostics,
    Process,
    click,
    image_of,
    mouse,
    pam,
    stamp_of,
    wait_until,
)
from sensor_msgs.msg import Image
from vision_msgs.msg import BoundingBox2D, Detection2D, Detection2DArray, Point2D, Pose2D

from pam_ros.action import CaptionClip
from pam_ros.msg import Prompt, RegionArray, Status
from pam_ros.srv import CaptionNow, ClearRegions, RemoveRegion

NAN = math.nan


@pytest.fixture(scope="module")
def active() -> Iterator[tuple[Client, Process]]:
    with pam(*FAKE_ACTIVE) as (robot, process):
        robot.wait_for_active()
        answer = robot.perceive(click(3, 3))
        assert answer.status.code == Status.NO_FRAME, answer.status
        assert "frame" in answer.status.message
        robot.publisher(Point, "/image_mouse_left").publish(mouse(3, 3))
        process.wait_for_log("prompt refused: ")
        yield robot, process
        assert process.exit_code is None
        assert "Traceback" not in process.log()
        assert process.end() == 0


@pytest.fixture
def robot(active: tuple[Client, Process]) -> Iterator[Client]:
    """A robot with a running camera and a region, which the test must not disturb."""
    robot, _ = active
    messages = robot.collect(RegionArray, "/pam/regions")
    with Camera(robot, rate_hz=30):
        bystander = robot.perceive(click(50, 40)).region.id
        yield robot
        seen = len(messages)
        wait_until(lambda: len(messages) > seen + 3, "results after the bad input")
        for message in messages[-3:]:
            assert bystander in [region.id for region in message.regions if region.state == region.TRACKED]
        assert robot.perceive(Prompt(region_id=bystander)).status.code == Status.OK
        robot.call(ClearRegions, "/pam/clear_regions", ClearRegions.Request())


def mask_image(height: int, width: int, value: int, encoding: str = "mono8") -> Image:
    return image_of(np.full((height, width), value, np.uint8), encoding)


BAD_PROMPTS = [
    ("no prompt at all", Prompt(), Status.INVALID_INPUT, "needs a positive click, a box or a mask"),
    ("NaN click", click(NAN, 3), Status.INVALID_INPUT, "finite"),
    ("infinite click", click(3, math.inf), Status.INVALID_INPUT, "finite"),
    (
        "click right of the image",
        click(64, 3),
        Status.INVALID_INPUT,
        "outside the 64x48 image; allowed: x 0..63",
    ),
    ("click above the image", click(3, -1), Status.INVALID_INPUT, "outside the 64x48 image"),
    ("only a negative click", click(3, 3, point_labels=[0]), Status.INVALID_INPUT, "positive click"),
    ("labels for other clicks", click(3, 3, point_labels=[1, 1]), Status.INVALID_INPUT, "2 labels"),
    ("unknown label", click(3, 3, point_labels=[9]), Status.INVALID_INPUT, "labels must be 1"),
    ("inverted box", Prompt(box=[20.0, 5.0, 10.0, 15.0]), Status.INVALID_INPUT, "x1 < x2"),
    ("zero box", Prompt(box=[20.0, 5.0, 20.0, 15.0]), Status.INVALID_INPUT, "x1 < x2"),
    ("too many clicks", Prompt(points=[Point2D()] * 65), Status.INVALID_INPUT, "65 entries; at most 64 are"),
    ("too many tasks", click(3, 3, tasks=["label"] * 999), Status.INVALID_INPUT, "tasks has 999 entries"),
    ("a huge word", click(3, 3, tasks=["x" * 9999]), Status.INVALID_INPUT, "xx … ("),
    ("NaN box", Prompt(box=[NAN, 5.0, 20.0, 15.0]), Status.INVALID_INPUT, "finite"),
    ("half a box", Prompt(box=[1.0, 5.0]), Status.INVALID_INPUT, "not 2"),
    ("box beside the image", Prompt(box=[70.0, 5.0, 90.0, 15.0]), Status.INVALID_INPUT, "outside the 64x48"),
    ("mask of another size", Prompt(mask=mask_image(20, 20, 255)), Status.INVALID_INPUT, "same size"),
    ("empty mask", Prompt(mask=mask_image(48, 64, 0)), Status.INVALID_INPUT, "empty"),
    ("mask without data", Prompt(mask=Image(height=48, width=64)), Status.INVALID_INPUT, "empty"),
    ("mask of another encoding", Prompt(mask=mask_image(48, 64, 9, "mono16")), Status.INVALID_INPUT, "mono8"),
    (
        "mask and click",
        click(3, 3, mask=mask_image(48, 64, 255)),
        Status.INVALID_INPUT,
        "cannot be combined",
    ),
    ("unknown task", click(3, 3, tasks=["juggle"]), Status.INVALID_INPUT, "'juggle'; allowed: label"),
    ("clip as a task", click(3, 3, tasks=["clip"]), Status.INVALID_INPUT, "clip"),
    ("unknown language", click(3, 3, languages=["tlh"]), Status.INVALID_INPUT, "'tlh'; allowed: en, zh"),
    ("unknown region", Prompt(region_id=12345), Status.UNKNOWN_REGION, "12345"),
    ("refining an unknown region", click(3, 3, region_id=12345), Status.UNKNOWN_REGION, "12345"),
]


@pytest.mark.parametrize(
    ("prompt", "code", "words"), [it[1:] for it in BAD_PROMPTS], ids=[it[0] for it in BAD_PROMPTS]
)
def test_bad_prompts(
    active: tuple[Client, Process], robot: Client, prompt: Prompt, code: int, words: str
) -> None:
    """The service answers; the same prompt on the topic causes a line in the log."""
    answer = robot.perceive(prompt)
    assert answer.status.code == code, answer.status
    assert words in answer.status.message
    assert answer.region.id == 0
    robot.publisher(Prompt, "/pam/prompt").publish(prompt)
    wait_until(
        lambda: any(words in line and "~/perceive" not in line for line in active[1].lines),
        "a line in the log",
    )


def test_stale_and_future_prompts(robot: Client) -> None:
    old = click(3, 3)
    old.header.stamp.sec = int(time.time()) - 3600
    answer = robot.perceive(old)
    assert answer.status.code == Status.NO_FRAME
    assert "s" in answer.status.message
    ahead = click(3, 3)
    ahead.header.stamp.sec = int(time.time()) + 3600
    assert robot.perceive(ahead).status.code == Status.NO_FRAME


def _broken_images() -> dict[str, tuple[Image, str]]:
    def image(**fields: object) -> Image:
        message = image_of(np.full((48, 64, 3), 90, np.uint8))
        for name, value in fields.items():
            setattr(message, name, value)
        return message

    return {
        "empty": (Image(encoding="rgb8"), "the image is empty"),
        "no data": (image(data=array.array("B")), "the image is empty"),
        "truncated": (image(data=array.array("B", bytes(100))), "truncated: 100 bytes"),
        "wrong step": (image(step=64), "step is 64 bytes, a row of 64 rgb8 pixels has 192"),
        "unknown encoding": (image(encoding="banana"), "encoding 'banana' is not supported (supported: rgb8"),
        "depth": (image(encoding="32FC1", step=256), "depth encoding"),
    }


@pytest.mark.parametrize("kind", list(_broken_images()))
def test_broken_images_on_the_camera_topic(active: tuple[Client, Process], robot: Client, kind: str) -> None:
    message, words = _broken_images()[kind]
    images = robot.publisher(Image, "/image", 1)

    def logged() -> str | None:
        images.publish(message)  # best effort: one may be lost
        return next((line for line in active[1].lines if "/image ignored" in line and words in line), None)

    wait_until(logged, f"a line with {words!r}")


@pytest.mark.parametrize("kind", list(_broken_images()))
def test_broken_own_image(robot: Client, kind: str) -> None:
    message, words = _broken_images()[kind]
    message.width = message.width or 1  # otherwise it means "no image of my own"
    answer = robot.perceive(click(3, 3), image=message)
    assert (answer.status.code, answer.region.id) == (Status.INVALID_INPUT, 0)
    assert words in answer.status.message


def test_broken_images_are_counted(robot: Client) -> None:
    diagnostics = Diagnostics.of(robot)
    robot.publisher(Image, "/image", 1).publish(Image(encoding="rgb8"))
    status = diagnostics.wait_for("/pam: camera", lambda status: True)
    assert int(diagnostics.values(status)["unreadable images"]) > 0


def test_bad_clicks_masks_and_detections_on_topics(active: tuple[Client, Process], robot: Client) -> None:
    process = active[1]
    robot.publisher(Point, "/image_mouse_left").publish(mouse(640, 3))
    process.wait_for_log("[640.0, 3.0] is outside the 64x48 image")
    robot.publisher(Point, "/image_mouse_left").publish(mouse(NAN, 3))
    process.wait_for_log("/image_mouse_left ignored: points must be finite")
    robot.publisher(Image, "/prompt_mask").publish(mask_image(48, 64, 0))
    process.wait_for_log("/prompt_mask ignored: the mask prompt is empty")
    robot.publisher(Image, "/prompt_mask").publish(mask_image(10, 10, 255))
    process.wait_for_log("the mask is 10x10, the image 64x48")

    detections = robot.publisher(Detection2DArray, "/detections")

    def detection(x: float, size: float) -> Detection2D:
        centre = Pose2D(position=Point2D(x=x, y=20.0))
        return Detection2D(bbox=BoundingBox2D(center=centre, size_x=size, size_y=10.0))

    messages = robot.collect(RegionArray, "/pam/regions")
    detections.publish(
        Detection2DArray(detections=[detection(NAN, 5.0), detection(9.0, 0.0), detection(20.0, 8.0)])
    )
    process.wait_for_log(
        "/detections: 2 detections were rejected: detection 0 has centre (nan, 20.0) and size 5.0 x 10.0"
    )
    wait_until(lambda: messages and len(messages[-1].regions) == 2, "the good detection's region")

    late = Detection2DArray(detections=[detection(40.0, 8.0)])
    late.header.stamp.sec = int(time.time()) - 3600
    detections.publish(late)
    process.wait_for_log("a detection was rejected: the prompt's frame is 3600")
    time.sleep(0.2)
    assert len(messages[-1].regions) == 2


def test_too_many_regions(robot: Client) -> None:
    assert robot.set_parameter("/pam_manager", "regions.max", 2) == ""
    assert robot.perceive(click(10, 10)).status.code == Status.OK
    answer = robot.perceive(click(20, 10))
    assert answer.status.code == Status.CAPACITY
    assert "2" in answer.status.message
    assert robot.set_parameter("/pam_manager", "regions.max", 16) == ""


def test_unknown_regions_and_languages_of_the_other_services(robot: Client) -> None:
    answer = robot.call(RemoveRegion, "/pam/remove_region", RemoveRegion.Request(region_id=77))
    assert (answer.status.code, "77" in answer.status.message) == (Status.UNKNOWN_REGION, True)
    answer = robot.call(CaptionNow, "/pam/caption_now", CaptionNow.Request(region_id=77))
    assert (answer.status.code, "77" in answer.status.message) == (Status.UNKNOWN_REGION, True)
    answer = robot.call(CaptionNow, "/pam/caption_now", CaptionNow.Request(region_id=77, language="tlh"))
    assert (answer.status.code, "en, zh" in answer.status.message) == (Status.INVALID_INPUT, True)


@pytest.mark.parametrize(
    ("goal", "code", "words"),
    [
        (CaptionClip.Goal(prompt=click(3, 3), duration_s=0.0), Status.INVALID_INPUT, "0.1 to 120 s"),
        (CaptionClip.Goal(prompt=click(3, 3), duration_s=-1.0), Status.INVALID_INPUT, "0.1 to 120 s"),
        (CaptionClip.Goal(prompt=click(3, 3), duration_s=1e-10), Status.INVALID_INPUT, "0.1 to 120 s"),
        (CaptionClip.Goal(prompt=click(3, 3), duration_s=1000.0), Status.INVALID_INPUT, "120"),
        (CaptionClip.Goal(prompt=click(3, 3), duration_s=NAN), Status.INVALID_INPUT, "nan"),
        (CaptionClip.Goal(prompt=click(3, 3), duration_s=1.0, language="x"), Status.INVALID_INPUT, "en, zh"),
        (CaptionClip.Goal(prompt=Prompt(), duration_s=1.0), Status.INVALID_INPUT, "positive click"),
        (CaptionClip.Goal(prompt=click(300, 3), duration_s=1.0), Status.INVALID_INPUT, "outside"),
        (CaptionClip.Goal(prompt=Prompt(region_id=99), duration_s=1.0), Status.UNKNOWN_REGION, "99"),
    ],
)
def test_bad_goals(robot: Client, goal: CaptionClip.Goal, code: int, words: str) -> None:
    status, result = robot.send_goal(goal).result()
    assert (status, result.status.code) == (GoalStatus.STATUS_ABORTED, code), result.status
    assert words in result.status.message


def test_changing_resolution_keeps_the_region(robot: Client) -> None:
    """The fixture's camera keeps playing 64x48; another size comes between its images."""
    messages = robot.collect(RegionArray, "/pam/regions")
    big = image_of(np.full((96, 128, 3), 90, np.uint8))
    images = robot.publisher(Image, "/image", 1)
    for _ in range(5):
        big.header.stamp.sec, big.header.stamp.nanosec = divmod(time.time_ns(), 10**9)
        images.publish(big)
        time.sleep(0.05)
    sizes = wait_until(
        lambda: len(sizes := {(m.image_height, m.image_width) for m in messages}) == 2 and sizes, "both sizes"
    )
    assert sizes == {(48, 64), (96, 128)}
    assert all(len(message.regions) == 1 for message in messages)
    assert stamp_of(messages[-1]) > 0
