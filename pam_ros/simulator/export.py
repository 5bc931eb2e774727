"""Turns rendered scenes into samples of `datasets.schema`, from which shards are written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pam_ros.datasets import schema
from pam_ros.datasets.rle import RleMask
from pam_ros.datasets.schema import Kind, LoadedPicture, Provenance, Sample, SampleRegion
from pam_ros.records import IMAGE_TASKS, Language, Task
from pam_ros.simulator.events.stage import RESTS, Segment
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

PROVENANCE = Provenance(source="simulator", annotator="simulator", confidence=1.0)
WORDINGS = 3
LATER_CLOCKS = 4  # further sequences of clips of an object, each cut at other times
BACKWARD_CLOCKS = 3  # sequences of clips of a video played backwards
TURNED = (
    ("slides_left", "slides_right"),
    ("slides_closer", "slides_away"),
    ("lifted", "put_down"),
    ("covered", "uncovered"),
    ("leaves", "returns"),
    ("opens", "closes"),
)
# What an event becomes when it is played backwards; others (falls, tips over, pushes) have no counterpart.
BACKWARDS = {one: other for pair in TURNED for one, other in (pair, pair[::-1])}
BACKWARDS |= {event: event for event in (*RESTS, "hidden")}


def exported_image(image: ImageSample) -> Sample:
    """A rendered image with its masks, and texts in several wordings."""
    rng = np.random.default_rng([image.seed, 71])
    regions = []
    for place, region in enumerate(image.regions, 1):
        mask = RleMask.of(image.mask(region))
        regions.append(replace(_region(region, rng), name=f"region {place}", masks=(mask,)))
    asked = {region.instance for region in image.regions if not region.part}
    return Sample(
        name=f"image {image.seed}",
        frames=(LoadedPicture(image.rgb),),
        regions=tuple(regions),
        size=(image.rgb.shape[0], image.rgb.shape[1]),
        other_masks=_other_masks(image.instances[None], asked),
        extra={"scene": image.scene.kind, "seed": image.seed, "split": image.split},
    )


def exported_video(video: VideoSample) -> Sample:
    """A rendered video with masks in every frame, captions of its clips, and its events."""
    fps = 1 / float(video.times_s[1] - video.times_s[0])
    rng = np.random.default_rng([video.seed, 73])
    frames = len(video.frames)
    regions = []
    for place, thing in enumerate(video.objects, 1):
        masks = tuple(_rle(video.mask(thing.instance, frame)) for frame in range(frames))
        region = video_region(thing, frames, fps, rng)
        regions.append(replace(region, name=f"region {place}", masks=masks))
    return Sample(
        name=f"video {video.seed}",
        frames=tuple(LoadedPicture(frame) for frame in video.frames),
        regions=tuple(regions),
        is_video=True,
        size=(video.frames.shape[1], video.frames.shape[2]),
        fps=round(fps, 3),
        other_masks=_other_masks(video.instances, {thing.instance for thing in video.objects}),
        actor=video.actor,
        extra={"scene": video.scene.kind, "seed": video.seed, "split": video.split},
    )


def _rle(mask: NDArray[np.bool_]) -> RleMask | None:
    return RleMask.of(mask) if mask.any() else None


def _other_masks(instances: NDArray[np.uint16], asked: set[int]) -> tuple[tuple[RleMask | None, ...], ...]:
    """(T, H, W) → masks of the objects and fixtures that are not regions, by object and frame."""
    others = sorted(set(np.unique(instances).tolist()) - asked - {0})
    return tuple(tuple(_rle(frame == instance) for frame in instances) for instance in others)


def with_depth(sample: Sample, image: ImageSample, folder: Path, stem: str) -> Sample:
    """Writes the image's depth as a 16-bit PNG in millimetres; the sample names the file in `extra`."""
    name = f"{stem}.depth.png"
    millimetres = np.clip(image.depth_m * 1000, 0, 65535).astype(np.uint16)
    Image.fromarray(millimetres).save(folder / name, compress_level=1)
    camera = {"intrinsics": image.intrinsics.tolist(), "pose": image.pose.tolist()}
    return replace(sample, extra={**sample.extra, "depth_mm": name, **camera})


def texts_of(
    facts: Facts, rng: np.random.Generator, wordings: int = WORDINGS
) -> dict[tuple[Task, Language], tuple[str, ...]]:
    """Texts of every image task and language in different wordings, each once."""
    texts = {}
    for task in IMAGE_TASKS:
        for language in Language:
            worded = [describe(facts, task, language, rng) for _ in range(wordings)]
            texts[task, language] = tuple(dict.fromkeys(worded))
    return texts


