"""`pam demo` and `pam soak`: run the ROS nodes in separate processes (need ROS 2)."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated, Any

import typer

from pam_ros.cli.common import DeviceOption, ModelOption, numbers
from pam_ros.errors import PromptError, StateError
from pam_ros.output_files import writable_folder
from pam_ros.records import Language


def demo(
    clip: Annotated[
        Path | None, typer.Option("--clip", help="video to play as the camera (default: the bundled clip)")
    ] = None,
    box: Annotated[
        str, typer.Option("--box", help="box prompt on the first frame, X1,Y1,X2,Y2 in pixels")
    ] = "",
    click: Annotated[
        str, typer.Option("--click", help="click prompt on the first frame, X,Y in pixels")
    ] = "",
    period: Annotated[float, typer.Option("--period", help="clip length per caption in seconds")] = 3.0,
    language: Annotated[str, typer.Option("--language", help="caption language: en or zh")] = "en",
    model: ModelOption = "pam-tiny",
    device: DeviceOption = "auto",
    out: Annotated[Path, typer.Option("--out", help="output folder")] = Path("out/demo"),
) -> None:
    """Play a clip through the ROS nodes, prompt an object and print its captions (needs ROS 2)."""
    demo_module = _ros_module("demo")
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
    writable_folder(out)
    demo_module.run_demo(chosen, out, model=model, device=device, period_s=period, language=language)


def soak(
    minutes: Annotated[float, typer.Option("--minutes", help="duration in minutes")] = 10.0,
    limit: Annotated[
        float, typer.Option("--limit", help="maximum memory growth after warm-up, percent")
    ] = 3.0,
    model: ModelOption = "pam-tiny",
    device: DeviceOption = "auto",
    out: Annotated[Path, typer.Option("--out", help="output folder for the log")] = Path("out/soak"),
) -> None:
    """Run the node under changing prompts and fail if its memory grows (needs ROS 2)."""
    soak_module = _ros_module("soak")
    writable_folder(out)
    result = soak_module.run_soak(minutes, out, model=model, device=device)
    print(
        f"memory growth after warm-up: {result.growth:+.2%} (limit {limit / 100:+.2%}); "
        f"{result.frames} frames, {result.prompts} prompts, {result.captions} captions"
    )
    if not result.growth <= limit / 100:
        raise typer.Exit(1)


def _ros_module(name: str) -> Any:
    """A module of `pam_ros.nodes.tools`. Raises StateError if ROS is missing."""
    try:
        return importlib.import_module(f"pam_ros.nodes.tools.{name}")
    except ImportError as error:
        raise StateError(
            f"`pam {name}` needs ROS 2 and the pam_ros interfaces ({error}); source a workspace with "
            f"pam_ros, or run .setup/run.sh pam {name} in a checkout"
        ) from error
