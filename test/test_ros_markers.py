"""A real `pam_node` with a fake model: `~/markers` over DDS, and a click on the image plane."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("pam_ros.msg", reason="needs the built ROS interfaces")

from geometry_msgs.msg import PointStamped
from ros_harness import FAKE_ACTIVE, Camera, Client, click, pam, wait_until
from sensor_msgs.msg import CameraInfo
from visualization_msgs.msg import Marker, MarkerArray

from pam_ros.geometry import project
from pam_ros.msg import Region, RegionArray
from pam_ros.nodes.outputs.label_markers import LABELS
from pam_ros.nodes.outputs.markers import IMAGE, LIFETIME_S, OUTLINES
from pam_ros.records import CameraModel
from pam_ros.srv import RemoveRegion

SIZE = (48, 64)
CAMERA = CameraModel(SIZE, 80.0, 80.0, 31.5, 23.5, coefficients=(-0.2, 0.05, 0.0, 0.0))


def calibration() -> CameraInfo:
    return CameraInfo(
        height=SIZE[0],
        width=SIZE[1],
        distortion_model="plumb_bob",
        d=list(CAMERA.coefficients),
        k=[80.0, 0.0, 31.5, 0.0, 80.0, 23.5, 0.0, 0.0, 1.0],
    )


def newest(messages: list[Any], namespace: str) -> Marker | None:
    """The newest marker that a namespace adds."""
    found = [
        it for message in messages for it in message.markers if (it.ns, it.action) == (namespace, Marker.ADD)
    ]
    return found[-1] if found else None


def deleted(messages: list[Any], namespace: str) -> set[int]:
    """The ids that a namespace deletes."""
    return {
        it.id
        for message in messages
        for it in message.markers
        if (it.ns, it.action) == (namespace, Marker.DELETE)
    }


def region_at(messages: list[RegionArray], x: float, y: float) -> Region | None:
    """A region whose box has its middle at a pixel, within one pixel."""
    for region in messages[-1].regions if messages else []:
        middle = region.bbox.center.position
        if max(abs(middle.x - x - 0.5), abs(middle.y - y - 0.5)) <= 1.0:
            return region
    return None


def test_regions_and_picture_stand_in_space_and_a_click_on_the_picture_prompts() -> None:
    with pam(*FAKE_ACTIVE, "markers.distance_m:=2.0") as (robot, process):
        robot.wait_for_active()
        markers: list[MarkerArray] = robot.collect(MarkerArray, "/pam/markers")
        with Camera(robot):
            process.wait_for_log("no calibration has arrived on /camera_info")
            publisher = robot.publisher(CameraInfo, "/camera_info", 1)
            wait_until(lambda: publisher.publish(calibration()) or newest(markers, IMAGE), "the picture")
            plane = newest(markers, IMAGE)
            assert plane is not None and plane.header.frame_id == "camera_optical"
            assert plane.lifetime.sec == LIFETIME_S
            _click_on_the_plane(robot, plane)
            answer = robot.perceive(click(10, 12))
            heading = f"#{answer.region.id} {answer.region.texts[0].label[:5]}"
            wait_until(lambda: (it := newest(markers, LABELS)) and it.text.startswith(heading), "a label")
            label = newest(markers, LABELS)
            assert label is not None and label.pose.position.z == pytest.approx(2.0, rel=0.02)
        # The camera stands still: the markers are sent again before they expire.
        count = len(markers)
        wait_until(lambda: len(markers) > count + 1, "a repetition")
        assert newest(markers[count:], OUTLINES) is not None
        robot.call(RemoveRegion, "/pam/remove_region", RemoveRegion.Request(region_id=answer.region.id))
        with Camera(robot):
            wait_until(lambda: answer.region.id in deleted(markers, LABELS), "the deletion")
        assert process.end() == 0


def _click_on_the_plane(robot: Client, plane: Marker) -> None:
    """A point inside a triangle, as RViz's Publish Point gives it, becomes a region at its pixel."""
    corners = np.array([(it.x, it.y, it.z) for it in plane.points]).reshape(-1, 3, 3)
    place = corners[2 * (16 * SIZE[1] + 20)].mean(axis=0)  # this picture has a cell for every pixel
    ((x, y),) = project(CAMERA, place[None])
    assert (x, y) == pytest.approx((20, 16), abs=0.5)
    regions: list[RegionArray] = robot.collect(RegionArray, "/pam/regions")
    message = PointStamped()
    message.header.frame_id = plane.header.frame_id
    message.point.x, message.point.y, message.point.z = place.tolist()
    robot.publisher(PointStamped, "/clicked_point").publish(message)
    found = wait_until(lambda: region_at(regions, x, y), f"a region at ({x:.1f}, {y:.1f})")
    robot.call(RemoveRegion, "/pam/remove_region", RemoveRegion.Request(region_id=found.id))
