"""A real `pam_node` with a fake model: clicks in space and in rqt_image_view, and regions in space."""

from __future__ import annotations

import array
import time
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("pam_ros.msg", reason="needs the built ROS interfaces")

from geometry_msgs.msg import Point, PointStamped, TransformStamped
from ros_harness import FAKE_ACTIVE, Camera, Client, Process, image_of, mouse, pam, stamp_of, wait_until
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from tf2_msgs.msg import TFMessage
from vision_msgs.msg import BoundingBox2D, Detection3DArray, Point2D, Pose2D

from pam_ros.msg import Prompt, Region, RegionArray
from pam_ros.nodes.inputs.depth import HISTORY
from pam_ros.srv import PerceiveAll

WIDTH, HEIGHT = 64, 48
MATRIX = np.array([[80.0, 0, 31.5], [0, 80.0, 23.5], [0, 0, 1]])
DISTORTION = (0.1, -0.05, 0.01, -0.005, 0.02)
TURN = np.array([0.4, -1.1, 0.7])  # rotation vector of the camera in the map
PLACE = np.array([1.0, -2.0, 0.5])  # of the camera in the map, metres


def calibration(**fields: object) -> CameraInfo:
    """Of the fake camera."""
    given = {"distortion_model": "plumb_bob", "d": list(DISTORTION), "k": MATRIX.ravel()} | fields
    return CameraInfo(height=HEIGHT, width=WIDTH, **given)


def transform(stamp_ns: int, parent: str = "map", child: str = "camera_optical") -> TFMessage:
    """The camera's pose in the map."""
    message = TransformStamped(child_frame_id=child)
    message.header.frame_id = parent
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp_ns, 10**9)
    angle = float(np.linalg.norm(TURN))
    x, y, z = (TURN / angle * np.sin(angle / 2)).tolist()
    rotation = message.transform.rotation
    rotation.x, rotation.y, rotation.z, rotation.w = x, y, z, float(np.cos(angle / 2))
    shift = message.transform.translation
    shift.x, shift.y, shift.z = PLACE.tolist()
    return TFMessage(transforms=[message])


def point(frame_id: str, place: np.ndarray) -> PointStamped:
    """As RViz publishes it, stamped now."""
    message = PointStamped()
    message.header.frame_id = frame_id
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(time.time_ns(), 10**9)
    message.point.x, message.point.y, message.point.z = place.tolist()
    return message


def in_map(place: np.ndarray) -> np.ndarray:
    """From the camera's frame into the map."""
    return cv2.Rodrigues(TURN)[0] @ place + PLACE


def expected_pixel(place: np.ndarray) -> np.ndarray:
    """Where OpenCV sees a point of the map."""
    turn = cv2.Rodrigues(cv2.Rodrigues(TURN)[0].T)[0]
    shift = -cv2.Rodrigues(TURN)[0].T @ PLACE
    return cv2.projectPoints(place.reshape(1, 3), turn, shift, MATRIX, np.array(DISTORTION))[0].ravel()


def centre(region: Region) -> np.ndarray:
    """Of the fake model's square around a click."""
    return np.array([region.bbox.center.position.x, region.bbox.center.position.y])


def regions(messages: list[RegionArray]) -> list[Region]:
    """Of the newest frame."""
    return messages[-1].regions if messages else []


def test_a_point_before_the_calibration_says_what_is_missing(
    active: tuple[Client, Process], robot: Client
) -> None:
    assert not robot.node.count_subscribers("/tf"), "transforms are many: nobody has clicked yet"
    robot.publisher(PointStamped, "/clicked_point").publish(point("map", np.zeros(3)))
    wait_until(lambda: robot.node.count_subscribers("/tf"), "a subscriber of /tf")
    active[1].wait_for_log("/clicked_point ignored: no image has arrived on /image yet; start the camera")
    with Camera(robot):
        robot.publisher(PointStamped, "/clicked_point").publish(point("map", np.zeros(3)))
        active[1].wait_for_log("/clicked_point ignored: no calibration has arrived on /camera_info; publish")


