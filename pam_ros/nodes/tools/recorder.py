"""Records what a perception node says: overlay.mp4, regions.jsonl, captions.jsonl, until SIGINT.

Start it in the node's namespace, e.g. `-r __ns:=/pam`: it hears `regions`, `streaming_captions`, `overlay`.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import Image

from pam_ros import media
from pam_ros.msg import Region, RegionArray, StreamingCaption
from pam_ros.nodes.conversions import stamp_ns
from pam_ros.nodes.images import picture_from_image


class Recorder(Node):
    """`recorder`. Parameter: out (folder)."""

    def __init__(self) -> None:
        super().__init__("recorder")
        out = Path(self.declare_parameter("out", "out").value)
        out.mkdir(parents=True, exist_ok=True)
        self._film = media.VideoWriter(out / "overlay.mp4")
        self._regions = (out / "regions.jsonl").open("w", encoding="utf-8")
        self._captions = (out / "captions.jsonl").open("w", encoding="utf-8")
        self._first_ns: int | None = None
        self.create_subscription(RegionArray, "regions", self._on_regions, 50)
        self.create_subscription(StreamingCaption, "streaming_captions", self._on_caption, 50)
        self.create_subscription(Image, "overlay", self._on_overlay, 10)

    def close(self) -> None:
        """Finishes the files."""
        self._film.close()
        self._regions.close()
        self._captions.close()

    def _on_regions(self, message: RegionArray) -> None:
        line = {
            "stamp_ns": stamp_ns(message.header.stamp),
            "regions": [region_line(r) for r in message.regions],
        }
        self._regions.write(json.dumps(line, ensure_ascii=False) + "\n")

    def _on_caption(self, message: StreamingCaption) -> None:
        if not message.final:
            return
        line = {
            "region_id": message.region_id,
            "sequence": message.sequence,
            "start_ns": stamp_ns(message.clip_start),
            "end_ns": stamp_ns(message.clip_end),
            "frames": message.frame_count,
            "language": message.language,
            "text": message.text,
            "latency_s": round(message.latency_s, 3),
        }
        self._captions.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._captions.flush()

    def _on_overlay(self, message: Image) -> None:
        now_ns = stamp_ns(message.header.stamp)
        self._first_ns = now_ns if self._first_ns is None else self._first_ns
        self._film.write(picture_from_image(message), now_ns - self._first_ns)


def region_line(region: Region) -> dict[str, Any]:
    """A region message as plain JSON values, without the mask's pixels; the box in pixels."""
    box = region.bbox
    half = (box.size_x / 2, box.size_y / 2)
    centre = (box.center.position.x, box.center.position.y)
    return {
        "id": region.id,
        "state": "tracked" if region.state == Region.TRACKED else "lost",
        "box_xyxy": [round(c + sign * h, 1) for sign in (-1, 1) for c, h in zip(centre, half, strict=True)],
        "area_px": int(np.count_nonzero(region.mask.data)),
        "mask_score": round(region.mask_score, 4),
        "presence_score": round(region.presence_score, 4),
        "texts": {
            text.language: {
                "label": text.label,
                "explain": text.explanation,
                "brief": text.brief_caption,
                "detail": text.detailed_caption,
            }
            for text in region.texts
        },
    }


def main() -> None:
    """Records until interrupted, then ends between two messages: no encoder is left within a picture."""
    rclpy.init(args=sys.argv, signal_handler_options=SignalHandlerOptions.NO)
    interrupted = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: interrupted.set())
    recorder = Recorder()
    executor = SingleThreadedExecutor()
    executor.add_node(recorder)
    try:
        while not interrupted.is_set():
            executor.spin_once(timeout_sec=0.2)
    finally:
        recorder.close()
        recorder.destroy_node()
        rclpy.try_shutdown()


if __name__ == "__main__":
    main()
