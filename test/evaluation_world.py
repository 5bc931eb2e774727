"""A world of plain rectangles on disk, and a model that sees it exactly, or as a test spoils it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from fakes import FakeModel
from numpy.typing import NDArray
from PIL import Image

from pam_ros.datasets.rle import RleMask
from pam_ros.records import Prompt

HEIGHT, WIDTH = 90, 120
GREY = 40
Mask = NDArray[np.bool_]
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Rectangle:
    """A rectangle (x1, y1, x2, y2) of object `number`; a part if `part` is above 0."""

    number: int
    box: Box
    part: int = 0
    background: bool = False

    def covers(self) -> Mask:
        """(HEIGHT, WIDTH) bool."""
        mask = np.zeros((HEIGHT, WIDTH), np.bool_)
        x1, y1, x2, y2 = self.box
        mask[y1:y2, x1:x2] = True
        return mask

    def region(self) -> dict[str, Any]:
        """Its line in a shard, without masks."""
        return {
            "kind": "part" if self.part else "background" if self.background else "object",
            "object": self.number,
            "category": "handle" if self.part else "table" if self.background else "mug",
            "function": "hold_drink",
            "colour": "red",
            "texts": {"label/en": ["mug", "cup"]},
        }


def paint(folder: Path, name: str, rectangles: Sequence[Rectangle]) -> None:
    """A lossless picture in which every rectangle has its own colour."""
    rgb = np.full((HEIGHT, WIDTH, 3), GREY, np.uint8)
    for rectangle in rectangles:
        rgb[rectangle.covers()] = (20 * rectangle.number, 200 - 20 * rectangle.number, 10 * rectangle.part)
    Image.fromarray(rgb).save(folder / f"{name}.png")


def mask_of(rectangle: Rectangle, rectangles: Sequence[Rectangle]) -> str | None:
    """The visible pixels of a rectangle, with its parts if it is whole; None if there are none."""
    mask = np.zeros((HEIGHT, WIDTH), np.bool_)
    for each in rectangles:
        same = each == rectangle or (not rectangle.part and each.number == rectangle.number)
        mask = mask | each.covers() if same else mask & ~each.covers()
    return RleMask.of(mask).counts if mask.any() else None


SCENE = (
    Rectangle(3, (0, 60, WIDTH, HEIGHT), background=True),
    Rectangle(1, (20, 20, 40, 40)),
    Rectangle(1, (40, 24, 46, 36), part=1),
    Rectangle(2, (70, 30, 90, 50)),
)


def write_shards(folder: Path, scene: Sequence[Rectangle] = SCENE) -> None:
    """A folder as `pam scenes render` writes it: a picture; a video whose object 2 goes and comes back."""
    folder.mkdir(exist_ok=True)
    paint(folder, "a", scene)
    size = [HEIGHT, WIDTH]
    lines: list[dict[str, Any]] = [
        {
            "name": "image 7",
            "image": "a.png",
            "size": size,
            "regions": [each.region() | {"mask": mask_of(each, scene)} for each in scene],
        }
    ]
    masks: tuple[list[str | None], list[str | None]] = ([], [])
    for index in range(20):
        moved, there = Rectangle(1, (20 + index, 20, 40 + index, 40)), Rectangle(2, (70, 60, 90, 80))
        shown = [moved] if 6 <= index < 12 else [moved, there]
        paint(folder, f"v{index}", shown)
        for own, rectangle in zip(masks, (moved, there), strict=True):
            own.append(mask_of(rectangle, shown))
    regions = [Rectangle(1, (0, 0, 1, 1)).region(), Rectangle(2, (0, 0, 1, 1)).region()]
    regions[0] |= {"mask": masks[0], "segments": [[0, 20, "slides_right"]]}
    regions[1] |= {"mask": masks[1], "segments": [[0, 20, "still"]]}
    lines.append(
        {
            "name": "video 9",
            "frames": [f"v{index}.png" for index in range(20)],
            "size": size,
            "fps": 8.0,
            "actor": 1,
            "regions": regions,
        }
    )
    (folder / "index.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@dataclass(eq=False)
class Seen:
    size: tuple[int, int]
    image: NDArray[np.uint8]


@dataclass(eq=False)
class Remembered:
    colour: NDArray[np.uint8] | None = None
    frame: int = -1


@dataclass(eq=False)
class Answer:
    mask: Mask
    presence_score: float
    mask_score: float = 0.9


@dataclass(eq=False)
class SeeingModel(FakeModel):
    """Finds what a prompt means by its colour, exactly; `blur(mask, frame)` spoils the answer.

    A whole object has one colour or two (its part's), told apart by what fills the box.
    """

    blur: Callable[[Mask, int], Mask] = lambda mask, frame: mask
    presence: Callable[[Mask], bool] = lambda mask: bool(mask.any())
    prompts: list[Prompt] = field(default_factory=list)

    def encode(self, image: NDArray[np.uint8]) -> Seen:  # type: ignore[override]
        return Seen(image.shape[:2], image)

    def new_memory(self) -> Remembered:  # type: ignore[override]
        return Remembered()

    def segment(self, features, prompts, memories):
        self.prompts += prompts
        for prompt, memory in zip(prompts, memories, strict=True):
            if prompt.box is None:
                x, y = prompt.points[0].astype(int)
                memory.colour = features.image[y, x]
            else:
                x1, y1, x2, y2 = prompt.box.astype(int)
                colours, counts = np.unique(
                    features.image[y1:y2, x1:x2].reshape(-1, 3), axis=0, return_counts=True
                )
                memory.colour = colours[counts.argmax()]
        return self.track(features, memories)

    def track(self, features, memories):
        found = []
        for memory in memories:
            memory.frame += 1
            # A part's colour differs from its object's in blue only: a whole object has both.
            part = memory.colour[2] > 0
            mask = (features.image == memory.colour).all(2) if part else (
                (features.image[..., :2] == memory.colour[:2]).all(2)
            )  # fmt: skip
            mask = self.blur(mask, memory.frame)
            found.append(Answer(mask, 0.9 if self.presence(mask) else 0.1))
        return found


def empty(mask: Mask, frame: int) -> Mask:
    return np.zeros_like(mask)


def shifted_by_5(mask: Mask, frame: int) -> Mask:
    return np.roll(mask, 5, 1)


def square(x: int, y: int, side: int = 20, size: tuple[int, int] = (100, 100)) -> Mask:
    mask = np.zeros(size, np.bool_)
    mask[y : y + side, x : x + side] = True
    return mask