def test_a_point_in_the_map_becomes_the_pixel_that_opencv_computes(
    active: tuple[Client, Process], robot: Client
) -> None:
    messages = robot.collect(RegionArray, "/pam/regions")
    points = robot.publisher(PointStamped, "/clicked_point")
    place = in_map(np.array([0.12, -0.07, 0.9]))
    with Camera(robot) as camera:
        robot.publisher(CameraInfo, "/camera_info", 1).publish(calibration())
        tf = robot.publisher(TFMessage, "/tf")
        tf.publish(transform(camera.sent_ns[0] - 10**9))
        points.publish(point("map", place))
        active[1].wait_for_log("no transform from 'map' to 'camera_optical': ")
        tf.publish(transform(time.time_ns() + 5 * 10**9))  # now every image until then can be served
        points.publish(point("map", place))
        wait_until(lambda: len(regions(messages)) == 1, "the region")
        assert np.abs(centre(regions(messages)[0]) - expected_pixel(place)).max() <= 1.0
        assert active[1].log().count("/clicked_point ignored: no transform") == 1
        points.publish(point("odom", place))
        active[1].wait_for_log("no transform from 'odom' to 'camera_optical': ")


def test_transforms_may_lag_behind_the_images(active: tuple[Client, Process], robot: Client) -> None:
    messages = robot.collect(RegionArray, "/pam/regions")
    points = robot.publisher(PointStamped, "/clicked_point")
    tf = robot.publisher(TFMessage, "/tf")
    place = in_map(np.array([0.12, -0.07, 0.9]))
    with Camera(robot) as camera:
        robot.publisher(CameraInfo, "/camera_info", 1).publish(calibration())
        wait_until(lambda: robot.node.count_subscribers("/tf"), "a subscriber of /tf")
        until_s = time.monotonic() + 3.0
        while not regions(messages) and time.monotonic() < until_s:
            points.publish(point("map", place))
            for _ in range(10):  # each pose is of 0.3 s ago, six images older than the newest
                tf.publish(transform(camera.sent_ns[-1] - 3 * 10**8))
                time.sleep(0.05)
        assert len(regions(messages)) == 1
        assert np.abs(centre(regions(messages)[0]) - expected_pixel(place)).max() <= 1.0


def test_clicks_refine_the_region_they_hit(active: tuple[Client, Process], robot: Client) -> None:
    messages = robot.collect(RegionArray, "/pam/regions")
    positive = robot.publisher(PointStamped, "/clicked_point")
    negative = robot.publisher(PointStamped, "/clicked_point_negative")
    with Camera(robot):
        robot.publisher(CameraInfo, "/camera_info", 1).publish(calibration(d=[]))
        positive.publish(point("camera_optical", np.array([0.0, 0.0, 1.0])))  # needs no transform
        wait_until(lambda: len(regions(messages)) == 1, "the region")
        first = regions(messages)[0].id
        positive.publish(point("camera_optical", np.array([0.03, 0.0, 1.0])))
        wait_until(lambda: centre(regions(messages)[0])[0] > 33, "the refined region")
        assert [region.id for region in regions(messages)] == [first]
        negative.publish(point("camera_optical", np.array([0.03, 0.0, 1.0])))
        negative.publish(point("camera_optical", np.array([0.3, 0.2, 1.0])))
        active[1].wait_for_log("prompt refused: the negative click")
        positive.publish(point("camera_optical", np.array([0.3, 0.0, 1.0])))
        wait_until(lambda: len(regions(messages)) == 2, "another region")


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ((0.0, 0.0, -1.0), "is behind the camera; click on what the camera sees"),
        ((2.0, 0.0, 1.0), "is at pixel (192, 24), outside the 64x48 image; click on what the camera sees"),
        ((np.nan, 0.0, 1.0), "is not finite"),
    ],
)
def test_a_point_that_the_camera_cannot_see_says_so_once(
    active: tuple[Client, Process], robot: Client, place: tuple[float, ...], words: str
) -> None:
    with Camera(robot):
        robot.publisher(CameraInfo, "/camera_info", 1).publish(calibration(d=[]))
        robot.publisher(PointStamped, "/clicked_point").publish(point("camera_optical", np.array(place)))
        active[1].wait_for_log(words)
        time.sleep(1.2)  # as long as a click waits for its transform
    assert active[1].log().count(words) == 1


