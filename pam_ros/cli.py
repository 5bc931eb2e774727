"""`pam`: perceive, caption, models, fetch, parity, evaluate, scenes; and, with ROS: demo, soak."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import numpy as np
import typer
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from pam_ros.data.cli import scenes_app
from pam_ros.errors import TRAINING_EXTRA, PamError, PromptError, StateError
from pam_ros.output_files import writable_file, writable_folder
from pam_ros.records import Language, Prompt, Region, Task, image_tasks

if TYPE_CHECKING:
    from pam_ros.model.pam import Pam

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help=__doc__,
    rich_markup_mode=None,
)
app.add_typer(scenes_app, name="scenes")
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


@app.command()
def perceive(
    image: Annotated[Path, typer.Argument(help="a picture")],
    click: ClickOption = None,
    not_: NotOption = None,
    box: BoxOption = None,
    mask: MaskOption = None,
    task: Annotated[
        list[str] | None, typer.Option("--task", help="label, explain, brief, detail; may be repeated")
    ] = None,
    language: Annotated[list[str] | None, typer.Option("--language", help="en, zh; may be repeated")] = None,
    model: ModelOption = "pam-tiny",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    sam2: Sam2Option = None,
    out: Annotated[Path, typer.Option("--out", help="folder for masks, overlay.png and result.json")] = Path(
        "out/perceive"
    ),
) -> None:
    """Segment and describe regions of a picture."""
    from pam_ros import media
    from pam_ros.runtime.offline import perceive_image
    from pam_ros.runtime.overlay import draw_overlay

    picture = media.read_image(image)
    prompts = _prompts(click, not_, box, mask)
    for prompt in prompts:
        prompt.check_size(picture.shape[0], picture.shape[1])
    tasks = image_tasks(task or ["label"])
    languages = [Language.parse(code) for code in language or ["en"]]
    writable_folder(out)
    pam = _load(model, device, dtype, sam2)
    growing: dict[tuple[int, str, str], str] = {}
    with Live(console=console, transient=True) as live:

        def show(region_id: int, each: Task, spoken: Language, text: str) -> None:
            growing[region_id, each.value, spoken.value] = text
            live.update("\n".join(f"{i} {t} {lang}: {text}" for (i, t, lang), text in growing.items()))

        regions = perceive_image(pam, picture, prompts, tasks, languages, show)
    for stale in out.glob("mask_*.png"):  # of an earlier run with more regions
        if stale.stem.removeprefix("mask_").isdecimal():
            stale.unlink()
    for region in regions:
        media.write_mask(out / f"mask_{region.region_id}.png", _full_mask(region, picture.shape[:2]))
    media.write_image(out / "overlay.png", draw_overlay(picture, regions))
    result = {"image": str(image), "model": asdict(pam.info), "regions": [region_record(r) for r in regions]}
    (out / "result.json").write_text(
        json.dumps(result, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
    )
    for region in regions:
        for (each, spoken), text in region.texts.items():
            print(f"{region.region_id} {each.value} {spoken.value}: {text.text}")
    console.print(f"wrote {out}/")


@app.command()
def caption(
    video: Annotated[Path, typer.Argument(help="a video file")],
    click: ClickOption = None,
    not_: NotOption = None,
    box: BoxOption = None,
    mask: MaskOption = None,
    every: Annotated[float, typer.Option("--every", help="clip length, seconds")] = 2.0,
    language: Annotated[str, typer.Option("--language", help="en or zh")] = "en",
    carry_over: CarryOverOption = True,
    model: ModelOption = "pam-tiny",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    sam2: Sam2Option = None,
    out: Annotated[
        Path, typer.Option("--out", help="folder for overlay.mp4, captions.jsonl, regions.jsonl")
    ] = Path("out/caption"),
) -> None:
    """Track regions prompted on a video's first frame and caption them clip by clip."""
    from pam_ros import media
    from pam_ros.runtime.offline import caption_video
    from pam_ros.runtime.overlay import draw_overlay

    stamps = media.video_stamps_ns(video)
    prompts = _prompts(click, not_, box, mask)
    first = next(media.read_video(video))
    for prompt in prompts:
        prompt.check_size(*first.size)
    if not every > 0:
        raise PromptError(f"--every is a clip length in seconds above 0, not {every}")
    spoken = Language.parse(language)
    writable_folder(out)
    pam = _load(model, device, dtype, sam2)
    steps = caption_video(
        pam, media.read_video(video), stamps, prompts, every_s=every, language=spoken, carry_over=carry_over
    )
    newest: dict[int, str] = {}
    with (
        media.VideoWriter(out / "overlay.mp4") as film,
        (out / "captions.jsonl").open("w", encoding="utf-8") as captions,
        (out / "regions.jsonl").open("w", encoding="utf-8") as regions,
        _progress("frames", len(stamps)) as advance,
    ):
        for step in steps:
            for each in step.captions:
                newest[each.region_id] = each.text
                print(
                    f"[{each.start_ns / 1e9:.1f}-{each.end_ns / 1e9:.1f} s] {each.region_id}: {each.text}"
                )
                captions.write(
                    json.dumps(asdict(each) | {"language": spoken.value}, ensure_ascii=False) + "\n"
                )
            film.write(draw_overlay(step.frame.image, step.regions, captions=newest), step.frame.stamp_ns)
            line = {"stamp_ns": step.frame.stamp_ns, "regions": [region_record(r) for r in step.regions]}
            regions.write(json.dumps(line, ensure_ascii=False) + "\n")
            advance()
    console.print(f"wrote {out}/")


