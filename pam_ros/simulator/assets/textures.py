"""Procedural surface textures: wood, tiles, stone, cloth, concrete, ...

All are (SIZE, SIZE, 3) uint8 RGB and depend only on their seed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Rgb = tuple[float, float, float]
Picture = NDArray[np.uint8]
SIZE = 256  # pixels of a side; surfaces repeat the texture


def noise(
    rng: np.random.Generator, size: int, cells_x: int, cells_y: int | None = None
) -> NDArray[np.float32]:
    """(size, size) float32 smooth noise in 0..1, seamless at the borders."""
    cells_y = cells_y or cells_x
    grid = rng.random((cells_y, cells_x)).astype(np.float32)
    return np.clip(_bicubic(cells_y, size) @ grid @ _bicubic(cells_x, size).T, 0, 1)


@lru_cache(maxsize=64)
def _bicubic(cells: int, size: int) -> NDArray[np.float32]:
    """(size, cells) matrix that enlarges a row of cells to `size` pixels, seamless at the ends."""
    around = np.pad(np.eye(cells, dtype=np.float32), ((2, 2), (0, 0)), mode="wrap")
    step = size / cells
    whole = Image.fromarray(around).resize((cells, round(step * (cells + 4))), Image.Resampling.BICUBIC)
    start = round(2 * step)
    return np.ascontiguousarray(np.asarray(whole, np.float32)[start : start + size])


def clouds(rng: np.random.Generator, size: int, cells: int, octaves: int = 4) -> NDArray[np.float32]:
    """Fractal noise, (size, size) float32, about 0..1."""
    total = np.zeros((size, size), np.float32)
    for octave in range(octaves):
        total += noise(rng, size, min(cells * 2**octave, size // 2)) * 0.5 ** (octave + 1)
    low, high = float(total.min()), float(total.max())
    return (total - low) / max(high - low, 1e-6)


def mix(amount: NDArray[np.float32], first: Rgb, second: Rgb) -> Picture:
    """Blends two colours (each 0..1) by a (size, size) amount in 0..1."""
    blended = [amount * (255 * (end - start)) + 255 * start for start, end in zip(first, second, strict=True)]
    return np.stack([np.clip(channel, 0, 255).astype(np.uint8) for channel in blended], axis=2)


def _lit(picture: NDArray[np.float32], light: NDArray[np.float32]) -> Picture:
    """A (size, size, 3) image in 0..255, multiplied by (size, size) factors."""
    lit = picture * np.repeat(light[..., None], 3, axis=2)  # broadcasting over three channels is slow
    return np.clip(lit, 0, 255).astype(np.uint8)


def _vary(rng: np.random.Generator, colour: Rgb, amount: float) -> Rgb:
    shift = rng.uniform(-amount, amount, 3) * 0.4 + rng.uniform(-amount, amount)
    red, green, blue = np.clip(np.asarray(colour) + shift, 0.02, 0.98)
    return float(red), float(green), float(blue)


def _pick(rng: np.random.Generator, colours: list[Rgb], amount: float = 0.06) -> Rgb:
    return _vary(rng, colours[int(rng.integers(len(colours)))], amount)


WOODS: list[Rgb] = [
    (0.72, 0.53, 0.34), (0.55, 0.36, 0.21), (0.82, 0.68, 0.48), (0.4, 0.25, 0.15),
    (0.66, 0.5, 0.38),
]  # fmt: skip
STONES: list[Rgb] = [
    (0.86, 0.85, 0.83), (0.3, 0.31, 0.33), (0.72, 0.67, 0.6), (0.55, 0.57, 0.58),
    (0.2, 0.22, 0.21),
]  # fmt: skip
PAINTS: list[Rgb] = [
    (0.9, 0.88, 0.84), (0.82, 0.86, 0.88), (0.72, 0.78, 0.72), (0.87, 0.78, 0.68),
    (0.6, 0.66, 0.74), (0.5, 0.52, 0.53), (0.78, 0.7, 0.72),
]  # fmt: skip
FABRICS: list[Rgb] = [
    (0.86, 0.84, 0.78), (0.45, 0.5, 0.6), (0.62, 0.32, 0.3), (0.4, 0.48, 0.4),
    (0.3, 0.3, 0.33), (0.75, 0.65, 0.5),
]  # fmt: skip


def wood(rng: np.random.Generator) -> Picture:
    """Wood with long grain along x."""
    base = _pick(rng, WOODS)
    warp = noise(rng, SIZE, 3, 6) * 5
    rows = np.arange(SIZE, dtype=np.float32)[:, None] / SIZE * 2 * np.pi * int(rng.integers(3, 7))
    grain = 0.5 + 0.5 * np.sin(rows + warp)
    fibre = noise(rng, SIZE, 6, 120)
    dark = float(rng.uniform(0.62, 0.85))
    return mix(
        np.asarray(np.clip(0.55 * grain + 0.45 * fibre, 0, 1), np.float32),
        (base[0] * dark, base[1] * dark, base[2] * dark),
        base,
    )


def planks(rng: np.random.Generator) -> Picture:
    """Boards side by side, with joints."""
    picture = wood(rng).astype(np.float32)
    count = int(rng.integers(3, 6))
    edges = np.linspace(0, SIZE, count + 1).astype(int)
    for top, bottom in zip(edges[:-1], edges[1:], strict=True):
        picture[top:bottom] = np.roll(picture[top:bottom], int(rng.integers(SIZE)), axis=1) * rng.uniform(
            0.82, 1.08
        )
        picture[top : top + 2] *= 0.45
        joint = int(rng.integers(SIZE))
        picture[top:bottom, joint : joint + 2] *= 0.5
    return np.asarray(np.clip(picture, 0, 255), np.uint8)


def stone(rng: np.random.Generator) -> Picture:
    """Marble or granite."""
    base = _pick(rng, STONES)
    if rng.random() < 0.5:
        veins = np.abs(clouds(rng, SIZE, 3, 5) - 0.5) * 2
        amount = np.clip(1 - veins * float(rng.uniform(5, 9)), 0, 1) * 0.45
        return mix(np.asarray(amount, np.float32), base, _vary(rng, (0.5, 0.5, 0.5), 0.2))
    speckle = noise(rng, SIZE, 120) * 0.6 + clouds(rng, SIZE, 16, 3) * 0.4
    return mix(
        np.asarray(speckle, np.float32),
        (base[0] * 0.65, base[1] * 0.65, base[2] * 0.65),
        (min(base[0] * 1.2, 1), min(base[1] * 1.2, 1), min(base[2] * 1.2, 1)),
    )


def _inner(start: int, length: int, joint: int) -> slice:
    """A tile without its joint, cut at the image's edge."""
    return slice(max(start + joint, 0), max(start + length - joint, 0))


