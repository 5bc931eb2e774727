"""`pam demo`: runs camera, nodes and recorder as processes, prompts an object, prints its captions."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from std_srvs.srv import Trigger
from vision_msgs.msg import Point2D

from pam_ros import videos
from pam_ros.errors import PromptError, StateError
from pam_ros.msg import Prompt, Region, RegionArray, StreamingCaption
from pam_ros.nodes.conversions import caption_shown, region_record, stamp_ns
from pam_ros.nodes.tools.caption_order import CaptionOrder
from pam_ros.nodes.tools.client import Client
from pam_ros.nodes.tools.processes import Process, Processes
from pam_ros.records import Task
from pam_ros.runtime.clip_sampler import decode_stamps
from pam_ros.runtime.options import EngineOptions
from pam_ros.share import share_folder
from pam_ros.srv import CaptionNow

LOAD_TIMEOUT_S = 600.0
ANSWER_TIMEOUT_S = 300.0
FRAME_TIMEOUT_S = 60.0
SHORTEST_CLIP = 0.4  # of the period: a shorter remainder at the clip's end is not captioned


@dataclass(frozen=True, slots=True)
class DemoInput:
    """The clip to play, and the prompt on its first frame."""

    clip: Path
    box_xyxy: tuple[float, ...] = ()
    click_xy: tuple[float, ...] = ()


def default_input() -> DemoInput:
    """The clip that is bundled with the package."""
    folder = share_folder("config", "demo/*.json") / "demo"
    facts = json.loads((folder / "clip.json").read_text(encoding="utf-8"))
    return DemoInput(clip=folder / "clip.mp4", box_xyxy=tuple(facts["prompt_box_xyxy"]))


def run_demo(
    chosen: DemoInput,
    out: Path,
    *,
    model: str,
    device: str,
    period_s: float,
    language: str,
    report: Callable[[str], None] = print,
) -> None:
    """Plays the clip once through all processes; leaves overlay.mp4, regions.jsonl, captions.jsonl.

    Raises PromptError if the node refuses the prompt, StateError if a process fails.
    """
    shown, out = out, out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    with Processes(out) as processes, Client("demo", processes.domain, processes.check) as client:
        report("starting camera, PAM and recorder")
        parameters = {
            "model": model,
            "device": device,
            "autostart": True,
            "streaming.period_s": float(period_s),
            "streaming.language": language,
            "qos_overrides./image.subscription.reliability": "reliable",
        }
        # The clip pauses and ends on purpose: no warning about missing images.
        processes.start_module(
            "main", parameters=parameters, ros_arguments=("--log-level", "pam.images:=error")
        )
        # The camera waits for the node, so that the captions do not depend on the machine.
        clip = {"clip": chosen.clip.resolve(), "hold": True, "follow": "/pam", "max_lag_s": period_s / 2}
        camera = processes.start_module("tools.clip_camera", parameters=clip)
        namespace = ("-r", "__ns:=/pam")
        processes.start_module("tools.recorder", parameters={"out": out}, ros_arguments=namespace, log=True)
        # Before the node is active: the camera shows its first frame until it was answered once.
        frames = client.collect(RegionArray, "/pam/regions", 1)
        client.wait_for_active(LOAD_TIMEOUT_S)
        client.wait(lambda: frames, "the camera's first frame", FRAME_TIMEOUT_S)
        region = _prompt(client, chosen, report)
        stamps_ns = videos.video_stamps_ns(chosen.clip)
        _play(client, camera, Plan(region.id, language, period_s, tuple(stamps_ns)), report)
        codes = {name: processes.end(name) for name in ("clip_camera", "recorder", "main")}
        if any(codes.values()):
            raise StateError(f"processes exited with errors: {codes}")
    for name in ("overlay.mp4", "regions.jsonl", "captions.jsonl"):
        report(f"wrote {shown / name}")


def _prompt(client: Client, chosen: DemoInput, report: Callable[[str], None]) -> Region:
    """Prompts the object; the answer has its texts."""
    points = [Point2D(x=chosen.click_xy[0], y=chosen.click_xy[1])] if chosen.click_xy else []
    prompt = Prompt(
        points=points, box=list(chosen.box_xyxy), tasks=["label", "explain"], languages=["en", "zh"]
    )
    report(
        f"prompting {'box ' + str(chosen.box_xyxy) if chosen.box_xyxy else 'click ' + str(chosen.click_xy)}"
    )
    answer = client.perceive(prompt, timeout_s=ANSWER_TIMEOUT_S, without_mask=True)
    if answer.status.code:
        raise PromptError(answer.status.message)
    texts = region_record(answer.region).texts
    for language in dict.fromkeys(language for _, language in texts):
        label, explanation = texts[Task.LABEL, language].sure_text, texts[Task.EXPLAIN, language].shown
        report(f"region {answer.region.id} is ({language.value}): {label}; {explanation}")
    return answer.region


@dataclass(frozen=True, slots=True)
class Plan:
    """What is captioned: one region, the language, the length of clips, and the stamps of the frames."""

    region_id: int
    language: str
    period_s: float
    stamps_ns: tuple[int, ...]


def _play(client: Client, camera: Process, plan: Plan, report: Callable[[str], None]) -> None:
    """Starts captions and video; at its end it requests the last caption, and waits for those before it."""
    if reason := client.set_parameter("/pam_manager", "streaming.enabled", True):
        raise StateError(f"captions cannot be started: {reason}")
    begin_ns: list[int] = []
    order = CaptionOrder(lambda message: report(_line(message, begin_ns[0])))
    client.node.create_subscription(StreamingCaption, "/pam/streaming_captions", order.take, 50)
    begin_ns.append(int(client.call(Trigger, "/clip_camera/play", Trigger.Request()).message))
    report("playing")
    client.wait(lambda: camera.exit_code is not None, "the end of the clip", timeout_s=3600.0)
    ends_ns = decode_stamps(plan.stamps_ns, plan.period_s, EngineOptions().clip_frames)
    left_s = (plan.stamps_ns[-1] - ([plan.stamps_ns[0], *ends_ns][-1])) / 1e9
    expected = len(ends_ns)
    if left_s >= SHORTEST_CLIP * plan.period_s:
        request = CaptionNow.Request(region_id=plan.region_id, language=plan.language)
        answer = client.call(CaptionNow, "/pam/caption_now", request, ANSWER_TIMEOUT_S)
        if answer.status.code:
            report(f"no last caption: {answer.status.message}")
        else:
            expected += 1
    with suppress(StateError):
        client.wait(lambda: order.next_of(plan.region_id) >= expected, "the captions", ANSWER_TIMEOUT_S)
    order.release(everything=True)
    if (came := order.next_of(plan.region_id)) < expected:
        report(f"{expected - came} of {expected} captions did not arrive")


def _line(message: StreamingCaption, begin_ns: int) -> str:
    """A caption with the times of its clip, seconds from the start of the video."""
    start_s, end_s = (
        round((stamp_ns(stamp) - begin_ns) / 1e9, 1) + 0.0  # no "-0.0"
        for stamp in (message.clip_start, message.clip_end)
    )
    about = f"{message.frame_count} frames, {message.latency_s:.1f} s later"
    return f"[{start_s}-{end_s} s] region {message.region_id}: {caption_shown(message)} ({about})"
