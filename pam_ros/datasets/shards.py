"""Reads shards: folders with index.jsonl, JPEG frames and PNG id pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pam_ros.datasets.schema import WHOLE, ClipEntry, Entry, RegionEntry, Scene, resized, sample_ids
from pam_ros.errors import DatasetError
from pam_ros.geometry import CropBox
from pam_ros.records import Language, Task


@dataclass(frozen=True, slots=True)
class _Files:
    """One shard line: pictures and id pictures."""

    folder: Path
    frames: tuple[str, ...]
    ids: tuple[str, ...]


class ShardSource:
    """Shards of rendered scenes: folders with index.jsonl, JPEG frames and PNG id pictures."""

    def __init__(self, folder: Path) -> None:
        self.entries: list[Entry] = []
        self._files: list[_Files] = []
        for index in sorted(folder.glob("**/index.jsonl")):
            for line in index.read_text(encoding="utf-8").splitlines():
                self._add(index.parent, json.loads(line))
        if not self.entries:
            raise DatasetError(f"{folder} holds no shard with samples (no index.jsonl with lines in it)")

    def _add(self, folder: Path, line: Mapping[str, Any]) -> None:
        regions = line["regions"]
        video = "frames" in line
        frames, ids = (line["frames"], line["ids"]) if video else ([line["image"]], [line["ids"]])
        self._files.append(_Files(folder, tuple(frames), tuple(ids)))
        size = line.get("size")
        self.entries.append(Entry(len(frames), tuple(_region(region, size) for region in regions)))

    def load(self, index: int, frames: Sequence[int], size: int, cut: CropBox = WHOLE) -> Scene:
        """Decodes some frames of a sample."""
        files, pixels, ids = self._files[index], [], []
        for frame in frames:
            pixels.append(resized(_opened(files.folder / files.frames[frame]), size, cut))
            ids.append(sample_ids(np.asarray(_opened(files.folder / files.ids[frame])), size, cut))
        return Scene(np.stack(pixels), np.stack(ids).astype(np.uint16))


@lru_cache(maxsize=4)
def _opened(path: Path) -> Image.Image:
    """Decoded once for all the cuts of a picture."""
    picture: Image.Image
    with Image.open(path) as picture:
        picture.load()
        return picture


def _region(region: Mapping[str, Any], size: Sequence[int] | None) -> RegionEntry:
    texts = {}
    for key, wordings in region.get("texts", {}).items():
        task, _, language = key.partition("/")
        texts[Task.parse(task), Language.parse(language)] = tuple(wordings)
    told = [region.get("events"), region.get("windows"), *region.get("later_windows", ())]
    backward = region.get("backward", {})
    sequences = [_clips(clips) for clips in told if clips]
    sequences += [_clips(clips, backward=True) for clips in backward.get("windows", ())]
    segments, turned = (
        tuple((int(start), int(end), str(event)) for start, end, event in played.get("segments", ()))
        for played in (region, backward)
    )
    box = None
    if size is not None and "box" in region:
        x1, y1, x2, y2 = (float(side) for side in region["box"])
        box = (x1 / size[1], y1 / size[0], x2 / size[1], y2 / size[0])
    instance, part = int(region["instance"]), int(region.get("part", 0))
    path = tuple(tuple(side / 1000 for side in place) for place in region.get("path_mm", ()))
    return RegionEntry(texts, tuple(sequences), instance, part, segments, turned, path, box)


def _clips(clips: Sequence[Mapping[str, Any]], *, backward: bool = False) -> tuple[ClipEntry, ...]:
    return tuple(
        ClipEntry(
            start=int(clip["start"]),
            end=int(clip["end"]),
            texts={
                Language.parse(key.partition("/")[2]): tuple(texts) for key, texts in clip["texts"].items()
            },
            event=str(clip.get("event", "")),
            backward=backward,
        )
        for clip in clips
    )
