"""What `pam soak` measures: memory, threads and files of the node, the good region, captions, answers."""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path

import numpy as np
import psutil
from builtin_interfaces.msg import Time

from pam_ros.errors import StateError
from pam_ros.geometry import box_ious
from pam_ros.msg import Region, RegionArray, Status, StreamingCaption
from pam_ros.nodes.conversions import stamp_ns
from pam_ros.nodes.tools.client import Client
from pam_ros.nodes.tools.processes import Process, Processes
from pam_ros.nodes.tools.soak_camera import SIZE, object_box
from pam_ros.output_files import JsonLines
from pam_ros.runtime.failures import kind_of
from pam_ros.srv import PerceiveRegion

LOAD_TIMEOUT_S = 600.0
GOOD_IOU = 0.4  # of boxes, with the truth: the region counts as found; a kettle without its handle has 0.5
MAX_WARM_UP_S = 600.0  # in which allocators and caches fill; half of a shorter run
FLAT = 0.03  # by which threads and files may grow, and one
WINDOW_FRACTION = 1 / 3  # of the time after warm-up, at its beginning and at its end, that is compared


@contextmanager
def captioning_node(
    out: Path, module: str, parameters: Mapping[str, object]
) -> Iterator[tuple[Process, Processes, Client, JsonLines]]:
    """An active node with rolling captions, started by a module of `pam_ros.nodes`.

    Yields its process, all processes of the run, a client, and the file samples.jsonl in the folder `out`.
    """
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    with (
        Processes(out) as processes,
        Client("soak", processes.domain, processes.check) as client,
        JsonLines(out / "samples.jsonl") as samples,
    ):
        captioning = {"autostart": True, "streaming.enabled": True}
        node = processes.start_module(module, parameters=captioning | dict(parameters), log=True)
        client.wait_for_active(LOAD_TIMEOUT_S)
        yield node, processes, client, samples


@dataclass(frozen=True, slots=True)
class Sample:
    """The node's process at one time. `private_mib`: resident memory without shared and mapped files."""

    time_s: float
    resident_mib: float
    private_mib: float
    threads: int
    files: int

    @classmethod
    def of(cls, process: psutil.Process, time_s: float) -> Sample:
        """As it is now. Raises StateError if it has ended."""
        lines = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii").splitlines()
        pairs = dict(line.split(":", 1) for line in lines)
        if "VmRSS" not in pairs:  # nobody has asked for its exit code yet
            raise StateError(f"process {process.pid} has ended")
        resident, private = (int(pairs[key].split()[0]) / 1024 for key in ("VmRSS", "RssAnon"))
        return cls(time_s, resident, private, int(pairs["Threads"]), process.num_fds())


@dataclass(frozen=True, slots=True)
class Trend:
    """The median of a figure at the beginning and at the end of the time after warm-up."""

    first: float
    last: float

    @property
    def growth(self) -> float:
        """As a fraction of the first."""
        return self.last / self.first - 1.0

    @property
    def flat(self) -> bool:
        """Whether a count, of threads or files, does not grow."""
        return self.last <= self.first * (1 + FLAT) + 1

    def __str__(self) -> str:
        return f"{self.first:.5g} → {self.last:.5g} ({self.growth:+.2%})"

    @classmethod
    def of(cls, samples: Sequence[Sample], figure: Callable[[Sample], float]) -> Trend:
        """Windows of equal length: directly after warm-up, and the last."""
        end_s = samples[-1].time_s
        begin_s = min(MAX_WARM_UP_S, end_s / 2)
        window_s = (end_s - begin_s) * WINDOW_FRACTION
        first = [figure(each) for each in samples if begin_s <= each.time_s <= begin_s + window_s]
        last = [figure(each) for each in samples if each.time_s >= end_s - window_s]
        return cls(statistics.median(first), statistics.median(last))


def trends(samples: Sequence[Sample]) -> dict[str, Trend]:
    """Every figure of the process, by its name in `Sample`."""
    return {
        name: Trend.of(samples, attrgetter(name))
        for name in ("resident_mib", "private_mib", "threads", "files")
    }


