"""Where training samples come from: pictures and videos with regions, their masks and their texts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pam_ros.model.closer import Cut
from pam_ros.records import Language, Task
from pam_ros.training.config import TrainingError

PART_STEP = 256  # an id picture's value is instance + PART_STEP * part
WHOLE: Cut = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True, slots=True)
class ClipEntry:
    """A stretch of a video with its captions, in many wordings; frames start..end, end exclusive.

    A `backward` one is shown from its last frame to its first, and has a frame after it.
    """

    start: int
    end: int
    texts: Mapping[Language, tuple[str, ...]]
    event: str = ""  # what happens, joined by "+"; "" where the data do not say
    backward: bool = False


@dataclass(frozen=True, slots=True)
class RegionEntry:
    """One region: what is said about it, and which pixels of the id pictures are its own."""

    texts: Mapping[tuple[Task, Language], tuple[str, ...]] = field(
        default_factory=dict
    )  # image tasks, all wordings
    clips: tuple[tuple[ClipEntry, ...], ...] = ()  # sequences; each clip's caption continues the one before
    instance: int = 1
    part: int = 0  # 0 = the whole instance
    segments: tuple[tuple[int, int, str], ...] = ()  # what happens in a video: start, end (exclusive), event
    backward_segments: tuple[tuple[int, int, str], ...] = ()  # the same where it is played backwards
    path_m: tuple[tuple[float, ...], ...] = ()  # of a video: how far right, away, up it is in each frame
    box: Cut | None = None  # around it in a picture; None where that is not known before it is decoded

    @property
    def label(self) -> str:
        """Its first label in English, "" where it has none."""
        return next(iter(self.texts.get((Task.LABEL, Language.EN), ())), "")

    @property
    def quiet(self) -> bool:
        """Whether the same goes on all through the video, as with things that stand by."""
        return len(self.segments) == 1


@dataclass(frozen=True, slots=True)
class Entry:
    """A picture (one frame) or a video."""

    frames: int
    regions: tuple[RegionEntry, ...]


@dataclass(frozen=True, slots=True)
class Scene:
    """Decoded frames: pixels (T, S, S, 3) uint8 RGB and ids (T, S, S) uint16, instance + PART_STEP * part."""

    pixels: NDArray[np.uint8]
    ids: NDArray[np.uint16]


class Source(Protocol):
    """A set of samples with random access; must survive pickling into loader processes."""

    @property
    def entries(self) -> Sequence[Entry]:
        """Everything but the pixels."""

    def load(self, index: int, frames: Sequence[int], size: int, cut: Cut = WHOLE) -> Scene:
        """Decodes some frames of a sample, or a cut of them.

        Resized to `size` × `size` without keeping the aspect ratio.
        """


def resized(picture: Image.Image, size: int, cut: Cut = WHOLE) -> NDArray[np.uint8]:
    """A cut of a picture → (S, S, 3), by the very filter that inference uses."""
    width, height = picture.size
    box = (cut[0] * width, cut[1] * height, cut[2] * width, cut[3] * height)
    return np.asarray(picture.resize((size, size), box=box))


def sample_ids(ids: NDArray[Any], size: int, cut: Cut = WHOLE) -> NDArray[Any]:
    """A cut of (H, W) → (S, S): the value under the middle of every new pixel."""
    middles = (np.arange(size) + 0.5) / size
    rows, columns = (
        np.minimum(((low + (high - low) * middles) * length).astype(int), length - 1)
        for low, high, length in ((cut[1], cut[3], ids.shape[0]), (cut[0], cut[2], ids.shape[1]))
    )
    picked: NDArray[Any] = ids[rows].take(columns, axis=1)
    return picked


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
            raise TrainingError(f"{folder} holds no shard with samples (no index.jsonl with lines in it)")

    def _add(self, folder: Path, line: Mapping[str, Any]) -> None:
        regions = line["regions"]
        video = "frames" in line
        frames, ids = (line["frames"], line["ids"]) if video else ([line["image"]], [line["ids"]])
        self._files.append(_Files(folder, tuple(frames), tuple(ids)))
        size = line.get("size")
        self.entries.append(Entry(len(frames), tuple(_region(region, size) for region in regions)))

    def load(self, index: int, frames: Sequence[int], size: int, cut: Cut = WHOLE) -> Scene:
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


class JoinedSource:
    """Several sources as one."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._where = [(source, i) for source in sources for i in range(len(source.entries))]
        self.entries = [source.entries[i] for source, i in self._where]

    def load(self, index: int, frames: Sequence[int], size: int, cut: Cut = WHOLE) -> Scene:
        """Decodes some frames of a sample."""
        source, inner = self._where[index]
        return source.load(inner, frames, size, cut)


class _Share:
    """Every `processes`-th sample of a source, from number `rank` on."""

    def __init__(self, source: Source, rank: int, processes: int) -> None:
        self._source, self._rank, self._processes = source, rank, processes
        self.entries = source.entries[rank::processes]

    def load(self, index: int, frames: Sequence[int], size: int, cut: Cut = WHOLE) -> Scene:
        """Decodes some frames of a sample."""
        return self._source.load(self._rank + index * self._processes, frames, size, cut)


def share_of(source: Source, rank: int, processes: int) -> Source:
    """The samples of one of several processes. Raises TrainingError where there are too few for all."""
    if processes == 1:
        return source
    if len(source.entries) < processes:
        raise TrainingError(
            f"{len(source.entries)} samples cannot be shared by {processes} processes; start fewer"
        )
    return _Share(source, rank, processes)


def open_sources(data: Sequence[str]) -> Source:
    """Opens a folder of shards, a .jsonl file in the reference's layout, or `shapes:COUNT[:FRAMES]`."""
    sources: list[Source] = []
    for name in data:
        if name.startswith("shapes:"):
            from pam_ros.training.shapes import ShapesSource

            count, _, frames = name.removeprefix("shapes:").partition(":")
            sources.append(ShapesSource(count=int(count), frames=int(frames or 1)))
        elif name.endswith(".jsonl"):
            from pam_ros.training.jsonl_source import JsonlSource

            sources.append(JsonlSource(Path(name)))
        elif Path(name).is_dir():
            sources.append(ShardSource(Path(name)))
        else:
            raise TrainingError(
                f"no training data at {name!r}; give a folder of shards, a .jsonl file or shapes:COUNT"
            )
    return JoinedSource(sources)
