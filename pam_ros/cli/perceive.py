"""`pam perceive` describes regions of an image; `pam caption` captions regions of a video."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.live import Live
from rich.text import Text

from pam_ros.cli.common import (
    VIDEO_RESULTS,
    AtOption,
    BoxOption,
    BudgetOption,
    CarryOverOption,
    ClickOption,
    DeviceOption,
    DtypeOption,
    EveryOption,
    ImageArgument,
    JsonFlag,
    LanguagesOption,
    MaskOption,
    MaxRegionsOption,
    ModelOption,
    NotOption,
    QuantizationOption,
    Sam2Option,
    TaskOption,
    TextServerOption,
    boxes_of,
    caption_line,
    clip_length,
    inputs,
    load,
    named_times,
    out_folder,
    prompts_of,
    within,
)
from pam_ros.cli.output import console, note, partly, progress_bar
from pam_ros.errors import PromptError, nothing_found
from pam_ros.geometry import full_mask
from pam_ros.json_results import caption_json, region_json
from pam_ros.model.descriptions import AUTO
from pam_ros.model.loading.options import REGIONS, LoadOptions
from pam_ros.output_files import JsonLines, remove, result_folder, write_text, writing
from pam_ros.records import Language, Prompt, Region, RegionState, Task, image_tasks, percent

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pam_ros.model.interface import ModelInfo
    from pam_ros.runtime.events import CaptionEvent
    from pam_ros.runtime.offline import VideoStep
    from pam_ros.runtime.requests import SurveyRequest, SurveyResult

SUMMARY = "summary.jsonl"


def perceive(
    image: ImageArgument,
    click: ClickOption = None,
    not_: NotOption = None,
    box: BoxOption = None,
    mask: MaskOption = None,
    everything: Annotated[
        bool, typer.Option("--all", help="everything in view, without a prompt; --box replaces the search")
    ] = False,
    max_regions: MaxRegionsOption = 24,
    budget: BudgetOption = 60.0,
    task: TaskOption = None,
    language: LanguagesOption = None,
    model: ModelOption = AUTO,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    quantization: QuantizationOption = "none",
    sam2: Sam2Option = None,
    text_server: TextServerOption = "",
    as_json: JsonFlag = False,
    out: Annotated[Path, out_folder("output folder: masks, overlay.png, result.json")] = Path("out/perceive"),
) -> None:
    """Segment and describe regions of an image.

    Labels that the model is not sure of end with a question mark. Exits with 1 if a prompt found nothing.
    """
    from pam_ros import media
    from pam_ros.runtime.offline import perceive_image, survey_image
    from pam_ros.runtime.requests import SurveyRequest

    pixels = media.read_image(image)
    prompts = []
    if not everything:
        prompts = prompts_of(click, not_, box, mask, also=", or --all")
    elif click or not_ or mask:
        raise PromptError(
            "--all can be combined with --box only, which replaces the search; leave out the others"
        )
    for prompt in prompts:
        prompt.check_size(pixels.shape[0], pixels.shape[1])
    tasks = image_tasks(task or ["label"])
    languages = [Language.parse(code) for code in language or ["en"]]
    if everything:
        survey = SurveyRequest(
            tasks,
            tuple(languages),
            boxes_xyxy=boxes_of(box),
            max_regions=max_regions,
            budget_s=budget,
        )
        _check_survey(survey, pixels)
    result_folder(out, _image_results(out), inputs(model, sam2, image, *(mask or ())))
    pam = load(LoadOptions(model, device, dtype, sam2, quantization, text_server=text_server))
    with growing_texts() as show:
        if everything:
            found = survey_image(pam, pixels, survey, show)
            regions = list(found.regions)
        else:
            regions = perceive_image(pam, pixels, prompts, tasks, languages, show)
    if everything:
        _note_missing(found, budget)
    _write_regions(out, image, pixels, pam.info, regions)
    nothing = say_nothing_found(regions, as_json=as_json)
    for region in regions:
        if as_json:
            print(_line(region_json(region)))
        else:
            for (each, spoken), text in region.texts.items():
                sure = "" if text.confidence is None else f" ({percent(text.confidence)})"
                print(f"{region.region_id} {each.value} {spoken.value}: {text.shown}{sure}")
    note(f"wrote {out}/")
    if nothing:
        raise typer.Exit(1)


def find(
    image: ImageArgument,
    request: Annotated[
        str, typer.Argument(help='what you need, e.g. "something to cut with"', metavar="REQUEST")
    ],
    box: BoxOption = None,
    min_score: Annotated[
        float | None,
        typer.Option(
            "--min-score",
            callback=within(0.0, 1.0),
            help="lowest score that fits (default: that of the parameter find.min_score)",
            metavar="SCORE",
        ),
    ] = None,
    max_regions: MaxRegionsOption = 24,
    budget: BudgetOption = 60.0,
    language: Annotated[
        str,
        typer.Option(
            "--language", help="language of the request: en or zh (default: detected)", metavar="LANGUAGE"
        ),
    ] = "",
    model: ModelOption = AUTO,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    quantization: QuantizationOption = "none",
    sam2: Sam2Option = None,
    others: Annotated[
        int,
        typer.Option(
            "--others", callback=within(0), help="also print the best N that do not fit", metavar="N"
        ),
    ] = 0,
    as_json: JsonFlag = False,
    out: Annotated[Path, out_folder("output folder: masks, overlay.png, result.json")] = Path("out/find"),
) -> None:
    """Find the object in an image that serves a purpose.

    Prints what fits, the best first, with its score. Exits with 1 if nothing does.
    """
    from pam_ros import media
    from pam_ros.runtime.offline import survey_image
    from pam_ros.runtime.options import EngineOptions
    from pam_ros.runtime.requests import SurveyRequest, purpose_of

    pixels = media.read_image(image)
    purpose, spoken = purpose_of(request, language)
    survey = SurveyRequest(
        languages=(spoken,),
        purpose=purpose,
        boxes_xyxy=boxes_of(box),
        max_regions=max_regions,
        budget_s=budget,
        min_score=min_score,
    )
    _check_survey(survey, pixels)
    result_folder(out, _image_results(out), inputs(model, sam2, image))
    pam = load(LoadOptions(model, device, dtype, sam2, quantization))
    with growing_texts() as show:
        found = survey_image(pam, pixels, survey, show)
    _note_missing(found, budget)
    fitting = found.fitting(EngineOptions().find_min_score if min_score is None else min_score)
    _write_regions(out, image, pixels, pam.info, list(found.regions[:fitting]))
    for place, (region, score) in enumerate(zip(found.regions, found.scores, strict=True)):
        fits = place < fitting
        if as_json:
            print(_line(region_json(region) | {"score": round(score, 4), "fits": fits}))
        else:
            mark = f"fits: region {region.region_id}," if fits else "does not fit:"
            box_xyxy = ",".join(f"{side:.0f}" for side in region.box_xyxy)
            if place < fitting + others:
                text = region.texts[Task.EXPLAIN, spoken].shown
                print(f"{mark} score {score:.2f}, box {box_xyxy}: {text}")
    note(f"wrote {out}/")
    if not fitting:
        if not as_json:
            best = f"; the best of {len(found.scores)} scores {found.scores[0]:.2f}" if found.scores else ""
            print(f"nothing fits{best}")
        raise typer.Exit(1)


def _check_survey(survey: SurveyRequest, pixels: NDArray[np.uint8]) -> None:
    """Raises InputError, before a model is loaded, for a request that it would refuse."""
    from pam_ros.runtime.requests import check_survey

    check_survey(survey)
    for each in survey.boxes_xyxy or ():
        Prompt.from_clicks(box_xyxy=each).check_size(pixels.shape[0], pixels.shape[1])


def _note_missing(found: SurveyResult, budget_s: float) -> None:
    """Prints why there may be more than was found."""
    for warning in found.warnings:
        note(f"warning: {warning}")
    if not found.complete:
        note(f"the budget of {budget_s:g} s ended before everything was searched; raise --budget")


@contextmanager
def growing_texts() -> Iterator[Callable[[int, Task, Language, str], None]]:
    """Shows texts while they grow: the callback of `runtime.offline`."""
    growing: dict[tuple[int, str, str], str] = {}
    with Live(console=console, transient=True) as live:

        def show(region_id: int, each: Task, spoken: Language, text: str) -> None:
            growing[region_id, each.value, spoken.value] = text
            lines = (f"{i} {t} {lang}: {text}" for (i, t, lang), text in growing.items())
            live.update(Text("\n".join(lines)))

        yield show


def caption(
    video: Annotated[
        Path,
        typer.Argument(
            help="video file; clicks and boxes are pixels of the image as players show it", metavar="VIDEO"
        ),
    ],
    click: ClickOption = None,
    not_: NotOption = None,
    box: BoxOption = None,
    mask: MaskOption = None,
    every: EveryOption = None,
    at: AtOption = None,
    language: Annotated[str, typer.Option("--language", help="en or zh", metavar="LANGUAGE")] = "en",
    carry_over: CarryOverOption = True,
    summary: Annotated[
        bool, typer.Option("--summary", help="merge each region's captions into one text: summary.jsonl")
    ] = False,
    model: ModelOption = AUTO,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    quantization: QuantizationOption = "none",
    sam2: Sam2Option = None,
    text_server: TextServerOption = "",
    as_json: JsonFlag = False,
    out: Annotated[Path, out_folder("output folder: overlay.mp4, captions.jsonl, regions.jsonl")] = Path(
        "out/caption"
    ),
) -> None:
    """Caption regions of a video, clip by clip.

    The regions are prompted on the first frame and tracked from there. Exits with 1 if a prompt found
    nothing.
    """
    from pam_ros import videos
    from pam_ros.runtime.offline import caption_video, decode_times

    stamps = videos.video_stamps_ns(video)
    prompts = prompts_of(click, not_, box, mask)
    first = next(videos.read_video(video))
    for prompt in prompts:
        prompt.check_size(*first.size)
    every_s = clip_length(every, at)
    times_ns = decode_times(named_times(at), stamps, carry_over=carry_over)
    spoken = Language.parse(language)
    result_folder(out, (*VIDEO_RESULTS, SUMMARY), inputs(model, sam2, video, *(mask or ())))
    remove(out / SUMMARY)  # of an earlier run
    room = max(REGIONS, len(prompts))
    options = LoadOptions(model, device, dtype, sam2, quantization, regions=room, text_server=text_server)
    pam = load(options)
    steps = caption_video(
        pam,
        videos.read_video(video, note),
        prompts,
        every_s=every_s,
        decode_times_ns=times_ns,
        language=spoken,
        carry_over=carry_over,
    )
    last, nothing = _write_video(out, steps, stamps, pam.info.mark, as_json=as_json)
    if summary:
        lines = [_line(_caption_record(each)) for each in last.summaries]
        write_text(out / SUMMARY, "".join(f"{line}\n" for line in lines))
        for each, line in zip(last.summaries, lines, strict=True):
            print(line if as_json else f"summary {caption_line(each)}")
    note(f"wrote {out}/")
    if nothing:
        raise typer.Exit(1)


def _write_regions(
    out: Path, source: Path, pixels: NDArray[np.uint8], info: ModelInfo, regions: list[Region]
) -> None:
    """Writes the masks, overlay.png and result.json of one image."""
    from pam_ros import media
    from pam_ros.runtime.overlay import draw_overlay

    remove(out / "result.json")  # of an earlier run, as its masks are replaced
    with partly(lambda: f"{out}/ is incomplete: it has masks, but no result.json"):
        masks = [out / f"mask_{region.region_id}.png" for region in regions]
        for path, region in zip(masks, regions, strict=True):
            media.write_mask(path, full_mask(region.box_xyxy, region.mask, pixels.shape))
        for stale in set(_mask_files(out)) - set(masks):
            remove(stale)
    found = [region for region in regions if region.state is RegionState.TRACKED]
    media.write_image(out / "overlay.png", draw_overlay(pixels, found, mark=info.mark))
    result = {"image": str(source), "model": asdict(info), "regions": [region_json(r) for r in regions]}
    write_text(out / "result.json", json.dumps(result, ensure_ascii=False, indent=1) + "\n")


def _image_results(out: Path) -> list[str]:
    """Names of the files that will be written or removed."""
    return ["overlay.png", "result.json", *(path.name for path in _mask_files(out))]


def _mask_files(out: Path) -> list[Path]:
    with writing(out):  # e.g. a name that is too long
        return [path for path in out.glob("mask_*.png") if path.stem.removeprefix("mask_").isdecimal()]


def say_nothing_found(regions: Iterable[Region], *, as_json: bool) -> bool:
    """Prints which prompts have found nothing; returns whether there are any."""
    lost = [region for region in regions if region.state is RegionState.LOST]
    for region in lost:
        said = f"{region.region_id} {nothing_found(region.mask_score, region.presence_score)}"
        (note if as_json else print)(said)
    return bool(lost)


def _write_video(
    out: Path, steps: Generator[VideoStep, None, None], stamps_ns: Sequence[int], mark: str, *, as_json: bool
) -> tuple[VideoStep, bool]:
    """Writes overlay.mp4, captions.jsonl and regions.jsonl step by step; prints the captions.

    `stamps_ns`: stamps of all frames, counted before.
    Returns the last step, and whether a prompt has found nothing.
    """
    from pam_ros import media
    from pam_ros.runtime.overlay import LastSeen, draw_overlay

    newest: dict[int, str] = {}
    nothing = False
    last_seen = LastSeen()
    frames, frame_count = 0, len(stamps_ns)
    with (
        closing(steps),
        partly(lambda: f"{out}/ has the results of {frames} of {frame_count} frames"),
        media.VideoWriter(out / "overlay.mp4") as film,
        JsonLines(out / "captions.jsonl") as captions,
        JsonLines(out / "regions.jsonl") as regions,
        progress_bar("frames", frame_count) as advance,
    ):
        for number, step in enumerate(steps):
            if number == 0:
                nothing = say_nothing_found(step.regions, as_json=as_json)
            for each in step.captions:
                newest[each.region_id] = each.shown
                record = _caption_record(each)
                print(_line(record) if as_json else caption_line(each), flush=True)
                captions.write(record)
            for warning in step.warnings:
                note(f"warning: {warning}")
            drawn = draw_overlay(
                step.frame.image,
                step.regions,
                captions=newest,
                last_seen=last_seen.update(step.regions),
                mark=mark,
            )
            film.write(drawn, step.frame.stamp_ns)
            regions.write(
                {"stamp_ns": step.frame.stamp_ns, "regions": [region_json(r) for r in step.regions]}
            )
            frames += 1
            advance()
    if frames < frame_count and step.frame.stamp_ns < stamps_ns[-1]:
        note(f"warning: the video ended after {frames} of {frame_count} frames; has its file been changed?")
    return step, nothing


def _line(record: dict[str, Any]) -> str:
    """One line of JSON for stdout, with text in any script unescaped."""
    return json.dumps(record, ensure_ascii=False)


def _caption_record(event: CaptionEvent) -> dict[str, Any]:
    return caption_json(
        region_id=event.region_id,
        sequence=event.sequence,
        language=event.language,
        text=event.text,
        confidence=event.confidence,
        unsure=event.unsure,
        clip_start_ns=event.clip_start_ns,
        clip_end_ns=event.clip_end_ns,
        frame_count=event.frame_count,
        clip_too_thin=event.clip_too_thin,
        summary=event.summary,
    )
