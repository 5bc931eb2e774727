"""Reads the jsonl layouts of PAM's public data: conversation lines (training) and streaming lines.

Conversation lines: `type` ("image" or "video"), `image` or `frames` with `image_root`, `bbox` [x, y, width,
height], `points` [[x, y], ...] with `labels` (1 on the region, 0 not), `conversations` [{"from": "human" |
"gpt", "value": text}, ...]. Of a video, `bbox`, `points` and `labels` hold one entry for each of its
`masked_frames` (numbers or names of frames; the first ones if the key is missing), null for none.
Streaming lines: `image_root` and `annotations`, each an event with `event_id`, `frames`, `gt` and `box`
[[x, y, width, height]] on its first frame.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

from pam_ros.datasets.json_lines import Fields, JsonLines
from pam_ros.datasets.rle import PixelBox
from pam_ros.datasets.schema import Clip, FramePrompt, PictureFile, Provenance, Sample, SampleRegion
from pam_ros.errors import DatasetError
from pam_ros.model.text.prompts import NO_PREVIOUS, TASK_TEXT
from pam_ros.records import Language, Task

# The layout has no frame rate. Evaluation cuts clips by it; PAM samples its videos about this densely.
ASSUMED_FPS = 8.0
PROVENANCE = Provenance(source="PAM")


class PamJsonlSource:
    """Samples of one file. Lines about the same frames form one sample; with equal prompts, one region."""

    def __init__(self, path: Path) -> None:
        """Raises DatasetError if the file cannot be read or is empty, or if a line has no frames."""
        self._lines = JsonLines([path])
        groups: dict[tuple[bool, bytes], list[int]] = {}
        for number, line in enumerate(self._lines):
            names = "\n".join(map(str, _frames(line, path.parent)))
            is_video = "annotations" in line or line.get("type", "") == "video"
            digest = blake2b(names.encode(), digest_size=16).digest()  # names of millions of frames are large
            groups.setdefault((is_video, digest), []).append(number)
        if not groups:
            raise DatasetError(f"{path} has no lines")
        self._folder = path.parent
        self._samples: list[tuple[str, tuple[int, ...]]] = []  # name, numbers of its lines
        counts = {"image": 0, "video": 0}
        for (is_video, _), numbers in groups.items():
            kind = "video" if is_video else "image"
            counts[kind] += 1
            self._samples.append((f"{kind} {counts[kind]}", tuple(numbers)))

    def __len__(self) -> int:
        return len(self._samples)

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Sample:
        """Reads a sample's lines. Raises DatasetError naming file, line and key."""
        name, numbers = self._samples[index]
        regions: dict[object, SampleRegion] = {}
        for number in numbers:
            line = self._lines[number]
            frames = _frames(line, self._folder)
            region = _streamed(line) if "annotations" in line else _asked(line, len(frames))
            key = tuple(sorted(region.prompts.items(), key=lambda item: item[0]))
            regions[key] = _joined(regions[key], region) if key in regions else region
        is_video = name.startswith("video")
        return Sample(
            name=name,
            frames=tuple(PictureFile(path) for path in frames),
            regions=tuple(replace(each, name=f"region {i}") for i, each in enumerate(regions.values(), 1)),
            is_video=is_video,
            fps=ASSUMED_FPS if is_video else 0.0,
        )


def _frames(line: Fields, folder: Path) -> tuple[Path, ...]:
    root = folder / line.get("image_root", "")
    if "annotations" in line:
        names = [name for event in line.objects("annotations") for name in event.need("frames", list)]
        key = "annotations"
    elif line.need("type", str) == "video":
        names, key = line.need("frames", list), "frames"
    else:
        image = line.values.get("image")
        names, key = image if isinstance(image, list) else [line.need("image", str)], "image"
    if not names:
        raise line.error(key, "names no frame")
    return tuple(root / str(name) for name in names)


def _joined(known: SampleRegion, more: SampleRegion) -> SampleRegion:
    """A region with the texts and clips of another line about it."""
    texts = dict(known.texts)
    for key, answers in more.texts.items():
        texts[key] = (*texts.get(key, ()), *answers)
    return replace(known, texts=texts, clips=known.clips + more.clips)


# ---- conversation lines


@dataclass(frozen=True, slots=True)
class _Question:
    task: Task
    language: Language
    previous: str  # the previous caption in a question about a clip; "" for none


def _asked(line: Fields, frames: int) -> SampleRegion:
    """One question, one answer."""
    turns = line.objects("conversations")
    if len(turns) < 2:
        raise line.error("conversations", f"has {len(turns)} turns; a question and an answer are needed")
    question, answer = _question(turns[0]), turns[1].need("value", str)
    prompts = _video_prompts(line) if line.need("type", str) == "video" else {0: _image_prompt(line)}
    region = SampleRegion(prompts=prompts, provenance=PROVENANCE)
    if question.task is not Task.CLIP:
        return replace(region, texts={(question.task, question.language): (answer,)})
    previous = {question.language: question.previous} if question.previous else {}
    clip = Clip(0, frames, {question.language: (answer,)}, previous=previous)
    return replace(region, clips=((clip,),))


