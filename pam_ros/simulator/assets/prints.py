"""Pictures printed on objects: labels, covers, screens, ruler marks, ball patterns.

The words are invented: real objects carry print, but the model should not learn to read these.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pam_ros.simulator.assets.textures import Picture, Rgb, clouds, mix, noise, wood

SIZE = 128  # pixels of a side
Bytes = tuple[int, int, int]
LIGHT_INK, DARK_INK = (250, 250, 245), (25, 25, 30)


def _as_bytes(colour: Rgb, factor: float = 1.0) -> Bytes:
    red, green, blue = (int(np.clip(value * factor, 0, 1) * 255) for value in colour)
    return red, green, blue


def _flat(colour: Rgb, width: int = SIZE) -> Image.Image:
    return Image.new("RGB", (width, SIZE), _as_bytes(colour))


def _word(rng: np.random.Generator) -> str:
    syllables = int(rng.integers(2, 4))
    return "".join(
        str(rng.choice(list("BDFKLMNPRST"))) + str(rng.choice(list("AEIOU"))) for _ in range(syllables)
    )


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _write(
    draw: ImageDraw.ImageDraw, text: str, row: int, ink: Bytes, size: int = 27, x: int = SIZE // 2
) -> None:
    """Writes text centred on x with its baseline on the row."""
    draw.text((x, row), text, fill=ink, font=_font(size), anchor="ms", stroke_width=1, stroke_fill=ink)


def _disc(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, colour: Bytes) -> None:
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def label(rng: np.random.Generator, body: Rgb, accent: Rgb) -> Picture:
    """A wrapped label: bands, a word, a medallion; it repeats twice around."""
    picture = _flat(body)
    draw = ImageDraw.Draw(picture)
    second = _as_bytes(accent)
    top = int(rng.integers(10, 35))
    if rng.random() < 0.6:
        draw.rectangle((0, top, SIZE, SIZE - top), fill=second)
    draw.rectangle((0, 6, SIZE, 10), fill=second)
    medallion = _as_bytes((1, 1, 1)) if rng.random() < 0.6 else _as_bytes(body)
    _disc(draw, SIZE / 2, SIZE / 2 + 12, int(rng.integers(14, 26)), medallion)
    _write(draw, _word(rng), top + 28, LIGHT_INK if sum(accent) < 1.5 else DARK_INK)
    half = np.asarray(picture.resize((SIZE // 2, SIZE), Image.Resampling.BOX))
    return np.asarray(np.concatenate([half, half], 1), np.uint8)


def cereal(rng: np.random.Generator, body: Rgb, accent: Rgb) -> Picture:
    """A cereal packet: a big name above a bowl of rings."""
    darker = (body[0] * 0.85, body[1] * 0.85, body[2] * 0.85)
    picture = Image.fromarray(mix(noise(rng, SIZE, 2, 2), body, darker))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((6, 10, SIZE - 6, 46), fill=_as_bytes(accent))
    _write(draw, _word(rng), 38, LIGHT_INK if sum(accent) < 1.7 else DARK_INK)
    draw.pieslice((20, 66, 108, 118), 0, 180, fill=(230, 232, 240))
    draw.ellipse((20, 78, 108, 106), fill=(245, 240, 225))
    for _ in range(26):
        x, y = 64 + rng.normal(0, 16), 90 + rng.normal(0, 5)
        draw.ellipse((x - 5, y - 5, x + 5, y + 5), outline=(205, 150, 70), width=2)
    return np.asarray(picture, np.uint8)


def milk(rng: np.random.Generator, body: Rgb, accent: Rgb) -> Picture:
    """A milk carton's side: white, with a coloured wave and a word."""
    canvas = np.array(_flat((0.95, 0.95, 0.94)))
    turns, phase = int(rng.integers(1, 3)), rng.uniform(0, 6)
    wave = 78 + 10 * np.sin(np.arange(SIZE) / SIZE * 2 * np.pi * turns + phase)
    canvas[np.arange(SIZE)[:, None] > wave[None, :]] = _as_bytes(body)
    picture = Image.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    _write(draw, _word(rng), 48, _as_bytes(body, 0.7))
    _disc(draw, int(rng.integers(35, 95)), 98, 12, _as_bytes(accent))
    return np.asarray(picture, np.uint8)


def cover(rng: np.random.Generator, body: Rgb, accent: Rgb) -> Picture:
    """A book's front: a title, lines, a plate."""
    picture = _flat(body)
    draw = ImageDraw.Draw(picture)
    ink = (240, 235, 215) if sum(body) < 1.6 else (35, 35, 45)
    draw.rectangle((7, 7, SIZE - 8, SIZE - 8), outline=ink)
    _write(draw, _word(rng), 38, ink)
    draw.line((24, 48, SIZE - 24, 48), fill=ink)
    if rng.random() < 0.7:
        draw.rectangle((34, 60, SIZE - 34, 104), fill=_as_bytes(accent))
        _disc(draw, 64, 82, 13, ink)
    draw.line((40, 113, SIZE - 40, 113), fill=ink, width=2)
    return np.asarray(picture, np.uint8)


