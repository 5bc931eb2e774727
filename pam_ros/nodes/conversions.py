"""Records → messages, and back: times, statuses, regions, texts, captions, detections.

Coordinates are pixels of the image, x right, y down. A message's stamp of zero means "not given".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Point, Pose, PoseWithCovariance, Quaternion, Vector3
from numpy.typing import NDArray
from sensor_msgs.msg import RegionOfInterest
from std_msgs.msg import Header
from vision_msgs.msg import (
    BoundingBox2D,
    BoundingBox3D,
    Detection2D,
    Detection2DArray,
    Detection3D,
    Detection3DArray,
    LabelInfo,
    ObjectHypothesis,
    ObjectHypothesisWithPose,
    Point2D,
    Pose2D,
    VisionClass,
)

from pam_ros import errors
from pam_ros.geometry import quaternion_of
from pam_ros.json_results import TEXT_FIELDS
from pam_ros.msg import Region as RegionMessage
from pam_ros.msg import RegionArray, RegionText, Status, StreamingCaption
from pam_ros.nodes.images import image_message, mask_from_image
from pam_ros.nodes.throttled_log import shortened
from pam_ros.records import (
    Language,
    Region,
    RegionState,
    Task,
    Text,
    VisibleSurface,
)
from pam_ros.runtime.events import CaptionEvent, FrameResult, caption_for_people

_NS_PER_S = 1_000_000_000
_MOST_CHARACTERS = 1000  # of a status
LARGEST_LABEL = 0xFFFF  # label images and LabelInfo hold 16-bit ids

_STATUS_CODES = (  # the first class that matches decides
    (errors.UnknownRegionError, Status.UNKNOWN_REGION),
    (errors.NothingFoundError, Status.NOTHING_FOUND),
    (errors.NoFrameError, Status.NO_FRAME),
    (errors.StaleFrameError, Status.NO_FRAME),
    (errors.InputError, Status.INVALID_INPUT),
    (errors.NotActiveError, Status.NOT_ACTIVE),
    (errors.CapacityError, Status.CAPACITY),
    (errors.CancelledError, Status.CANCELLED),
    (errors.TextServerError, Status.TEXT_SERVER),
)


# --- times and statuses


def stamp_ns(time: Time) -> int:
    """Nanoseconds of the camera's clock. Raises InputError if there is no such time."""
    if time.nanosec >= _NS_PER_S:
        raise errors.InputError(
            f"a stamp has nanosec {time.nanosec}; allowed: 0 to {_NS_PER_S - 1}, whole seconds go into sec"
        )
    return int(time.sec) * _NS_PER_S + int(time.nanosec)


def stamp_or_newest(header: Header) -> int | None:
    """The stamp in nanoseconds; None, which means the newest frame, if it is zero."""
    return stamp_ns(header.stamp) or None


