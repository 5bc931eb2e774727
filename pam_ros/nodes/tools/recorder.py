"""Records the outputs of a perception node until SIGINT: overlay.mp4, regions.jsonl, captions.jsonl.

Start it in the node's namespace, e.g. `-r __ns:=/pam`: it subscribes to `regions`, `streaming_captions` and
`overlay`. Captions are in order of their sequence. Every file can be read at any moment, even after a crash.
"""

from __future__ import annotations

import sys
import time
from contextlib import closing, suppress
from pathlib import Path

from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from sensor_msgs.msg import Image

from pam_ros import media
from pam_ros.errors import PamError
from pam_ros.json_results import caption_json, region_json
from pam_ros.msg import RegionArray, StreamingCaption
from pam_ros.nodes.conversions import known_confidence, region_record, stamp_ns
from pam_ros.nodes.images import rgb_from_image
from pam_ros.nodes.tools.caption_order import CaptionOrder
from pam_ros.nodes.tools.tool_node import tool_node
from pam_ros.output_files import JsonLines
from pam_ros.records import Language
from pam_ros.signals import leave

DRAIN_S = 2.0  # after a signal, for captions that still grow and messages on their way
QUIET_S = 0.3  # without a message: nothing is on its way any more


class Recorder(Node):
    """`recorder`. Parameter: out (folder)."""

    def __init__(self) -> None:
        super().__init__("recorder")
        out = Path(self.declare_parameter("out", "out").value)
        out.mkdir(parents=True, exist_ok=True)
        self._film = media.VideoWriter(out / "overlay.mp4")
        self._regions = JsonLines(out / "regions.jsonl")
        self._captions = JsonLines(out / "captions.jsonl")
        self._order = CaptionOrder(self._write_caption)
        self._first_ns: int | None = None
        self._arrived_s = time.monotonic()
        self.create_subscription(RegionArray, "regions", self._on_regions, 50)
        self.create_subscription(StreamingCaption, "streaming_captions", self._on_caption, 50)
        self.create_subscription(Image, "overlay", self._on_overlay, 10)
        self.create_timer(1.0, self._order.release)

    @property
    def drained(self) -> bool:
        """True if nothing more is to come: no caption grows, and no message came for a while."""
        return not self._order.growing and time.monotonic() - self._arrived_s > QUIET_S

    def close(self) -> None:
        """Finishes the files; each is closed, whatever happens to the others."""
        with suppress(PamError):  # a full disk, which was reported when it was met
            self._order.release(everything=True)
        for file in (self._film, self._regions, self._captions):
            with suppress(PamError):
                file.close()

    def _on_regions(self, message: RegionArray) -> None:
        self._arrived_s = time.monotonic()
        self._regions.write(
            {
                "stamp_ns": stamp_ns(message.header.stamp),
                "regions": [region_json(region_record(region)) for region in message.regions],
            }
        )

    def _on_caption(self, message: StreamingCaption) -> None:
        self._arrived_s = time.monotonic()
        self._order.take(message)

    def _write_caption(self, message: StreamingCaption) -> None:
        line = caption_json(
            region_id=message.region_id,
            sequence=message.sequence,
            language=Language(message.language),
            text=message.text,
            confidence=known_confidence(message.confidence),
            unsure=message.unsure,
            clip_start_ns=stamp_ns(message.clip_start),
            clip_end_ns=stamp_ns(message.clip_end),
            frame_count=message.frame_count,
            clip_too_thin=message.clip_too_thin,
            summary=message.summary,
        )
        self._captions.write(line | {"latency_s": round(message.latency_s, 3)})

    def _on_overlay(self, message: Image) -> None:
        self._arrived_s = time.monotonic()
        now_ns = stamp_ns(message.header.stamp)
        self._first_ns = now_ns if self._first_ns is None else self._first_ns
        self._film.write(rgb_from_image(message), now_ns - self._first_ns)


def run() -> int:
    """Records until a signal, then what is still to come; exit code 2 if the files cannot be written."""
    try:
        with tool_node(Recorder) as (recorder, stopped), closing(recorder):
            executor = SingleThreadedExecutor()
            executor.add_node(recorder)
            while not stopped.is_set():
                executor.spin_once(timeout_sec=0.2)
            until_s = time.monotonic() + DRAIN_S
            while not recorder.drained and time.monotonic() < until_s:
                executor.spin_once(timeout_sec=0.05)
    except (PamError, OSError) as error:
        print(f"recorder: {error}", file=sys.stderr, flush=True)
        return 2
    return 0


def main() -> None:
    """The executable; a second signal finds no half-finalized Python."""
    leave(run())


if __name__ == "__main__":
    main()
