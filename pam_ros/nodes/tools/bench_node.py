"""`pam bench-node`: how late masks, captions and answers of the real node come, over DDS."""

from __future__ import annotations

import array
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image

from pam_ros.errors import StateError
from pam_ros.msg import Prompt, RegionArray, StreamingCaption
from pam_ros.nodes.tools.client import Client
from pam_ros.nodes.tools.processes import Processes
from pam_ros.share import share_folder

PROFILE_VARIABLE = "FASTRTPS_DEFAULT_PROFILES_FILE"  # see docs/transport.md
PICTURES = 4  # different ones, in turn
NEVER_S = 86400.0  # noise shows no object, and the region must stay
ANSWER_TIMEOUT_S = 120.0
LABEL_TOKENS, TEXT_TOKENS = 8, 64
FOUR_TASKS = ("label", "explain", "brief", "detail")


@dataclass(frozen=True, slots=True)
class Window:
    """What came back in one window of time. Milliseconds run from publishing a picture to its regions."""

    pictures: int  # sent
    masks: int  # pictures whose regions came back
    p50_ms: float | None
    p99_ms: float | None
    captions: int  # final
    caption_latency_s: float | None  # the longest, after the clip's last frame
    answers: int
    answer_p50_s: float | None
    answer_max_s: float | None


def run_bench_node(
    out: Path,
    *,
    model: str,
    device: str,
    size: tuple[int, int],
    rate_hz: float,
    seconds: float,
    report: Callable[[str], None] = print,
    command: Sequence[str] = ("-m", "pam_ros.nodes.main"),
    load_timeout_s: float = 600.0,
) -> dict[str, Any]:
    """Starts `pam_node` in a process of its own and plays a camera to it → figures by window.

    Args:
        out: folder for the node's log.
        command: Python's arguments that start the node.
        size: (height, width) of the pictures, pixels; rgb8 noise, best effort.
        seconds: of each window.

    Raises StateError if the node fails or does not answer.
    """
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault(PROFILE_VARIABLE, str(share_folder("config", "fastdds.xml") / "fastdds.xml"))
    began_s = time.monotonic()
    with Processes(out) as processes, Client("bench", processes.domain, processes.check) as client:
        parameters = {
            "model": model,
            "device": device,
            "autostart": True,
            "regions.lost_timeout_s": NEVER_S,
            "texts.max_new_tokens": TEXT_TOKENS,
            "streaming.period_s": 2.0,
        }
        node = processes.start("node", command, parameters=parameters, log=True)
        client.wait_for_active(load_timeout_s)
        active_s = time.monotonic() - began_s
        report(f"active after {active_s:.1f} s")
        with _Camera(client, size, rate_hz) as camera:
            results = _measure(client, camera, seconds, report)
        return {"active_s": round(active_s, 1), **results, "node_rss_mib": round(node.resident_mib())}


def _measure(
    client: Client, camera: _Camera, seconds: float, report: Callable[[str], None]
) -> dict[str, Any]:
    height, width = camera.size
    box = [0.3 * width, 0.3 * height, 0.6 * width, 0.8 * height]
    client.wait(lambda: camera.received, "the first regions", ANSWER_TIMEOUT_S)
    answer = client.perceive(Prompt(box=box, tasks=["label"]), timeout_s=ANSWER_TIMEOUT_S, without_mask=True)
    if answer.status.code:
        raise StateError(f"the node refused the first prompt: {answer.status.message}")
    region = answer.region.id

    def ask(tasks: Sequence[str]) -> Callable[[], None]:
        def call() -> None:
            prompt = Prompt(region_id=region, tasks=list(tasks))
            status = client.perceive(prompt, timeout_s=ANSWER_TIMEOUT_S, without_mask=True).status
            if status.code:
                raise StateError(f"the node refused a request: {status.message}")

        return call

    results: dict[str, Any] = {}

    def window(name: str, request: Callable[[], None] | None = None) -> None:
        found = camera.window(seconds, request)
        results[name] = asdict(found)
        report(f"{name}: {_line(found)}")

    def limit(tokens: int) -> None:
        client.set_parameter("/pam_manager", "texts.max_new_tokens", tokens)

    camera.window(seconds / 2, ask(FOUR_TASKS))  # the first texts of a kind may compile
    window("tracking")
    window("four_tasks", ask(FOUR_TASKS))
    limit(LABEL_TOKENS)
    window("label", ask(["label"]))
    limit(TEXT_TOKENS)
    client.set_parameter("/pam_manager", "streaming.enabled", True)
    client.pause(2.0)
    window("streaming")
    window("streaming_four_tasks", ask(FOUR_TASKS))
    limit(LABEL_TOKENS)
    window("streaming_label", ask(["label"]))
    return results


class _Camera:
    """Publishes noise at a rate on a thread of its own, and takes down when regions and captions come."""

    def __init__(self, client: Client, size: tuple[int, int], rate_hz: float) -> None:
        self.size = size
        self.received = 0
        self._client, self._period_s = client, 1 / rate_hz
        height, width = size
        rng = np.random.default_rng(0)
        self._pictures = [
            array.array("B", rng.integers(0, 256, 3 * height * width, np.uint8).tobytes())
            for _ in range(PICTURES)
        ]
        self._message = Image(height=height, width=width, encoding="rgb8", step=3 * width)
        self._message.header.frame_id = "bench_optical_frame"
        self._sent: dict[tuple[int, int], float] = {}
        self._late_s: dict[tuple[int, int], float] = {}
        self._captions_s: list[float] = []
        best_effort = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
        self._publisher = client.node.create_publisher(Image, "/image", best_effort)
        client.node.create_subscription(RegionArray, "/pam/regions", self._on_regions, 10)
        client.node.create_subscription(StreamingCaption, "/pam/streaming_captions", self._on_caption, 50)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="camera", daemon=True)

    def __enter__(self) -> _Camera:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopping.set()
        self._thread.join()

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
        begin_s, number = time.perf_counter(), 0
        while not self._stopping.is_set():
            stamp: Time = self._client.node.get_clock().now().to_msg()
            self._message.header.stamp = stamp
            self._message.data = self._pictures[number % PICTURES]
            self._sent[stamp.sec, stamp.nanosec] = time.perf_counter()
            self._publisher.publish(self._message)
            number += 1
            time.sleep(max(0.0, begin_s + number * self._period_s - time.perf_counter()))

    def _on_regions(self, message: RegionArray) -> None:
        stamp = message.header.stamp.sec, message.header.stamp.nanosec
        self.received += 1
        if stamp in self._sent:
            self._late_s.setdefault(stamp, time.perf_counter() - self._sent[stamp])

    def _on_caption(self, message: StreamingCaption) -> None:
        if message.final and not message.summary:
            self._captions_s.append(message.latency_s)


def _line(window: Window) -> str:
    """For people."""
    parts = [f"masks for {window.masks} of {window.pictures} pictures"]
    if window.p50_ms is not None:
        parts.append(f"p50 {window.p50_ms:.0f} ms, p99 {window.p99_ms:.0f} ms")
    if window.captions:
        parts.append(f"{window.captions} captions, {window.caption_latency_s:.2f} s late at most")
    if window.answers:
        parts.append(f"{window.answers} answers in {window.answer_p50_s:.2f} s (p50)")
    return "; ".join(parts)


def _percentile(values: Sequence[float], percent: float) -> float | None:
    return round(float(np.percentile(values, percent)), 3) if values else None