@app.command()
def models() -> None:
    """List the models, their licences and whether they are on this disk."""
    from pam_ros.errors import ModelNotFoundError
    from pam_ros.model.checkpoint import find_files
    from pam_ros.model.config import list_models

    table = Table("model", "what", "licence", "on this disk")
    for name, description in list_models().items():
        try:
            find_files(name, None)
            present = "yes"
        except ModelNotFoundError:
            present = f"no: pam fetch {name}"
        table.add_row(name, description.summary, description.licence, present)
    Console().print(table)


@app.command()
def fetch(name: Annotated[str, typer.Argument(help="a name of `pam models`")]) -> None:
    """Download a model's files, check them, and print where they lie."""
    from pam_ros.model.fetch import fetch_model

    for line in fetch_model(name):
        console.print(line)


@app.command()
def parity(
    folder: Annotated[Path, typer.Argument(help="golden.json, a SAM 2 yaml, frames/, expected.npz")],
) -> None:
    """Compare with recorded outputs of the reference; exit 0 only if every case agrees."""
    from pam_ros.evaluation.parity import MASK_IOU, RELATIVE_ERROR, run_parity

    with console.status("starting") as status:
        results = run_parity(folder, status.update)
    table = Table("case", "embeds", "logits", "presence", "mask IoU", "tokens", "")
    for row in results:
        errors = [f"{error:.1e}" for error in (row.embeds_error, row.logits_error, row.score_error)]
        tokens = f"{row.tokens_equal}/{row.tokens}"
        table.add_row(row.name, *errors, f"{row.mask_iou:.5f}", tokens, "agrees" if row.passed else "DIFFERS")
    Console(width=100).print(table)
    print(f"bars: relative error at most {RELATIVE_ERROR:.0e}, mask IoU at least {MASK_IOU}, tokens the same")
    if not results or not all(row.passed for row in results):
        raise typer.Exit(1)


