"""`~/markers`: labels, captions, outlines and boxes of the regions in space, and the image, for RViz."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import cv2
import numpy as np
from builtin_interfaces.msg import Duration
from geometry_msgs.msg import Point
from rclpy.node import Node
from std_msgs.msg import ColorRGBA
from visualization_msgs.msg import Marker, MarkerArray

from pam_ros.errors import GeometryError
from pam_ros.geometry import quaternion_of, undistort
from pam_ros.nodes.outputs.image_plane import plane_marker
from pam_ros.nodes.outputs.label_markers import Plate, label_markers, label_plate
from pam_ros.nodes.outputs.plain_text import marker_text
from pam_ros.nodes.outputs.snapshot import Snapshot
from pam_ros.nodes.parameters import PerceptionSettings
from pam_ros.nodes.sink import Sink
from pam_ros.nodes.throttled_log import ThrottledLog
from pam_ros.nodes.topics import advertise
from pam_ros.records import CameraModel, OrientedBox, Region, RegionState
from pam_ros.runtime.events import FrameResult
from pam_ros.runtime.overlay import mask_contours, region_colour

# Namespaces, beside those of labels; RViz can hide each.
OUTLINES, BOXES, IMAGE = "outlines", "boxes", "image"
PERIOD_S = 0.1  # at least between two messages
IMAGE_PERIOD_S = 0.8  # at least between two image planes
REPEAT_S = 1.0  # a still image is sent again, so that its markers do not expire
LIFETIME_S = 3.0  # markers of a node that died disappear
_FRONT = 0.99  # of the distance: outlines lie before the image plane
_LINE_FRACTION = 0.005  # width of lines, of the distance
_OUTLINE_ERROR_PX = 1.0
_TEXT_WHITE = 0.6  # letters are thin: the region's colour, mixed with white


class MarkersOutput:
    """Made only for subscribers; a region that is gone is deleted."""

    def __init__(
        self,
        node: Node,
        log: ThrottledLog,
        settings: Callable[[], PerceptionSettings],
        *,
        measured: Callable[[FrameResult], FrameResult],
        camera_of: Callable[[tuple[int, int]], CameraModel],
        has_depth: Callable[[], bool],
    ) -> None:
        """`measured` adds the surfaces that depth gives; it may wait for the depth of a frame.

        `camera_of` gives the calibration of images of (height, width), or raises GeometryError. `has_depth`:
        RViz has a depth cloud to click on, and needs no image plane.
        """
        self._publisher = advertise(node, MarkerArray, "~/markers", depth=1)
        self.publishers = (self._publisher,)
        self._log, self._settings = log, settings
        self._measured, self._camera_of, self._has_depth = measured, camera_of, has_depth
        self._published: set[tuple[str, int]] = set()  # namespace and id of the markers that RViz has
        self._published_s = self._image_s = -REPEAT_S  # seconds of the monotonic clock
        self.sink = Sink("~/markers", self._publish, log.warn)

    def on_frame(self, snapshot: Snapshot) -> None:
        """Queues the markers of a frame; only the newest are published."""
        if self._publisher.get_subscription_count() and time.monotonic() - self._published_s >= PERIOD_S:
            self.sink.offer(snapshot)

    def repeat(self, newest: Snapshot) -> None:
        """Called now and then: sends the newest markers again if no frame has come for a while."""
        if time.monotonic() - self._published_s >= REPEAT_S:
            self.on_frame(newest)

    def clear(self) -> None:
        """The regions are gone."""
        self.sink.offer(None)

    def _publish(self, snapshot: Snapshot | None) -> None:
        if snapshot is None:
            markers = []
        else:
            try:
                markers = list(self._markers(snapshot))
            except GeometryError as error:
                self._log.warn_once(f"~/markers cannot be placed: {error}")
                return
            self._published_s = time.monotonic()
        ids = {(marker.ns, marker.id) for marker in markers}
        image = {key for key in self._published if key[0] == IMAGE}
        keep = image if snapshot is not None and self._shows_image() else set()
        for namespace, number in sorted(self._published - ids - keep):
            markers.append(Marker(ns=namespace, id=number, action=Marker.DELETE))
        self._published = ids | keep
        if markers:
            self._publisher.publish(MarkerArray(markers=markers))

    def _shows_image(self) -> bool:
        return self._settings().markers.show == "all" and not self._has_depth()

    def _markers(self, snapshot: Snapshot) -> Iterator[Marker]:
        """Every marker of a frame, with the image plane if it is due."""
        settings, result = self._settings().markers, snapshot.result
        if settings.show == "none":
            return
        camera = self._camera_of(result.size)
        taken: list[Plate] = []
        for region in self._measured(result).regions:
            if region.state is not RegionState.TRACKED or not region.mask.size:
                continue
            captions = snapshot.captions.get(region.region_id, ())
            text = marker_text(region, captions)
            for marker in _region_markers(region, camera, settings.distance_m, text, taken):
                yield _finished(marker, snapshot)
        if self._shows_image() and time.monotonic() - self._image_s >= IMAGE_PERIOD_S:
            self._image_s = time.monotonic()
            marker = plane_marker(result.image, camera, settings.distance_m)
            marker.ns = IMAGE
            yield _finished(marker, snapshot)


def _region_markers(
    region: Region, camera: CameraModel, distance_m: float, text: str, taken: list[Plate]
) -> Iterator[Marker]:
    """Label, outline and, with depth, box. `taken`: the plates of labels so far; its own is added."""
    surface = region.surface
    depth_m = float(surface.position_m[2]) if surface is not None else distance_m
    red, green, blue = (channel / 255 for channel in region_colour(region.region_id))
    colour = ColorRGBA(r=red, g=green, b=blue, a=1.0)
    pale = ColorRGBA(a=1.0)
    pale.r, pale.g, pale.b = (channel + (1 - channel) * _TEXT_WHITE for channel in (red, green, blue))
    x1, y1, x2, _ = region.box_xyxy
    ((x, y),) = undistort(camera, np.array([[(x1 + x2 - 1) / 2, y1]]))
    if np.isfinite((x, y)).all():
        plate = label_plate(text, (x, y), depth_m, taken)
        taken.append(plate)
        yield from label_markers(region.region_id, text, pale, plate, depth_m)
    outline = Marker(ns=OUTLINES, id=region.region_id, type=Marker.LINE_LIST, color=colour)
    outline.scale.x = _LINE_FRACTION * depth_m
    outline.points = list(_outline(region, camera, depth_m * _FRONT))
    yield outline
    if surface is not None and surface.box is not None:
        yield _box(region.region_id, surface.box, ColorRGBA(r=red, g=green, b=blue, a=0.25))


def _outline(region: Region, camera: CameraModel, depth_m: float) -> Iterator[Point]:
    """Both ends of every piece of the mask's outline, at one depth."""
    for contour in mask_contours(region):
        simple = cv2.approxPolyDP(contour[:, None], _OUTLINE_ERROR_PX, True)[:, 0].astype(np.float64)
        points = [
            _point(x * depth_m, y * depth_m, depth_m)
            for x, y in undistort(camera, simple)
            if np.isfinite((x, y)).all()
        ]
        for begin, end in zip(points, points[1:] + points[:1], strict=True):
            yield begin
            yield end


def _box(region_id: int, box: OrientedBox, colour: ColorRGBA) -> Marker:
    marker = Marker(ns=BOXES, id=region_id, type=Marker.CUBE, color=colour)
    marker.pose.position = _point(*box.centre_m)
    q = marker.pose.orientation
    q.x, q.y, q.z, q.w = quaternion_of(box.axes)
    # RViz draws nothing if a side is 0.
    marker.scale.x, marker.scale.y, marker.scale.z = np.maximum(box.size_m, 1e-3).tolist()
    return marker


def _finished(marker: Marker, snapshot: Snapshot) -> Marker:
    marker.header = snapshot.header
    marker.action = Marker.ADD
    marker.lifetime = Duration(sec=int(LIFETIME_S), nanosec=int(LIFETIME_S % 1 * 1e9))
    return marker


def _point(x: float, y: float, z: float) -> Point:
    return Point(x=float(x), y=float(y), z=float(z))
