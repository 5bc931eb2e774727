"""The reference implementation's own jsonl layouts, read and written, so that PAM's public data can be used.

Training lines: `type` ("image" or "video"), `image` or `frames` with `image_root`, `bbox`
[x, y, width, height], `points` [[x, y], ...] with `labels`, `conversations`
[{"from": "human" | "gpt", "value": text}]. For videos bbox, points and labels are wrapped in one
more list (the first frame's). Streaming lines: `annotations`, each an event with `event_id`,
`frames`, `gt` and `box` [[x, y, width, height]] on its first frame.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pam_ros.errors import InputError

Box = tuple[float, float, float, float]


class JsonlError(InputError):
    """A line of a jsonl file cannot be used; the message names file, line and key."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """One training line.

    Attributes:
        frames: picture files; one for an image.
        box_xyxy: (x1, y1, x2, y2) pixels of the first frame.
        points: (x, y, label) clicks, label 1 = on the object.
        question, answer: the first turn; the question's `<image>` is removed.
        is_video: whether it was a video line, also with a single frame.
    """

    frames: tuple[Path, ...]
    box_xyxy: Box
    points: tuple[tuple[float, float, int], ...]
    question: str
    answer: str
    is_video: bool


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """One event of a streaming line; the box is on its first frame."""

    event_id: int
    frames: tuple[Path, ...]
    box_xyxy: Box
    caption: str


@dataclass(frozen=True, slots=True)
class Stream:
    """One streaming line: events in time order."""

    root: Path
    events: tuple[StreamEvent, ...]


def _lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    text = path.read_text(encoding="utf-8")
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise JsonlError(
                f"{path}, line {number} is not JSON: {error}; each line must be one JSON object"
            ) from error
        if not isinstance(value, dict):
            raise JsonlError(
                f"{path}, line {number} is a {type(value).__name__}; each line must be one JSON object"
            )
        yield number, value


def _need(line: Mapping[str, Any], key: str, where: str) -> Any:
    if key not in line:
        raise JsonlError(f"{where} has no {key!r}; it has {', '.join(sorted(line)) or 'nothing'}")
    return line[key]


def _corner_box(raw: Any, where: str) -> Box:
    box = raw[0] if raw and isinstance(raw[0], list | tuple) else raw
    if not isinstance(box, list | tuple) or len(box) != 4:
        raise JsonlError(f"{where}: a box is [x, y, width, height], not {raw!r}")
    x, y, width, height = (float(value) for value in box)
    return x, y, x + width, y + height


def _size_box(box: Box) -> list[float]:
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]


def read_conversations(path: Path, root: Path | None = None) -> Iterator[Conversation]:
    """Training lines. `root` is put before relative picture paths (default: the file's folder)."""
    base = root or path.parent
    for number, line in _lines(path):
        where = f"{path}, line {number}"
        video = _need(line, "type", where) == "video"
        if video:
            folder = base / str(line.get("image_root", ""))
            frames = tuple(folder / str(name) for name in _need(line, "frames", where))
        else:
            image = _need(line, "image", where)
            frames = (base / str(image[0] if isinstance(image, list) else image),)
        points, labels = line.get("points", []), line.get("labels", [])
        if video:  # the first frame's, in one more list; `[[]]` where it has none
            points = points[0] if points and (not points[0] or isinstance(points[0][0], list)) else points
            labels = labels[0] if labels and isinstance(labels[0], list) else labels
        if len(points) != len(labels):
            raise JsonlError(f"{where} has {len(points)} points, {len(labels)} labels; each point has one")
        turns = _need(line, "conversations", where)
        if len(turns) < 2:
            raise JsonlError(
                f"{where}: a conversation needs a question and an answer, not {len(turns)} turns"
            )
        yield Conversation(
            frames=frames,
            box_xyxy=_corner_box(_need(line, "bbox", where), where),
            points=tuple(
                (float(x), float(y), int(label)) for (x, y), label in zip(points, labels, strict=True)
            ),
            question=str(turns[0]["value"]).replace("<image>", "").strip(),
            answer=str(turns[1]["value"]),
            is_video=video,
        )


def write_conversations(path: Path, items: Iterable[Conversation], root: Path) -> None:
    """Training lines; picture paths are written relative to `root`."""
    with path.open("w", encoding="utf-8") as file:
        for item in items:
            names = [str(frame.relative_to(root)) for frame in item.frames]
            points, labels = [[x, y] for x, y, _ in item.points], [label for _, _, label in item.points]
            box = _size_box(item.box_xyxy)
            line: dict[str, Any] = (
                {"type": "video", "image_root": "", "frames": names}
                if item.is_video
                else {"type": "image", "image": names[0]}
            )
            line |= {
                "bbox": [box] if item.is_video else box,
                "points": [points] if item.is_video else points,
                "labels": [labels] if item.is_video else labels,
            }
            line["conversations"] = [
                {"from": "human", "value": f"<image>\n{item.question}"},
                {"from": "gpt", "value": item.answer},
            ]
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def read_streams(path: Path, root: Path | None = None) -> Iterator[Stream]:
    """Streaming lines. `root` replaces each line's own `image_root` where given."""
    for number, line in _lines(path):
        where = f"{path}, line {number}"
        folder = root or Path(str(_need(line, "image_root", where)))
        events = []
        for raw in _need(line, "annotations", where):
            events.append(
                StreamEvent(
                    event_id=int(_need(raw, "event_id", where)),
                    frames=tuple(folder / str(name) for name in _need(raw, "frames", where)),
                    box_xyxy=_corner_box(_need(raw, "box", where), where),
                    caption=str(_need(raw, "gt", where)).strip(),
                )
            )
        yield Stream(folder, tuple(events))


def write_streams(path: Path, streams: Iterable[Stream]) -> None:
    """Streaming lines."""
    with path.open("w", encoding="utf-8") as file:
        for stream in streams:
            annotations = [
                {
                    "event_id": event.event_id,
                    "frames": [str(frame.relative_to(stream.root)) for frame in event.frames],
                    "gt": event.caption,
                    "box": [_size_box(event.box_xyxy)],
                }
                for event in stream.events
            ]
            file.write(
                json.dumps(
                    {"type": "video", "image_root": str(stream.root), "annotations": annotations},
                    ensure_ascii=False,
                )
                + "\n"
            )
