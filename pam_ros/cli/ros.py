"""`pam demo` and `pam soak`: the real nodes in processes of their own; both need ROS."""

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
        Path | None, typer.Option("--clip", help="a video to play as camera; default: ours")
    ] = None,
    box: Annotated[str, typer.Option("--box", help="what to prompt on its first picture, pixels")] = "",
    click: Annotated[str, typer.Option("--click", help="the same as one click")] = "",
    period: Annotated[float, typer.Option("--period", help="clip length of a caption, seconds")] = 3.0,
    language: Annotated[str, typer.Option("--language", help="of the captions: en or zh")] = "en",
    model: ModelOption = "pam-tiny",
    device: DeviceOption = "auto",
    out: Annotated[Path, typer.Option("--out", help="folder for what is recorded")] = Path("out/demo"),
) -> None:
    """Play a clip through the real ROS nodes, prompt an object, print captions (needs ROS)."""
    demo_module = _ros_module("demo")
    if clip is None and not box and not click:
        chosen = demo_module.default_input()
    else:
        if not box and not click:
            raise PromptError(
                "say what to prompt on the clip's first picture: --box x1,y1,x2,y2 or --click x,y"
            )
        chosen = demo_module.DemoInput(
            clip=clip or demo_module.default_input().clip,
            box_xyxy=tuple(numbers(box, 4, "--box")) if box else (),
            click_xy=tuple(numbers(click, 2, "--click")) if click else (),
        )
    Language.parse(language)
    writable_folder(out)
    demo_module.run_demo(chosen, out, model=model, device=device, period_s=period, language=language)


def soak(
    minutes: Annotated[float, typer.Option("--minutes", help="how long")] = 10.0,
    limit: Annotated[float, typer.Option("--limit", help="growth after warm-up that fails, percent")] = 3.0,
    model: ModelOption = "pam-tiny",
    device: DeviceOption = "auto",
    out: Annotated[Path, typer.Option("--out", help="folder for the log")] = Path("out/soak"),
) -> None:
    """Run the node for a while with prompts coming and going; fail where its memory grows (needs ROS)."""
    soak_module = _ros_module("soak")
    writable_folder(out)
    result = soak_module.run_soak(minutes, out, model=model, device=device)
    print(
        f"memory grew {result.growth:+.2%} after warm-up, allowed is {limit / 100:+.2%}; "
        f"{result.frames} frames, {result.prompts} prompts, {result.captions} captions"
    )
    if not result.growth <= limit / 100:
        raise typer.Exit(1)


def _ros_module(name: str) -> Any:
    """A module of `pam_ros.nodes.tools`; without ROS the error says what to do."""
    try:
        return importlib.import_module(f"pam_ros.nodes.tools.{name}")
    except ImportError as error:
        raise StateError(
            f"`pam {name}` needs ROS 2 and our interfaces ({error}); source a workspace that has them, "
            f"or in a checkout run: .setup/run.sh pam {name}"
        ) from error
