"""What the groups of commands share: the console, options, prompts and progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pam_ros.errors import PromptError
from pam_ros.records import Prompt, Region

if TYPE_CHECKING:
    from pam_ros.model.pam import Pam

console = Console(stderr=True)

ClickOption = Annotated[
    list[str] | None,
    typer.Option("--click", help="x,y on the object, pixels; may be repeated", metavar="X,Y"),
]
NotOption = Annotated[
    list[str] | None,
    typer.Option("--not", help="x,y not on the object, pixels; may be repeated", metavar="X,Y"),
]
BoxOption = Annotated[
    list[str] | None,
    typer.Option("--box", help="x1,y1,x2,y2, pixels; repeated: several regions", metavar="X1,Y1,X2,Y2"),
]
MaskOption = Annotated[
    list[Path] | None,
    typer.Option("--mask", help="picture, not black on the object; repeated: several regions"),
]
CarryOverOption = Annotated[
    bool,
    typer.Option("--carry-over/--no-carry-over", help="start a clip with the previous one's last frame"),
]
ModelOption = Annotated[str, typer.Option("--model", help="a name (see `pam models`), a hub id or a folder")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, …")]
DtypeOption = Annotated[str, typer.Option("--dtype", help="auto, float32, bfloat16, float16")]
Sam2Option = Annotated[Path | None, typer.Option("--sam2", help="SAM 2's weights, where they lie elsewhere")]


def region_record(region: Region) -> dict[str, Any]:
    """A region as plain JSON values: no mask pixels, box in pixels, texts by task and language."""
    texts: dict[str, dict[str, str]] = {}
    for (task, language), text in region.texts.items():
        texts.setdefault(language.value, {})[task.value] = text.text
    return {
        "id": region.region_id,
        "state": region.state.name.lower(),
        "box_xyxy": [round(float(side), 1) for side in region.box_xyxy],
        "area_px": int(region.mask.sum()),
        "mask_score": round(region.mask_score, 4),
        "presence_score": round(region.presence_score, 4),
        "texts": texts,
    }


def prompts_of(
    click: list[str] | None, not_: list[str] | None, box: list[str] | None, mask: list[Path] | None
) -> list[Prompt]:
    """Options → one prompt a region: clicks with at most one box, or several boxes, and any masks."""
    from pam_ros import media

    on = [numbers(text, 2, "--click") for text in click or []]
    off = [numbers(text, 2, "--not") for text in not_ or []]
    boxes = [numbers(text, 4, "--box") for text in box or []]
    prompts = [Prompt.from_mask(media.read_mask(path)) for path in mask or []]
    if (on or off) and len(boxes) > 1:
        raise PromptError("clicks go with one box at most; several --box are several regions")
    if on or off:
        labels = [1] * len(on) + [0] * len(off)
        prompts.append(Prompt.from_clicks(on + off, labels, boxes[0] if boxes else None))
    else:
        prompts += [Prompt.from_clicks(box_xyxy=corners) for corners in boxes]
    if not prompts:
        raise PromptError("say which region: --click x,y or --box x1,y1,x2,y2 or --mask file")
    return prompts


def numbers(text: str, count: int, option: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != count:
        raise PromptError(f"{option} takes {count} numbers with commas between, not {text!r}")
    return values


def load(name: str, device: str, dtype: str, sam2: Path | None) -> Pam:
    """Loads a model, telling on stderr what is done."""
    from pam_ros.model.loading.checkpoint import load_model
    from pam_ros.threads import in_passing_thread

    with console.status(f"loading {name}") as status:
        return in_passing_thread(
            lambda: load_model(name, device=device, dtype=dtype, sam2=sam2, progress=status.update)
        )


@contextmanager
def progress_bar(what: str, total: int) -> Iterator[Callable[[], None]]:
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(what, total=total)
        yield lambda: progress.advance(task)
