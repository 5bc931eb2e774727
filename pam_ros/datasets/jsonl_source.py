"""Training samples from the reference's own jsonl layouts (PAM's public data); regions are boxes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pam_ros.datasets.pam_jsonl import Box, Conversation, Stream, read_conversations, read_streams
from pam_ros.datasets.schema import WHOLE, ClipEntry, Entry, RegionEntry, Scene, resized
from pam_ros.errors import DatasetError
from pam_ros.geometry import CropBox
from pam_ros.model.text.prompts import NO_PREVIOUS, TASK_TEXT
from pam_ros.records import Language, Task


@dataclass(frozen=True, slots=True)
class _Pictures:
    frames: tuple[Path, ...]
    box_xyxy: Box  # pixels of the first frame


class JsonlSource:
    """A file of conversation or of streaming lines. Masks are filled boxes: set `box_fraction` to 1."""

    def __init__(self, path: Path) -> None:
        with path.open(encoding="utf-8") as file:
            streaming = '"annotations"' in file.readline()
        samples = list(_streams(path) if streaming else _conversations(path))
        if not samples:
            raise DatasetError(f"{path} holds no line")
        self._pictures = [pictures for pictures, _ in samples]
        self.entries = [entry for _, entry in samples]

    def load(self, index: int, frames: Sequence[int], size: int, cut: CropBox = WHOLE) -> Scene:
        """Decodes some frames of a sample."""
        pictures = self._pictures[index]
        pixels = []
        width = height = 0
        for frame in frames:
            with Image.open(pictures.frames[frame]) as picture:
                width, height = picture.size
                pixels.append(resized(picture.convert("RGB"), size, cut))
        left, top, right, bottom = cut
        x1, y1, x2, y2 = (
            min(max(round((side / full - low) / (high - low) * size), 0), size)
            for side, full, low, high in zip(
                pictures.box_xyxy, (width, height) * 2, (left, top) * 2, (right, bottom) * 2, strict=True
            )
        )
        ids = np.zeros((len(frames), size, size), np.uint16)
        ids[0, y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)] = 1
        return Scene(np.stack(pixels), ids)


def _conversations(path: Path) -> Iterator[tuple[_Pictures, Entry]]:
    for line in read_conversations(path):
        yield _Pictures(line.frames, line.box_xyxy), Entry(len(line.frames), (_region(line, path),))


def _region(line: Conversation, path: Path) -> RegionEntry:
    """A conversation's question says which task it is."""
    for (task, language), text in TASK_TEXT.items():
        if task is not Task.CLIP and line.question == text:
            return RegionEntry({(task, language): (line.answer,)})
        head = text.partition("{previous}")[0].strip()
        if task is Task.CLIP and line.question.startswith(head):
            previous = line.question.removeprefix(head).strip()
            clip = ClipEntry(0, len(line.frames), {language: (line.answer,)})
            # The caption before it has no frames here; as a clip of none it still stands before.
            before = ClipEntry(0, 0, {language: (previous,)} if previous != NO_PREVIOUS[language] else {})
            return RegionEntry(clips=((before, clip),))
    allowed = "; ".join(repr(text) for text in TASK_TEXT.values())
    raise DatasetError(f"{path}: {line.question!r} is none of PAM's questions: {allowed}")


def _streams(path: Path) -> Iterator[tuple[_Pictures, Entry]]:
    for stream in read_streams(path):
        frames = tuple(frame for event in stream.events for frame in event.frames)
        yield (
            _Pictures(frames, stream.events[0].box_xyxy),
            Entry(len(frames), (RegionEntry(clips=(_clips(stream),)),)),
        )


def _clips(stream: Stream) -> tuple[ClipEntry, ...]:
    clips, start = [], 0
    for event in stream.events:
        clips.append(
            ClipEntry(start, start + len(event.frames), {_language(event.caption): (event.caption,)})
        )
        start += len(event.frames)
    return tuple(clips)


def _language(text: str) -> Language:
    """Chinese where it holds a Chinese character."""
    return Language.ZH if any("\u4e00" <= letter <= "\u9fff" for letter in text) else Language.EN
