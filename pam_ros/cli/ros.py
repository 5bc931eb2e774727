"""Commands that need ROS 2: `pam demo`, `pam soak`, `pam bench-node`, and `pam bag`, which runs no node."""

from __future__ import annotations

import importlib
import json
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from pam_ros.cli.common import (
    LONGEST_S,
    SHORTEST_S,
    VIDEO_RESULTS,
    AtOption,
    BoxOption,
    CarryOverOption,
    ClickOption,
    DeviceOption,
    DtypeOption,
    EveryOption,
    JsonOption,
    LanguagesOption,
    MaskOption,
    ModelOption,
    NotOption,
    QuantizationOption,
    Sam2Option,
    TaskOption,
    caption_line,
    check_model,
    clip_length,
    inputs,
    load,
    named_times,
    numbers,
    out_folder,
    prompts_of,
    within,
)
from pam_ros.cli.output import json_target, note, partly, progress_bar
from pam_ros.errors import PromptError, StateError
from pam_ros.model.descriptions import AUTO
from pam_ros.model.loading.options import REGIONS, LoadOptions
from pam_ros.output_files import result_folder, writable_folder, write_text
from pam_ros.records import Language, Prompt, image_tasks

SOAK_RESULTS = ("samples.jsonl", "frames.jsonl")


def demo(
    clip: Annotated[
        Path | None,
        typer.Option(
            "--clip", help="video to play as the camera (default: the bundled clip)", metavar="FILE"
        ),
    ] = None,
    box: Annotated[
        str, typer.Option("--box", help="box prompt on the first frame, pixels", metavar="X1,Y1,X2,Y2")
    ] = "",
    click: Annotated[
        str, typer.Option("--click", help="click prompt on the first frame, pixels", metavar="X,Y")
    ] = "",
    period: Annotated[
        float,
        typer.Option(
            "--period",
            callback=within(SHORTEST_S, LONGEST_S),
            help="clip length per caption in seconds",
            metavar="SECONDS",
        ),
    ] = 3.0,
    language: Annotated[
        str, typer.Option("--language", help="caption language: en or zh", metavar="LANGUAGE")
    ] = "en",
    model: ModelOption = AUTO,
    device: DeviceOption = "auto",
    out: Annotated[Path, out_folder("output folder")] = Path("out/demo"),
) -> None:
    """Play a clip through the ROS nodes (needs ROS 2).

    Prompts an object on the first frame and prints its captions.
    """
    from pam_ros import videos

    check_model(model)
    frame = next(videos.read_video(clip)) if clip is not None else None  # raises before any process starts
    demo_module = ros_module("demo", "demo")
    if clip is None and not box and not click:
        chosen = demo_module.default_input()
    else:
        if not box and not click:
            raise PromptError("--clip needs a prompt on its first frame: --box X1,Y1,X2,Y2 or --click X,Y")
        chosen = demo_module.DemoInput(
            clip=clip or demo_module.default_input().clip,
            box_xyxy=tuple(numbers(box, 4, "--box")) if box else (),
            click_xy=tuple(numbers(click, 2, "--click")) if click else (),
        )
    Language.parse(language)
    frame = frame or next(videos.read_video(chosen.clip))
    clicks = [chosen.click_xy] if chosen.click_xy else []
    prompt = Prompt.from_clicks(clicks, [1] * len(clicks), chosen.box_xyxy or None)
    prompt.check_size(*frame.size)
    result_folder(out, VIDEO_RESULTS, inputs(model, None, chosen.clip))
    files = f"{out}/ has what came so far: overlay.mp4, regions.jsonl, captions.jsonl"
    with partly(lambda: files if (out / "captions.jsonl").is_file() else "nothing was written"):
        demo_module.run_demo(chosen, out, model=model, device=device, period_s=period, language=language)


