"""Records the outputs of a perception node until SIGINT: overlay.mp4, regions.jsonl, captions.jsonl.

Start it in the node's namespace, e.g. `-r __ns:=/pam`: it subscribes to `regions`, `streaming_captions` and
`overlay`.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from pathlib import Path

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import Image

from pam_ros import media
from pam_ros.json_results import caption_json, region_json
from pam_ros.msg import RegionArray, StreamingCaption
from pam_ros.nodes.conversions import known_confidence, region_record, stamp_ns
from pam_ros.nodes.images import picture_from_image
from pam_ros.records import Language


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
            "regions": [region_json(region_record(region)) for region in message.regions],
        }
        self._regions.write(json.dumps(line, ensure_ascii=False) + "\n")

    def _on_caption(self, message: StreamingCaption) -> None:
        if not message.final:
            return
        line = caption_json(
            region_id=message.region_id,
            sequence=message.sequence,
            language=Language(message.language),
            text=message.text,
            confidence=known_confidence(message.confidence),
            clip_start_ns=stamp_ns(message.clip_start),
            clip_end_ns=stamp_ns(message.clip_end),
            frame_count=message.frame_count,
        ) | {
            "summary": message.summary,
            "clip_too_thin": message.clip_too_thin,
            "latency_s": round(message.latency_s, 3),
        }
        self._captions.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._captions.flush()

    def _on_overlay(self, message: Image) -> None:
        now_ns = stamp_ns(message.header.stamp)
        self._first_ns = now_ns if self._first_ns is None else self._first_ns
        self._film.write(picture_from_image(message), now_ns - self._first_ns)


def main() -> None:
    """Records until SIGINT or SIGTERM, then ends between two messages, so that the film is complete."""
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
