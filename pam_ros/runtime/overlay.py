"""Draws masks, contours, boxes, ids, labels and captions over a frame.

Pictures are `(H, W, 3)` uint8 RGB; coordinates are `(x, y)` pixels of the frame.
"""

from __future__ import annotations

import colorsys
import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pam_ros.records import Region, RegionState, Task

Font = ImageFont.FreeTypeFont

_FONT_FOLDERS = (
    "~/.local/share/fonts",
    "~/.fonts",
    "/usr/local/share/fonts",
    "/usr/share/fonts",
    "/System/Library/Fonts",
)
_CHINESE_FONTS = (  # beginnings of file names, best first; other weights than Regular come last
    "NotoSansCJK-Regular", "NotoSansCJKsc-Regular", "NotoSansSC", "SourceHanSans", "wqy-microhei",
    "wqy-zenhei", "DroidSansFallback", "NotoSansCJK", "NotoSerifCJK", "uming", "ukai", "PingFang", "STHeiti",
    "Arial Unicode",
)  # fmt: skip
_LATIN_FONTS = ("DejaVuSans.ttf", "NotoSans-Regular", "LiberationSans-Regular", "Ubuntu-R")
_CHINESE_SAMPLE = "中"
_CAPTION_LINES = 4  # most lines of a caption
_WIDEST_LINE = 0.45  # fraction of the picture's width


@dataclass(frozen=True, slots=True)
class OverlayStyle:
    """Opacity, texts and font.

    Attributes:
        opacity: of the tint over masks, 0..1.
        texts: write ids, labels and captions.
        font_px: height of the letters in pixels; 0 scales them with the picture's height.
        font_file: TrueType or OpenType file; empty selects an installed font, a Chinese one if possible.
    """

    opacity: float = 0.45
    texts: bool = True
    font_px: int = 0
    font_file: str = ""


def draw_overlay(
    image: NDArray[np.uint8],
    regions: Sequence[Region],
    *,
    captions: Mapping[int, str] | None = None,
    style: OverlayStyle | None = None,
) -> NDArray[np.uint8]:
    """A new picture with every region drawn over `image`; `captions` are texts by region id."""
    style = style or OverlayStyle()
    canvas = image.copy()
    visible = [region for region in regions if region.state is RegionState.TRACKED and region.mask.size]
    for region in sorted(visible, key=lambda region: int(region.mask.sum()), reverse=True):
        _tint(canvas, region, style.opacity)
        _outline(canvas, region)
    return _write(canvas, regions, captions or {}, style) if style.texts and regions else canvas


def region_colour(region_id: int) -> tuple[int, int, int]:
    """RGB; neighbouring ids get colours far apart (golden-ratio hues)."""
    red, green, blue = colorsys.hsv_to_rgb(region_id * 0.618034 % 1.0, 0.75, 1.0)
    return int(red * 255), int(green * 255), int(blue * 255)


def font_hint(texts: Iterable[str], style: OverlayStyle) -> str:
    """What to install if the font lacks characters of these texts; empty if it has them all."""
    font = _font(style.font_file, 16)
    if all(_drawable(text, font) == text for text in texts):
        return ""
    return (
        "the overlay font lacks some characters; for Chinese install a font "
        "(Debian, Ubuntu: apt install fonts-wqy-microhei) or set the parameter overlay.font_file"
    )


def check_font_file(font_file: str) -> None:
    """Raises ValueError if `OverlayStyle.font_file` cannot be used."""
    _font(font_file, 16)


# --- masks


def _tint(canvas: NDArray[np.uint8], region: Region, opacity: float) -> None:
    x1, y1, x2, y2 = (int(edge) for edge in region.box_xyxy)
    window = canvas[y1:y2, x1:x2]
    colour = np.array(region_colour(region.region_id), np.float32)
    window[region.mask] = (window[region.mask] * (1 - opacity) + colour * opacity).astype(np.uint8)


