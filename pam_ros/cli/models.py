"""`pam models`, `pam fetch` and `pam parity`: what can be loaded, and whether it computes what the reference does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from pam_ros.cli.common import console


def models() -> None:
    """List the models, their licences and whether they are on this disk."""
    from pam_ros.errors import ModelNotFoundError
    from pam_ros.model.config import list_models
    from pam_ros.model.loading.checkpoint import find_files

    table = Table("model", "what", "licence", "on this disk")
    for name, description in list_models().items():
        try:
            find_files(name, None)
            present = "yes"
        except ModelNotFoundError:
            present = f"no: pam fetch {name}"
        table.add_row(name, description.summary, description.licence, present)
    Console().print(table)


def fetch(name: Annotated[str, typer.Argument(help="a name of `pam models`")]) -> None:
    """Download a model's files, check them, and print where they lie."""
    from pam_ros.model.loading.fetch import fetch_model

    for line in fetch_model(name):
        console.print(line)


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
