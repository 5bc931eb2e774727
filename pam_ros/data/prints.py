"""Pictures printed on objects: labels, covers, screens, ruler marks, ball patterns.

Letters are drawn as short invented words: a robot's objects carry print, but the model is not to read it.
"""

from __future__ import annotations

import cv2
import numpy as np

from pam_ros.data.textures import Picture, Rgb, clouds, mix, noise, wood

SIZE = 128  # pixels of a side


def _as_bytes(colour: Rgb) -> tuple[int, int, int]:
    red, green, blue = (int(np.clip(value, 0, 1) * 255) for value in colour)
    return red, green, blue


def _flat(colour: Rgb) -> Picture:
    return np.full((SIZE, SIZE, 3), _as_bytes(colour), np.uint8)


def _word(rng: np.random.Generator) -> str:
    return "".join(
        str(rng.choice(list("BDFKLMNPRST"))) + str(rng.choice(list("AEIOU")))
        for _ in range(int(rng.integers(2, 4)))
    )


def _write(picture: Picture, text: str, row: int, colour: tuple[int, int, int], high: float) -> None:
    font = cv2.FONT_HERSHEY_DUPLEX
    (wide, _), _ = cv2.getTextSize(text, font, high, 2)
    cv2.putText(picture, text, ((SIZE - wide) // 2, row), font, high, colour, 2, cv2.LINE_AA)


def label(rng: np.random.Generator, body: Rgb, accent: Rgb) -> Picture:
    """A wrapped label: bands, a word, a medallion; it repeats twice around."""
    picture = _flat(body)
    second = _as_bytes(accent)
    top = int(rng.integers(10, 35))
    if rng.random() < 0.6:
        cv2.rectangle(picture, (0, top), (SIZE, SIZE - top), second, -1)
    cv2.rectangle(picture, (0, 6), (SIZE, 10), second, -1)
    cv2.circle(
        picture,
        (SIZE // 2, SIZE // 2 + 12),
        int(rng.integers(14, 26)),
        _as_bytes((1, 1, 1)) if rng.random() < 0.6 else _as_bytes(body),
        -1,
        cv2.LINE_AA,
    )
    ink = (250, 250, 245) if sum(accent) < 1.5 else (25, 25, 30)
    _write(picture, _word(rng), top + 28, ink, 0.8)
    half = cv2.resize(picture, (SIZE // 2, SIZE), interpolation=cv2.INTER_AREA)
    return np.asarray(np.concatenate([half, half], 1), np.uint8)


def cereal(rng: np.random.Generator, body: Rgb, accent: Rgb) -> Picture:
    """A cereal packet: a big name above a bowl of rings."""
    picture = mix(noise(rng, SIZE, 2, 2), body, (body[0] * 0.85, body[1] * 0.85, body[2] * 0.85))
    cv2.rectangle(picture, (6, 10), (SIZE - 6, 46), _as_bytes(accent), -1)
    _write(picture, _word(rng), 38, (250, 250, 245) if sum(accent) < 1.7 else (30, 25, 25), 0.85)
    cv2.ellipse(picture, (64, 92), (44, 14), 0, 0, 360, (245, 240, 225), -1, cv2.LINE_AA)
    cv2.ellipse(picture, (64, 92), (44, 26), 0, 0, 180, (230, 232, 240), -1, cv2.LINE_AA)
    for _ in range(26):
        spot = (int(64 + rng.normal(0, 16)), int(90 + rng.normal(0, 5)))
        cv2.circle(picture, spot, 5, (205, 150, 70), 2, cv2.LINE_AA)
    return picture


def milk(rng: np.random.Generator, body: Rgb, accent: Rgb) -> Picture:
    """A milk carton's side: white, a coloured wave and a word."""
    picture = _flat((0.95, 0.95, 0.94))
    xs = np.arange(SIZE)
    wave = 78 + 10 * np.sin(xs / SIZE * 2 * np.pi * int(rng.integers(1, 3)) + rng.uniform(0, 6))
    below = np.arange(SIZE)[:, None] > wave[None, :]
    picture[below] = _as_bytes(body)
    _write(picture, _word(rng), 48, _as_bytes((body[0] * 0.7, body[1] * 0.7, body[2] * 0.7)), 0.85)
    cv2.circle(picture, (int(rng.integers(35, 95)), 98), 12, _as_bytes(accent), -1, cv2.LINE_AA)
    return picture


def cover(rng: np.random.Generator, body: Rgb, accent: Rgb) -> Picture:
    """A book's front: a title, lines, a plate."""
    picture = _flat(body)
    ink = (240, 235, 215) if sum(body) < 1.6 else (35, 35, 45)
    cv2.rectangle(picture, (7, 7), (SIZE - 8, SIZE - 8), ink, 1)
    _write(picture, _word(rng), 38, ink, 0.8)
    cv2.line(picture, (24, 48), (SIZE - 24, 48), ink, 1)
    if rng.random() < 0.7:
        cv2.rectangle(picture, (34, 60), (SIZE - 34, 104), _as_bytes(accent), -1)
        cv2.circle(picture, (64, 82), 13, ink, -1, cv2.LINE_AA)
    cv2.line(picture, (40, 113), (SIZE - 40, 113), ink, 2)
    return picture


def screen(rng: np.random.Generator, body: Rgb, accent: Rgb) -> Picture:
    """A laptop's screen: a desktop with windows."""
    picture = mix(clouds(rng, SIZE, 2, 3), (0.1, 0.25, 0.5), accent)
    for _ in range(int(rng.integers(1, 4))):
        x, y = int(rng.integers(4, 60)), int(rng.integers(6, 60))
        cv2.rectangle(picture, (x, y), (x + 54, y + 46), (242, 244, 246), -1)
        cv2.rectangle(picture, (x, y), (x + 54, y + 7), (70, 80, 95), -1)
        for line in range(4):
            cv2.line(
                picture,
                (x + 5, y + 15 + 7 * line),
                (x + int(rng.integers(20, 50)), y + 15 + 7 * line),
                (120, 125, 135),
                2,
            )
    cv2.rectangle(picture, (0, SIZE - 9), (SIZE, SIZE), (30, 34, 42), -1)
    return picture


def ruler(rng: np.random.Generator, body: Rgb, accent: Rgb) -> Picture:
    """Ruler marks along the upper edge."""
    picture = cv2.resize(_flat(body), (SIZE * 4, SIZE))
    ink = (25, 25, 25) if sum(body) > 1.2 else (240, 240, 240)
    for mark in range(61):
        x = 8 + mark * 8
        cv2.line(picture, (x, 0), (x, 62 if mark % 5 == 0 else 36), ink, 2)
        if mark % 10 == 0:
            cv2.putText(picture, str(mark // 10), (x - 8, 105), cv2.FONT_HERSHEY_SIMPLEX, 1.1, ink, 3)
    return np.asarray(picture, np.uint8)


def ball(rng: np.random.Generator, body: Rgb, accent: Rgb) -> Picture:
    """A beach or sports ball: segments or spots."""
    picture = _flat(body)
    style = int(rng.integers(3))
    if style == 0:
        for step in range(0, 6, 2):
            picture[:, step * SIZE // 6 : (step + 1) * SIZE // 6] = _as_bytes(accent)
    elif style == 1:
        picture[52:76] = _as_bytes(accent)
        picture[:, ::32][:, :3] = _as_bytes(accent)
    else:
        for row in range(1, 6):
            for column in range(6):
                centre = (column * 22 + (11 if row % 2 else 0), row * 21)
                cv2.circle(picture, centre, 7, _as_bytes(accent), -1, cv2.LINE_AA)
    return picture


def paint(rng: np.random.Generator, body: Rgb, accent: Rgb) -> Picture:
    """A paint can's label: light, with a band in the paint's colour."""
    picture = _flat((0.9, 0.9, 0.9))
    cv2.rectangle(picture, (0, 70), (SIZE, 100), _as_bytes(body), -1)
    for shift in (0, 64):
        cv2.putText(
            picture, "PAINT", (shift + 8, 58), cv2.FONT_HERSHEY_DUPLEX, 0.5, (40, 40, 45), 1, cv2.LINE_AA
        )
    return picture


def board(rng: np.random.Generator, body: Rgb, accent: Rgb) -> Picture:
    """A wooden board in the object's colour."""
    grain = cv2.resize(wood(rng), (SIZE, SIZE), interpolation=cv2.INTER_AREA).astype(np.float32).mean(2) / 255
    level = grain / max(float(grain.mean()), 1e-3)
    return np.asarray(np.clip(level[..., None] * np.asarray(body) * 255, 0, 255), np.uint8)


def quilted(rng: np.random.Generator, body: Rgb, accent: Rgb) -> Picture:
    """Paper towels: white with a faint quilt."""
    x, y = np.meshgrid(np.arange(SIZE), np.arange(SIZE))
    quilt = ((x + y) % 16 < 2) | ((x - y) % 16 < 2)
    return mix(np.asarray(quilt * 0.5, np.float32), (0.95, 0.95, 0.94), (0.7, 0.72, 0.76))


PRINTS = {
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
    """The picture printed on an object of this category, in its two colours (0..1); (h, w, 3) uint8."""
    return PRINTS.get(category, label)(np.random.default_rng([seed, 77]), body, accent)
