"""What the outputs publish after a frame, or a text about it: regions, their names, growing texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from std_msgs.msg import Header

from pam_ros.nodes.conversions import time_message
from pam_ros.runtime.events import FrameResult


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One frame's result with every text so far.

    Attributes:
        names: region id → label in the first language it was asked for in; regions without one are left out.
        captions: region id → the newest caption or growing text; empty if there is none.
    """

    result: FrameResult
    names: Mapping[int, str]
    captions: Mapping[int, str]

    @property
    def header(self) -> Header:
        """Stamp and frame_id of the frame."""
        return Header(stamp=time_message(self.result.stamp_ns), frame_id=self.result.frame_id)