def screen(rng: np.random.Generator, body: Rgb, accent: Rgb) -> Picture:
    """A laptop's screen: a desktop with windows."""
    picture = Image.fromarray(mix(clouds(rng, SIZE, 2, 3), (0.1, 0.25, 0.5), accent))
    draw = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(1, 4))):
        x, y = int(rng.integers(4, 60)), int(rng.integers(6, 60))
        draw.rectangle((x, y, x + 54, y + 46), fill=(242, 244, 246))
        draw.rectangle((x, y, x + 54, y + 7), fill=(70, 80, 95))
        for line in range(4):
            row = y + 15 + 7 * line
            draw.line((x + 5, row, x + int(rng.integers(20, 50)), row), fill=(120, 125, 135), width=2)
    draw.rectangle((0, SIZE - 9, SIZE, SIZE), fill=(30, 34, 42))
    return np.asarray(picture, np.uint8)


def ruler(rng: np.random.Generator, body: Rgb, accent: Rgb) -> Picture:
    """Ruler marks along the upper edge."""
    picture = _flat(body, SIZE * 4)
    draw = ImageDraw.Draw(picture)
    ink = DARK_INK if sum(body) > 1.2 else LIGHT_INK
    for mark in range(61):
        x = 8 + mark * 8
        draw.line((x, 0, x, 62 if mark % 5 == 0 else 36), fill=ink, width=2)
        if mark % 10 == 0:
            _write(draw, str(mark // 10), 108, ink, 38, x + 4)
    return np.asarray(picture, np.uint8)


def ball(rng: np.random.Generator, body: Rgb, accent: Rgb) -> Picture:
    """A beach or sports ball: segments, bands or spots."""
    picture = _flat(body)
    draw = ImageDraw.Draw(picture)
    second = _as_bytes(accent)
    style = int(rng.integers(3))
    if style == 0:
        for step in range(0, 6, 2):
            draw.rectangle((step * SIZE // 6, 0, (step + 1) * SIZE // 6 - 1, SIZE), fill=second)
    elif style == 1:
        draw.rectangle((0, 52, SIZE, 75), fill=second)
        for x in range(0, SIZE, 32):
            draw.line((x, 0, x, SIZE), fill=second, width=3)
    else:
        for row in range(1, 6):
            for column in range(6):
                _disc(draw, column * 22 + (11 if row % 2 else 0), row * 21, 7, second)
    return np.asarray(picture, np.uint8)


def paint(rng: np.random.Generator, body: Rgb, accent: Rgb) -> Picture:
    """A paint can's label: light, with a band in the paint's colour."""
    picture = _flat((0.9, 0.9, 0.9))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 70, SIZE, 100), fill=_as_bytes(body))
    for x in (32, 96):
        _write(draw, "PAINT", 58, (40, 40, 45), 16, x)
    return np.asarray(picture, np.uint8)


def board(rng: np.random.Generator, body: Rgb, accent: Rgb) -> Picture:
    """A wooden board in the object's colour."""
    grain = np.asarray(wood(rng)[::2, ::2], np.float32).mean(2) / 255
    level = grain / max(float(grain.mean()), 1e-3)
    return np.asarray(np.clip(level[..., None] * np.asarray(body) * 255, 0, 255), np.uint8)


def quilted(rng: np.random.Generator, body: Rgb, accent: Rgb) -> Picture:
    """Paper towels: white with a faint quilt."""
    x, y = np.meshgrid(np.arange(SIZE), np.arange(SIZE))
    quilt = ((x + y) % 16 < 2) | ((x - y) % 16 < 2)
    return mix(np.asarray(quilt * 0.5, np.float32), (0.95, 0.95, 0.94), (0.7, 0.72, 0.76))


PRINTS: dict[str, Callable[[np.random.Generator, Rgb, Rgb], Picture]] = {
    "bottle": label,
    "can": label,
    "jar": label,
    "spray_bottle": label,
    "carton": milk,
    "cereal_box": cereal,
    "book": cover,
    "laptop": screen,
    "ruler": ruler,
    "ball": ball,
    "paint_can": paint,
    "cutting_board": board,
    "paper_roll": quilted,
}


def printed(category: str, seed: int, body: Rgb, accent: Rgb) -> Picture:
    """The picture printed on an object of this category, in its two colours (0..1): (h, w, 3) uint8."""
    return PRINTS.get(category, label)(np.random.default_rng([seed, 77]), body, accent)
