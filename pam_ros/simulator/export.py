"""Writes samples as folders of frames, PNG id pictures and an index.jsonl: for training and for looking.

An id picture's value is instance + 256 * part (part 0 = no named part): 16-bit, or 8-bit where no
part occurs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pam_ros.records import IMAGE_TASKS, Language
from pam_ros.simulator.events.stage import RESTS, Segment
from pam_ros.simulator.render import PARTS
from pam_ros.simulator.samples import (
    Clip,
    ImageSample,
    RegionTruth,
    VideoObject,
    VideoSample,
    caption_windows,
)
from pam_ros.simulator.texts.captions import describe
from pam_ros.simulator.texts.facts import Facts

PART_STEP = 256
WORDINGS = 3
LATER_CLOCKS = 4  # by which an object's clips are cut once more
BACKWARD_CLOCKS = 3  # by which they are cut while the video is played backwards
TURNED = (
    ("slides_left", "slides_right"),
    ("slides_closer", "slides_away"),
    ("lifted", "put_down"),
    ("covered", "uncovered"),
    ("leaves", "returns"),
    ("opens", "closes"),
)
# What an event is when it is played backwards; the others (falls, tips over, pushes) would be nothing known.
BACKWARDS = {one: other for pair in TURNED for one, other in (pair, pair[::-1])}
BACKWARDS |= {event: event for event in (*RESTS, "hidden")}
Picture = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Packing:
    """How pictures are stored: the pictures' file ending and quality, and how hard id pictures are packed."""

    ending: str
    quality: int
    compress_level: int  # of PNG, 0..9


FAST = Packing(".jpg", 92, 1)  # reading speed counts in training
SMALL = Packing(".avif", 50, 9)  # for what ships


def id_picture(instances: NDArray[np.uint16], parts: NDArray[np.uint8] | None = None) -> NDArray[Any]:
    """(H, W) uint8 or uint16: instance + 256 * part."""
    if parts is None or not parts.any():
        return instances.astype(np.uint8)
    return np.asarray(instances + PART_STEP * parts.astype(np.uint16), np.uint16)


def write_picture(path: Path, rgb: Picture, packing: Packing = FAST) -> None:
    """A JPEG or AVIF, as the path ends."""
    Image.fromarray(rgb).save(path, quality=packing.quality)


def write_ids(path: Path, ids: NDArray[Any], packing: Packing = FAST) -> None:
    """A PNG."""
    Image.fromarray(ids).save(path, compress_level=packing.compress_level)


def texts_of(facts: Facts, rng: np.random.Generator, wordings: int = WORDINGS) -> dict[str, list[str]]:
    """`{"explain/en": [...], ...}` with different wordings, each once."""
    texts = {}
    for task in IMAGE_TASKS:
        for language in Language:
            worded = [describe(facts, task, language, rng) for _ in range(wordings)]
            texts[f"{task.value}/{language.value}"] = list(dict.fromkeys(worded))
    return texts


def _truth(facts: Facts, function: str) -> dict[str, Any]:
    truth: dict[str, Any] = {"function": function}
    for key in ("colour", "material", "surface", "size"):
        if value := getattr(facts, key):
            truth[key] = value
    if facts.place[0]:
        truth["place"] = facts.place[0]
    if facts.whole:
        truth["whole"] = facts.whole.category
    return truth


def region_line(region: RegionTruth, rng: np.random.Generator) -> dict[str, Any]:
    """One region of an image as it stands in index.jsonl."""
    return {
        "instance": region.instance,
        "part": PARTS.index(region.part),
        "category": region.facts.category,
        "background": region.facts.kind == "region",
        "box": list(region.box_xyxy),
        "texts": texts_of(region.facts, rng),
        "truth": _truth(region.facts, region.function),
        "mesh": region.mesh_id,
    }


def clip_lines(versions: Sequence[Sequence[Clip]]) -> list[dict[str, Any]]:
    """Clips as they stand in index.jsonl; several versions of the same clips give several wordings."""
    lines = []
    for same in zip(*versions, strict=True):
        texts = {
            f"clip/{language.value}": list(dict.fromkeys(clip.captions[language] for clip in same))
            for language in Language
        }
        lines.append(
            {"start": same[0].start, "end": same[0].end, "event": "+".join(same[0].events), "texts": texts}
        )
    return lines


def object_line(thing: VideoObject, frames: int, fps: float, rng: np.random.Generator) -> dict[str, Any]:
    """One object of a video: what happens to it, as [start, end, event], and sequences of clips.

    `events` are cut where they change, `windows` by the clock, each of `later_windows` by another clock that
    starts inside the video. `backward` has segments and windows of the video played backwards, where that
    shows something known: the same pictures, with other events.
    """

    def told(
        cuts: Sequence[tuple[int, int]], segments: Sequence[Segment] = thing.segments
    ) -> list[dict[str, Any]]:
        return clip_lines([caption_windows(thing.facts, segments, cuts, rng) for _ in range(WORDINGS)])

    begins = _begins(frames, LATER_CLOCKS, rng)
    line: dict[str, Any] = {
        "instance": thing.instance,
        "part": 0,
        "category": thing.facts.category,
        "background": False,
        "texts": texts_of(thing.facts, rng),
        "truth": _truth(thing.facts, thing.function),
        "mesh": thing.mesh_id,
        "pixels": thing.pixels.tolist(),
        "path_mm": (thing.path_m * 1000).round().astype(int).tolist(),
        "segments": [[part.start, part.end, part.event] for part in thing.segments],
        "events": told([(part.start, part.end) for part in thing.segments]),
        "windows": told(_windows(0, frames, fps, rng)),
        "later_windows": [told(_windows(begin, frames, fps, rng)) for begin in begins],
    }
    turned = backward_segments(thing.segments, frames)
    if len(turned) > 1:
        line["backward"] = {
            "segments": [
                [frames - part.end, frames - part.start, part.event] for part in turned if part.event
            ],
            "windows": [_turned(told(cuts, turned), frames) for cuts in _possible(turned, frames, fps, rng)],
        }
    return line


