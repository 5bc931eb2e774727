"""Coloured shapes drawn on the fly: the smallest training data there is, for tests and first tries."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pam_ros.datasets.schema import WHOLE, ClipEntry, Entry, RegionEntry, Scene
from pam_ros.geometry import CropBox
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


class ShapesSource:
    """`count` pictures or videos with two shapes each; sample i is the same on every machine."""

    def __init__(self, count: int, frames: int = 1) -> None:
        self._things = [_things(index) for index in range(count)]
        self.entries = [
            Entry(frames, tuple(_describe(row, thing, frames) for row, thing in enumerate(things)))
            for things in self._things
        ]

    def load(self, index: int, frames: Sequence[int], size: int, cut: CropBox = WHOLE) -> Scene:
        """Draws some frames of a sample."""
        total = self.entries[index].frames
        random = np.random.default_rng(index)
        ground = random.integers(60, 140, 3)
        pixels = np.tile(ground.astype(np.uint8), (len(frames), size, size, 1))
        ids = np.zeros((len(frames), size, size), np.uint16)
        for row, (colour, shape, motion, x, y, radius) in enumerate(self._things[index]):
            for t, frame in enumerate(frames):
                shift = 0.3 * frame / max(1, total - 1) if motion == "slides right" else 0.0
                drawn = _drawn(shape, x + shift, y, radius, size, cut)
                ids[t][drawn] = row + 1
                pixels[t][drawn] = COLOURS[colour][1]
        noise = random.integers(-8, 9, pixels.shape)
        return Scene(np.clip(pixels.astype(int) + noise, 0, 255).astype(np.uint8), ids)


_Thing = tuple[
    str, str, str, float, float, float
]  # colour, shape, motion, x, y, radius (shares of the picture)


def _things(index: int) -> list[_Thing]:
    random = np.random.default_rng(10_000 + index)
    things = []
    for row in range(REGIONS):
        colour, shape, motion = (str(random.choice(list(names))) for names in (COLOURS, SHAPES, MOTIONS))
        x, y = random.uniform(0.2, 0.5), 0.27 + 0.46 * row + random.uniform(-0.07, 0.07)
        things.append((colour, shape, motion, x, y, random.uniform(0.12, 0.2)))
    return things


def _drawn(shape: str, x: float, y: float, radius: float, size: int, cut: CropBox) -> NDArray[np.bool_]:
    middles = (np.arange(size) + 0.5) / size
    across, down = cut[0] + (cut[2] - cut[0]) * middles, cut[1] + (cut[3] - cut[1]) * middles
    dx, dy = np.abs(across[None] - x), np.abs(down[:, None] - y)
    if shape == "disc":
        return np.asarray(dx**2 + dy**2 < radius**2)
    inside = np.maximum(dx, dy) < radius
    return np.asarray(inside & (np.minimum(dx, dy) < radius / 3) if shape == "cross" else inside)


def _describe(row: int, thing: _Thing, frames: int) -> RegionEntry:
    colour, shape, motion = thing[:3]
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
    if frames < 2:
        x, y, radius = thing[3:]
        box = (x - radius, y - radius, x + radius, y + radius)
        return RegionEntry(texts, instance=row + 1, box=box)
    caption = {
        Language.EN: (f"The {colour} {shape} {motion}.",),
        Language.ZH: (f"{colour_zh}的{shape_zh}{MOTIONS[motion]}。",),
    }
    half = frames // 2
    clips = (ClipEntry(0, half, caption), ClipEntry(half, frames, caption))
    return RegionEntry(texts, (clips,), instance=row + 1, segments=((0, frames, motion),))
