"""Shards: folders with images and an index.jsonl of samples; written when complete, read line by line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pam_ros.datasets.json_lines import JsonLines
from pam_ros.datasets.schema import Sample
from pam_ros.datasets.shard_lines import line_of, sample_of
from pam_ros.errors import DatasetError

INDEX = "index.jsonl"


@dataclass(frozen=True, slots=True)
class Packing:
    """How images are stored: the file ending, the encoder's quality, and whether `other_masks` are kept."""

    ending: str
    quality: int
    other_masks: bool = True


FAST = Packing(".jpg", 92)  # reading speed counts in training
SMALL = Packing(".avif", 50, other_masks=False)  # for a bundled set, which is not trained on


class ShardWriter:
    """Writes samples into one folder. The index appears at once, when `close` is called.

    An older one is removed with the first picture: it would describe what is replaced.
    """

    def __init__(self, folder: Path, packing: Packing = FAST) -> None:
        self._folder, self._packing = folder, packing
        self._lines: list[dict[str, Any]] = []
        folder.mkdir(parents=True, exist_ok=True)

    def __len__(self) -> int:
        return len(self._lines)

    def add(self, stem: str, sample: Sample) -> None:
        """Writes a sample's frames: `stem`.jpg of an image, `stem`/000.jpg … of a video."""
        (self._folder / INDEX).unlink(missing_ok=True)
        stems = [f"{stem}/{index:03d}" for index in range(len(sample))] if sample.is_video else [stem]
        if sample.is_video:
            (self._folder / stem).mkdir(parents=True, exist_ok=True)
        for name, picture in zip(stems, sample.frames, strict=True):
            write_picture(self._folder / f"{name}{self._packing.ending}", picture.read(), self._packing)
        self._lines.append(self._line(sample, [f"{name}{self._packing.ending}" for name in stems]))

    def add_line(self, sample: Sample, files: Sequence[str]) -> None:
        """Adds a sample whose frames stand in the folder already."""
        self._lines.append(self._line(sample, files))

    def _line(self, sample: Sample, files: Sequence[str]) -> dict[str, Any]:
        line = line_of(sample, files)
        if not self._packing.other_masks:
            line.pop("other_masks", None)
        return line

    def close(self) -> None:
        """Writes the index."""
        half = self._folder / f"{INDEX}.part"
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in self._lines)
        half.write_text(text, encoding="utf-8")
        os.replace(half, self._folder / INDEX)


def write_picture(path: Path, rgb: NDArray[np.uint8], packing: Packing = FAST) -> None:
    """(H, W, 3) uint8 RGB → a JPEG or AVIF file, by the path's suffix."""
    Image.fromarray(rgb).save(path, quality=packing.quality)


class ShardSource:
    """All samples of the shards in a folder and below. Only byte offsets are kept in memory."""

    def __init__(self, folder: Path) -> None:
        """Raises DatasetError if there is no sample."""
        indices = sorted(folder.glob(f"**/{INDEX}"))
        # A name with a dot is a shard that is still being written.
        complete = [
            path for path in indices if not any(p.startswith(".") for p in path.relative_to(folder).parts)
        ]
        self._lines = JsonLines(complete)
        self._last: tuple[int, Sample] | None = None  # the frames of a video come one after the other
        if not len(self._lines):
            raise DatasetError(
                f"{folder} has no {INDEX} with samples; `pam scenes render --out {folder}` writes one"
            )

    def __len__(self) -> int:
        return len(self._lines)

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Sample:
        """Reads a sample's line. Raises DatasetError naming file, line and key."""
        last = self._last
        if last is None or last[0] != index:
            last = index, sample_of(self._lines[index], self._lines.path(index).parent)
            self._last = last
        return last[1]