def tiles(rng: np.random.Generator) -> Picture:
    """Square or running-bond tiles with grout."""
    colour, grout = _pick(rng, PAINTS + STONES[:3]), _vary(rng, (0.72, 0.71, 0.7), 0.2)
    rows = int(rng.choice([2, 4, 8]))
    columns = rows if rng.random() < 0.5 else max(rows // 2, 1)
    shift = rows != columns
    picture = np.empty((SIZE, SIZE, 3), np.float32)
    picture[:] = np.asarray(grout) * 255
    high, wide = SIZE // rows, SIZE // columns
    second = _vary(rng, colour, 0.25) if rng.random() < 0.25 else colour
    for row in range(rows):
        for column in range(columns + 1):
            left = column * wide - (wide // 2 if shift and row % 2 else 0)
            tone = np.asarray(second if (row + column) % 2 else colour) * rng.uniform(0.94, 1.05)
            rows_in, columns_in = _inner(row * high, high, 2), _inner(left, wide, 2)
            picture[rows_in, columns_in] = tone * 255
    return _lit(picture, 0.94 + 0.1 * clouds(rng, SIZE, 4, 3))


def plaster(rng: np.random.Generator) -> Picture:
    """A painted wall."""
    base = _pick(rng, PAINTS, 0.08)
    amount = clouds(rng, SIZE, 4, 5)
    dark = float(rng.uniform(0.86, 0.95))
    return mix(amount, (base[0] * dark, base[1] * dark, base[2] * dark), base)


def cloth(rng: np.random.Generator) -> Picture:
    """Woven cloth: plain, striped or checked."""
    base, second = _pick(rng, FABRICS), _pick(rng, FABRICS, 0.1)
    steps = np.arange(SIZE)
    weave = 0.92 + 0.08 * ((steps // 2 + steps[:, None] // 2) % 2).astype(np.float32)
    band = SIZE // int(rng.choice([4, 8, 16]))
    style = int(rng.integers(3))
    pattern = np.zeros((SIZE, SIZE), np.float32)
    bands = (steps // band % 2).astype(np.float32)
    if style == 1:
        pattern += bands
    if style == 2:
        pattern += 0.5 * bands + 0.5 * bands[:, None]
    dyed = mix(pattern, base, second).astype(np.float32)
    return _lit(dyed, weave * (0.95 + 0.05 * clouds(rng, SIZE, 8, 3)))


def concrete(rng: np.random.Generator) -> Picture:
    """Concrete with stains."""
    base = _vary(rng, (0.56, 0.55, 0.53), 0.12)
    return mix(clouds(rng, SIZE, 3, 6), (base[0] * 0.75, base[1] * 0.75, base[2] * 0.75), base)


def brick(rng: np.random.Generator) -> Picture:
    """A brick wall."""
    picture = np.empty((SIZE, SIZE, 3), np.float32)
    picture[:] = np.asarray(_vary(rng, (0.7, 0.68, 0.64), 0.1)) * 255
    colour = _pick(rng, [(0.6, 0.3, 0.22), (0.68, 0.45, 0.35), (0.8, 0.77, 0.72), (0.42, 0.28, 0.25)])
    high, wide = SIZE // 8, SIZE // 4
    for row in range(8):
        for column in range(5):
            left = column * wide - (wide // 2 if row % 2 else 0)
            tone = np.asarray(colour) * rng.uniform(0.82, 1.12) * 255
            picture[_inner(row * high, high, 2), _inner(left, wide, 2)] = tone
    return _lit(picture, 0.85 + 0.25 * clouds(rng, SIZE, 16, 3))


def steel_sheet(rng: np.random.Generator) -> Picture:
    """Brushed metal."""
    level = float(rng.uniform(0.5, 0.78))
    brush = noise(rng, SIZE, 4, 120) * 0.7 + noise(rng, SIZE, 4, 4) * 0.3
    return mix(
        np.asarray(brush, np.float32),
        (level * 0.85, level * 0.86, level * 0.88),
        (level * 1.1, level * 1.1, level * 1.12),
    )


def pegboard(rng: np.random.Generator) -> Picture:
    """A board with a grid of holes."""
    base = _pick(rng, [WOODS[2], WOODS[0], PAINTS[0], PAINTS[5]], 0.05)
    dark = (base[0] * 0.93, base[1] * 0.93, base[2] * 0.93)
    canvas = Image.fromarray(mix(clouds(rng, SIZE, 8, 3), dark, base))
    draw = ImageDraw.Draw(canvas)
    for row in range(8):
        for column in range(8):
            x, y = column * 32 + 16, row * 32 + 16
            draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=(45, 40, 36))
    return np.asarray(canvas, np.uint8)


def terrazzo(rng: np.random.Generator) -> Picture:
    """Chips of stone on a light ground."""
    base = _pick(rng, PAINTS[:4], 0.05)
    dark = (base[0] * 0.95, base[1] * 0.95, base[2] * 0.95)
    canvas = Image.fromarray(mix(clouds(rng, SIZE, 4, 3), dark, base))
    draw = ImageDraw.Draw(canvas)
    for _ in range(220):
        x, y = rng.integers(0, SIZE, 2)
        angles, radii = np.sort(rng.uniform(0, 2 * np.pi, 5)), rng.uniform(3, 9, 5)
        corners = np.stack([x + radii * np.cos(angles), y + radii * np.sin(angles)], 1)
        red, green, blue = (int(255 * value) for value in _pick(rng, STONES + WOODS, 0.1))
        draw.polygon([(float(px), float(py)) for px, py in corners], fill=(red, green, blue))
    return np.asarray(canvas, np.uint8)


SURFACES: dict[str, Callable[[np.random.Generator], Picture]] = {
    "wood": wood,
    "planks": planks,
    "stone": stone,
    "tiles": tiles,
    "plaster": plaster,
    "cloth": cloth,
    "concrete": concrete,
    "brick": brick,
    "steel": steel_sheet,
    "pegboard": pegboard,
    "terrazzo": terrazzo,
}


def surface(family: str, seed: int) -> Picture:
    """The surface texture of a family and a seed: (256, 256, 3) uint8."""
    return SURFACES[family](np.random.default_rng([seed, sum(family.encode())]))