def backward_segments(segments: Sequence[Segment], frames: int) -> list[Segment]:
    """What happens when a video is played backwards, by its own clock: its frame 0 is the last one.

    Events that cannot be played backwards are "". A frame of an event shows what has moved by then, so that
    backwards an event begins one frame later.
    """
    turned = []
    for part in reversed(segments):
        start = frames - part.end + (part.end < frames)
        end = frames - part.start + (part.start > 0)
        turned.append(replace(part, start=start, end=end, event=BACKWARDS.get(part.event, "")))
    return [part for part in turned if part.end > part.start]


def _possible(
    segments: Sequence[Segment], frames: int, fps: float, rng: np.random.Generator
) -> Iterator[list[tuple[int, int]]]:
    """Sequences of windows of a video played backwards in which nothing happens that cannot be."""

    def known(window: tuple[int, int]) -> bool:
        return all(part.event for part in segments if part.start < window[1] and part.end > window[0])

    for begin in _begins(frames, BACKWARD_CLOCKS, rng):
        for told, windows in groupby(_windows(begin, frames, fps, rng), known):
            if told:
                yield list(windows)


def _turned(clips: list[dict[str, Any]], frames: int) -> list[dict[str, Any]]:
    """Clips by the clock of a video played backwards, with their places in the video."""
    return [clip | {"start": frames - clip["end"], "end": frames - clip["start"]} for clip in clips]


def _begins(frames: int, count: int, rng: np.random.Generator) -> list[int]:
    """Where clocks begin that do not begin with the video."""
    begins: list[int] = rng.integers(1, max(2, frames * 2 // 3), count).tolist()
    return begins


def _windows(begin: int, frames: int, fps: float, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Clips of 1.5 to 5.5 seconds from frame `begin` on; a rest much shorter than that is left out."""
    period = max(2, round(float(rng.uniform(1.5, 5.5)) * fps))
    windows = [(start, min(start + period, frames)) for start in range(begin, frames - 1, period)]
    if len(windows) > 1 and windows[-1][1] - windows[-1][0] < 0.4 * period:
        windows.pop()
    return windows


def write_image(
    folder: Path, name: str, sample: ImageSample, depth: bool = False, packing: Packing = FAST
) -> dict[str, Any]:
    """Writes one image; its index line is returned. With `depth` also a 16-bit PNG in millimetres."""
    write_picture(folder / f"{name}{packing.ending}", sample.rgb, packing)
    write_ids(folder / f"{name}.png", id_picture(sample.instances, sample.parts), packing)
    rng = np.random.default_rng([sample.seed, 71])
    line: dict[str, Any] = {
        "image": f"{name}{packing.ending}",
        "ids": f"{name}.png",
        "scene": sample.scene.kind,
        "seed": sample.seed,
        "split": sample.split,
        "size": list(sample.instances.shape),
        "regions": [region_line(region, rng) for region in sample.regions],
    }
    if depth:
        write_ids(folder / f"{name}.depth.png", np.clip(sample.depth_m * 1000, 0, 65535).astype(np.uint16))
        line |= {
            "depth_mm": f"{name}.depth.png",
            "intrinsics": sample.intrinsics.tolist(),
            "pose": sample.pose.tolist(),
        }
    return line


def write_video(folder: Path, name: str, sample: VideoSample, packing: Packing = FAST) -> dict[str, Any]:
    """Writes one video's frames into folder/name; its index line is returned."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    names = [f"{name}/{index:03d}" for index in range(len(sample.frames))]
    for index, stem in enumerate(names):
        write_picture(folder / f"{stem}{packing.ending}", sample.frames[index], packing)
        write_ids(folder / f"{stem}.png", id_picture(sample.instances[index]), packing)
    fps = 1 / float(sample.times_s[1] - sample.times_s[0])
    rng = np.random.default_rng([sample.seed, 73])
    return {
        "frames": [f"{stem}{packing.ending}" for stem in names],
        "ids": [f"{stem}.png" for stem in names],
        "fps": round(fps, 3),
        "scene": sample.scene.kind,
        "seed": sample.seed,
        "split": sample.split,
        "actor": sample.actor,
        "regions": [object_line(thing, len(names), fps, rng) for thing in sample.objects],
    }


def write_index(folder: Path, lines: Sequence[dict[str, Any]]) -> None:
    """index.jsonl, one sample a line; it appears at once when complete."""
    part = folder / "index.jsonl.part"
    part.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    os.replace(part, folder / "index.jsonl")