def time_message(nanoseconds: int) -> Time:
    """The inverse of `stamp_ns`."""
    return Time(sec=nanoseconds // _NS_PER_S, nanosec=nanoseconds % _NS_PER_S)


def status_of(error: BaseException | None) -> Status:
    """None → OK; an InputError or StateError → its code and message; anything else → INTERNAL."""
    if error is None:
        return Status(code=Status.OK)
    for kind, code in _STATUS_CODES:
        if isinstance(error, kind):
            return Status(code=code, message=shortened(str(error), _MOST_CHARACTERS))
    message = shortened(f"{type(error).__name__}: {error}", _MOST_CHARACTERS)
    return Status(code=Status.INTERNAL, message=message)


# --- regions


def region_message(region: Region, header: Header, *, with_mask: bool = True) -> RegionMessage:
    """A region with its texts; `header` is that of the image, for the mask."""
    x1, y1, x2, y2 = (int(edge) for edge in region.box_xyxy)
    message = RegionMessage(
        id=region.region_id,
        state=int(region.state),
        texts=_region_texts(region),
        mask_score=float(region.mask_score),
        presence_score=float(region.presence_score),
        source_id=region.source_id,
        source_class=region.source_class,
        created=time_message(region.created_ns),
        last_visible=time_message(region.last_visible_ns),
        bbox=_bounding_box(region),
        roi=RegionOfInterest(x_offset=x1, y_offset=y1, width=x2 - x1, height=y2 - y1),
    )
    if region.surface is not None:
        message.position_known = message.size_known = True
        message.position = _point(region.surface.position_m)
        message.size = _vector(region.surface.size_m)
    if with_mask and region.mask.size:
        message.mask = image_message(region.mask.astype(np.uint8) * np.uint8(255), "mono8", header)
    return message


def region_record(message: RegionMessage) -> Region:
    """The inverse of `region_message`; without the mask's pixels if the message has none."""
    box, half = message.bbox, (message.bbox.size_x / 2, message.bbox.size_y / 2)
    x, y = box.center.position.x, box.center.position.y
    return Region(
        region_id=message.id,
        state=RegionState(message.state),
        box_xyxy=np.array([x - half[0], y - half[1], x + half[0], y + half[1]], np.float32),
        mask=mask_from_image(message.mask) if message.mask.data else np.zeros((0, 0), np.bool_),
        mask_score=message.mask_score,
        presence_score=message.presence_score,
        texts=_text_records(message.texts),
        asked=_asked(message.texts),
        created_ns=stamp_ns(message.created),
        last_visible_ns=stamp_ns(message.last_visible),
        source_id=message.source_id,
        source_class=message.source_class,
        surface=_surface_record(message),
    )


def _surface_record(message: RegionMessage) -> VisibleSurface | None:
    if not (message.position_known and message.size_known):
        return None
    position, size = message.position, message.size
    return VisibleSurface(
        position_m=np.array([position.x, position.y, position.z]),
        size_m=np.array([size.x, size.y, size.z]),
    )


def _text_records(messages: Iterable[RegionText]) -> dict[tuple[Task, Language], Text]:
    texts = {}
    for message in messages:
        for task, field in TEXT_FIELDS.items():
            if text := getattr(message, field):
                confidence = known_confidence(getattr(message, f"{field}_confidence"))
                key = (task, Language(message.language))
                # No text about a region is more confident than its label.
                texts[key] = Text(text, stamp_ns(message.stamp), confidence, message.label_unsure)
    return texts


def _asked(messages: Iterable[RegionText]) -> tuple[tuple[Task, Language], ...]:
    """The texts that are known or pending, language by language."""
    return tuple(
        (task, Language(message.language))
        for message in messages
        for task, field in TEXT_FIELDS.items()
        if getattr(message, field) or task.value in message.pending
    )


def known_confidence(value: float) -> float | None:
    """A message's confidence; None if it is not known, which messages write as -1."""
    return value if value >= 0 else None


def region_array(result: FrameResult, header: Header) -> RegionArray:
    """Every region of one processed image."""
    return RegionArray(
        header=header,
        image_height=result.size[0],
        image_width=result.size[1],
        regions=[region_message(region, header) for region in result.regions],
    )


def _region_texts(region: Region) -> list[RegionText]:
    """One message per language, in the order asked for."""
    messages: dict[Language, RegionText] = {}
    newest_ns: dict[Language, int] = {}
    for (task, language), text in region.asked_texts():
        message = messages.setdefault(language, RegionText(language=language.value))
        if text is None:
            message.pending = [*message.pending, task.value]
            continue
        field = TEXT_FIELDS[task]
        setattr(message, field, text.text)
        if text.confidence is not None:
            setattr(message, f"{field}_confidence", float(text.confidence))
        message.label_unsure |= task is Task.LABEL and text.unsure
        newest_ns[language] = max(newest_ns.get(language, 0), text.stamp_ns)
        message.stamp = time_message(newest_ns[language])
    return list(messages.values())


def _bounding_box(region: Region) -> BoundingBox2D:
    x1, y1, x2, y2 = (float(edge) for edge in region.box_xyxy)
    centre = Pose2D(position=Point2D(x=(x1 + x2) / 2, y=(y1 + y2) / 2), theta=0.0)
    return BoundingBox2D(center=centre, size_x=x2 - x1, size_y=y2 - y1)


def detections_message(
    regions: Sequence[Region], names: Mapping[int, str], header: Header
) -> Detection2DArray:
    """The tracked regions for tools that use vision_msgs; class_id is the name as displayed."""
    detections = []
    for region in regions:
        if region.state is not RegionState.TRACKED:
            continue
        hypothesis = _hypothesis(region, names)
        detections.append(
            Detection2D(
                header=header,
                id=str(region.region_id),
                bbox=_bounding_box(region),
                results=[ObjectHypothesisWithPose(hypothesis=hypothesis)],
            )
        )
    return Detection2DArray(header=header, detections=detections)


def _hypothesis(region: Region, names: Mapping[int, str]) -> ObjectHypothesis:
    """The region's name with its confidence; the mask's score while there is no name, or none is known."""
    name, sure = names.get(region.region_id, ""), region.name_confidence
    return ObjectHypothesis(class_id=name, score=float(region.mask_score if sure is None else sure))


def detections_3d_message(
    regions: Sequence[Region], names: Mapping[int, str], header: Header
) -> Detection3DArray:
    """The regions whose surface was measured, each with its box of any orientation.

    The pose of the hypothesis is the surface's centroid, without a rotation: how an object lies is not known.
    """
    detections = []
    for region in regions:
        surface = region.surface
        if surface is None or surface.box is None:
            continue
        hypothesis = _hypothesis(region, names)
        pose = PoseWithCovariance(pose=Pose(position=_point(surface.position_m)))
        x, y, z, w = quaternion_of(surface.box.axes)
        centre = Pose(position=_point(surface.box.centre_m), orientation=Quaternion(x=x, y=y, z=z, w=w))
        detections.append(
            Detection3D(
                header=header,
                id=str(region.region_id),
                bbox=BoundingBox3D(center=centre, size=_vector(surface.box.size_m)),
                results=[ObjectHypothesisWithPose(hypothesis=hypothesis, pose=pose)],
            )
        )
    return Detection3DArray(header=header, detections=detections)


def _point(position_m: NDArray[np.float64]) -> Point:
    x, y, z = position_m.tolist()
    return Point(x=x, y=y, z=z)


def _vector(size_m: NDArray[np.float64]) -> Vector3:
    x, y, z = size_m.tolist()
    return Vector3(x=x, y=y, z=z)


def label_image(regions: Sequence[Region], size: tuple[int, int]) -> NDArray[np.uint16]:
    """(H, W): each pixel's region id, 0 = none; the smaller of two overlapping regions wins."""
    labels = np.zeros(size, np.uint16)
    visible = [region for region in regions if region.mask.size and region.region_id <= LARGEST_LABEL]
    for region in sorted(visible, key=lambda region: int(region.mask.sum()), reverse=True):
        x1, y1, x2, y2 = (int(edge) for edge in region.box_xyxy)
        labels[y1:y2, x1:x2][region.mask] = region.region_id
    return labels


def label_info(names: Mapping[int, str], header: Header) -> LabelInfo:
    """The names (region id → name) of the label image's ids."""
    classes = [
        VisionClass(class_id=region_id, class_name=name)
        for region_id, name in names.items()
        if region_id <= LARGEST_LABEL
    ]
    return LabelInfo(header=header, class_map=classes, threshold=0.5)  # masks are cut at probability 0.5


def caption_message(event: CaptionEvent) -> StreamingCaption:
    """A growing or finished caption."""
    return StreamingCaption(
        header=Header(stamp=time_message(event.clip_end_ns), frame_id=event.frame_id),
        region_id=event.region_id,
        sequence=event.sequence,
        final=event.final,
        language=event.language.value,
        summary=event.summary,
        text=event.text,
        clip_start=time_message(event.clip_start_ns),
        clip_end=time_message(event.clip_end_ns),
        frame_count=event.frame_count,
        clip_too_thin=event.clip_too_thin,
        latency_s=float(event.latency_s),
        confidence=-1.0 if event.confidence is None else float(event.confidence),
        unsure=event.unsure,
    )


def caption_shown(message: StreamingCaption) -> str:
    """A caption as people read it, see `caption_for_people`."""
    too_few = message.frame_count if message.final and message.clip_too_thin else None
    return caption_for_people(
        Text(message.text, 0, unsure=message.unsure).shown, Language(message.language), too_few
    )
