"""`pam models`, `pam fetch`, `pam parity`: lists, downloads and verifies models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from pam_ros.cli.common import console


def models() -> None:
    """List the models with licence and whether they are installed."""
    from pam_ros.errors import ModelNotFoundError
    from pam_ros.model.config import list_models
    from pam_ros.model.loading.checkpoint import find_files

    table = Table("model", "description", "licence", "installed")
    for name, description in list_models().items():
        try:
            find_files(name, None)
            present = "yes"
        except ModelNotFoundError:
            present = f"no (pam fetch {name})"
        table.add_row(name, description.summary, description.licence, present)
    Console().print(table)


def fetch(name: Annotated[str, typer.Argument(help="model name (see `pam models`)", metavar="NAME")]) -> None:
    """Download a model, verify its files and print their paths."""
    from pam_ros.model.loading.fetch import fetch_model

    for line in fetch_model(name):
        console.print(line)


def parity(
    folder: Annotated[
        Path,
        typer.Argument(
            help="folder with golden.json, a SAM 2 YAML file, frames/, expected.npz", metavar="FOLDER"
        ),
    ],
) -> None:
    """Compare with recorded outputs of the reference.

    Exits with 1 if any case differs.
    """
    from pam_ros.evaluation.parity import MASK_IOU, RELATIVE_ERROR, run_parity

    with console.status("starting") as status:
        results = run_parity(folder, status.update)
    table = Table("case", "embeds", "logits", "presence", "mask IoU", "tokens", "")
    for row in results:
        errors = [f"{error:.1e}" for error in (row.embeds_error, row.logits_error, row.score_error)]
        tokens = f"{row.tokens_equal}/{row.tokens}"
        table.add_row(row.name, *errors, f"{row.mask_iou:.5f}", tokens, "agrees" if row.passed else "DIFFERS")
    Console(width=100).print(table)
    print(f"tolerances: relative error <= {RELATIVE_ERROR:.0e}, mask IoU >= {MASK_IOU}, identical tokens")
    if not results or not all(row.passed for row in results):
        raise typer.Exit(1)
