"""Messages ↔ records: prompts in; regions, texts, captions, detections and statuses out.

Coordinates are pixels of the image, x right, y down. A message's stamp of zero means "not given".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from builtin_interfaces.msg import Time
from numpy.typing import NDArray
from sensor_msgs.msg import Image, RegionOfInterest
from std_msgs.msg import Header
from vision_msgs.msg import (
    BoundingBox2D,
    Detection2D,
    Detection2DArray,
    LabelInfo,
    ObjectHypothesis,
    ObjectHypothesisWithPose,
    Point2D,
    Pose2D,
    VisionClass,
)

from pam_ros import errors
from pam_ros.errors import PromptError
from pam_ros.msg import Prompt as PromptMessage
from pam_ros.msg import Region as RegionMessage
from pam_ros.msg import RegionArray, RegionText, Status, StreamingCaption
from pam_ros.nodes.images import image_message, mask_from_image, picture_from_image
from pam_ros.records import Language, Prompt, Region, RegionState, Task, image_tasks
from pam_ros.runtime.engine import PromptRequest
from pam_ros.runtime.events import CaptionEvent, FrameResult

_NS_PER_S = 1_000_000_000
LARGEST_LABEL = 0xFFFF  # label images and LabelInfo hold 16-bit ids

_STATUS_CODES = (  # the first class that fits decides
    (errors.UnknownRegionError, Status.UNKNOWN_REGION),
    (errors.NoFrameError, Status.NO_FRAME),
    (errors.StaleFrameError, Status.NO_FRAME),
    (errors.InputError, Status.INVALID_INPUT),
    (errors.NotActiveError, Status.NOT_ACTIVE),
    (errors.CapacityError, Status.CAPACITY),
    (errors.CancelledError, Status.CANCELLED),
)


@dataclass(frozen=True, slots=True)
class PromptDefaults:
    """What a prompt that names no tasks or no languages requests for."""

    tasks: tuple[Task, ...]
    languages: tuple[Language, ...]


# --- times and statuses


def stamp_ns(time: Time) -> int:
    """Nanoseconds of the camera's clock."""
    return int(time.sec) * _NS_PER_S + int(time.nanosec)


def stamp_or_newest(header: Header) -> int | None:
    """The stamp in nanoseconds; None, the newest frame, where it is zero."""
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
            return Status(code=code, message=str(error))
    return Status(code=Status.INTERNAL, message=f"{type(error).__name__}: {error}")


# --- prompts


def languages_of(codes: Iterable[str]) -> tuple[Language, ...]:
    """`["en", "zh"]` → languages, in order, each once."""
    return tuple(dict.fromkeys(Language.parse(code) for code in codes))


def prompt_request(
    message: PromptMessage, defaults: PromptDefaults, image: Image | None = None
) -> PromptRequest:
    """Reads a prompt; `image` is the caller's own picture. Raises an InputError for what cannot be used."""
    return PromptRequest(
        prompt=_prompt(message),
        tasks=image_tasks(message.tasks) or defaults.tasks,
        languages=languages_of(message.languages) or defaults.languages,
        region_id=message.region_id,
        stamp_ns=stamp_or_newest(message.header),
        image=picture_from_image(image) if image is not None else None,
    )


def _prompt(message: PromptMessage) -> Prompt | None:
    """None where only a region id came."""
    if len(message.box) not in (0, 4):
        raise PromptError(f"a box is x1, y1, x2, y2 or nothing, not {len(message.box)} numbers")
    points = [(point.x, point.y) for point in message.points]
    box = list(message.box) or None
    has_mask = bool(message.mask.data or message.mask.width or message.mask.height)
    if message.region_id and not (points or box or has_mask):
        return None
    prompt = Prompt.from_clicks(points, list(message.point_labels) or None, box) if points or box else None
    if not has_mask:
        return prompt or Prompt()  # the empty prompt explains itself
    if prompt is not None:
        raise PromptError("a mask prompt stands alone: send clicks and box, or a mask")
    return Prompt.from_mask(mask_from_image(message.mask))


def detection_boxes(message: Detection2DArray) -> tuple[list[tuple[float, float, float, float]], list[str]]:
    """Usable boxes (x1, y1, x2, y2), and what is wrong with each of the others."""
    boxes, problems = [], []
    for index, detection in enumerate(message.detections):
        box = detection.bbox
        x, y, width, height = box.center.position.x, box.center.position.y, box.size_x, box.size_y
        if not all(math.isfinite(value) for value in (x, y, width, height)) or width <= 0 or height <= 0:
            problems.append(
                f"detection {index}: centre ({x}, {y}), size {width} x {height}; "
                "a box needs finite numbers and a size above 0"
            )
            continue
        boxes.append((x - width / 2, y - height / 2, x + width / 2, y + height / 2))
    return boxes, problems


