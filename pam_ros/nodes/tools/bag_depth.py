"""Positions and sizes for `pam bag`: depth and calibration that were recorded beside the images."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from rosbags.interfaces import Connection
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from pam_ros.errors import GeometryError, InputError, PamError
from pam_ros.nodes.conversions import stamp_ns
from pam_ros.nodes.inputs.calibration import camera_model
from pam_ros.nodes.inputs.depth import HISTORY, depth_metres, nearest
from pam_ros.nodes.surfaces import check_aligned
from pam_ros.nodes.tools.bag_reader import BagReader, Skipped, by_topic
from pam_ros.nodes.topics import read_message
from pam_ros.records import DepthImage, Frame, Region
from pam_ros.runtime.failures import once_a_kind
from pam_ros.visible_surface import measure_surface

DEPTHS = {"sensor_msgs/msg/Image": Image, "sensor_msgs/msg/CompressedImage": CompressedImage}
CALIBRATION = "sensor_msgs/msg/CameraInfo"


@dataclass(frozen=True, slots=True)
class DepthPlan:
    """What depth is read.

    Attributes:
        depth: its topic.
        camera_info: topic of the calibration; empty: beside the images.
        rectified: the images are rectified, see `camera_model`.
        tolerance_s: largest difference between the stamps of an image and its depth.
    """

    depth: str
    camera_info: str = ""
    rectified: bool = False
    tolerance_s: float = 0.05


@dataclass(frozen=True, slots=True)
class DepthTopics:
    """The connections of the depth and of its calibration."""

    depth: Sequence[Connection]
    camera_info: Sequence[Connection]


def depth_topics(connections: Sequence[Connection], image: str, plan: DepthPlan) -> DepthTopics:
    """Finds both. Raises InputError, which lists what there is."""
    beside = image.removesuffix("/compressed").rpartition("/")[0]
    calibration = plan.camera_info or f"{beside}/camera_info"
    return DepthTopics(
        depth_connections(connections, plan),
        _connections(connections, "--camera-info", calibration, (CALIBRATION,)),
    )


def depth_connections(connections: Sequence[Connection], plan: DepthPlan) -> Sequence[Connection]:
    """The connections of the depth. Raises InputError, which lists what there is."""
    return _connections(connections, "--depth", plan.depth, DEPTHS)


def _connections(
    connections: Sequence[Connection], option: str, topic: str, kinds: Collection[str]
) -> Sequence[Connection]:
    found = by_topic(connections, kinds)
    if topic not in found:
        kind = next((each.msgtype for each in connections if each.topic == topic), "not in the bag")
        there = ", ".join(sorted(found))
        raise InputError(
            f"{option} {topic} is {kind}; it must be a {' or '.join(kinds)}: {there or 'there is none'}"
        )
    return found[topic]


class RecordedSurfaces:
    """Measures the regions of one image after another in the depth that belongs to it.

    `reader` is its own: it reads ahead of the images, as depth is often recorded after its image.

    Attributes:
        calibration_topic: topic whose messages `calibrate` takes.
    """

    def __init__(
        self,
        reader: BagReader,
        topics: DepthTopics,
        plan: DepthPlan,
        report: Callable[[str], None],
        skipped: Skipped,
    ) -> None:
        self._plan = plan
        self._topics = topics
        self.calibration_topic = topics.camera_info[0].topic
        self._report = once_a_kind(report)
        self._skipped = skipped
        self._ahead = self._messages(reader)
        self._depths: deque[tuple[int, Image | CompressedImage]] = deque(maxlen=HISTORY)
        self._read: DepthImage | None = None  # the newest that was used
        self._info: CameraInfo | None = None
        for _, _, data in reader.messages(topics.camera_info):
            with suppress(InputError):  # which is reported when its turn comes
                self.calibrate(data)  # the first images may have been recorded before the first calibration
                break

    def calibrate(self, data: bytes) -> None:
        """A calibration holds for the images after it. Raises InputError."""
        self._info = read_message(data, CameraInfo)

    def measured(self, frame: Frame, regions: Iterable[Region]) -> tuple[Region, ...]:
        """The regions, those in view with their surface; why there is none is reported once."""
        regions = tuple(regions)
        try:
            depth = self._depth_of(frame)
            check_aligned(frame.size, frame.frame_id, depth)
            if self._info is None:
                raise GeometryError(f"{self.calibration_topic} has no messages")
            camera = camera_model(self._info, frame.size, rectified=self._plan.rectified)
        except PamError as error:
            self._report(f"positions are not measured in some images: {error}")
            return regions
        return tuple(
            replace(each, surface=measure_surface(camera, depth.depth_m, each.box_xyxy, each.mask))
            if each.in_view_at(frame.stamp_ns)
            else each
            for each in regions
        )

    def _depth_of(self, frame: Frame) -> DepthImage:
        """Raises GeometryError if no depth belongs to the image, ImageError if it cannot be read."""
        while not self._depths or self._depths[-1][0] < frame.stamp_ns:
            newer = next(self._ahead, None)
            if newer is None:
                break
            self._depths.append(newer)
        if not self._depths:
            raise GeometryError(f"{self._plan.depth} has no messages")
        at_ns, message = nearest(self._depths, frame.stamp_ns)
        off_s = abs(at_ns - frame.stamp_ns) / 1e9
        if off_s > self._plan.tolerance_s:
            raise GeometryError(
                f"the nearest message on {self._plan.depth} is {off_s:.3f} s away from the image; "
                "raise --depth-tolerance"
            )
        if self._read is None or self._read.stamp_ns != at_ns:
            self._read = DepthImage(depth_metres(message), at_ns, message.header.frame_id)
        return self._read

    def _messages(self, reader: BagReader) -> Iterator[tuple[int, Image | CompressedImage]]:
        """Stamp and message of every depth image; the time of recording stands in for a stamp of zero."""
        for connection, time_ns, data in reader.messages(self._topics.depth):
            try:
                message: Image | CompressedImage = read_message(data, DEPTHS[connection.msgtype])
                depth_ns = stamp_ns(message.header.stamp)
            except InputError as error:
                self._skipped.add(connection.topic, time_ns, error)
            else:
                yield depth_ns or time_ns, message
