"""Contact sheets: images with outlined, named objects, and frames of videos with their events."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pam_ros.datasets.shards import ShardWriter
from pam_ros.output_files import writing
from pam_ros.simulator.export import exported_image, exported_video, with_depth
from pam_ros.simulator.samples import ImageSample, VideoSample, image_sample, video_sample

Picture = NDArray[np.uint8]
PALETTE = (
    (230, 60, 60),
    (60, 160, 240),
    (250, 190, 40),
    (90, 200, 90),
    (200, 90, 220),
    (80, 220, 210),
    (245, 130, 50),
    (150, 120, 250),
)


def render_folder(
    out: Path,
    seed: int,
    count: int,
    split: str,
    videos: int = 0,
    width: int = 640,
    height: int = 480,
    open_meshes: float = 0.0,
) -> int:
    """Renders images and videos into a folder, with depth and poses; returns the number of samples."""
    writer = ShardWriter(out)
    for index in range(count):
        image = image_sample(seed + index, split, width, height, open_meshes)
        writer.add(f"{index:04d}", with_depth(exported_image(image), image, out, f"{index:04d}"))
    for index in range(videos):
        video = video_sample(seed + index, split, width=width, height=height, open_meshes=open_meshes)
        writer.add(f"v{index}", exported_video(video))
    writer.close()
    return len(writer)


def _write(picture: Picture, text: str, x: int, y: int) -> Picture:
    """White letters with a black edge."""
    canvas = Image.fromarray(picture)
    font = ImageFont.load_default(15)
    ImageDraw.Draw(canvas).text((x, y), text, (255, 255, 255), font, stroke_width=2, stroke_fill=(0, 0, 0))
    return np.array(canvas)


def _outlined(rgb: Picture, instances: NDArray[np.uint16], names: dict[int, str]) -> Picture:
    picture: Picture = rgb.copy()
    for order, (instance, name) in enumerate(names.items()):
        mask = instances == instance
        if not mask.any():
            continue
        inner = mask.copy()
        inner[1:] &= mask[:-1]
        inner[:-1] &= mask[1:]
        inner[:, 1:] &= mask[:, :-1]
        inner[:, :-1] &= mask[:, 1:]
        picture[mask & ~inner] = PALETTE[order % len(PALETTE)]
        rows, columns = np.nonzero(mask)
        picture = _write(picture, name, max(int(columns.mean()) - 4 * len(name), 2), int(rows.mean()))
    return picture


def image_tile(sample: ImageSample) -> Picture:
    """The image with its objects outlined and named; an open mesh also has the name of its package."""
    return _outlined(
        sample.rgb,
        sample.instances,
        {
            region.instance: " ".join(region.mesh_id.split("/")[:-1])
            for region in sample.regions
            if region.facts.kind == "object"
        },
    )


def video_tiles(sample: VideoSample, count: int = 5) -> list[Picture]:
    """Frames of a video with the actor outlined and its event written above."""
    tiles = []
    actor = next((thing for thing in sample.objects if thing.instance == sample.actor), None)
    for frame in np.linspace(0, len(sample.frames) - 1, count).astype(int):
        names = {actor.instance: actor.facts.category} if actor else {}
        tile = _outlined(sample.frames[frame], sample.instances[frame], names)
        event = (
            next((part.event for part in actor.segments if part.start <= frame < part.end), "")
            if actor
            else ""
        )
        tiles.append(_write(tile, f"{sample.times_s[frame]:.1f} s  {event}", 6, 4))
    return tiles


def contact_sheet(
    seed: int,
    count: int,
    split: str,
    videos: int = 0,
    columns: int = 5,
    tile_width: int = 320,
    open_meshes: float = 0.0,
) -> Picture:
    """(H, W, 3) uint8: `count` images and rows of `videos` videos."""
    tiles = [image_tile(image_sample(seed + index, split, open_meshes=open_meshes)) for index in range(count)]
    while len(tiles) % columns:
        tiles.append(np.zeros((384, 512, 3), np.uint8))
    for index in range(videos):
        tiles += video_tiles(video_sample(seed + index, split, open_meshes=open_meshes), columns)
    small = [_shrunk(tile, tile_width) for tile in tiles]
    rows = [np.concatenate(small[start : start + columns], 1) for start in range(0, len(small), columns)]
    return np.asarray(np.concatenate(rows), np.uint8)


def _shrunk(tile: Picture, width: int) -> Picture:
    height = round(tile.shape[0] * width / tile.shape[1])
    return np.asarray(Image.fromarray(tile).resize((width, height), Image.Resampling.BOX), np.uint8)


def save_sheet(path: Path, picture: Picture) -> None:
    """Writes a sheet; the path's suffix (.png, .jpg) selects the format. Raises OutputError."""
    with writing(path):
        Image.fromarray(picture).save(path)
