"""`pam soak`: a synthetic camera with changing prompts and captions; measures the node's memory."""

from __future__ import annotations

import statistics
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from vision_msgs.msg import Point2D

from pam_ros.geometry import box_ious
from pam_ros.msg import Prompt, RegionArray, StreamingCaption
from pam_ros.nodes.conversions import stamp_ns, time_message
from pam_ros.nodes.images import image_message
from pam_ros.nodes.tools.client import Client
from pam_ros.nodes.tools.hostile import Hostile
from pam_ros.nodes.tools.processes import Process, Processes
from pam_ros.srv import RemoveRegion

LOAD_TIMEOUT_S = 600.0
RATE_HZ = 10.0
SIZE = (240, 320)  # (height, width), pixels
REGIONS = 3  # tracked at a time; a new one replaces the oldest
PROMPT_EVERY_S = 3.0
SAMPLE_EVERY_S = 1.0
CHANGE_EVERY_S = 15.0  # of resolution and parameters, if hostile
HOSTILE_EVERY_SAMPLE = 50  # messages
HOSTILE_REQUEST_EVERY = 5  # samples; some requests survey a whole frame
TURN = 0.05  # of the discs, radians a second: slow enough for a machine that sees a frame a second
DISC_RADIUS = SIZE[0] * 0.12  # pixels
KEPT_STAMPS = 600
GOOD_IOU = 0.5  # of boxes, with the truth
KEPT = 0.95  # share of frames in which the region must be found
WARM_UP_FRACTION = 0.5  # of the time, in which allocators and caches fill


@dataclass(frozen=True, slots=True)
class SoakResult:
    """Resident memory over time, and what happened meanwhile."""

    samples: tuple[tuple[float, float], ...]  # seconds, MiB
    prompts: int
    frames: int
    captions: int
    threads: tuple[int, int]  # after warm-up, at the end
    files: tuple[int, int]  # open ones, likewise
    hostile: int = 0  # messages that were sent
    kept: float = 1.0  # share of the frames in which the region that nobody may disturb was found

    @property
    def held(self) -> bool:
        """Whether threads and files stayed flat, and hostile messages did not disturb the region."""
        flat = all(last <= first * 1.03 + 1 for first, last in (self.threads, self.files))
        return flat and (self.hostile == 0 or self.kept >= KEPT)

    @property
    def growth(self) -> float:
        """Fraction by which the median of the last fifth exceeds that of the fifth after warm-up."""
        end_s = self.samples[-1][0]
        first = [mib for t, mib in self.samples if WARM_UP_FRACTION <= t / end_s < WARM_UP_FRACTION + 0.2]
        last = [mib for t, mib in self.samples if t / end_s >= 0.8]
        return statistics.median(last) / statistics.median(first) - 1.0


def run_soak(
    minutes: float,
    out: Path,
    *,
    model: str,
    device: str,
    hostile: bool = False,
    report: Callable[[str], None] = print,
) -> SoakResult:
    """Runs `pam_node` with rolling captions for that time. Raises StateError if a process fails.

    `hostile`: meanwhile, every input gets random and corrupted messages, see `hostile.Hostile`.
    """
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
            "regions.max": REGIONS + 2,
        }
        process = processes.start_module("main", parameters=parameters, log=True)
        client.wait_for_active(LOAD_TIMEOUT_S)
        return _Soak(client, process, report, hostile).run(minutes * 60.0)