def _question(turn: Fields) -> _Question:
    """Recognises the task and language of a question by its text."""
    text = turn.need("value", str).replace("<image>", "").strip()
    for (task, language), wording in TASK_TEXT.items():
        head = wording.partition("{previous}")[0].strip()
        if task is Task.CLIP and text.startswith(head):
            previous = text.removeprefix(head).strip()
            return _Question(task, language, "" if previous == NO_PREVIOUS[language] else previous)
        if task is not Task.CLIP and text == wording:
            return _Question(task, language, "")
    allowed = "; ".join(repr(each) for each in TASK_TEXT.values())
    raise turn.error("value", f"{text!r} is not one of PAM's questions: {allowed}")


def _image_prompt(line: Fields) -> FramePrompt:
    box = line.values.get("bbox")
    if isinstance(box, list) and box and isinstance(box[0], list):
        box = box[0]
    return _prompt(line, "", box, line.values.get("points"), line.values.get("labels"))


def _video_prompts(line: Fields) -> dict[int, FramePrompt]:
    """The box and clicks of every masked frame."""
    boxes, points, labels = (line.values.get(key) for key in ("bbox", "points", "labels"))
    # One frame's values may stand there without a list around them.
    boxes = [boxes] if _is_flat(boxes, depth=1) else boxes
    points = [points] if _is_flat(points, depth=2) else points
    labels = [labels] if _is_flat(labels, depth=1) else labels
    lists = {"bbox": boxes, "points": points, "labels": labels}
    for key, values in lists.items():
        if values is not None and not isinstance(values, list):
            raise line.error(key, f"is {values!r:.60}; it must be a list with an entry for each masked frame")
    count = max((len(values) for values in lists.values() if values), default=0)
    frames = _masked_frames(line, count)
    for key, values in lists.items():
        if values and len(values) != len(frames):
            raise line.error(key, f"has {len(values)} entries for {len(frames)} masked frames")
    return {
        frame: _prompt(line, f"[{i}]", *(values[i] if values else None for values in lists.values()))
        for i, frame in enumerate(frames)
    }


def _is_flat(values: Any, depth: int) -> bool:
    """Whether nested lists hold numbers at this depth."""
    for _ in range(depth):
        if not isinstance(values, list) or not values:
            return False
        values = values[0]
    return isinstance(values, int | float)


def _masked_frames(line: Fields, count: int) -> list[int]:
    names = line.need("frames", list)
    if "masked_frames" not in line:
        if count > len(names):
            raise line.error("bbox", f"has {count} entries for {len(names)} frames")
        return list(range(count))
    frames = []
    for place, frame in enumerate(line.need("masked_frames", list)):
        known = names.index(frame) if frame in names else frame
        if not isinstance(known, int) or isinstance(known, bool) or not 0 <= known < len(names):
            raise line.error(
                f"masked_frames[{place}]", f"is {frame!r}; it must name one of {len(names)} frames"
            )
        frames.append(known)
    return frames


def _prompt(line: Fields, entry: str, box: Any, points: Any, labels: Any) -> FramePrompt:
    """A box and clicks; `entry` says which of a video's they are."""
    points, labels = points or [], labels or []
    if not isinstance(points, list) or not isinstance(labels, list) or len(points) != len(labels):
        raise line.error(f"points{entry}", f"{points!r:.60} and labels {labels!r:.60} differ in number")
    clicks = []
    for place, (point, label) in enumerate(zip(points, labels, strict=True)):
        x, y = line.numbers(f"points{entry}[{place}]", point, 2)
        if label not in (0, 1):
            raise line.error(f"labels{entry}[{place}]", f"is {label!r}; allowed: 1 (on the region), 0 (not)")
        clicks.append((x, y, int(label)))
    corners = None if not box else _corners(line, f"bbox{entry}", box)
    if corners is None and not clicks:
        raise line.error(f"bbox{entry}", "is missing, and so are points; a region needs a box or clicks")
    return FramePrompt(corners, tuple(clicks))


def _corners(line: Fields, key: str, value: Any) -> PixelBox:
    """[x, y, width, height] → (x1, y1, x2, y2)."""
    x, y, width, height = line.numbers(key, value, 4)
    if width <= 0 or height <= 0:
        raise line.error(key, f"is {value!r}; a box is [x, y, width, height], width and height above 0")
    return x, y, x + width, y + height


# ---- streaming lines


def _streamed(line: Fields) -> SampleRegion:
    """All events of one region, one after the other."""
    clips: list[Clip] = []
    prompts: dict[int, FramePrompt] = {}
    start = 0
    for event in line.objects("annotations"):
        end = start + len(event.need("frames", list))
        caption = event.need("gt", str).strip()
        boxes = event.need("box", list)
        if end > start:
            flat = boxes if _is_flat(boxes, depth=1) else (boxes or [None])[0]
            prompts[start] = FramePrompt(_corners(event, "box", flat))
            clips.append(Clip(start, end, {_language_of(caption): (caption,)}))
        start = end
    return SampleRegion(prompts=prompts, clips=(tuple(clips),), provenance=PROVENANCE)


def _language_of(text: str) -> Language:
    """Chinese if it holds a Chinese character."""
    return Language.ZH if any("\u4e00" <= letter <= "\u9fff" for letter in text) else Language.EN
