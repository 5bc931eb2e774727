"""`pam demo`: clip as camera, PAM and recorder as real processes; prompts an object, prints captions."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from std_srvs.srv import Trigger
from vision_msgs.msg import Point2D

from pam_ros.errors import PromptError, StateError
from pam_ros.msg import Prompt, Region, RegionArray, StreamingCaption
from pam_ros.nodes.conversions import stamp_ns
from pam_ros.nodes.tools.processes import Client, Processes, client
from pam_ros.share import share_folder
from pam_ros.srv import CaptionNow, PerceiveRegion

LOAD_TIMEOUT_S = 600.0
ANSWER_TIMEOUT_S = 300.0
FRAME_TIMEOUT_S = 60.0
SHORTEST_CLIP = 0.4  # of the period: what the clip's end leaves over may be too short to tell anything of


@dataclass(frozen=True, slots=True)
class DemoInput:
    """What is played, and what is prompted on its first picture."""

    clip: Path
    box_xyxy: tuple[float, ...] = ()
    click_xy: tuple[float, ...] = ()


def default_input() -> DemoInput:
    """The clip that ships with the package."""
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
    tell: Callable[[str], None] = print,
) -> None:
    """Runs the whole chain once through the clip; leaves overlay.mp4, regions.jsonl, captions.jsonl.

    Raises PromptError where the node refuses the prompt, StateError where a process fails.
    """
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    with Processes(out) as processes, client("demo", processes) as robot:
        tell("starting camera, PAM and recorder")
        processes.start(
            "main",
            {
                "model": model,
                "device": device,
                "autostart": True,
                "streaming.period_s": float(period_s),
                "streaming.language": language,
            },
        )
        processes.start("clip_camera", {"clip": chosen.clip.resolve(), "hold": True})
        processes.start("recorder", {"out": out}, remaps=["__ns:=/pam"], log=True)
        robot.wait_for_active(LOAD_TIMEOUT_S)
        _wait_for_frame(robot)
        region = _prompt(robot, chosen, tell)
        _play(robot, processes, region.id, period_s, language, tell)
        codes = {module: processes.end(module) for module in ("recorder", "main")}
        if any(codes.values()):
            raise StateError(f"a process did not end well: {codes}")
    for name in ("overlay.mp4", "regions.jsonl", "captions.jsonl"):
        tell(f"wrote {out / name}")


def _wait_for_frame(robot: Client) -> None:
    """Until the node has worked on a picture: before that there is nothing to prompt on."""
    frames: list[RegionArray] = []
    listener = robot.node.create_subscription(RegionArray, "/pam/regions", frames.append, 1)
    robot.wait(lambda: frames, "the camera's first picture", FRAME_TIMEOUT_S)
    robot.node.destroy_subscription(listener)


def _prompt(robot: Client, chosen: DemoInput, tell: Callable[[str], None]) -> Region:
    """Asks what the object is; the answer has its mask and texts."""
    points = [Point2D(x=chosen.click_xy[0], y=chosen.click_xy[1])] if chosen.click_xy else []
    prompt = Prompt(
        points=points, box=list(chosen.box_xyxy), tasks=["label", "explain"], languages=["en", "zh"]
    )
    tell(f"prompting {'box ' + str(chosen.box_xyxy) if chosen.box_xyxy else 'click ' + str(chosen.click_xy)}")
    answer = robot.call(
        PerceiveRegion, "/pam/perceive", PerceiveRegion.Request(prompt=prompt), ANSWER_TIMEOUT_S
    )
    if answer.status.code:
        raise PromptError(answer.status.message)
    for text in answer.region.texts:
        tell(f"region {answer.region.id} is ({text.language}): {text.label}; {text.explanation}")
    return answer.region


def _play(
    robot: Client,
    processes: Processes,
    region_id: int,
    period_s: float,
    language: str,
    tell: Callable[[str], None],
) -> None:
    """Starts captions and clip; at the clip's end the last caption is asked for."""
    camera = processes.running["clip_camera"]
    on = Parameter("streaming.enabled", value=True).to_parameter_msg()
    robot.call(SetParameters, "/pam_manager/set_parameters", SetParameters.Request(parameters=[on]))
    begin_ns = int(robot.call(Trigger, "/clip_camera/play", Trigger.Request()).message)
    printer = _printer(begin_ns, SHORTEST_CLIP * period_s, tell)
    robot.node.create_subscription(StreamingCaption, "/pam/streaming_captions", printer, 50)
    tell("playing")
    robot.wait(lambda: camera.poll() is not None, "the clip's end", timeout_s=3600.0)
    if processes.end("clip_camera"):
        raise StateError("the camera process failed")
    request = CaptionNow.Request(region_id=region_id, language=language)
    answer = robot.call(CaptionNow, "/pam/caption_now", request, ANSWER_TIMEOUT_S)
    if answer.status.code:
        tell(f"no last caption: {answer.status.message}")
    robot.spin(1.0)


def _printer(
    begin_ns: int, shortest_s: float, tell: Callable[[str], None]
) -> Callable[[StreamingCaption], None]:
    """Prints captions with their clips' times, seconds from the clip's begin."""

    def show(message: StreamingCaption) -> None:
        start_s, end_s = (
            round((stamp_ns(stamp) - begin_ns) / 1e9, 1) + 0.0  # no "-0.0"
            for stamp in (message.clip_start, message.clip_end)
        )
        if message.final and end_s - start_s >= shortest_s:
            span = f"{start_s} to {end_s} s"
            tell(f"[{span}] region {message.region_id}: {message.text} ({message.latency_s:.1f} s later)")

    return show
