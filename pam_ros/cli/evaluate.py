"""`pam evaluate`: measures a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from pam_ros.cli.common import (
    CarryOverOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    QuantizationOption,
    Sam2Option,
    check_model,
    folder_of,
    inputs,
    load,
    within,
)
from pam_ros.cli.output import json_target, note, table_console, working
from pam_ros.errors import OutputError, PromptError
from pam_ros.model.descriptions import AUTO
from pam_ros.model.loading.options import LoadOptions
from pam_ros.output_files import result_folder, writable_folder

if TYPE_CHECKING:
    from pam_ros.evaluation.confidence import Bin

SeedOption = Annotated[
    list[int] | None,
    typer.Option(
        "--seed", help="seed of the test scenes; repeat for mean and standard deviation", metavar="N"
    ),
]
CountOption = Annotated[
    int,
    typer.Option(
        "--count", callback=within(1), help="images per seed; a quarter as many videos (at least 1)"
    ),
]
DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data",
        help="evaluate this data instead: a folder of `pam scenes render`, or a PAM .jsonl file",
        metavar="PATH",
    ),
]
OnlyOption = Annotated[
    str,
    typer.Option(
        "--only",
        help="comma-separated parts: masks,video,texts,find,stream,speed (default: these), surfaces",
        metavar="PARTS",
    ),
]
PageOption = Annotated[
    Path | None,
    typer.Option("--page", parser=folder_of, help="write an HTML report to this folder", metavar="FOLDER"),
]
CacheOption = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        parser=folder_of,
        help="cache rendered scenes in this folder; delete it if the simulator changes",
        metavar="FOLDER",
    ),
]
JudgeOption = Annotated[
    str | None,
    typer.Option(
        "--judge",
        help="OpenAI-compatible endpoint that judges continuity (default: offline rule)",
        metavar="URL",
    ),
]
JudgeModelOption = Annotated[
    str | None, typer.Option("--judge-model", help="model name at the --judge endpoint", metavar="NAME")
]
EmbedderOption = Annotated[
    str | None,
    typer.Option(
        "--embedder",
        help="sentence-transformers model for label similarity (default: string similarity)",
        metavar="NAME",
    ),
]
OpenMeshesOption = Annotated[
    bool,
    typer.Option(
        "--only-open-meshes", help="evaluate only objects from open meshes (see `pam scenes meshes`)"
    ),
]


def evaluate(
    seed: SeedOption = None,
    count: CountOption = 40,
    data: DataOption = None,
    only: OnlyOption = "",
    json_file: JsonOption = None,
    page: PageOption = None,
    cache: CacheOption = None,
    judge: JudgeOption = None,
    judge_model: JudgeModelOption = None,
    embedder: EmbedderOption = None,
    carry_over: CarryOverOption = True,
    open_meshes: OpenMeshesOption = False,
    model: ModelOption = AUTO,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    quantization: QuantizationOption = "none",
    sam2: Sam2Option = None,
) -> None:
    """Measure a model with the paper's metrics.

    It runs on rendered test scenes or on annotated data. docs/evaluation.md defines every metric.
    """
    check_model(model, sam2)
    from pam_ros.datasets.registry import open_source
    from pam_ros.evaluation.confidence import reliability
    from pam_ros.evaluation.report import reasons, rows_of, write_json, write_page
    from pam_ros.evaluation.run import Part, Plan, evaluation

    if data is not None and seed:
        raise PromptError("--data and --seed cannot be combined; give one of them")
    if data is not None and open_meshes:
        raise PromptError("--only-open-meshes needs rendered scenes and cannot be combined with --data")
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
    read = inputs(model, sam2, data)
    json_file = json_target(json_file, read)
    if page is not None:
        if data is not None and page.resolve().is_relative_to(data.resolve()):
            raise OutputError(
                f"--page {page} lies in the data {data} and could replace its images; choose another folder"
            )
        result_folder(page, ("index.html",), read)
    if cache is not None:
        writable_folder(cache)
    if data is not None:
        open_source(str(data))  # an error comes before the model is loaded
    pam = load(LoadOptions(model, device, dtype, sam2, quantization))
    with working("evaluating") as report, evaluation(pam, plan, report) as found:
        rows = rows_of(found, parts)
        if json_file is not None:
            write_json(json_file, found, plan, model, pam.info)
        if page is not None:
            report("writing the HTML report")
            note(f"wrote {write_page(page, found, model, parts)}")
    table = Table("metric", "mean", "± std", "samples")
    for row in rows:
        table.add_row(row.metric, row.value_text(), row.spread_text(), str(row.samples))
    tables = table_console(json_file)
    tables.print(table)
    curve = reliability(label for each in found for label in each.findings.labels)
    if curve:
        tables.print(_curve_table(curve))
    for why, keys in reasons(rows):
        tables.print(f"{', '.join(keys)}: no value ({why})", markup=False, highlight=False, soft_wrap=True)


def _curve_table(curve: Sequence[Bin]) -> Table:
    """The reliability curve of labels."""
    table = Table("confidence of labels", "right", "labels")
    for each in curve:
        table.add_row(f"{each.confidence:.2f}", f"{each.right:.2f}", str(each.count))
    return table