def soak(
    minutes: Annotated[
        float,
        typer.Option(
            "--minutes", callback=within(0.1, 100_000), help="duration in minutes", metavar="MINUTES"
        ),
    ] = 10.0,
    limit: Annotated[
        float,
        typer.Option(
            "--limit",
            callback=within(0, 1000),
            help="maximum memory growth after warm-up, percent",
            metavar="PERCENT",
        ),
    ] = 3.0,
    hostile: Annotated[
        bool,
        typer.Option(
            "--hostile",
            help="also send random and corrupted messages and floods, kill clients, change parameters",
        ),
    ] = False,
    simulated_hours: Annotated[
        float | None,
        typer.Option(
            "--simulated-hours",
            callback=within(0.02, 1000),
            help="instead, stream captions over simulated time, without a model",
            metavar="HOURS",
        ),
    ] = None,
    model: ModelOption = AUTO,
    device: DeviceOption = "auto",
    out: Annotated[Path, out_folder("output folder for the log")] = Path("out/soak"),
) -> None:
    """Check that the node's memory does not grow (needs ROS 2).

    Runs the node under changing prompts and exits with 1 if its memory grows beyond the limit, its threads or
    open files increase, an undisturbed region is lost, or a request gets no answer. With --simulated-hours,
    every caption must arrive exactly once, in order and with the right stamps.
    """
    if hostile and simulated_hours is not None:
        raise typer.BadParameter("--hostile and --simulated-hours cannot be combined")
    check_model(model)
    module = ros_module("soak" if simulated_hours is None else "soak_day", "soak")
    result_folder(out, SOAK_RESULTS, inputs(model, None))
    with partly(lambda: f"{out}/ has the node's log and what was measured so far; nothing was judged"):
        if simulated_hours is None:
            result = module.run_soak(minutes, out, model=model, device=device, hostile=hostile)
        else:
            result = module.run_day(simulated_hours, out)
    print(f"memory growth after warm-up: {result.resident_mib.growth:+.2%} (limit {limit / 100:+.2%})")
    for line in result.lines():
        print(line)
    if not (result.resident_mib.growth <= limit / 100 and result.held):
        raise typer.Exit(1)


def bench_node(
    size: Annotated[
        str, typer.Option("--size", help="size of the images, pixels", metavar="WIDTH,HEIGHT")
    ] = "1280,720",
    rate: Annotated[
        float, typer.Option("--rate", callback=within(0.1, 240), help="images per second", metavar="HZ")
    ] = 30.0,
    seconds: Annotated[
        float, typer.Option("--seconds", callback=within(1, 3600), help="length of each window")
    ] = 10.0,
    random_weights: Annotated[
        bool,
        typer.Option("--random-weights", help="pam-3b or pam-1.5b with random weights, without a download"),
    ] = False,
    layer: Annotated[
        bool,
        typer.Option("--layer", help="only the node's own cost, with a model that computes nothing"),
    ] = False,
    json_file: JsonOption = None,
    model: ModelOption = AUTO,
    device: DeviceOption = "auto",
    out: Annotated[Path, out_folder("output folder for the node's log")] = Path("out/bench_node"),
) -> None:
    """Measure the real node over DDS (needs ROS 2).

    It plays a camera, with one region and texts. docs/bench/README.md explains the figures.
    """
    width, height = (int(side) if side.is_integer() else 0 for side in numbers(size, 2, "--size"))
    if min(width, height) < 16:
        raise PromptError(f"--size {size!r}; allowed: whole pixels, at least 16,16")
    if not (random_weights or layer):
        check_model(model)
    module = ros_module("bench_layer" if layer else "bench_node", "bench-node")
    writable_folder(out)
    json_file = json_target(json_file, inputs(model, None))
    about: dict[str, Any] = {"size": size, "rate_hz": rate}
    pictures = {"size": (height, width), "rate_hz": rate, "seconds": seconds}
    with TemporaryDirectory() as folder:
        if layer:
            result = module.run_bench_layer(out, **pictures)
        else:
            about = {"model": model, "random_weights": random_weights, **about}
            if random_weights:
                from pam_ros.model.loading.random_weights import save_random_model

                save_random_model(LoadOptions(model, device=device), Path(folder))
            result = module.run_bench_node(
                out, model=folder if random_weights else model, device=device, **pictures
            )
    if json_file is not None:
        write_text(json_file, json.dumps({"about": about, **result}, indent=1) + "\n")


