"""`pam bench`: measures a model's speed and memory on this device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pam_ros.cli.common import (
    DeviceOption,
    DtypeOption,
    EngineOption,
    JsonOption,
    ModelOption,
    QuantizationOption,
    Sam2Option,
    check_model,
    engine_kind,
    inputs,
    within,
)
from pam_ros.cli.output import json_target, table_console, working
from pam_ros.errors import InputError
from pam_ros.model.descriptions import AUTO
from pam_ros.model.loading.options import LoadOptions
from pam_ros.output_files import writable_file

if TYPE_CHECKING:
    from pam_ros.model.pam import Pam

RandomWeightsOption = Annotated[
    bool,
    typer.Option("--random-weights", help="pam-3b or pam-1.5b with random weights, without a download"),
]
LIMITS = ("copy_tb_s", "read_tb_s", "matmul_tflop_s")  # of the device, printed first


def bench(
    engine: EngineOption = "plain",
    random_weights: RandomWeightsOption = False,
    repeats: Annotated[
        int, typer.Option("--repeats", callback=within(1), help="runs of each figure", metavar="N")
    ] = 15,
    only: Annotated[
        str,
        typer.Option("--only", help="comma-separated figures (default: all)", metavar="FIGURES"),
    ] = "",
    json_file: JsonOption = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option("--compare", help="compare two files of --json; measures nothing", metavar="A B"),
    ] = None,
    model: ModelOption = AUTO,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    quantization: QuantizationOption = "none",
    sam2: Sam2Option = None,
) -> None:
    """Measure speed and memory, next to the device's limits.

    docs/bench/README.md defines every figure.
    """
    if not random_weights and compare is None:
        check_model(model, sam2)
    from pam_ros.evaluation.bench import BenchPlan, read_result, run_bench, write_result

    if compare is not None:
        results = [read_result(path) for path in compare]
        titles = [f"{letter} {path.stem}" for letter, path in zip("AB", compare, strict=True)]
        _print_table(dict(zip(titles, results, strict=True)), Console())
        return
    names = tuple(name.strip() for name in only.split(",") if name.strip())
    plan = BenchPlan(engine_kind(engine), repeats, names, random_weights, "" if random_weights else model)
    json_file = json_target(json_file, inputs(model, sam2))
    options = LoadOptions(model, device, dtype, sam2, quantization)
    with working("loading") as report:
        result = run_bench(
            _loader(options, random_weights),
            plan,
            device=device,
            unquantised=_loader(replace(options, quantization="none"), random_weights)
            if quantization != "none"
            else None,
            progress=report,
        )
    if json_file is not None:
        write_result(result, json_file)
    _print_table({model: result.as_json()}, table_console(json_file))


def bench_curves(
    files: Annotated[
        list[Path], typer.Argument(help="the CSV file to write; with --plot those to draw", metavar="CSV")
    ],
    plot: Annotated[
        Path | None,
        typer.Option("--plot", help="draw the files; measures nothing", metavar="PNG"),
    ] = None,
    engine: EngineOption = "plain",
    random_weights: RandomWeightsOption = False,
    repeats: Annotated[
        int, typer.Option("--repeats", callback=within(1), help="runs of each point", metavar="N")
    ] = 7,
    model: ModelOption = AUTO,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    quantization: QuantizationOption = "none",
) -> None:
    """Measure how time grows with the load.

    Over regions, cameras, clip frames, caption length and texts. docs/bench/README.md explains each curve.
    """
    if not random_weights and plot is None:
        check_model(model)
    from pam_ros.evaluation.bench_curves import measure_curves, plot_curves, read_curves, write_curves

    if plot is not None:
        plot_curves({file.stem: read_curves(file) for file in files}, writable_file(plot, files))
        return
    if len(files) != 1:
        raise InputError(f"{len(files)} files were given; give one to write, or --plot PNG to draw them")
    from pam_ros.evaluation.bench import open_path

    file = writable_file(files[0], inputs(model, None))
    options = LoadOptions(model, device, dtype, quantization=quantization)
    with working("loading") as report:
        path = open_path(_loader(options, random_weights), engine_kind(engine), device)
        path.warm_up()
        write_curves(measure_curves(path, repeats=repeats, progress=report), file)


def _loader(options: LoadOptions, random_weights: bool) -> Callable[[], Pam]:
    """Returns a function that loads the model which the options name."""
    from pam_ros.model.loading.checkpoint import load_model
    from pam_ros.model.loading.random_weights import random_model

    return partial(random_model if random_weights else load_model, options)


def _print_table(results: Mapping[str, Mapping[str, Any]], tables: Console) -> None:
    """One line per figure, one column per result; for two results also the second over the first."""
    from pam_ros.evaluation.bench import FIGURES, NOT_SELECTED, ratio

    rows = [(key, [result["limits"].get(key) for result in results.values()]) for key in LIMITS]
    for key in FIGURES:
        if any(result["reasons"].get(key) != NOT_SELECTED for result in results.values()):
            rows.append((key, [result.get(key) for result in results.values()]))
    table = Table("figure", *map(escape, results), *(["ratio"] if len(results) == 2 else []))
    for key, values in rows:
        ratios = [ratio(*values)] if len(values) == 2 else []
        table.add_row(key, *(_text(value) for value in (*values, *ratios)))

    def say(line: str) -> None:
        tables.print(line, markup=False, highlight=False, soft_wrap=True)

    tables.print(table)
    for name, result in results.items():
        say(f"{name}: {', '.join(f'{key} {value}' for key, value in result['about'].items())}")
        reasons: dict[str, list[str]] = {}
        for key, why in result["reasons"].items():
            reasons.setdefault(why, []).append(key)
        for why, keys in reasons.items():
            if why != NOT_SELECTED:
                say(f"{name}: no value ({why}): {', '.join(keys)}")


def _text(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