def _outline(canvas: NDArray[np.uint8], region: Region) -> None:
    x1, y1, x2, y2 = (int(edge) for edge in region.box_xyxy)
    colour, thickness = region_colour(region.region_id), max(1, canvas.shape[0] // 360)
    contours, _ = cv2.findContours(
        region.mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE, offset=(x1, y1)
    )
    cv2.drawContours(canvas, contours, -1, colour, thickness)
    cv2.rectangle(canvas, (x1, y1), (x2 - 1, y2 - 1), colour, 1)


# --- texts


@dataclass(frozen=True, slots=True)
class _Block:
    """Lines of text at a place; `x, y` is its top-left corner."""

    x: int
    y: int
    width: int
    height: int
    lines: tuple[str, ...]
    colour: tuple[int, int, int]


def _write(
    canvas: NDArray[np.uint8], regions: Sequence[Region], captions: Mapping[int, str], style: OverlayStyle
) -> NDArray[np.uint8]:
    height, width = canvas.shape[:2]
    font = _font(style.font_file, style.font_px or max(12, height // 32))
    line_px = int(font.size * 1.35)
    lost_y, widest = height, int(width * _WIDEST_LINE)
    blocks = []
    for region in regions:
        lost = region.state is RegionState.LOST
        heading = f"#{region.region_id} {_label(region, font)}".strip() + (": lost" if lost else "")
        lines = _wrap(_drawable(heading, font), font, widest)[:1]
        if not lost:
            lines += _wrap(_drawable(captions.get(region.region_id, ""), font), font, widest)
        block_width = int(max(font.getlength(line) for line in lines)) + 6
        block_height = line_px * len(lines) + 4
        if lost:  # it has no place in the picture: the lower left corner lists what is lost
            lost_y -= block_height
            x, y = 0, lost_y
        else:
            x, y = int(region.box_xyxy[0]), int(region.box_xyxy[1]) - block_height
        x, y = max(0, min(x, width - block_width)), max(0, min(y, height - block_height))
        blocks.append(_Block(x, y, block_width, block_height, tuple(lines), region_colour(region.region_id)))
    for block in blocks:
        window = canvas[block.y : block.y + block.height, block.x : block.x + block.width]
        window[:] = (window * 0.35).astype(np.uint8)
    picture = Image.fromarray(canvas)
    pen = ImageDraw.Draw(picture)
    for block in blocks:
        for number, line in enumerate(block.lines):
            colour = block.colour if number == 0 else (255, 255, 255)
            pen.text((block.x + 3, block.y + 2 + number * line_px), line, fill=colour, font=font)
    return np.array(picture)


def _label(region: Region, font: Font) -> str:
    """The first label that the font has all characters of, whatever its language; else the first."""
    labels = [text.text for (task, _), text in region.texts.items() if task is Task.LABEL]
    return next((label for label in labels if _drawable(label, font) == label), "".join(labels[:1]))


def _wrap(text: str, font: Font, width_px: int) -> list[str]:
    """Breaks between words, between Chinese characters, and in words wider than a line; cuts long texts."""
    words: list[str] = []
    for char in " ".join(text.split()):
        if words and char.isascii() and words[-1][-1].isascii() and words[-1] != " " and char != " ":
            words[-1] += char
        else:
            words.append(char)
    lines = [""]
    for piece in (piece for word in words for piece in _pieces(word, font, width_px)):
        if lines[-1] and font.getlength(lines[-1] + piece) > width_px:
            lines.append("")
        lines[-1] += piece if lines[-1] or piece != " " else ""
    lines = [line.strip() for line in lines if line.strip()]
    if len(lines) > _CAPTION_LINES:
        lines = [*lines[: _CAPTION_LINES - 1], lines[_CAPTION_LINES - 1] + " …"]
    return lines


def _pieces(word: str, font: Font, width_px: int) -> list[str]:
    """The word, split if it is wider than a line; at least one character a piece."""
    pieces = [""]
    for char in word:
        if pieces[-1] and font.getlength(pieces[-1] + char) > width_px:
            pieces.append("")
        pieces[-1] += char
    return pieces


def _drawable(text: str, font: Font) -> str:
    """Without the characters that the font would show as empty boxes."""
    return "".join(char for char in text if char.isascii() or _has_glyph(font, char))


# --- fonts


@functools.lru_cache(maxsize=8)
def _font(font_file: str, size_px: int) -> Font:
    """Raises ValueError for a file that is no font."""
    if font_file:
        try:
            return ImageFont.truetype(font_file, size_px)
        except OSError as error:
            raise ValueError(f"{font_file!r} is not a font file: {error}") from None
    for path in _system_fonts():
        font = ImageFont.truetype(str(path), size_px)
        if path.name.startswith(_LATIN_FONTS) or _has_glyph(font, _CHINESE_SAMPLE):
            return font
    font_of_pillow = ImageFont.load_default(size_px)
    assert isinstance(font_of_pillow, Font)
    return font_of_pillow


@functools.cache
def _system_fonts() -> tuple[Path, ...]:
    """The known fonts of this machine, best first, those with Chinese characters before the others."""
    files = [
        path
        for folder in _FONT_FOLDERS
        for path in Path(folder).expanduser().rglob("*")
        if path.suffix.lower() in (".ttf", ".ttc", ".otf")
    ]
    return tuple(
        path for name in _CHINESE_FONTS + _LATIN_FONTS for path in files if path.name.startswith(name)
    )


@functools.lru_cache(maxsize=4096)
def _has_glyph(font: Font, char: str) -> bool:
    """False if the font draws the character as it draws one that does not exist."""
    return bytes(font.getmask(char)) != bytes(font.getmask("\uffff"))