@pytest.mark.parametrize(
    "topic",
    ["/image", "/image/compressed", "/pam/overlay", "/pam/overlay/compressed"],
)
def test_clicks_beside_what_rqt_shows(robot: Client, topic: str) -> None:
    messages = robot.collect(RegionArray, "/pam/regions")
    with Camera(robot):
        robot.publisher(Point, f"{topic}_mouse_left").publish(mouse(20, 30))
        wait_until(lambda: len(regions(messages)) == 1, "the region")
        assert np.abs(centre(regions(messages)[0]) - (20, 30)).max() <= 1


# ---- depth


def depth_image(stamp_ns: int, encoding: str = "32FC1", frame_id: str = "camera_optical") -> Image:
    """A plane 0.8 m away, before a wall on its right half."""
    metres = np.full((HEIGHT, WIDTH), 0.8, np.float32)
    metres[:, WIDTH // 2 :] = 2.0
    pixels = metres if encoding == "32FC1" else (metres * 1000).astype(np.uint16)
    message = image_of(pixels, encoding)
    message.header.frame_id = frame_id
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp_ns, 10**9)
    return message


class DepthCamera(Camera):
    """Sends depth a moment after each picture, with the same stamp."""

    def __init__(self, robot: Client, depth: Any, make: Callable[[int], Any], **more: Any) -> None:
        super().__init__(robot, **more)
        self._depth, self._make = depth, make

    def send(self, stamp_ns: int | None = None) -> int:
        sent_ns = super().send(stamp_ns)
        time.sleep(0.01)
        self._depth.publish(self._make(sent_ns))
        return sent_ns


def check(region: Region) -> None:
    """Of a box from (8, 12) to (24, 32), on the plane."""
    assert region.position_known and region.size_known
    expected = np.array([(15.5 - 31.5) / 80, (21.5 - 23.5) / 80, 1.0]) * 0.8
    position, size = region.position, region.size
    assert np.abs(np.array([position.x, position.y, position.z]) - expected).max() < 0.002
    assert np.abs(np.array([size.x, size.y, size.z]) - (0.15, 0.19, 0.0)).max() < 0.005


@pytest.mark.parametrize("encoding", ["32FC1", "16UC1"])
def test_depth_places_regions_in_space(robot: Client, encoding: str) -> None:
    messages = robot.collect(RegionArray, "/pam/regions")
    detections = robot.collect(Detection3DArray, "/pam/detections_3d")
    depth = robot.publisher(Image, "/depth", 1)
    with DepthCamera(robot, depth, lambda stamp_ns: depth_image(stamp_ns, encoding)):
        robot.publisher(CameraInfo, "/camera_info", 1).publish(calibration(d=[]))
        answer = robot.perceive(Prompt(box=[8.0, 12.0, 24.0, 32.0]))
        check(answer.region)
        wait_until(lambda: regions(messages) and regions(messages)[0].position_known, "a position")
        check(regions(messages)[0])
        wait_until(lambda: detections and detections[-1].detections, "a detection in space")
        (detection,) = detections[-1].detections
        assert detections[-1].header.frame_id == "camera_optical"
        assert detection.id == str(answer.region.id)
        assert detection.bbox.center.position.z == pytest.approx(0.8, abs=0.002)
        assert detection.bbox.size.x == pytest.approx(0.19, abs=0.005)  # the longest side
        described = robot.perceive(Prompt(region_id=answer.region.id))
        check(described.region)
        box = BoundingBox2D(center=Pose2D(position=Point2D(x=16.0, y=22.0)), size_x=16.0, size_y=20.0)
        everything = robot.call(PerceiveAll, "/pam/perceive_all", PerceiveAll.Request(boxes=[box]))
        check(everything.regions[0])


