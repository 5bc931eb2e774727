"""A region's label in space: its text, and a dark plate behind it.

RViz draws letters without a ground, and texts that overlap in no particular order: plates make texts readable
on any image, and no plate covers another one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from geometry_msgs.msg import Point
from std_msgs.msg import ColorRGBA
from visualization_msgs.msg import Marker

from pam_ros.nodes.outputs.plain_text import line_width

LABELS, PLATES = "labels", "plates"  # namespaces
LETTER_FRACTION = 0.025  # height of a line, of the distance
TEXT_FRONT, PLATE_FRONT = 0.99, 0.992  # of the distance: a text lies before its plate, both before the image
_LINE_GAP_M = 0.005  # RViz adds it between lines
# RViz makes a space half as wide as scale.x, or half a metre and more if that is 0.
_SPACE_WIDTH = 0.6  # of a line's height
_MARGIN = 0.25  # of a line's height: around a text, and below its plate
_PLATE = ColorRGBA(a=0.6)


@dataclass(frozen=True, slots=True)
class Plate:
    """A rectangle as the camera sees it: x / z and y / z of its sides, y downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def covers(self, other: Plate) -> bool:
        """Whether the two overlap."""
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )

    def above(self, bottom: float) -> Plate:
        """The same rectangle, moved up or down to a bottom side."""
        return Plate(self.left, self.top + bottom - self.bottom, self.right, bottom)


def label_plate(text: str, foot: tuple[float, float], distance_m: float, taken: list[Plate]) -> Plate:
    """The plate above a foot (x / z, y / z), moved up until it covers none of those `taken`."""
    lines = text.split("\n")
    width = max(map(line_width, lines)) + 2 * _MARGIN
    height = len(lines) + 2 * _MARGIN  # both of a line's height
    half = width * LETTER_FRACTION / 2
    tall = height * LETTER_FRACTION + _LINE_GAP_M / distance_m * (len(lines) - 1)
    bottom = foot[1] - _MARGIN * LETTER_FRACTION
    plate = Plate(foot[0] - half, bottom - tall, foot[0] + half, bottom)
    for other in sorted(taken, key=lambda each: each.bottom, reverse=True):  # upwards: none is met twice
        if other.covers(plate):
            plate = plate.above(other.top)
    return plate


def label_markers(
    region_id: int, text: str, colour: ColorRGBA, plate: Plate, distance_m: float
) -> Iterator[Marker]:
    """The text and the plate, without header and lifetime."""
    letter_m = LETTER_FRACTION * distance_m
    label = Marker(ns=LABELS, id=region_id, type=Marker.TEXT_VIEW_FACING, text=text, color=colour)
    label.scale.x, label.scale.z = _SPACE_WIDTH * letter_m, letter_m
    label.pose.position = _middle(plate, TEXT_FRONT * distance_m)  # RViz centres a text on its position
    yield label
    plate_m = PLATE_FRONT * distance_m
    ground = Marker(ns=PLATES, id=region_id, type=Marker.CUBE, color=_PLATE)
    ground.pose.position = _middle(plate, plate_m)
    ground.scale.x, ground.scale.y = (
        (plate.right - plate.left) * plate_m,
        (plate.bottom - plate.top) * plate_m,
    )
    ground.scale.z = 1e-3 * plate_m
    yield ground


def _middle(plate: Plate, distance_m: float) -> Point:
    x, y = (plate.left + plate.right) / 2, (plate.top + plate.bottom) / 2
    return Point(x=x * distance_m, y=y * distance_m, z=distance_m)