@app.command()
def evaluate(
    seed: Annotated[
        list[int] | None, typer.Option("--seed", help="of the test scenes; repeated: mean and spread")
    ] = None,
    count: Annotated[
        int, typer.Option("--count", min=1, help="pictures per seed; a quarter as many videos, at least 1")
    ] = 40,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="instead of a seed: a folder of `pam scenes render`, or PAM's .jsonl"),
    ] = None,
    only: Annotated[str, typer.Option("--only", help="some of masks,video,texts,stream,speed")] = "",
    json_file: Annotated[Path | None, typer.Option("--json", help="file for all numbers")] = None,
    page: Annotated[Path | None, typer.Option("--page", help="folder for index.html with pictures")] = None,
    cache: Annotated[
        Path | None, typer.Option("--cache", help="keep rendered scenes here; empty it when scenes change")
    ] = None,
    judge: Annotated[
        str | None, typer.Option("--judge", help="OpenAI-compatible endpoint for continuity; default: a rule")
    ] = None,
    judge_model: Annotated[str | None, typer.Option("--judge-model", help="its model's name")] = None,
    embedder: Annotated[
        str | None, typer.Option("--embedder", help="sentence-transformers model that compares labels")
    ] = None,
    carry_over: CarryOverOption = True,
    open_meshes: Annotated[
        bool,
        typer.Option("--only-open-meshes", help="ask about other makers' objects alone: `pam scenes meshes`"),
    ] = False,
    model: ModelOption = "pam-tiny",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    sam2: Sam2Option = None,
) -> None:
    """Measure a model on rendered test scenes or on data with known answers, by the paper's metrics.

    docs/evaluation.md says in one line what each metric is.
    """
    from pam_ros.evaluation.report import reasons, rows_of, write_json, write_page
    from pam_ros.evaluation.run import Part, Plan, evaluation

    if data is not None and seed:
        raise PromptError("--data brings its own samples and --seed renders some: give one of them")
    if data is not None and open_meshes:
        raise PromptError("--only-open-meshes is about rendered scenes, not --data: give one of them")
    parts = Part.parse(only)
    plan = Plan(
        tuple(seed or [1]),
        count,
        parts,
        data,
        cache,
        judge,
        judge_model,
        embedder,
        carry_over=carry_over,
        open_meshes=open_meshes,
    )
    if json_file is not None:
        writable_file(json_file)
    for folder in (page, cache):
        if folder is not None:
            writable_folder(folder)
    pam = _load(model, device, dtype, sam2)
    with console.status("evaluating") as status, evaluation(pam, plan, status.update) as found:
        rows = rows_of(found, parts)
        if json_file is not None:
            write_json(json_file, found, plan, model, pam.info)
        if page is not None:
            status.update("drawing the page")
            console.print(f"wrote {write_page(page, found, model, parts)}")
    table = Table("metric", "mean", "over seeds", "answers")
    for row in rows:
        table.add_row(row.metric, row.value_text(), row.spread_text(), str(row.samples))
    Console().print(table)
    for why, keys in reasons(rows):
        print(f"{', '.join(keys)}: no value, as {why}")


@app.command()
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
            box_xyxy=tuple(_numbers(box, 4, "--box")) if box else (),
            click_xy=tuple(_numbers(click, 2, "--click")) if click else (),
        )
    Language.parse(language)
    writable_folder(out)
    demo_module.run_demo(chosen, out, model=model, device=device, period_s=period, language=language)


@app.command()
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


# ---- helpers


def _ros_module(name: str) -> Any:
    """A module of `pam_ros.nodes`; without ROS the error says what to do."""
    try:
        return importlib.import_module(f"pam_ros.nodes.{name}")
    except ImportError as error:
        raise StateError(
            f"`pam {name}` needs ROS 2 and our interfaces ({error}); source a workspace that has them, "
            f"or in a checkout run: .setup/run.sh pam {name}"
        ) from error


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


def _prompts(
    click: list[str] | None, not_: list[str] | None, box: list[str] | None, mask: list[Path] | None
) -> list[Prompt]:
    """Options → one prompt a region: clicks with at most one box, or several boxes, and any masks."""
    from pam_ros import media

    on = [_numbers(text, 2, "--click") for text in click or []]
    off = [_numbers(text, 2, "--not") for text in not_ or []]
    boxes = [_numbers(text, 4, "--box") for text in box or []]
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


def _numbers(text: str, count: int, option: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != count:
        raise PromptError(f"{option} takes {count} numbers with commas between, not {text!r}")
    return numbers


def _load(name: str, device: str, dtype: str, sam2: Path | None) -> Pam:
    """Loads a model, telling on stderr what is done."""
    from pam_ros.model.checkpoint import load_model
    from pam_ros.threads import in_passing_thread

    with console.status(f"loading {name}") as status:
        return in_passing_thread(
            lambda: load_model(name, device=device, dtype=dtype, sam2=sam2, progress=status.update)
        )


def _full_mask(region: Region, size: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    mask = np.zeros(size, np.bool_)
    x1, y1, x2, y2 = region.box_xyxy.astype(int)
    mask[y1:y2, x1:x2] = region.mask
    return mask


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[], None]]:
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(what, total=total)
        yield lambda: progress.advance(task)


def main() -> None:
    """Entry point. Errors of this package are told in one line, exit status 2."""
    try:
        app()
    except PamError as error:
        _end(str(error))
    except ModuleNotFoundError as error:
        if TRAINING_EXTRA not in str(error):
            raise
        _end(str(error))


def _end(why: str) -> NoReturn:
    console.print(f"[bold red]error:[/] {escape(why)}", highlight=False)
    sys.exit(2)


if __name__ == "__main__":
    main()
