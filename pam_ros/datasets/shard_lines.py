"""Converts samples to lines of a shard's index.jsonl and back; unknown and empty values are left out.

A line: `name`, `image` or `frames` (files beside the index), `size` [height, width], `fps`, `actor`,
`provenance`, `regions`, `other_masks`, `extra`. A mask is COCO's compressed run lengths as a text; of a video
a list with one, or null, for each frame. docs/datasets.md has the whole table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pam_ros.datasets.json_lines import Fields
from pam_ros.datasets.rle import RleMask
from pam_ros.datasets.schema import (
    Clip,
    FramePrompt,
    Kind,
    PictureFile,
    Provenance,
    Sample,
    SampleRegion,
    Segment,
)
from pam_ros.errors import InputError
from pam_ros.records import Language, Task

PLAIN_TEXTS = ("category", "function", "colour", "material", "mesh_id", "part")  # of a region

KINDS = {kind.value: kind for kind in Kind}

# ---- writing


def line_of(sample: Sample, files: Sequence[str]) -> dict[str, Any]:
    """A sample whose frames stand in these files → its line."""
    provenances = {region.provenance for region in sample.regions}
    shared = provenances.pop() if len(provenances) == 1 else None
    line: dict[str, Any] = {
        "name": sample.name,
        **({"frames": list(files)} if sample.is_video else {"image": files[0]}),
        "size": None if sample.size is None else list(sample.size),
        "fps": sample.fps,
        "actor": sample.actor,
        "provenance": None if shared is None else _provenance_values(shared),
        "regions": [_region_values(region, sample.is_video, shared) for region in sample.regions],
        "other_masks": [_masks_values(masks, sample.is_video) for masks in sample.other_masks],
        "extra": dict(sample.extra),
    }
    return _known(line)


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value not in (None, "", 0, (), [], {})}


def _provenance_values(provenance: Provenance) -> dict[str, Any]:
    return {
        key: value
        for key in ("source", "annotator", "confidence")
        if (value := getattr(provenance, key)) not in ("", None)
    }


def _masks_values(masks: Sequence[RleMask | None], is_video: bool) -> Any:
    values = [None if mask is None else mask.counts for mask in masks]
    return values if is_video else values[0]


def _region_values(region: SampleRegion, is_video: bool, shared: Provenance | None) -> dict[str, Any]:
    own = region.provenance if region.provenance != shared else Provenance()
    return _known(
        {
            "kind": region.kind.value,
            "object": region.object_id,
            **{key: getattr(region, key) for key in PLAIN_TEXTS},
            "mask": _masks_values(region.masks, is_video) if region.masks else None,
            "prompts": {
                str(frame): _known({"box": list(prompt.box_xyxy or ()), "clicks": list(prompt.clicks)})
                for frame, prompt in region.prompts.items()
            },
            "texts": {
                f"{task.value}/{language.value}": list(texts)
                for (task, language), texts in region.texts.items()
            },
            "clips": [[_clip_values(clip) for clip in sequence] for sequence in region.clips],
            "segments": [list(segment) for segment in region.segments],
            "backward_segments": [list(segment) for segment in region.backward_segments],
            "path_mm": [[round(1000 * side) for side in place] for place in region.path_m],
            "provenance": _provenance_values(own),
            "extra": dict(region.extra),
        }
    )


def _clip_values(clip: Clip) -> dict[str, Any]:
    extent = {"start": clip.start, "end": clip.end}
    return extent | _known(
        {
            "events": list(clip.events),
            "backward": clip.backward,
            "previous": {language.value: text for language, text in clip.previous.items()},
            "captions": {language.value: list(texts) for language, texts in clip.captions.items()},
        }
    )


# ---- reading


def sample_of(line: Fields, folder: Path) -> Sample:
    """A line of an index in `folder` → the sample. Raises DatasetError naming file, line and key."""
    if "ids" in line:
        raise line.error(
            "ids", "is of an older format; `python -m pam_ros.simulator.tools.from_id_pictures` converts it"
        )
    is_video = "frames" in line
    files = [str(name) for name in line.need("frames", list)] if is_video else [line.need("image", str)]
    if not files:
        raise line.error("frames", "is empty; a video has at least one frame")
    size = None
    if "size" in line:
        height, width = line.numbers("size", line.values["size"], 2)
        size = int(height), int(width)
    provenance = _provenance(line, Provenance())
    regions = tuple(
        _region(raw, place, len(files), is_video, size, provenance)
        for place, raw in enumerate(line.objects("regions"), 1)
    )
    return Sample(
        name=line.get("name", ""),
        frames=tuple(PictureFile(folder / name) for name in files),
        regions=regions,
        is_video=is_video,
        size=size,
        fps=line.need("fps", float) if is_video else 0.0,
        other_masks=tuple(
            _masks(line, f"other_masks[{place}]", masks, len(files), is_video, size)
            for place, masks in enumerate(line.items("other_masks"))
        ),
        actor=line.get("actor", 0),
        extra=line.get("extra", {}),
    )


def _provenance(line: Fields, default: Provenance) -> Provenance:
    if "provenance" not in line:
        return default
    inner = line.inner("provenance")
    confidence = inner.need("confidence", float) if "confidence" in inner else None
    return Provenance(inner.get("source", ""), inner.get("annotator", ""), confidence)


def _masks(
    line: Fields, key: str, value: Any, frames: int, is_video: bool, size: tuple[int, int] | None
) -> tuple[RleMask | None, ...]:
    """Masks by frame; `value` stands under `key` of the line."""
    masks = value if is_video else [value]
    if not isinstance(masks, list) or len(masks) != frames:
        raise line.error(key, f"must be a list with one mask, or null, for each of {frames} frames")
    if size is None:
        raise line.error("size", "is missing; masks need it: [height, width]")
    for mask in masks:
        if mask is not None and not isinstance(mask, str):
            raise line.error(key, f"is {mask!r:.60}; a mask is a string: COCO's compressed run lengths")
    return tuple(None if mask is None else RleMask(*size, mask) for mask in masks)


def _region(
    raw: Fields,
    place: int,
    frames: int,
    is_video: bool,
    size: tuple[int, int] | None,
    provenance: Provenance,
) -> SampleRegion:
    kind = raw.get("kind", Kind.UNKNOWN.value)
    if kind not in KINDS:
        raise raw.error("kind", f"is {kind!r}; allowed: {', '.join(KINDS)}")
    masks = raw.values.get("mask")
    prompts = raw.inner("prompts")
    return SampleRegion(
        name=f"region {place}",
        kind=KINDS[kind],
        object_id=raw.get("object", 0),
        masks=() if masks is None else _masks(raw, "mask", masks, frames, is_video, size),
        prompts={_frame(prompts, key, frames): _prompt(prompts, key) for key in prompts.values},
        texts=_texts(raw.inner("texts")),
        clips=_clips(raw, frames),
        segments=_segments(raw, "segments"),
        backward_segments=_segments(raw, "backward_segments"),
        path_m=tuple(
            tuple(side / 1000 for side in raw.numbers(f"path_mm[{frame}]", each, 3))
            for frame, each in enumerate(raw.items("path_mm"))
        ),
        provenance=_provenance(raw, provenance),
        extra=raw.get("extra", {}),
        **{key: raw.get(key, "") for key in PLAIN_TEXTS},
    )


def _frame(prompts: Fields, key: str, frames: int) -> int:
    if not key.isdecimal() or int(key) >= frames:
        raise prompts.error(key, f"is not a frame; allowed: 0..{frames - 1}")
    return int(key)


def _prompt(prompts: Fields, key: str) -> FramePrompt:
    raw = prompts.inner(key)
    box = None
    if "box" in raw:
        x1, y1, x2, y2 = raw.numbers("box", raw.values["box"], 4)
        if x1 >= x2 or y1 >= y2:
            raise raw.error(
                "box", f"is {raw.values['box']!r:.60}; allowed: [x1, y1, x2, y2], x1 < x2, y1 < y2"
            )
        box = (x1, y1, x2, y2)
    clicks = []
    for place, click in enumerate(raw.items("clicks")):
        x, y, label = raw.numbers(f"clicks[{place}]", click, 3)
        if label not in (0, 1):
            raise raw.error(f"clicks[{place}]", f"is {click!r:.60}; its label must be 1 (on the region) or 0")
        clicks.append((x, y, int(label)))
    return FramePrompt(box, tuple(clicks))


def _wordings(raw: Fields, key: str) -> tuple[str, ...]:
    texts = raw.need(key, list)
    if not all(isinstance(text, str) for text in texts):
        raise raw.error(key, f"is {texts!r:.60}; it must be a list of strings")
    return tuple(texts)


def _texts(raw: Fields) -> dict[tuple[Task, Language], tuple[str, ...]]:
    texts = {}
    for key in raw.values:
        task, _, language = key.partition("/")
        try:
            texts[Task.parse(task), Language.parse(language)] = _wordings(raw, key)
        except InputError as error:
            raise raw.error(key, str(error)) from error
    return texts


def _segments(raw: Fields, key: str) -> tuple[Segment, ...]:
    segments = raw.items(key)
    try:
        return tuple((int(start), int(end), str(event)) for start, end, event in segments)
    except (TypeError, ValueError) as error:
        raise raw.error(key, f"is {segments!r:.60}; a segment is [start, end, event]") from error


def _clips(raw: Fields, frames: int) -> tuple[tuple[Clip, ...], ...]:
    sequences = []
    for place, values in enumerate(raw.items("clips")):
        key = f"clips[{place}]"
        sequences.append(
            tuple(_clip(clip, frames) for clip in Fields({key: values}, *raw.place).objects(key))
        )
    return tuple(sequences)


def _clip(raw: Fields, frames: int) -> Clip:
    start, end = raw.need("start", int), raw.need("end", int)
    if not 0 <= start <= end <= frames:
        raise raw.error("end", f"frames {start}..{end} are not within 0..{frames}")
    captions, previous = raw.inner("captions"), raw.inner("previous")
    return Clip(
        start=start,
        end=end,
        captions={_language(captions, code): _wordings(captions, code) for code in captions.values},
        events=tuple(str(event) for event in raw.items("events")),
        previous={_language(previous, code): previous.need(code, str) for code in previous.values},
        backward="backward" in raw,
    )


def _language(raw: Fields, code: str) -> Language:
    try:
        return Language.parse(code)
    except InputError as error:
        raise raw.error(code, str(error)) from error
