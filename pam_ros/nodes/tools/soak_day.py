"""`pam soak --simulated-hours`: streaming captions of a long time in a short one, by simulated stamps.

A real node with a model that computes nothing gets an image for every simulated second, the next one as soon
as it has answered. Nothing is late, so every clip must be captioned, once, in order, with the right stamps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import psutil
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from vision_msgs.msg import Point2D

from pam_ros.errors import StateError
from pam_ros.msg import Prompt, RegionArray, Status, StreamingCaption
from pam_ros.nodes.conversions import stamp_ns, time_message
from pam_ros.nodes.images import image_message
from pam_ros.nodes.tools.client import Client
from pam_ros.nodes.tools.soak_watch import CaptionLedger, Sample, Trend, captioning_node, trends
from pam_ros.nodes.tools.stand_in import NAME
from pam_ros.output_files import JsonLines

STEP_NS = 1_000_000_007  # between two images: no float64 of today's date holds such a stamp exactly
PERIOD_S = 10.0  # of the rolling captions
LAST_NS = (2**31 - 1) * 10**9  # a stamp's seconds are an int32
FIRST_NS = 1  # simulated clocks begin here; 2^31 and 2^32 ns follow within seconds
SIZE = (48, 64)  # (height, width) of the images, pixels
REGIONS = 2
NEVER_S = 86400.0
AGAIN_S = 1.0  # an image that is not answered for so long was lost on its way, and is sent again
TICK_S = 0.2
PRINT_EVERY_S = 30.0
SHOWN = 5  # wrong captions


@dataclass(frozen=True, slots=True)
class Clip:
    """A clip as it should be captioned: stamps of its first and last image, and how many it has."""

    start_ns: int
    end_ns: int
    pictures: int


@dataclass(frozen=True, slots=True)
class DayResult:
    """The results. `wrong`: descriptions of captions whose clip is not the one that was due."""

    simulated_s: float
    real_s: float
    pictures: int
    sent_again: int
    expected: int  # captions of all regions
    captions: CaptionLedger
    never_came: int
    untracked: int  # images in which a region was not found
    wrong: list[str]
    resident_mib: Trend
    private_mib: Trend
    threads: Trend
    files: Trend

    @property
    def held(self) -> bool:
        """Whether every caption came, once, in order and right, and threads and files stayed flat."""
        ledger = self.captions
        faults = (self.never_came, ledger.missing, ledger.late, ledger.twice, self.untracked, len(self.wrong))
        return not any(faults) and self.threads.flat and self.files.flat

    def lines(self) -> list[str]:
        """The figures, as lines to print."""
        ledger = self.captions
        return [
            f"{self.simulated_s / 3600:.2f} simulated hours in {self.real_s:.0f} s: {self.pictures} images"
            f", {self.sent_again} of them sent again; regions not found in {self.untracked}",
            f"captions: {ledger.final} of {self.expected}; {self.never_came} never came, {ledger.late} late, "
            f"{ledger.twice} twice, {len(self.wrong)} of another clip than was due",
            *self.wrong[:SHOWN],
            f"resident {self.resident_mib} MiB, private {self.private_mib} MiB, threads {self.threads}, "
            f"open files {self.files}",
        ]


def parts_of(hours: float) -> list[range]:
    """The stamps of three parts of equal length, nanoseconds; between parts they jump.

    The first begins with the simulation, the second jumps back to a tenth of it, as a bag that is played in a
    loop, and the third jumps ahead to the last stamps that a message can hold.
    """
    count = max(3 * round(PERIOD_S), round(hours * 3600e9 / STEP_NS / 3))
    firsts = (FIRST_NS, FIRST_NS + count // 10 * STEP_NS, LAST_NS - count * STEP_NS)
    return [range(first, first + count * STEP_NS, STEP_NS) for first in firsts]


def clips_of(stamps_ns: Iterable[int]) -> list[Clip]:
    """The clips of a stream: each ends with the first image that is a period after its first one.

    The next clip begins with that image. If the stamps jump back, the clip that is open is given up.
    """
    clips: list[Clip] = []
    start_ns = before_ns = pictures = 0
    for stamp in stamps_ns:
        if not start_ns or stamp < before_ns:
            start_ns, pictures = stamp, 1
        else:
            pictures += 1
            if stamp - start_ns >= PERIOD_S * 1e9:
                clips.append(Clip(start_ns, stamp, pictures))
                start_ns, pictures = stamp, 1
        before_ns = stamp
    return clips


def run_day(hours: float, out: Path, *, report: Callable[[str], None] = print) -> DayResult:
    """Streams that many simulated hours. Raises StateError if the node fails or does not answer."""
    parameters = {"streaming.period_s": PERIOD_S, "regions.lost_timeout_s": NEVER_S}
    with captioning_node(out, "tools.stand_in", parameters) as (node, _, client, samples):
        return _Day(client, psutil.Process(node.pid), parts_of(hours)).run(samples, report)


class _Day:
    """One run: the executor's thread sends an image when the last one is answered."""

    def __init__(self, client: Client, node: psutil.Process, parts: list[range]) -> None:
        self._client, self._node, self._parts = client, node, parts
        self._left = chain.from_iterable(parts)
        self._now = parts[0][0]  # stamp of the image that was sent last
        self._sent = self._again = self._untracked = 0
        self._ended = False
        self._due: dict[int, list[Clip]] = {}  # of each region, in order
        self._ledger, self._wrong = CaptionLedger(), list[str]()
        pixels = np.full((*SIZE, 3), 90, np.uint8)
        self._picture = image_message(pixels, "rgb8", Header(frame_id="soak_optical_frame"))
        self._camera = client.publisher(Image, "/image", QoSProfile(depth=1))
        client.node.create_subscription(StreamingCaption, "/pam/streaming_captions", self._on_caption, 50)

    def run(self, lines: JsonLines, report: Callable[[str], None]) -> DayResult:
        """Sends every image. Each sample of the process is one of the `lines`."""
        self._prompt()
        self._client.node.create_subscription(RegionArray, "/pam/regions", self._on_regions, 10)
        total = sum(len(part) for part in self._parts)
        samples: list[Sample] = []
        begun_s = printed_s = time.monotonic()
        seen, seen_s = -1, begun_s
        self._send(next(self._left))
        while not self._ended:
            self._client.pause(TICK_S)
            now_s = time.monotonic()
            samples.append(Sample.of(self._node, now_s - begun_s))
            lines.write(asdict(samples[-1]) | {"pictures": self._sent, "captions": self._ledger.final})
            if self._sent > seen:
                seen, seen_s = self._sent, now_s
            elif now_s - seen_s > AGAIN_S:
                seen_s = now_s
                self._again += 1
                self._publish()
            if now_s - printed_s >= PRINT_EVERY_S:
                printed_s = now_s
                line = f"{now_s - begun_s:6.0f} s  {samples[-1].resident_mib:8.1f} MiB"
                report(f"{line}  {self._sent} of {total} images, {self._ledger.final} captions")
        expected = sum(len(clips) for clips in self._due.values())
        with suppress(StateError):
            self._client.wait(lambda: self._ledger.final >= expected, "the last captions")
        return DayResult(
            simulated_s=total * STEP_NS / 1e9,
            real_s=time.monotonic() - begun_s,
            pictures=total,
            sent_again=self._again,
            expected=expected,
            captions=self._ledger,
            never_came=expected - self._ledger.final + self._ledger.twice,
            untracked=self._untracked,
            wrong=self._wrong,
            **trends(samples),
        )

    def _prompt(self) -> None:
        """The regions, in the first image; it is sent until it has arrived, and again with the others."""
        clips = clips_of(chain.from_iterable(self._parts))
        for number in range(REGIONS):
            prompt = Prompt(points=[Point2D(x=9.0 + number, y=9.0)], tasks=["label"])
            while True:
                self._publish()
                answer = self._client.perceive(prompt)
                if answer.status.code == Status.OK:
                    break
                self._client.pause(TICK_S)
            self._due[answer.region.id] = clips

    def _publish(self) -> None:
        self._picture.header.stamp = time_message(self._now)
        self._camera.publish(self._picture)

    def _send(self, stamp: int) -> None:
        self._now = stamp
        self._sent += 1
        self._publish()

    def _on_regions(self, message: RegionArray) -> None:
        if stamp_ns(message.header.stamp) != self._now or self._ended:
            return  # once more, as a text has ended
        found = {region.id for region in message.regions if region.state == region.TRACKED}
        self._untracked += found != set(self._due)
        stamp = next(self._left, None)
        if stamp is None:
            self._ended = True
        else:
            self._send(stamp)

    def _on_caption(self, message: StreamingCaption) -> None:
        self._ledger.take(message)
        if not message.final or message.summary:
            return
        due = self._due.get(message.region_id, [])
        clip = Clip(stamp_ns(message.clip_start), stamp_ns(message.clip_end), message.frame_count)
        stamped = stamp_ns(message.header.stamp) == clip.end_ns
        place = self._ledger.place(message)
        wanted = due[place] if place < len(due) else None
        if clip != wanted or message.text != NAME or not stamped:
            self._wrong.append(
                f"caption {message.sequence} of region {message.region_id} is {message.text!r} of {clip}; "
                f"due: {wanted}"
            )
