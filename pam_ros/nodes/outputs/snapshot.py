"""What the outputs publish after a frame, or a text about it: regions, their names, growing texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from std_msgs.msg import Header

from pam_ros.nodes.conversions import time_message
from pam_ros.nodes.sink import Sink
from pam_ros.records import Language, Region
from pam_ros.runtime.events import FrameResult


@dataclass(frozen=True, slots=True)
class Caption:
    """A text that a region is shown with: a rolling caption, or another text than its label."""

    text: str
    language: Language
    final: bool  # False while it grows


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One frame's result with every text so far.

    Attributes:
        names: region id → label in the first language it was asked for in; regions without one are left out.
        captions: region id → its newest caption in each language, the newest of all first.
        last_seen: region id → its newest record with a mask; it shows where a lost region was.
    """

    result: FrameResult
    names: Mapping[int, str]
    captions: Mapping[int, tuple[Caption, ...]]
    last_seen: Mapping[int, Region]

    @property
    def header(self) -> Header:
        """Stamp and frame_id of the frame."""
        return Header(stamp=time_message(self.result.stamp_ns), frame_id=self.result.frame_id)


class FrameOutput(Protocol):
    """An output that publishes something of every frame, while its publishers have subscribers."""

    sink: Sink[Any]
    publishers: tuple[Any, ...]

    def on_frame(self, snapshot: Snapshot) -> None:
        """Queues what to publish of a frame, and returns immediately."""

    def clear(self) -> None:
        """The regions are gone: the engine was stopped."""
