"""Options that several commands share, and their values: prompts, numbers, models."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pam_ros.api import EVERY_S, prompts
from pam_ros.cli.output import note, working
from pam_ros.errors import InputError, PromptError
from pam_ros.model.descriptions import AUTO
from pam_ros.model.loading.options import LoadOptions
from pam_ros.records import Prompt
from pam_ros.runtime.requests import MAX_SURVEY_REGIONS

if TYPE_CHECKING:
    from pam_ros.evaluation.bench_paths import EngineKind
    from pam_ros.model.interface import PerceptionModel
    from pam_ros.runtime.events import CaptionEvent

SHORTEST_S, LONGEST_S = 0.1, 3600.0  # of a clip
VIDEO_RESULTS = ("overlay.mp4", "captions.jsonl", "regions.jsonl")  # of a captioned video


def within(low: float, high: float = math.inf) -> Callable[[float | None], float | None]:
    """Callback of an option: refuses a number out of range, "nan" included, before anything starts."""

    def check(value: float | None) -> float | None:
        if value is not None and not low <= value <= high:
            allowed = f"{low:g} or more" if high == math.inf else f"{low:g} to {high:g}"
            raise typer.BadParameter(f"{value:g}; allowed: {allowed}")
        return value

    return check


def folder_of(value: str | Path) -> Path:
    """The folder that an option names; no name would be the current folder. Raises BadParameter for it."""
    if value == "":
        raise typer.BadParameter("the name is empty; give a folder, or . for the current one")
    return Path(value)


def out_folder(what: str) -> Any:
    """The option `--out`; `what` says what is written there."""
    return typer.Option("--out", parser=folder_of, help=what, metavar="FOLDER")


JsonOption = Annotated[
    Path | None,
    typer.Option("--json", help="write all figures to this JSON file; - is stdout", metavar="FILE"),
]
JsonFlag = Annotated[bool, typer.Option("--json", help="print JSON instead of text")]
TextServerOption = Annotated[
    str,
    typer.Option(
        "--text-server", help="vLLM server that generates the texts (docs/text_server.md)", metavar="URL"
    ),
]
ImageArgument = Annotated[
    Path,
    typer.Argument(
        help="image file; clicks and boxes are pixels of the image as viewers show it", metavar="IMAGE"
    ),
]
ClickOption = Annotated[
    list[str] | None,
    typer.Option("--click", help="pixel on the object; all clicks are one region", metavar="X,Y"),
]
NotOption = Annotated[
    list[str] | None,
    typer.Option("--not", help="pixel outside the object; repeatable", metavar="X,Y"),
]
BoxOption = Annotated[
    list[str] | None,
    typer.Option("--box", help="box in pixels; repeat for several regions", metavar="X1,Y1,X2,Y2"),
]
MaskOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--mask",
        help="mask image, white or opaque on the object; repeat for several regions",
        metavar="FILE",
    ),
]
MaxRegionsOption = Annotated[
    int,
    typer.Option(
        "--max-regions", callback=within(1, MAX_SURVEY_REGIONS), help="maximum number of regions", metavar="N"
    ),
]
BudgetOption = Annotated[
    float,
    typer.Option(
        "--budget", callback=within(0.001, 60.0), help="time for the search, seconds", metavar="SECONDS"
    ),
]
CarryOverOption = Annotated[
    bool,
    typer.Option(
        "--carry-over/--no-carry-over", help="start each clip with the last frame of the previous one"
    ),
]
TaskOption = Annotated[
    list[str] | None,
    typer.Option("--task", help="label (default), explain, brief or detail; repeatable", metavar="TASK"),
]
LanguagesOption = Annotated[
    list[str] | None,
    typer.Option("--language", help="en (default) or zh; repeatable, preferred first", metavar="LANGUAGE"),
]
EveryOption = Annotated[
    float | None, typer.Option("--every", help="clip length in seconds (default: 2)", metavar="SECONDS")
]
AtOption = Annotated[
    str | None,
    typer.Option(
        "--at",
        help="decode timestamps instead of --every: seconds at which clips end, e.g. 3,7.5,12",
        metavar="SECONDS,…",
    ),
]
ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        help="auto (the best on this disk that fits), a name (see `pam models`), a hub id or a folder",
        metavar="MODEL",
    ),
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, …", metavar="DEVICE")]
DtypeOption = Annotated[
    str, typer.Option("--dtype", help="auto, float32, bfloat16 or float16", metavar="DTYPE")
]
QuantizationOption = Annotated[
    str,
    typer.Option(
        "--quantization",
        help="weights of the language model's linear layers: none, int8 or int4 (needs torchao)",
        metavar="KIND",
    ),
]
EngineOption = Annotated[
    str,
    typer.Option(
        "--engine", help="plain, or fast (what the node uses on a GPU; CUDA only)", metavar="ENGINE"
    ),
]
Sam2Option = Annotated[
    Path | None, typer.Option("--sam2", help="SAM 2 weights file, if not next to the model", metavar="FILE")
]


def engine_kind(name: str) -> EngineKind:
    """The path that `--engine` names. Raises InputError for another name."""
    from pam_ros.evaluation.bench_paths import EngineKind

    if name not in (kinds := [kind.value for kind in EngineKind]):
        raise InputError(f"unknown engine {name!r}; allowed: {', '.join(kinds)}")
    return EngineKind(name)


def prompts_of(
    click: list[str] | None,
    not_: list[str] | None,
    box: list[str] | None,
    mask: list[Path] | None,
    also: str = "",
) -> list[Prompt]:
    """Options → one prompt per region, see `api.prompts`; `also` completes the error if there is none."""
    if not (click or box or mask):
        if not_:
            raise PromptError("--not needs a --click, --box or --mask on the object")
        raise PromptError(f"no region given; use --click X,Y, --box X1,Y1,X2,Y2 or --mask FILE{also}")
    return prompts(
        clicks=[(x, y) for x, y in (numbers(text, 2, "--click") for text in click or [])],
        not_clicks=[(x, y) for x, y in (numbers(text, 2, "--not") for text in not_ or [])],
        boxes=boxes_of(box) or (),
        masks=mask or (),
    )


def clip_length(every: float | None, at: str | None) -> float:
    """--every in seconds, or its default. Raises PromptError if out of range, or if --at is given, too."""
    if every is not None and at is not None:
        raise PromptError("give --every or --at, not both")
    if every is not None and not SHORTEST_S <= every <= LONGEST_S:
        raise PromptError(f"--every must be {SHORTEST_S:g} to {LONGEST_S:g} seconds, not {every:g}")
    return EVERY_S if every is None else every


def named_times(at: str | None) -> tuple[float, ...]:
    """--at → seconds; () without it. Raises PromptError unless they increase."""
    try:
        times_s = () if at is None else tuple(numbers(at, at.count(",") + 1, "--at"))
    except PromptError:
        raise PromptError(f"--at takes seconds separated by commas, as in 3,7.5,12, not {at!r}") from None
    for before, after in pairwise(times_s):
        if after <= before:
            raise PromptError(f"--at must be in increasing order: {after:g} comes after {before:g}")
    return times_s


def boxes_of(box: list[str] | None) -> tuple[tuple[float, float, float, float], ...] | None:
    """--box options → corners; None without any."""
    corners = (numbers(text, 4, "--box") for text in box or [])
    return tuple((x1, y1, x2, y2) for x1, y1, x2, y2 in corners) or None


def numbers(text: str, count: int, option: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != count or "_" in text:  # Python reads 390_0 as 3900
        raise PromptError(f"{option} takes {count} comma-separated numbers, not {text!r}")
    return values


def check_model(name: str, sam2: Path | None = None) -> None:
    """Rejects an unknown model before slow imports. Raises ModelNotFoundError or CheckpointError."""
    from pam_ros.model.loading.files import find_files

    if name != AUTO:
        find_files(name, sam2)


def inputs(model: str, sam2: Path | None, *paths: Path | None) -> tuple[Path | None, ...]:
    """All files and folders that a command reads: no output may replace one of them."""
    return Path(model).expanduser(), sam2, *paths


def load(options: LoadOptions) -> PerceptionModel:
    """Opens a model as the node does, on the fastest path; shows progress on stderr."""
    check_model(options.model, options.sam2)
    from pam_ros.model.opening import open_model
    from pam_ros.threads import in_temporary_thread

    with working(f"loading {options.model}") as report:
        return in_temporary_thread(lambda: open_model(options, progress=report, note=note))


def caption_line(caption: CaptionEvent, zero_ns: int = 0) -> str:
    """A caption as a line to print, with its clip's time in seconds from `zero_ns`.

    Its confidence is left out: it is not calibrated, and a percentage would look as if it were.
    """
    start_s, end_s = ((ns - zero_ns) / 1e9 for ns in (caption.clip_start_ns, caption.clip_end_ns))
    return f"[{start_s:.1f}-{end_s:.1f} s] region {caption.region_id}: {caption.shown}"
