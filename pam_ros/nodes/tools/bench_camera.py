"""The camera of `pam bench-node`: plays noise at a rate, and records when regions and captions arrive."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle

import cv2
import numpy as np
from builtin_interfaces.msg import Time
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from pam_ros.msg import RegionArray, StreamingCaption
from pam_ros.nodes.images import image_message, jpeg_message
from pam_ros.nodes.tools.client import Client

PICTURES = 4  # different ones, in turn
SMOOTH = 8  # pixels between the grains of a compressed image: a scene, not noise, in size
JPEG_QUALITY = 90


@dataclass(frozen=True, slots=True)
class Window:
    """What came back in one window of time. Milliseconds run from publishing an image to its regions."""

    pictures: int  # sent
    masks: int  # images whose regions came back
    p50_ms: float | None
    p99_ms: float | None
    captions: int  # final
    caption_latency_s: float | None  # the longest, after the clip's last frame
    answers: int
    answer_p50_s: float | None
    answer_max_s: float | None


class BenchCamera:
    """Publishes noise at a rate on a thread of its own, and records when regions and captions arrive."""

    def __init__(
        self,
        client: Client,
        size: tuple[int, int],
        rate_hz: float,
        *,
        image: str = "/image",
        regions: str = "/pam/regions",
        compressed: bool = False,
    ) -> None:
        """`size`: (height, width), pixels; `image` and `regions`: topics; `compressed`: JPEG, not rgb8."""
        self.size = size
        self.received = 0
        self._client, self._period_s = client, 1 / rate_hz
        rng = np.random.default_rng(0)
        shape = (size[0] // SMOOTH, size[1] // SMOOTH, 3) if compressed else (*size, 3)
        noise = [rng.integers(0, 256, shape, np.uint8) for _ in range(PICTURES)]
        self._messages: list[Image | CompressedImage] = [
            jpeg_message(cv2.resize(each, size[::-1]), JPEG_QUALITY, Header())
            if compressed
            else image_message(each, "rgb8", Header())
            for each in noise
        ]
        self._sent: dict[tuple[int, int], float] = {}
        self._late_s: dict[tuple[int, int], float] = {}
        self._captions_s: list[float] = []
        best_effort = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
        kind, topic = (CompressedImage, f"{image}/compressed") if compressed else (Image, image)
        self._publisher = client.node.create_publisher(kind, topic, best_effort)
        client.node.create_subscription(RegionArray, regions, self._on_regions, 10)
        client.node.create_subscription(StreamingCaption, "/pam/streaming_captions", self._on_caption, 50)
        self._stopping = threading.Event()
        self._playing = threading.Event()
        self._playing.set()
        self._thread = threading.Thread(target=self._run, name="camera", daemon=True)

    def __enter__(self) -> BenchCamera:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopping.set()
        self._playing.set()
        self._thread.join()

    def pause(self) -> None:
        """Publishes nothing until `resume`."""
        self._playing.clear()

    def resume(self) -> None:
        """Publishes again."""
        self._playing.set()

    def window(self, seconds: float, request: Callable[[], None] | None = None) -> Window:
        """Measures for so long; `request` is called back to back."""
        self._client.pause(0.5)
        begin_s = time.perf_counter()
        answers_s: list[float] = []
        while (now_s := time.perf_counter()) < begin_s + seconds:
            if request is None:
                self._client.pause(0.1)
            else:
                request()
                answers_s.append(time.perf_counter() - now_s)
                self._client.pause(0.1)
        end_s = time.perf_counter()
        self._client.pause(0.5)  # for what is still on its way
        sent = [stamp for stamp, at_s in list(self._sent.items()) if begin_s <= at_s < end_s]
        late_ms = [1000 * self._late_s[stamp] for stamp in sent if stamp in self._late_s]
        captions_s, self._captions_s = self._captions_s, []
        self._sent, self._late_s = {}, {}
        return Window(
            pictures=len(sent),
            masks=len(late_ms),
            p50_ms=_percentile(late_ms, 50),
            p99_ms=_percentile(late_ms, 99),
            captions=len(captions_s),
            caption_latency_s=_percentile(captions_s, 100),
            answers=len(answers_s),
            answer_p50_s=_percentile(answers_s, 50),
            answer_max_s=_percentile(answers_s, 100),
        )

    def _run(self) -> None:
        due_s = time.perf_counter()
        for message in cycle(self._messages):
            if not self._playing.is_set():
                self._playing.wait()
                due_s = time.perf_counter()
            if self._stopping.is_set():
                return
            stamp: Time = self._client.node.get_clock().now().to_msg()
            message.header = Header(stamp=stamp, frame_id="bench_optical_frame")
            self._sent[stamp.sec, stamp.nanosec] = time.perf_counter()
            self._publisher.publish(message)
            due_s += self._period_s
            time.sleep(max(0.0, due_s - time.perf_counter()))

    def _on_regions(self, message: RegionArray) -> None:
        stamp = message.header.stamp.sec, message.header.stamp.nanosec
        self.received += 1
        if stamp in self._sent:
            self._late_s.setdefault(stamp, time.perf_counter() - self._sent[stamp])

    def _on_caption(self, message: StreamingCaption) -> None:
        if message.final and not message.summary:
            self._captions_s.append(message.latency_s)


def _percentile(values: Sequence[float], percent: float) -> float | None:
    return round(float(np.percentile(values, percent)), 3) if values else None
