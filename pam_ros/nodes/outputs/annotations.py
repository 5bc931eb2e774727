"""`~/image_annotations`: outlines, labels, captions for Foxglove's Image panel, if foxglove_msgs is there."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rclpy.node import Node

from pam_ros.nodes.outputs.snapshot import Snapshot
from pam_ros.nodes.sink import Sink
from pam_ros.nodes.throttled_log import ThrottledLog
from pam_ros.nodes.topics import advertise
from pam_ros.records import Region, RegionState
from pam_ros.runtime.overlay import band_rows, caption_lines, caption_mark, mask_contours, region_colour

_OUTLINE_ERROR_PX = 1.0
_FONT_FRACTION = 1 / 32  # of the image's height
_LABEL_GROUND = 0.8  # opacity


@dataclass(frozen=True, slots=True)
class _Font:
    """Foxglove's, as wide and high as it is about."""

    size_px: float

    def getlength(self, text: str, /) -> float:
        """The width of a text, pixels."""
        return self.size_px * sum(0.6 if char.isascii() else 1.0 for char in text)

    @property
    def line_px(self) -> float:
        """The height of a line."""
        return 1.4 * self.size_px


def annotations_output(node: Node, log: ThrottledLog) -> AnnotationsOutput | None:
    """None if foxglove_msgs is not installed: no package but this output needs it."""
    try:
        messages = importlib.import_module("foxglove_msgs.msg")
    except ImportError:
        return None
    return AnnotationsOutput(node, log, messages)


class AnnotationsOutput:
    """Made only for subscribers. Foxglove draws them over the image of the same stamp."""

    def __init__(self, node: Node, log: ThrottledLog, messages: Any) -> None:
        """`messages`: the module foxglove_msgs.msg."""
        self._messages = messages
        self._publisher = advertise(node, messages.ImageAnnotations, "~/image_annotations", depth=5)
        self.publishers = (self._publisher,)
        self.sink = Sink("~/image_annotations", self._publish, log.warn)

    def on_frame(self, snapshot: Snapshot) -> None:
        """Queues the annotations of a frame; only the newest are published."""
        if self._publisher.get_subscription_count():
            self.sink.offer(snapshot)

    def clear(self) -> None:
        """The regions are gone."""
        self.sink.discard()

    def _publish(self, snapshot: Snapshot) -> None:
        self._publisher.publish(annotations_message(self._messages, snapshot))


def annotations_message(messages: Any, snapshot: Snapshot) -> Any:
    """Regions in view, and those that are lost where they were last seen, with thin outlines; captions."""
    stamp, size = snapshot.header.stamp, snapshot.result.size
    message = messages.ImageAnnotations()
    if hasattr(message, "timestamp"):  # newer releases
        message.timestamp = stamp
    font = _Font(max(10.0, size[0] * _FONT_FRACTION))
    texts: list[tuple[Region, str, float, float]] = []  # x and y of the text's lower left corner
    captions: dict[int, str] = {}
    growing: set[int] = set()
    for region in snapshot.result.regions:
        lost = region.state is RegionState.LOST
        shown = snapshot.last_seen.get(region.region_id) if lost else region
        if shown is None or not shown.mask.size:
            continue
        colour = _colour(messages, region, 1.0)
        for contour in _contours(shown):
            message.points.append(
                messages.PointsAnnotation(
                    timestamp=stamp,
                    type=messages.PointsAnnotation.LINE_LOOP,
                    points=_points(messages, contour),
                    outline_color=colour,
                    fill_color=_colour(messages, region, 0.0 if lost else 0.25),
                    thickness=1.0 if lost else 2.0,
                )
            )
        name = snapshot.names.get(region.region_id, "")
        heading = f"#{region.region_id} {name}".strip() + (" (lost)" if lost else "")
        x = min(float(shown.box_xyxy[0]), size[1] - font.getlength(heading))
        texts.append((region, heading, max(x, 0.0), max(float(shown.box_xyxy[1]), font.size_px)))
        if caption := next(iter(snapshot.captions.get(region.region_id, ())), None):
            captions[region.region_id] = caption.text
            growing |= set() if caption.final else {region.region_id}
    # Captions stand in a band at the bottom, as on the overlay: Foxglove cuts what is too long.
    rows = band_rows(size[0], font.line_px)
    lines = caption_lines(captions, font, size[1], rows, growing)
    by_id = {region.region_id: region for region in snapshot.result.regions}
    band = [
        (by_id[region_id], line if number else caption_mark(region_id) + line)
        for region_id, each in lines.items()
        for number, line in enumerate(each)
    ]
    for place, (region, line) in enumerate(reversed(band)):
        texts.append((region, line, 0.0, size[0] - font.line_px * place))
    message.texts = [
        messages.TextAnnotation(
            timestamp=stamp,
            position=messages.Point2(x=x, y=y),
            text=text,
            font_size=font.size_px,
            text_color=messages.Color(r=1.0, g=1.0, b=1.0, a=1.0),
            background_color=_colour(messages, region, _LABEL_GROUND),
        )
        for region, text, x, y in texts
    ]
    return message


def _contours(region: Region) -> Iterator[NDArray[np.int32]]:
    for contour in mask_contours(region):
        yield np.asarray(cv2.approxPolyDP(contour[:, None], _OUTLINE_ERROR_PX, True)[:, 0], np.int32)


def _points(messages: Any, pixels: Iterable[Any]) -> list[Any]:
    """Centres of pixels; Foxglove counts from the corner of the first pixel."""
    return [messages.Point2(x=float(x) + 0.5, y=float(y) + 0.5) for x, y in pixels]


def _colour(messages: Any, region: Region, opacity: float) -> Any:
    red, green, blue = (channel / 255 for channel in region_colour(region.region_id))
    return messages.Color(r=red, g=green, b=blue, a=opacity)