def bag(
    file: Annotated[Path, typer.Argument(help="bag folder or .mcap file", metavar="BAG")],
    click: ClickOption = None,
    not_: NotOption = None,
    box: BoxOption = None,
    mask: MaskOption = None,
    image: Annotated[
        str, typer.Option("--image", help="image topic, if the bag has several", metavar="TOPIC")
    ] = "",
    detections: Annotated[
        str, typer.Option("--detections", help="topic of a detector's boxes in the bag", metavar="TOPIC")
    ] = "",
    depth: Annotated[
        str,
        typer.Option(
            "--depth", help="topic of depth aligned to the images; adds positions of regions", metavar="TOPIC"
        ),
    ] = "",
    camera_info: Annotated[
        str,
        typer.Option(
            "--camera-info", help="camera_info topic (default: next to the image topic)", metavar="TOPIC"
        ),
    ] = "",
    rectified: Annotated[
        bool, typer.Option("--rectified", help="the images are rectified: P of camera_info applies")
    ] = False,
    depth_tolerance: Annotated[
        float,
        typer.Option(
            "--depth-tolerance",
            help="largest difference between the stamps of an image and its depth",
            callback=within(0.0, 10.0),
            metavar="SECONDS",
        ),
    ] = 0.05,
    node: Annotated[
        str,
        typer.Option(
            "--node", help="write NODE/regions, …; apply prompts recorded on NODE/prompt", metavar="NODE"
        ),
    ] = "/pam",
    task: TaskOption = None,
    language: LanguagesOption = None,
    every: EveryOption = None,
    at: AtOption = None,
    carry_over: CarryOverOption = True,
    overlay: Annotated[bool, typer.Option("--overlay", help="also write NODE/overlay/compressed")] = False,
    model: ModelOption = AUTO,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    quantization: QuantizationOption = "none",
    sam2: Sam2Option = None,
    out: Annotated[Path, out_folder("new bag to write")] = Path("out/bag"),
) -> None:
    """Add masks, texts and captions to a bag (needs ROS 2).

    Writes a new bag with the images and the results. Prompts apply to the first image. The stamps of the
    images are the clock, and no image is dropped.
    """
    from pam_ros.runtime.options import EngineOptions

    check_model(model, sam2)
    module = ros_module("bag", "bag")
    given = click or not_ or box or mask
    languages = tuple(dict.fromkeys(Language.parse(code) for code in language or ["en"]))
    prompts = tuple(prompts_of(click, not_, box, mask)) if given else ()
    room = max(REGIONS, len(prompts))
    plan = module.BagPlan(
        bag=file,
        out=out,
        prompts=prompts,
        defaults=module.PromptDefaults(image_tasks(task or ["label"]), languages),
        options=EngineOptions(
            max_regions=room,
            max_queued_requests=2 * room,
            streaming=True,
            caption_period_s=clip_length(every, at),
            caption_language=languages[0],
            carry_over=carry_over,
        ),
        image=image,
        detections=detections,
        node=module.node_name(node),
        at_s=named_times(at),
        overlay=overlay,
        depth=module.DepthPlan(depth, camera_info, rectified, depth_tolerance) if depth else None,
    )
    found = module.inspect(plan)
    pam = load(LoadOptions(model, device, dtype, sam2, quantization, regions=room))
    done = 0
    partial = partly(lambda: f"{out}/ has the results of {done} of {found.count} images")
    steps = module.run_bag(pam, plan, found, note)
    with partial, closing(steps), progress_bar("images", found.count) as advance:
        for step in steps:
            for each in step.captions:
                print(caption_line(each, found.first_ns), flush=True)
            for warning in step.warnings:
                note(f"warning: {warning}")
            done += 1
            advance()
    note(f"wrote {out}/")


def ros_module(name: str, command: str) -> Any:
    """A module of `pam_ros.nodes.tools`, for a command of `pam`. Raises StateError if ROS is missing."""
    try:
        return importlib.import_module(f"pam_ros.nodes.tools.{name}")
    except ImportError as error:
        raise StateError(
            f"`pam {command}` needs ROS 2 and the pam_ros interfaces ({error}); source a workspace with "
            f"pam_ros, or run .setup/run.sh pam {command} in a checkout"
        ) from error
