"""`pam soak`: a synthetic camera with changing prompts and captions; measures the node's memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from vision_msgs.msg import Point2D

from pam_ros.msg import Prompt, RegionArray, StreamingCaption
from pam_ros.nodes.images import image_message
from pam_ros.nodes.tools.client import Client
from pam_ros.nodes.tools.processes import Process, Processes
from pam_ros.srv import RemoveRegion

LOAD_TIMEOUT_S = 600.0
RATE_HZ = 10.0
SIZE = (240, 320)  # (height, width), pixels
REGIONS = 3  # tracked at a time; a new one replaces the oldest
PROMPT_EVERY_S = 3.0
SAMPLE_EVERY_S = 1.0
WARM_UP_FRACTION = 0.5  # of the time, in which allocators and caches fill


@dataclass(frozen=True, slots=True)
class SoakResult:
    """Resident memory over time, and what happened meanwhile."""

    samples: tuple[tuple[float, float], ...]  # seconds, MiB
    prompts: int
    frames: int
    captions: int

    @property
    def growth(self) -> float:
        """Fraction by which the median of the last fifth exceeds that of the fifth after warm-up."""
        end_s = self.samples[-1][0]
        first = [mib for t, mib in self.samples if WARM_UP_FRACTION <= t / end_s < WARM_UP_FRACTION + 0.2]
        last = [mib for t, mib in self.samples if t / end_s >= 0.8]
        return statistics.median(last) / statistics.median(first) - 1.0


def run_soak(
    minutes: float, out: Path, *, model: str, device: str, report: Callable[[str], None] = print
) -> SoakResult:
    """Runs `pam_node` with rolling captions for that time. Raises StateError if a process fails."""
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    with Processes(out) as processes, Client("soak", processes.domain, processes.check) as client:
        parameters = {
            "model": model,
            "device": device,
            "autostart": True,
            "streaming.enabled": True,
            "streaming.period_s": 3.0,
            "texts.max_new_tokens": 12,
            "regions.max": REGIONS + 1,
        }
        process = processes.start_module("main", parameters=parameters, log=True)
        client.wait_for_active(LOAD_TIMEOUT_S)
        return _Soak(client, process, report).run(minutes * 60.0)


class _Soak:
    """One run: a timer sends frames; the loop prompts, removes regions and samples memory."""

    def __init__(self, client: Client, process: Process, report: Callable[[str], None]) -> None:
        self._client, self._process, self._report = client, process, report
        self._random = np.random.default_rng(0)
        self._began_s = time.monotonic()
        self._ids: list[int] = []
        self._prompts = self._frames = self._captions = 0
        node = client.node
        self._prompter = node.create_publisher(Prompt, "/pam/prompt", 10)
        self._camera = node.create_publisher(Image, "/image", qos_profile_sensor_data)
        node.create_timer(1.0 / RATE_HZ, self._send)
        node.create_subscription(RegionArray, "/pam/regions", self._count_frame, 10)
        node.create_subscription(StreamingCaption, "/pam/streaming_captions", self._count_caption, 10)

    def run(self, seconds: float) -> SoakResult:
        self._client.wait(lambda: self._frames, "the first processed frame", 60.0)
        self._began_s = time.monotonic()
        samples: list[tuple[float, float]] = []
        next_prompt_s = next_print_s = 0.0
        while (now_s := self._elapsed()) < seconds:
            if now_s >= next_prompt_s:
                self._prompt()
                next_prompt_s = now_s + PROMPT_EVERY_S
            samples.append((self._elapsed(), self._process.resident_mib()))
            if now_s >= next_print_s:
                self._report(
                    f"{now_s:6.0f} s  {samples[-1][1]:8.1f} MiB  {self._frames} frames, "
                    f"{self._prompts} prompts, {self._captions} captions"
                )
                next_print_s = now_s + max(seconds / 20, SAMPLE_EVERY_S)
            self._client.pause(SAMPLE_EVERY_S)
        return SoakResult(tuple(samples), self._prompts, self._frames, self._captions)

    def _elapsed(self) -> float:
        return time.monotonic() - self._began_s

    def _prompt(self) -> None:
        """Prompts one more region without waiting for it, and removes the oldest if there are too many."""
        x, y = self._random.uniform((0, 0), (SIZE[1] - 1, SIZE[0] - 1)).tolist()
        self._prompter.publish(Prompt(points=[Point2D(x=x, y=y)], tasks=["label"]))
        self._prompts += 1
        while len(self._ids) > REGIONS:
            request = RemoveRegion.Request(region_id=self._ids.pop(0))
            self._client.call(RemoveRegion, "/pam/remove_region", request)

    def _send(self) -> None:
        header = Header(stamp=self._client.node.get_clock().now().to_msg(), frame_id="soak_optical_frame")
        self._camera.publish(image_message(synthetic_frame(time.monotonic()), "rgb8", header))

    def _count_frame(self, message: RegionArray) -> None:
        self._frames += 1
        self._ids = [region.id for region in message.regions]

    def _count_caption(self, message: StreamingCaption) -> None:
        self._captions += message.final


def synthetic_frame(time_s: float) -> NDArray[np.uint8]:
    """(H, W, 3) RGB: two discs circling over a gradient."""
    height, width = SIZE
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    picture = np.stack([x / width * 120, y / height * 120, np.full_like(x, 60)], axis=2)
    for phase, colour in ((0.0, (230, 60, 40)), (np.pi, (40, 200, 80))):
        centre = (width * (0.5 + 0.3 * np.cos(time_s + phase)), height * (0.5 + 0.3 * np.sin(time_s + phase)))
        picture[(x - centre[0]) ** 2 + (y - centre[1]) ** 2 < (height * 0.12) ** 2] = colour
    return picture.astype(np.uint8)