def _described(facts: Facts, function: str, rng: np.random.Generator) -> SampleRegion:
    extra = {key: value for key in ("surface", "size") if (value := getattr(facts, key))}
    if facts.place[0]:
        extra["place"] = facts.place[0]
    if facts.whole:
        extra["whole"] = facts.whole.category
    return SampleRegion(
        texts=texts_of(facts, rng),
        category=facts.category,
        function=function,
        colour=facts.colour,
        material=facts.material,
        provenance=PROVENANCE,
        extra=extra,
    )


def _region(region: RegionTruth, rng: np.random.Generator) -> SampleRegion:
    """A region of an image, without its mask."""
    background = region.facts.kind == "region"
    kind = Kind.PART if region.part else Kind.BACKGROUND if background else Kind.OBJECT
    described = _described(region.facts, region.function, rng)
    return replace(described, kind=kind, object_id=region.instance, part=region.part, mesh_id=region.mesh_id)


def video_region(thing: VideoObject, frames: int, fps: float, rng: np.random.Generator) -> SampleRegion:
    """An object of a video, without its masks.

    The first of its sequences of clips is cut where its events change, the second at equal intervals, the
    next `LATER_CLOCKS` at equal intervals that start inside the video. The others show the video backwards,
    if the reversed events are known: the same images, with other events.
    """

    def captioned(
        cuts: Sequence[tuple[int, int]], segments: Sequence[Segment] = thing.segments
    ) -> tuple[schema.Clip, ...]:
        return joined_wordings([caption_windows(thing.facts, segments, cuts, rng) for _ in range(WORDINGS)])

    begins = _begins(frames, LATER_CLOCKS, rng)
    described = _described(thing.facts, thing.function, rng)
    clips = [
        captioned([(part.start, part.end) for part in thing.segments]),
        captioned(_windows(0, frames, fps, rng)),
        *(captioned(_windows(begin, frames, fps, rng)) for begin in begins),
    ]
    turned = backward_segments(thing.segments, frames)
    backward: tuple[schema.Segment, ...] = ()
    if len(turned) > 1:
        clips += [
            _in_video_frames(captioned(cuts, turned), frames) for cuts in _possible(turned, frames, fps, rng)
        ]
        backward = tuple(
            (frames - part.end, frames - part.start, part.event) for part in turned if part.event
        )
    return replace(
        described,
        kind=Kind.OBJECT,
        object_id=thing.instance,
        mesh_id=thing.mesh_id,
        path_m=tuple((float(x), float(y), float(z)) for x, y, z in thing.path_m.round(3)),
        segments=tuple((part.start, part.end, part.event) for part in thing.segments),
        clips=tuple(clips),
        backward_segments=backward,
    )


def joined_wordings(versions: Sequence[Sequence[Clip]]) -> tuple[schema.Clip, ...]:
    """Several versions of the same clips → clips with several wordings."""
    return tuple(
        schema.Clip(
            start=same[0].start,
            end=same[0].end,
            captions={
                language: tuple(dict.fromkeys(clip.captions[language] for clip in same))
                for language in Language
            },
            events=same[0].events,
        )
        for same in zip(*versions, strict=True)
    )


def backward_segments(segments: Sequence[Segment], frames: int) -> list[Segment]:
    """The events of a video played backwards, in its own frames: frame 0 is the video's last one.

    Events without a counterpart become "". A frame of an event shows what has moved by then, so backwards an
    event begins one frame later.
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
    """Sequences of windows of a video played backwards that show known events only."""

    def known(window: tuple[int, int]) -> bool:
        return all(part.event for part in segments if part.start < window[1] and part.end > window[0])

    for begin in _begins(frames, BACKWARD_CLOCKS, rng):
        for playable, windows in groupby(_windows(begin, frames, fps, rng), known):
            if playable:
                yield list(windows)


def _in_video_frames(clips: Sequence[schema.Clip], frames: int) -> tuple[schema.Clip, ...]:
    """Clips in frames of the video played backwards → the same in frames of the video."""
    return tuple(
        replace(clip, start=frames - clip.end, end=frames - clip.start, backward=True) for clip in clips
    )


def _begins(frames: int, count: int, rng: np.random.Generator) -> list[int]:
    """First frames of sequences of clips that start inside the video."""
    begins: list[int] = rng.integers(1, max(2, frames * 2 // 3), count).tolist()
    return begins


def _windows(begin: int, frames: int, fps: float, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Clips of one length, 1.5 to 5.5 seconds, from frame `begin` on, without a much shorter remainder."""
    period = max(2, round(float(rng.uniform(1.5, 5.5)) * fps))
    windows = [(start, min(start + period, frames)) for start in range(begin, frames - 1, period)]
    if len(windows) > 1 and windows[-1][1] - windows[-1][0] < 0.4 * period:
        windows.pop()
    return windows
