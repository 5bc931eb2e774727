"""Reads the reference's jsonl layouts (PAM's public data) as samples to evaluate; regions are boxes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from pam_ros.datasets.pam_jsonl import Box, Conversation, Stream, read_conversations, read_streams
from pam_ros.evaluation.samples import (
    EvaluationImage,
    EvaluationRegion,
    EvaluationVideo,
    Event,
    Kind,
    SampleError,
    Samples,
)
from pam_ros.model.text.prompts import NO_PREVIOUS, TASK_TEXT
from pam_ros.records import Language, Task

# The layout has no frame rate. A caption's clips are cut by it; PAM samples its videos about this densely.
ASSUMED_FPS = 8.0


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a line asks and what is right."""

    task: Task
    language: Language
    previous: str
    answer: str


def read_jsonl(path: Path) -> Samples:
    """Conversation or streaming lines. Lines about the same box of the same picture become one region.

    Raises JsonlError for a broken line, SampleError for a file without lines or with an unknown question.
    """
    try:
        with path.open(encoding="utf-8") as file:
            streaming = '"annotations"' in file.readline()
    except OSError as error:
        raise SampleError(f"{path} cannot be read: {error}") from error
    samples = _streams(path) if streaming else _conversations(path)
    if not samples.images and not samples.videos:
        raise SampleError(f"{path} holds no line")
    return samples


def _conversations(path: Path) -> Samples:
    images: dict[tuple[Path, ...], dict[Box, EvaluationRegion]] = {}
    videos: dict[tuple[Path, ...], dict[Box, EvaluationRegion]] = {}
    for line in read_conversations(path):
        regions = (videos if line.is_video else images).setdefault(line.frames, {})
        known = regions.get(line.box_xyxy) or _boxed(len(regions) + 1, line.box_xyxy)
        regions[line.box_xyxy] = _told(known, line, _question(line, path))
    return Samples(
        tuple(
            EvaluationImage(f"image {place}", frames[0], None, tuple(regions.values()))
            for place, (frames, regions) in enumerate(images.items(), 1)
        ),
        tuple(
            _video(place, frames, regions.values())
            for place, (frames, regions) in enumerate(videos.items(), 1)
        ),
    )


def _streams(path: Path) -> Samples:
    videos = []
    for place, stream in enumerate(read_streams(path), 1):
        frames = tuple(frame for event in stream.events for frame in event.frames)
        if frames:
            region = replace(_boxed(1, stream.events[0].box_xyxy), events=_events(stream))
            videos.append(_video(place, frames, [region]))
    return Samples((), tuple(videos))


def _video(place: int, frames: tuple[Path, ...], regions: Iterable[EvaluationRegion]) -> EvaluationVideo:
    return EvaluationVideo(f"video {place}", frames, (), ASSUMED_FPS, tuple(regions))


def _boxed(place: int, box: Box) -> EvaluationRegion:
    return EvaluationRegion(f"region {place}", Kind.UNKNOWN, box, {})


def _told(region: EvaluationRegion, line: Conversation, asked: _Asked) -> EvaluationRegion:
    """The region with one more right answer."""
    if asked.task is not Task.CLIP:
        key = asked.task, asked.language
        return replace(region, texts={**region.texts, key: (*region.texts.get(key, ()), asked.answer)})
    previous = {asked.language: asked.previous} if asked.previous else {}
    event = Event(0, len(line.frames), (), {asked.language: (asked.answer,)}, previous)
    return replace(region, events=(*region.events, event))


def _question(line: Conversation, path: Path) -> _Asked:
    for (task, language), text in TASK_TEXT.items():
        head = text.partition("{previous}")[0].strip()
        if task is Task.CLIP and line.question.startswith(head):
            previous = line.question.removeprefix(head).strip()
            return _Asked(task, language, "" if previous == NO_PREVIOUS[language] else previous, line.answer)
        if task is not Task.CLIP and line.question == text:
            return _Asked(task, language, "", line.answer)
    allowed = "; ".join(repr(text) for text in TASK_TEXT.values())
    raise SampleError(f"{path}: {line.question!r} is none of PAM's questions: {allowed}")


def _events(stream: Stream) -> tuple[Event, ...]:
    events, start = [], 0
    for each in stream.events:
        end = start + len(each.frames)
        # Chinese where it holds a Chinese character.
        chinese = any("\u4e00" <= letter <= "\u9fff" for letter in each.caption)
        language = Language.ZH if chinese else Language.EN
        events.append(Event(start, end, (), {language: (each.caption,)}))
        start = end
    return tuple(events)
