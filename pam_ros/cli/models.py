"""`pam models`, `pam fetch`, `pam parity`: lists, downloads and verifies models."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pam_ros.cli.common import DeviceOption, DtypeOption, EngineOption, JsonFlag, engine_kind
from pam_ros.cli.output import console, note, working
from pam_ros.errors import StateError


def models(as_json: JsonFlag = False) -> None:
    """List the models, their licences and what is installed."""
    from pam_ros.errors import CheckpointError, ModelNotFoundError
    from pam_ros.model.descriptions import list_models
    from pam_ros.model.loading.files import find_files

    found: list[dict[str, str | bool]] = []
    table = Table("model", "description", "licence", "installed")
    for name, description in list_models().items():
        fix = description.fetch_command
        try:
            find_files(name, None)
            present, fix = "yes", ""
        except ModelNotFoundError:
            present = f"no ({fix})"
        except CheckpointError as error:  # unfinished, or without access
            present = f"no: {error}"
        about: dict[str, str] = {
            "model": name,
            "description": description.summary,
            "licence": description.licence,
        }
        found.append({**about, "installed": not fix, "fix": fix})
        table.add_row(*map(escape, (*about.values(), present)))
    if as_json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        Console().print(table)


def fetch(
    name: Annotated[str, typer.Argument(help="model name (see `pam models`)", metavar="NAME")],
    accept_licence: Annotated[
        bool,
        typer.Option("--accept-licence", "--accept-license", help="accept the licence terms that are shown"),
    ] = False,
    revision: Annotated[
        str | None,
        typer.Option(
            "--revision",
            help="commit, tag or branch of the model (default: as fetched before, else main)",
            metavar="COMMIT",
        ),
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="list files, sizes and folders, to copy the model by hand")
    ] = False,
) -> None:
    """Download a model and verify its checksums.

    Shows licence and sizes first. An interrupted download resumes where it stopped.
    """
    from pam_ros.model.loading.fetch import by_hand, check_disk, describe, plan_fetch, size_of
    from pam_ros.model.loading.fetch import fetch as download

    description = describe(name)
    note(f"licence of {name}: {description.licence}")
    if not description.sources:
        note(f"{name} is bundled with this package; nothing to download")
        return
    if offline:
        print("\n".join(by_hand(description)))
        return
    plans = plan_fetch(description, revision)
    table = Table("file", "size", "to download")
    for plan in plans:
        for file in plan.files:
            left = file.bytes - file.present
            table.add_row(
                f"{plan.source.hub_id}/{file.path}", size_of(file.bytes), size_of(left) if left else "-"
            )
    console.print(table)
    for plan in plans:
        commit = f"{plan.source.hub_id} at {plan.revision}"
        todo = f"{size_of(plan.missing_bytes)} to download to {plan.folder}"
        note(f"{commit}: {todo}")
    check_disk(plans)
    _agree(description.licence_terms, accepted=accept_licence)
    download(plans, note)


def _agree(terms: str, *, accepted: bool) -> None:
    """Raises StateError unless the user agrees to the terms, by option or by answering."""
    if not terms:
        return
    console.print(f"[bold]{escape(terms)}.[/]", highlight=False, soft_wrap=True)
    if accepted or (sys.stdin.isatty() and typer.confirm("Do you agree?", err=True)):
        return
    raise StateError("nothing was downloaded: agree to the licence terms above with --accept-licence")


def parity(
    folder: Annotated[
        Path,
        typer.Argument(
            help="folder with golden.json, a SAM 2 YAML file, frames/, expected.npz", metavar="FOLDER"
        ),
    ],
    engine: EngineOption = "plain",
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
) -> None:
    """Compare the model with recorded reference outputs.

    Exits with 1 if any case differs. The tolerances are for float32; in bfloat16, cases usually differ.
    """
    from pam_ros.evaluation.parity import MASK_IOU, RELATIVE_ERROR, run_parity

    kind = engine_kind(engine)
    with working("starting") as report:
        results = run_parity(folder, report, device=device, dtype=dtype, engine=kind)
    table = Table("case", "embeds", "logits", "presence", "mask IoU", "tokens", "")
    for row in results:
        errors = [f"{error:.1e}" for error in (row.embeds_error, row.logits_error, row.score_error)]
        tokens = f"{row.tokens_equal}/{row.tokens}"
        table.add_row(row.name, *errors, f"{row.mask_iou:.5f}", tokens, "agrees" if row.passed else "DIFFERS")
    Console(width=100).print(table)
    print(f"tolerances: relative error <= {RELATIVE_ERROR:.0e}, mask IoU >= {MASK_IOU}, identical tokens")
    if not results or not all(row.passed for row in results):
        raise typer.Exit(1)