class _Soak:
    """One run: a timer sends frames; the loop prompts, removes regions and samples memory."""

    def __init__(
        self, client: Client, process: Process, report: Callable[[str], None], hostile: bool
    ) -> None:
        self._client, self._process, self._report = client, process, report
        self._hostile = Hostile(client, seed=0) if hostile else None
        self._random = np.random.default_rng(0)
        self._began_s = time.monotonic()
        self._ids: list[int] = []
        self._prompts = self._frames = self._captions = 0
        self._good = 0  # the region that nobody may disturb
        self._samples = 0
        self._seen = self._kept = 0  # frames since it was prompted, and those in which it was found
        self._scale = 1  # of the camera's pictures
        self._sent: OrderedDict[int, float] = OrderedDict()  # stamp → time of the picture
        node = client.node
        self._prompter = node.create_publisher(Prompt, "/pam/prompt", 10)
        self._camera = node.create_publisher(Image, "/image", qos_profile_sensor_data)
        node.create_timer(1.0 / RATE_HZ, self._send)
        node.create_subscription(RegionArray, "/pam/regions", self._count_frame, 10)
        node.create_subscription(StreamingCaption, "/pam/streaming_captions", self._count_caption, 10)

    def run(self, seconds: float) -> SoakResult:
        self._client.wait(lambda: self._frames, "the first processed frame", 60.0)
        self._prompt_good()
        self._began_s = time.monotonic()
        node = psutil.Process(self._process.pid)
        samples: list[tuple[float, float]] = []
        counts: list[tuple[int, int]] = []
        next_prompt_s = next_print_s = next_change_s = 0.0
        while (now_s := self._elapsed()) < seconds:
            if now_s >= next_prompt_s:
                self._prompt()
                next_prompt_s = now_s + PROMPT_EVERY_S
            if self._hostile is not None and now_s >= next_change_s:
                self._change()
                next_change_s = now_s + CHANGE_EVERY_S
            samples.append((self._elapsed(), self._process.resident_mib()))
            if now_s >= seconds * WARM_UP_FRACTION:
                counts.append((node.num_threads(), node.num_fds()))
            if now_s >= next_print_s:
                self._report(
                    f"{now_s:6.0f} s  {samples[-1][1]:8.1f} MiB  {self._frames} frames, "
                    f"{self._prompts} prompts, {self._captions} captions"
                )
                next_print_s = now_s + max(seconds / 20, SAMPLE_EVERY_S)
            self._pass_time()
        counts.append((node.num_threads(), node.num_fds()))
        return SoakResult(
            tuple(samples), self._prompts, self._frames, self._captions,
            threads=(counts[0][0], counts[-1][0]),
            files=(counts[0][1], counts[-1][1]),
            hostile=self._hostile.sent if self._hostile else 0,
            kept=self._kept / max(1, self._seen),
        )  # fmt: skip

    def _elapsed(self) -> float:
        return time.monotonic() - self._began_s

    def _pass_time(self) -> None:
        if self._hostile is None:
            self._client.pause(SAMPLE_EVERY_S)
            return
        self._samples += 1
        if self._samples % HOSTILE_REQUEST_EVERY == 0:
            self._hostile.ask()
        for _ in range(HOSTILE_EVERY_SAMPLE):
            self._hostile.send()
            self._client.pause(SAMPLE_EVERY_S / HOSTILE_EVERY_SAMPLE)

    def _change(self) -> None:
        """The camera's resolution, and a parameter."""
        self._scale = 3 - self._scale
        self._client.set_parameter("/pam", "streaming.period_s", float(self._scale + 1))

    def _prompt_good(self) -> None:
        """A box around the first disc, in the newest picture that the node has shown."""
        stamp, time_s = next(reversed(self._sent.items()))
        box = [float(value) for value in disc_box(time_s)]
        prompt = Prompt(header=Header(stamp=time_message(stamp)), box=box, tasks=["label"])
        answer = self._client.perceive(prompt, timeout_s=LOAD_TIMEOUT_S)
        self._good = answer.region.id

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
        time_s = time.monotonic()
        picture = synthetic_frame(time_s).repeat(self._scale, axis=0).repeat(self._scale, axis=1)
        self._sent[stamp_ns(header.stamp)] = time_s
        if len(self._sent) > KEPT_STAMPS:
            self._sent.popitem(last=False)
        self._camera.publish(image_message(picture, "rgb8", header))

    def _count_frame(self, message: RegionArray) -> None:
        self._frames += 1
        self._ids = [region.id for region in message.regions if region.id != self._good]
        time_s = self._sent.get(stamp_ns(message.header.stamp))
        if not self._good or time_s is None:
            return
        self._seen += 1
        scale = message.image_width / SIZE[1]
        truth = np.array([disc_box(time_s)], np.float32) * scale
        pixels = [region.roi for region in message.regions if region.id == self._good]
        boxes = [(r.x_offset, r.y_offset, r.x_offset + r.width, r.y_offset + r.height) for r in pixels]
        self._kept += bool(boxes) and box_ious(np.array(boxes, np.float32), truth)[0, 0] >= GOOD_IOU

    def _count_caption(self, message: StreamingCaption) -> None:
        self._captions += message.final


def disc_centre(time_s: float, phase: float = 0.0) -> tuple[float, float]:
    """(x, y) in pixels of a disc of `synthetic_frame`."""
    (height, width), angle = SIZE, TURN * time_s + phase
    return width * (0.5 + 0.3 * np.cos(angle)), height * (0.5 + 0.3 * np.sin(angle))


def disc_box(time_s: float) -> tuple[float, float, float, float]:
    """(x1, y1, x2, y2) in pixels of the first disc."""
    (x, y), radius = disc_centre(time_s), DISC_RADIUS
    return x - radius, y - radius, x + radius, y + radius


def synthetic_frame(time_s: float) -> NDArray[np.uint8]:
    """(H, W, 3) RGB: two discs circling over a gradient."""
    height, width = SIZE
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    picture = np.stack([x / width * 120, y / height * 120, np.full_like(x, 60)], axis=2)
    for phase, colour in ((0.0, (230, 60, 40)), (np.pi, (40, 200, 80))):
        centre = disc_centre(time_s, phase)
        picture[(x - centre[0]) ** 2 + (y - centre[1]) ** 2 < DISC_RADIUS**2] = colour
    return picture.astype(np.uint8)