@dataclass(slots=True)
class Toll:
    """What happened during one kind of disturbance.

    Attributes:
        times: how often it was begun.
        messages: that were sent, without random ones.
        ious: of the good region with the truth, one for each processed frame; 0 if it was not there.
        answers_s, refused: of `~/perceive` about the good region.
    """

    times: int = 0
    seconds: float = 0.0
    messages: int = 0
    ious: list[float] = field(default_factory=list)
    answers_s: list[float] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)

    def answer(self, response: PerceiveRegion.Response, after_s: float) -> None:
        """An answer has come."""
        self.answers_s.append(after_s)
        if response.status.code != Status.OK:
            self.refused[kind_of(response.status.message)] += 1

    @property
    def kept(self) -> float:
        """Fraction of the frames in which the good region was where it should be."""
        return float(np.mean([iou >= GOOD_IOU for iou in self.ious])) if self.ious else 1.0

    def __str__(self) -> str:
        median_s, slowest_s = (f(self.answers_s or [math.nan]) for f in (statistics.median, max))
        refused = "".join(f"; {count} refused: {why}" for why, count in self.refused.items())
        return (
            f"{self.times} times, {self.seconds:.0f} s, {self.messages} messages; "
            f"region kept in {self.kept:.1%} of {len(self.ious)} frames; "
            f"{len(self.answers_s)} answers, median {median_s:.2f} s, slowest {slowest_s:.2f} s{refused}"
        )


class CaptionLedger:
    """Whether the final captions of every region come in order, none missing and none twice."""

    def __init__(self) -> None:
        self.final = self.late = self.twice = 0
        self._next: Counter[int] = Counter()  # region → sequence
        self._missing: dict[int, set[int]] = defaultdict(set)  # region → sequences that were passed over
        self._summaries: dict[int, set[int]] = defaultdict(set)  # region → sequences of summaries

    @property
    def missing(self) -> int:
        """How many never came so far, although a later one did."""
        return sum(len(each - self._summaries[region]) for region, each in self._missing.items())

    def place(self, message: StreamingCaption) -> int:
        """How many captions of its region come before this one; summaries do not count."""
        sequence: int = message.sequence
        return sequence - sum(each < sequence for each in self._summaries[message.region_id])

    def take(self, message: StreamingCaption) -> None:
        """A caption; those that still grow, and summaries, do not count."""
        region, sequence = message.region_id, message.sequence
        if message.summary:
            self._summaries[region].add(sequence)
        if not message.final or message.summary:
            return
        self.final += 1
        if sequence >= self._next[region]:
            self._missing[region].update(range(self._next[region], sequence))
            self._next[region] = sequence + 1
        elif sequence in self._missing[region]:
            self._missing[region].remove(sequence)
            self.late += 1
        else:
            self.twice += 1


class Watch:
    """Records what the node publishes and what its process needs. Callbacks come on another thread."""

    def __init__(self, pid: int, frames: JsonLines) -> None:
        """`frames`: gets a line for every processed frame."""
        self._lines = frames
        self._process = psutil.Process(pid)
        self._begun_s = self._kind_s = time.monotonic()
        self.newest, self.width = Time(), SIZE[1]  # stamp and width in pixels of the newest processed frame
        self.kind = ""  # of the current disturbance
        self.tolls: dict[str, Toll] = defaultdict(Toll)
        self.samples: list[Sample] = []
        self.captions = CaptionLedger()
        self.good = 0  # id of the undisturbed region; 0 before it exists
        self.others: list[int] = []  # ids of the other regions, the oldest first
        self.gone = False  # whether the node has given the good region up
        self.frames = 0

    @property
    def elapsed_s(self) -> float:
        """Since it began."""
        return time.monotonic() - self._begun_s

    def begin(self, kind: str) -> None:
        """Another kind begins; the first one when the time does."""
        now_s = time.monotonic()
        if self.kind:
            self.tolls[self.kind].seconds += now_s - self._kind_s
        else:
            self._begun_s = now_s
        self.kind, self._kind_s = kind, now_s
        if kind:
            self.tolls[kind].times += 1

    def sample(self) -> Sample:
        """Records one."""
        self.samples.append(Sample.of(self._process, self.elapsed_s))
        return self.samples[-1]

    def on_regions(self, message: RegionArray) -> None:
        """A processed frame: is the good region where the camera has drawn it?"""
        if message.header.stamp == self.newest:
            return  # once more, as a text has ended
        self.newest, self.width = message.header.stamp, message.image_width
        self.frames += 1
        self.others = [region.id for region in message.regions if region.id != self.good]
        toll = self.tolls[self.kind]
        if not self.good:
            return
        scale = message.image_width / SIZE[1]
        truth = np.array([object_box(stamp_ns(message.header.stamp), scale)], np.float32)
        found = next((region for region in message.regions if region.id == self.good), None)
        self.gone, found = found is None, found or Region()
        roi = found.roi
        box = (roi.x_offset, roi.y_offset, roi.x_offset + roi.width, roi.y_offset + roi.height)
        toll.ious.append(float(box_ious(np.array([box], np.float32), truth)[0, 0]))
        line = {
            "time_s": round(self.elapsed_s, 3),
            "stamp_ns": stamp_ns(message.header.stamp),
            "iou": round(toll.ious[-1], 3),
            "mask_score": round(found.mask_score, 3),
            "presence_score": round(found.presence_score, 3),
            "regions": len(message.regions),
            "during": self.kind,
        }
        self._lines.write(line)