# --- regions


def region_message(region: Region, header: Header, languages: Sequence[Language] = ()) -> RegionMessage:
    """A region with its texts, `languages` first in their order."""
    x1, y1, x2, y2 = (int(edge) for edge in region.box_xyxy)
    mask = (
        image_message(region.mask.astype(np.uint8) * np.uint8(255), "mono8", header)
        if region.mask.size
        else Image()
    )
    return RegionMessage(
        id=region.region_id,
        state=int(region.state),
        bbox=_bounding_box(region),
        roi=RegionOfInterest(x_offset=x1, y_offset=y1, width=x2 - x1, height=y2 - y1),
        mask=mask,
        mask_score=float(region.mask_score),
        presence_score=float(region.presence_score),
        texts=_region_texts(region, languages),
        created=time_message(region.created_ns),
        last_seen=time_message(region.last_visible_ns),
    )


def region_array(result: FrameResult, header: Header) -> RegionArray:
    """Every region of one processed image."""
    return RegionArray(
        header=header,
        image_height=result.size[0],
        image_width=result.size[1],
        regions=[region_message(region, header) for region in result.regions],
    )


def _region_texts(region: Region, languages: Sequence[Language]) -> list[RegionText]:
    order = dict.fromkeys([*languages, *(language for _, language in region.texts)])
    messages = []
    for language in order:
        texts = {
            task: text for (task, its_language), text in region.texts.items() if its_language == language
        }
        words = {task: text.text for task, text in texts.items()}
        messages.append(
            RegionText(
                language=language.value,
                label=words.get(Task.LABEL, ""),
                explanation=words.get(Task.EXPLAIN, ""),
                brief_caption=words.get(Task.BRIEF, ""),
                detailed_caption=words.get(Task.DETAIL, ""),
                stamp=time_message(max((text.stamp_ns for text in texts.values()), default=0)),
            )
        )
    return messages


def _bounding_box(region: Region) -> BoundingBox2D:
    x1, y1, x2, y2 = (float(edge) for edge in region.box_xyxy)
    centre = Pose2D(position=Point2D(x=(x1 + x2) / 2, y=(y1 + y2) / 2), theta=0.0)
    return BoundingBox2D(center=centre, size_x=x2 - x1, size_y=y2 - y1)


def region_name(region: Region) -> str:
    """The region's label, in the first language it was named in; empty before it has one."""
    return next((text.text for (task, _), text in region.texts.items() if task is Task.LABEL), "")


def detections_message(regions: Sequence[Region], header: Header) -> Detection2DArray:
    """The tracked regions for tools that speak vision_msgs; class_id is the label, "" before it is known."""
    detections = []
    for region in regions:
        if region.state is not RegionState.TRACKED:
            continue
        hypothesis = ObjectHypothesis(class_id=region_name(region), score=float(region.mask_score))
        detections.append(
            Detection2D(
                header=header,
                id=str(region.region_id),
                bbox=_bounding_box(region),
                results=[ObjectHypothesisWithPose(hypothesis=hypothesis)],
            )
        )
    return Detection2DArray(header=header, detections=detections)


def label_image(regions: Sequence[Region], size: tuple[int, int]) -> NDArray[np.uint16]:
    """(H, W): each pixel's region id, 0 = none; where regions overlap the smaller one wins."""
    labels = np.zeros(size, np.uint16)
    visible = [region for region in regions if region.mask.size and region.region_id <= LARGEST_LABEL]
    for region in sorted(visible, key=lambda region: int(region.mask.sum()), reverse=True):
        x1, y1, x2, y2 = (int(edge) for edge in region.box_xyxy)
        labels[y1:y2, x1:x2][region.mask] = region.region_id
    return labels


def label_info(regions: Sequence[Region], header: Header) -> LabelInfo:
    """The names of the label image's ids; regions without a label are left out."""
    named = [(region.region_id, region_name(region)) for region in regions]
    classes = [
        VisionClass(class_id=region_id, class_name=name)
        for region_id, name in named
        if name and region_id <= LARGEST_LABEL
    ]
    return LabelInfo(header=header, class_map=classes, threshold=0.5)  # masks are cut at probability 0.5


def caption_message(event: CaptionEvent) -> StreamingCaption:
    """A growing or finished caption."""
    return StreamingCaption(
        header=Header(stamp=time_message(event.clip_end_ns), frame_id=event.frame_id),
        region_id=event.region_id,
        clip_start=time_message(event.clip_start_ns),
        clip_end=time_message(event.clip_end_ns),
        sequence=event.sequence,
        frame_count=event.frame_count,
        text=event.text,
        final=event.final,
        language=event.language.value,
        latency_s=float(event.latency_s),
    )