def test_an_answer_that_takes_longer_than_depth_is_kept_has_its_position() -> None:
    with pam("model:=fake:words=30,step_s=0.1", "autostart:=true") as (robot, process):
        robot.wait_for_active()
        depth = robot.publisher(Image, "/depth", 1)
        with DepthCamera(robot, depth, depth_image) as camera:
            robot.publisher(CameraInfo, "/camera_info", 1).publish(calibration(d=[]))
            time.sleep(0.5)
            prompt = Prompt(box=[8.0, 12.0, 24.0, 32.0])
            for age in (1, 5):  # images; nobody subscribes to the regions
                stamp_ns = camera.sent_ns[-age]
                prompt.header.stamp.sec, prompt.header.stamp.nanosec = divmod(stamp_ns, 10**9)
                sent = len(camera.sent_ns)
                answer = robot.perceive(prompt)
                assert len(camera.sent_ns) - sent > HISTORY
                assert stamp_of(answer) == stamp_ns
                check(answer.region)
        assert process.end() == 0


def test_depth_that_does_not_fit_says_so_once(active: tuple[Client, Process], robot: Client) -> None:
    messages = robot.collect(RegionArray, "/pam/regions")
    depth = robot.publisher(Image, "/depth", 1)
    words = "/depth is not used: depth is in frame 'other' and the image in 'camera_optical'; publish depth"
    with DepthCamera(robot, depth, lambda stamp_ns: depth_image(stamp_ns, frame_id="other")):
        robot.publisher(CameraInfo, "/camera_info", 1).publish(calibration(d=[]))
        assert not robot.perceive(Prompt(box=[8.0, 12.0, 24.0, 32.0])).region.position_known
        active[1].wait_for_log(words)
        wait_until(lambda: len(messages) > 10, "more frames")
    assert active[1].log().count(words) == 1
    with DepthCamera(robot, depth, lambda stamp_ns: depth_image(stamp_ns, "mono8")):
        active[1].wait_for_log("/depth is not used: depth must have encoding 32FC1 (metres) or 16UC1")
    with DepthCamera(robot, depth, lambda stamp_ns: depth_image(stamp_ns - 10**9)):  # a second too old
        assert not robot.perceive(Prompt(box=[8.0, 12.0, 24.0, 32.0])).region.position_known
        active[1].wait_for_log("s behind the images, but the node waits 0.1 s at most")
    with Camera(robot):
        time.sleep(2.0)
    assert active[1].log().count("positions are not measured") == 1


def test_compressed_depth_and_remapped_topics() -> None:
    remap = ("-r", "image:=/cam/color/image_raw", "-r", "depth:=/cam/aligned/image_raw")
    with pam(*FAKE_ACTIVE, "depth_transport:=compressedDepth", arguments=remap) as (robot, process):
        robot.wait_for_active()
        depth = robot.publisher(CompressedImage, "/cam/aligned/image_raw/compressedDepth", 1)

        def make(stamp_ns: int) -> CompressedImage:
            plain = depth_image(stamp_ns, "16UC1")
            pixels = np.frombuffer(plain.data, np.uint16).reshape(HEIGHT, WIDTH)
            data = bytes(12) + cv2.imencode(".png", pixels)[1].tobytes()
            return CompressedImage(
                header=plain.header, format="16UC1; compressedDepth png", data=array.array("B", data)
            )

        with DepthCamera(robot, depth, make, topic="/cam/color/image_raw"):
            # Beside the image, as drivers publish it.
            robot.publisher(CameraInfo, "/cam/color/camera_info", 1).publish(calibration(d=[]))
            check(robot.perceive(Prompt(box=[8.0, 12.0, 24.0, 32.0])).region)
        assert process.end() == 0


def test_each_of_several_cameras_has_its_own_points() -> None:
    with pam(*FAKE_ACTIVE, "cameras:=[left,right]") as (robot, process):
        robot.wait_for_active()
        left, right = (robot.collect(RegionArray, f"/pam_{side}/regions") for side in ("left", "right"))
        with Camera(robot, "/left/image"), Camera(robot, "/right/image"):
            place = point("camera_optical", np.array([0.0, 0.0, 1.0]))

            def found() -> bool:  # a click that comes before the calibration is refused
                robot.publisher(CameraInfo, "/right/camera_info", 1).publish(calibration(d=[]))
                robot.publisher(PointStamped, "/right/clicked_point").publish(place)
                time.sleep(0.2)
                return bool(regions(right))

            wait_until(found, "the region")
            robot.publisher(PointStamped, "/left/clicked_point").publish(place)
            process.wait_for_log("no calibration has arrived on /left/camera_info")
            assert not regions(left)
        assert process.end() == 0
