"""Coloured shapes, drawn when they are read: a minimal data set, for tests and first experiments."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pam_ros.datasets.rle import RleMask
from pam_ros.datasets.schema import Clip, Kind, Provenance, Sample, SampleRegion
from pam_ros.geometry import Mask
from pam_ros.records import Language, Task

COLOURS = {
    "red": ("红色", (220, 40, 40)),
    "green": ("绿色", (40, 190, 60)),
    "blue": ("蓝色", (50, 80, 220)),
    "yellow": ("黄色", (230, 210, 50)),
}
SHAPES = {"disc": "圆片", "block": "方块", "cross": "十字"}
MOTIONS = {"stays": "停在原处", "slides right": "向右滑动"}
REGIONS = 2
SIDE_PX = 256  # of the square images
PROVENANCE = Provenance("coloured shapes", "simulator", 1.0)


@dataclass(frozen=True, slots=True)
class _Drawing:
    """A shape, and where it is in the first frame, as fractions of the image."""

    colour: str
    shape: str
    motion: str
    x: float
    y: float
    radius: float

    def mask(self, frame: int, frames: int) -> Mask:
        """(SIDE_PX, SIDE_PX) bool in one of `frames` frames."""
        x = self.x + (0.3 * frame / max(1, frames - 1) if self.motion == "slides right" else 0.0)
        middles = (np.arange(SIDE_PX) + 0.5) / SIDE_PX
        dx, dy = np.abs(middles[None] - x), np.abs(middles[:, None] - self.y)
        if self.shape == "disc":
            return np.asarray(dx**2 + dy**2 < self.radius**2)
        inside = np.maximum(dx, dy) < self.radius
        return np.asarray(
            inside & (np.minimum(dx, dy) < self.radius / 3) if self.shape == "cross" else inside
        )


@dataclass(frozen=True, slots=True)
class _DrawnPicture:
    """Frame `frame` of sample `index`."""

    index: int
    frame: int
    frames: int

    def read(self) -> NDArray[np.uint8]:
        """(SIDE_PX, SIDE_PX, 3) uint8 RGB."""
        ground = np.random.default_rng(self.index).integers(60, 140, 3)
        pixels = np.tile(ground, (SIDE_PX, SIDE_PX, 1))
        for drawing in _drawings(self.index):
            pixels[drawing.mask(self.frame, self.frames)] = COLOURS[drawing.colour][1]
        noise = np.random.default_rng([self.index, self.frame]).integers(-8, 9, pixels.shape)
        return np.clip(pixels + noise, 0, 255).astype(np.uint8)


class ShapesSource:
    """`count` images or videos with two shapes each; sample i is the same on every machine."""

    def __init__(self, count: int, frames: int = 1) -> None:
        self._count, self._frames = count, frames

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Sample:
        """Draws a sample's masks; its frames are drawn when they are read."""
        if not 0 <= index < self._count:
            raise IndexError(index)
        frames = self._frames
        return Sample(
            name=f"shapes {index}",
            frames=tuple(_DrawnPicture(index, frame, frames) for frame in range(frames)),
            regions=tuple(_region(i, each, frames) for i, each in enumerate(_drawings(index), 1)),
            is_video=frames > 1,
            size=(SIDE_PX, SIDE_PX),
            fps=8.0 if frames > 1 else 0.0,
        )


def _drawings(index: int) -> list[_Drawing]:
    random = np.random.default_rng(10_000 + index)
    drawings = []
    for row in range(REGIONS):
        colour, shape, motion = (str(random.choice(list(names))) for names in (COLOURS, SHAPES, MOTIONS))
        x, y = random.uniform(0.2, 0.5), 0.27 + 0.46 * row + random.uniform(-0.07, 0.07)
        drawings.append(_Drawing(colour, shape, motion, x, y, random.uniform(0.12, 0.2)))
    return drawings


def _region(number: int, drawing: _Drawing, frames: int) -> SampleRegion:
    colour, shape, motion = drawing.colour, drawing.shape, drawing.motion
    colour_zh, shape_zh = COLOURS[colour][0], SHAPES[shape]
    pairs = {
        Task.LABEL: (shape, shape_zh),
        Task.EXPLAIN: (
            f"{shape}: a {shape} is a shape for tests.",
            f"{shape_zh}：{shape_zh}是测试用的形状。",
        ),
        Task.BRIEF: (f"A {colour} {shape}.", f"一个{colour_zh}的{shape_zh}。"),
        Task.DETAIL: (f"A {colour} {shape} on plain ground.", f"一个{colour_zh}的{shape_zh}，背景单一。"),
    }
    texts = {}
    for task, (english, chinese) in pairs.items():
        texts[task, Language.EN], texts[task, Language.ZH] = (english,), (chinese,)
    captions = {
        Language.EN: (f"The {colour} {shape} {motion}.",),
        Language.ZH: (f"{colour_zh}的{shape_zh}{MOTIONS[motion]}。",),
    }
    half = frames // 2
    return SampleRegion(
        name=f"region {number}",
        kind=Kind.OBJECT,
        object_id=number,
        masks=tuple(RleMask.of(drawing.mask(frame, frames)) for frame in range(frames)),
        texts=texts,
        clips=((Clip(0, half, captions), Clip(half, frames, captions)),) if frames > 1 else (),
        segments=((0, frames, motion),) if frames > 1 else (),
        colour=colour,
        provenance=PROVENANCE,
    )
