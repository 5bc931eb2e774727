"""`python -m pam_ros.simulator.tools.from_id_pictures FOLDER`: converts shards of an older format in place.

In the older format each frame has a PNG whose pixels are instance + 256 * part; today regions have masks.
Images stay as they are; the PNGs are deleted when the new index is complete.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pam_ros.datasets.rle import RleMask
from pam_ros.datasets.schema import Clip, Kind, PictureFile, Sample, SampleRegion
from pam_ros.datasets.shards import FAST, INDEX, SMALL, ShardWriter
from pam_ros.errors import DatasetError
from pam_ros.records import Language, Task
from pam_ros.simulator.export import PROVENANCE
from pam_ros.simulator.render import PARTS

INSTANCE_BITS = 8
Ids = NDArray[np.uint16]  # (H, W)


def convert(folder: Path, *, other_masks: bool = True) -> int:
    """Converts every shard in a folder and below; returns the number of samples."""
    count = 0
    for index in sorted(folder.glob(f"**/{INDEX}")):
        lines = [json.loads(line) for line in index.read_text(encoding="utf-8").splitlines()]
        old = [line for line in lines if "ids" in line]
        if not old:
            continue
        if len(old) < len(lines):
            raise DatasetError(f"{index} mixes lines of both formats")
        writer = ShardWriter(index.parent, FAST if other_masks else SMALL)
        for line in lines:
            sample, files = converted(line, index.parent)
            writer.add_line(sample, files)
        writer.close()
        for line in lines:
            for name in np.atleast_1d(line["ids"]):
                (index.parent / str(name)).unlink()
        count += len(lines)
    return count


def converted(line: Mapping[str, Any], folder: Path) -> tuple[Sample, list[str]]:
    """A line of the older format → the sample, and its image files."""
    is_video = "frames" in line
    files = [str(name) for name in (line["frames"] if is_video else [line["image"]])]
    ids = [_read_ids(folder / str(name)) for name in np.atleast_1d(line["ids"])]
    regions = tuple(_region(raw, place, ids) for place, raw in enumerate(line["regions"], 1))
    asked = {region.object_id for region in regions if region.kind is not Kind.PART}
    instances = [each & (2**INSTANCE_BITS - 1) for each in ids]
    others = sorted({int(i) for each in instances for i in np.unique(each)} - asked - {0})
    sample = Sample(
        name=f"{'video' if is_video else 'image'} {line['seed']}",
        frames=tuple(PictureFile(folder / name) for name in files),
        regions=regions,
        is_video=is_video,
        size=(ids[0].shape[0], ids[0].shape[1]),
        fps=float(line.get("fps", 0.0)),
        other_masks=tuple(tuple(_rle(frame == each) for frame in instances) for each in others),
        actor=int(line.get("actor", 0)),
        extra={
            key: line[key]
            for key in ("scene", "seed", "split", "depth_mm", "intrinsics", "pose")
            if key in line
        },
    )
    return sample, files


def _read_ids(path: Path) -> Ids:
    with Image.open(path) as picture:
        return np.asarray(picture).astype(np.uint16)


def _rle(mask: NDArray[np.bool_]) -> RleMask | None:
    return RleMask.of(mask) if mask.any() else None


def _region(raw: Mapping[str, Any], place: int, ids: Sequence[Ids]) -> SampleRegion:
    instance, part = int(raw["instance"]), int(raw["part"])
    whole, truth = 2**INSTANCE_BITS - 1, raw["truth"]
    masks = [each == instance + (part << INSTANCE_BITS) if part else each & whole == instance for each in ids]
    sequences = [raw.get("events"), raw.get("windows"), *raw.get("later_windows", ())]
    backward = raw.get("backward", {})
    clips = [_clips(clips) for clips in sequences if clips]
    clips += [
        tuple(replace(c, backward=True) for c in _clips(clips)) for clips in backward.get("windows", ())
    ]
    return SampleRegion(
        name=f"region {place}",
        kind=Kind.PART if part else Kind.BACKGROUND if raw["background"] else Kind.OBJECT,
        object_id=instance,
        part=PARTS[part],
        masks=tuple(_rle(mask) for mask in masks),
        texts={_task(key): tuple(texts) for key, texts in raw["texts"].items()},
        clips=tuple(clips),
        segments=tuple((int(start), int(end), str(event)) for start, end, event in raw.get("segments", ())),
        backward_segments=tuple(
            (int(start), int(end), str(event)) for start, end, event in backward.get("segments", ())
        ),
        path_m=tuple(tuple(side / 1000 for side in place_mm) for place_mm in raw.get("path_mm", ())),
        category=raw["category"],
        function=truth["function"],
        colour=truth.get("colour", ""),
        material=truth.get("material", ""),
        mesh_id=raw.get("mesh", ""),
        provenance=PROVENANCE,
        extra={key: truth[key] for key in ("surface", "size", "place", "whole") if key in truth},
    )


def _task(key: str) -> tuple[Task, Language]:
    task, _, language = key.partition("/")
    return Task.parse(task), Language.parse(language)


def _clips(clips: Sequence[Mapping[str, Any]]) -> tuple[Clip, ...]:
    return tuple(
        Clip(
            start=int(clip["start"]),
            end=int(clip["end"]),
            captions={_task(key)[1]: tuple(texts) for key, texts in clip["texts"].items()},
            events=tuple(clip["event"].split("+")) if clip.get("event") else (),
        )
        for clip in clips
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see --help."""
    parser = argparse.ArgumentParser(description="Convert shards with id images to shards with masks.")
    parser.add_argument("folder", type=Path, help="folder of shards, changed in place")
    parser.add_argument(
        "--without-others",
        action="store_true",
        help="omit masks of objects that are not regions: smaller, for data that is not trained on",
    )
    options = parser.parse_args(arguments)
    count = convert(options.folder, other_masks=not options.without_others)
    print(f"{count} samples converted")


if __name__ == "__main__":
    main()
