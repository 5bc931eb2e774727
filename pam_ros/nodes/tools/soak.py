"""`pam soak`: a synthetic camera with changing prompts and captions; measures the node's memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from statistics import median

import numpy as np
from rclpy.task import Future
from std_msgs.msg import Header
from vision_msgs.msg import Point2D

from pam_ros.msg import Prompt, RegionArray, Status, StreamingCaption
from pam_ros.nodes.conversions import stamp_ns
from pam_ros.nodes.tools.client import Client
from pam_ros.nodes.tools.disturbances import OTHER, Disturbance, Stage, disturbances
from pam_ros.nodes.tools.hostile import Hostile
from pam_ros.nodes.tools.processes import Processes
from pam_ros.nodes.tools.soak_camera import SIZE, object_box
from pam_ros.nodes.tools.soak_watch import CaptionLedger, Toll, Trend, Watch, captioning_node, trends
from pam_ros.output_files import JsonLines
from pam_ros.shared_memory import remove_abandoned
from pam_ros.srv import PerceiveRegion, RemoveRegion

REGIONS = 3  # tracked at a time beside the good one; a new one replaces the oldest
PROMPT_EVERY_S = 3.0
SAMPLE_EVERY_S = 1.0
TICK_S = RANDOM_EVERY_S = 0.02
KIND_S = 8.0  # for which a kind of disturbance lasts; less in a short run, which has every kind, too
ANSWER_TIMEOUT_S = 300.0  # on two cores with a load of 12, one came after 79 s
KEPT = 0.95  # fraction of frames in which the good region must be found


@dataclass(frozen=True, slots=True)
class SoakResult:
    """Figures of the node's process, after warm-up and at the end, and what happened meanwhile."""

    resident_mib: Trend
    private_mib: Trend
    threads: Trend
    files: Trend
    lost: int  # times that the good region was given up, and prompted again
    unanswered: int  # requests about the good region
    prompts: int
    frames: int
    captions: CaptionLedger
    tolls: Mapping[str, Toll]  # by kind of disturbance
    random_messages: int  # hostile ones
    abandoned: int  # segments of shared memory that killed processes left; they were removed

    @property
    def kept(self) -> float:
        """Fraction of the frames in which the undisturbed region was found."""
        ious = [iou for toll in self.tolls.values() for iou in toll.ious]
        return Toll(ious=ious).kept

    def lines(self) -> list[str]:
        """The figures, as lines to print."""
        ious = [iou for toll in self.tolls.values() for iou in toll.ious]
        captions = self.captions
        return [
            f"{self.frames} frames, {self.prompts} prompts, {captions.final} captions",
            f"resident {self.resident_mib} MiB, private {self.private_mib} MiB, threads {self.threads}, "
            f"open files {self.files}",
            f"good region: kept in {self.kept:.1%} of {len(ious)} frames, median IoU {median(ious):.3f}, "
            f"lost {self.lost} times; {self.unanswered} requests about it were not answered",
            f"captions: {captions.missing} missing, {captions.late} late, {captions.twice} twice",
            f"{self.random_messages} random messages; killed processes left {self.abandoned} segments of "
            "shared memory, which were removed",
            *(f"{name}: {toll}" for name, toll in self.tolls.items() if toll.times),
        ]

    @property
    def held(self) -> bool:
        """Whether threads and files stayed flat, no caption was lost, and nothing disturbed the region."""
        flat = self.threads.flat and self.files.flat
        return flat and self.kept >= KEPT and not self.unanswered and not self.captions.twice


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

    `hostile`: meanwhile, every input gets random and corrupted messages, see `hostile.Hostile`, and what
    `disturbances` does to the node.
    """
    parameters = {
        "model": model,
        "device": device,
        "streaming.period_s": 10.0 if hostile else 3.0,
        "texts.max_new_tokens": 12,
        "regions.max": REGIONS + 2,
        "regions.lost_timeout_s": 60.0,
    }
    with (
        captioning_node(out, "main", parameters) as (node, processes, client, samples),
        JsonLines(out / "frames.jsonl") as frames,
    ):
        processes.start_module("tools.soak_camera", log=True)
        watch = Watch(node.pid, frames)
        soak = _Soak(client, watch, _Storm(client, processes, watch, minutes * 60.0) if hostile else None)
        return soak.run(minutes * 60.0, samples, report)


class _Storm:
    """The hostile part: random messages all the time, and one kind of disturbance after another."""

    def __init__(self, client: Client, processes: Processes, watch: Watch, seconds: float) -> None:
        """`seconds`: of the whole run."""
        self._processes, self._watch = processes, watch
        self.stage = Stage(client, processes, Hostile(client, seed=0), self._restart)
        kinds = disturbances()
        self._kinds, self._kind_s = cycle(kinds), min(KIND_S, 0.9 * seconds / len(kinds))
        self._now: Disturbance | None = None
        self._next_kind_s = self._next_message_s = 0.0

    def begin(self) -> None:
        """Starts a client that will be killed, and a second node that must not disturb the first."""
        self._restart("soak_client")
        self._processes.start(
            "other", ["-m", "pam_ros.nodes.tools.stand_in"],
            ros_arguments=["-r", f"__ns:={OTHER}", "-r", "image:=/image"], log=True,
        )  # fmt: skip

    def tick(self) -> None:
        """Sends what is due. Raises StateError if an answer shows a fault."""
        now_s = time.monotonic()
        if now_s >= self._next_kind_s:
            self._next_kind_s = now_s + self._kind_s
            self._change_kind()
        if now_s >= self._next_message_s:
            self._next_message_s = now_s + RANDOM_EVERY_S
            self.stage.hostile.send()
        assert self._now is not None
        self._now.tick(self.stage)

    def _change_kind(self) -> None:
        if self._now is not None:
            self._now.end(self.stage)
            self._watch.tolls[self._now.name].messages += self.stage.messages
        self.stage.messages = 0
        self.stage.abandoned += remove_abandoned()
        self._now = next(self._kinds)
        self._watch.begin(self._now.name)
        self._now.begin(self.stage)

    def _restart(self, name: str) -> None:
        if name == "soak_camera":
            self._processes.start_module(f"tools.{name}", log=True)
        else:
            arguments = ["-m", f"pam_ros.nodes.tools.{name}", str(self._watch.good)]
            self._processes.start(name, arguments, log=True)


class _Soak:
    """One run: prompts, asks about the good region, removes other regions, and samples the process."""

    def __init__(self, client: Client, watch: Watch, storm: _Storm | None) -> None:
        self._client, self._watch, self._storm = client, watch, storm
        self._random = np.random.default_rng(0)
        self._prompts = self._lost = self._unanswered = 0
        self._asked: Future | None = None  # about the good region
        self._asked_s = 0.0
        node = client.node
        self._prompter = node.create_publisher(Prompt, "/pam/prompt", 10)
        node.create_subscription(RegionArray, "/pam/regions", watch.on_regions, 10)
        node.create_subscription(StreamingCaption, "/pam/streaming_captions", watch.captions.take, 50)

    def run(self, seconds: float, samples: JsonLines, report: Callable[[str], None]) -> SoakResult:
        """Goes on for that time. Each sample is a line of `samples`."""
        watch = self._watch
        self._client.wait(lambda: watch.frames, "the first processed frame", 60.0)
        self._prompt_good()
        if self._storm is None:
            watch.begin("prompts and captions")
        else:
            self._storm.begin()
        next_prompt_s = next_print_s = next_sample_s = 0.0
        while (now_s := watch.elapsed_s) < seconds:
            if self._storm is not None:
                self._storm.tick()
            if now_s >= next_prompt_s:
                next_prompt_s = now_s + PROMPT_EVERY_S
                self._prompt()
            if now_s >= next_sample_s:
                next_sample_s = now_s + SAMPLE_EVERY_S
                if watch.gone:
                    self._lost += 1
                    self._prompt_good()
                self._ask()
                sample = watch.sample()
                samples.write(asdict(sample) | {"during": watch.kind})
                if now_s >= next_print_s:
                    next_print_s = now_s + max(seconds / 20, SAMPLE_EVERY_S)
                    report(
                        f"{now_s:6.0f} s  {sample.resident_mib:8.1f} MiB  {watch.frames} frames, "
                        f"{self._prompts} prompts, {watch.captions.final} captions"
                    )
            self._client.pause(TICK_S)
        watch.begin("")
        return self._result()

    def _result(self) -> SoakResult:
        samples, stage = self._watch.samples, self._storm.stage if self._storm is not None else None
        if stage is not None:
            stage.abandoned += remove_abandoned()
        return SoakResult(
            **trends(samples),
            lost=self._lost,
            unanswered=self._unanswered,
            prompts=self._prompts,
            frames=self._watch.frames,
            captions=self._watch.captions,
            tolls=self._watch.tolls,
            random_messages=stage.hostile.sent if stage is not None else 0,
            abandoned=stage.abandoned if stage is not None else 0,
        )

    def _prompt_good(self) -> None:
        """A box around the kettle, in the newest image that the node has shown."""
        stamp, scale = self._watch.newest, self._watch.width / SIZE[1]
        box = [float(value) for value in object_box(stamp_ns(stamp), scale)]
        prompt = Prompt(header=Header(stamp=stamp), box=box, tasks=["label"])
        answer = self._client.perceive(prompt, timeout_s=ANSWER_TIMEOUT_S)
        if answer.status.code == Status.OK:
            self._watch.good, self._watch.gone = answer.region.id, False

    def _prompt(self) -> None:
        """Prompts one more region, and removes the oldest if there are too many; waits for neither."""
        x, y = self._random.uniform((0, 0), (SIZE[1] - 1, SIZE[0] - 1)).tolist()
        self._prompter.publish(Prompt(points=[Point2D(x=x, y=y)], tasks=["label"]))
        self._prompts += 1
        for region_id in self._watch.others[:-REGIONS]:
            request = RemoveRegion.Request(region_id=region_id)
            self._client.start_call(RemoveRegion, "/pam/remove_region", request)

    def _ask(self) -> None:
        """Asks what the good region is, unless an answer may still come."""
        now_s = time.monotonic()
        if self._asked is not None and not self._asked.done():
            if now_s - self._asked_s < ANSWER_TIMEOUT_S:
                return
            self._unanswered += 1
        request = PerceiveRegion.Request(prompt=Prompt(region_id=self._watch.good), without_mask=True)
        toll = self._watch.tolls[self._watch.kind]
        self._asked, self._asked_s = self._client.start_call(PerceiveRegion, "/pam/perceive", request), now_s
        self._asked.add_done_callback(lambda future: toll.answer(future.result(), time.monotonic() - now_s))
