"""Finds fonts that have the characters to draw, and breaks texts into lines of a given width."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Protocol

from PIL import ImageFont

Font = ImageFont.FreeTypeFont


class Measure(Protocol):
    """What lines are broken by: a font, or an estimate of one."""

    def getlength(self, text: str, /) -> float:
        """The width of a text, pixels."""
        ...


LATIN_FONTS = ("DejaVuSans.ttf", "NotoSans-Regular", "LiberationSans-Regular", "Ubuntu-R")
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
_CHINESE_SAMPLE = "中"


@functools.lru_cache(maxsize=8)
def find_font(font_file: str, size_px: int) -> Font:
    """The font of a file; for an empty name an installed one, with Chinese characters if possible.

    Raises ValueError for a file that is not a font.
    """
    if font_file:
        path = os.path.expanduser(font_file)
        if not os.path.isfile(path):  # of a pipe, FreeType would wait for data without end
            raise ValueError(f"{font_file!r} is not a font file: there is no regular file of this name")
        try:
            return ImageFont.truetype(path, size_px)
        except OSError as error:
            raise ValueError(f"{font_file!r} is not a font file: {error}") from None
    for installed in system_fonts():
        font = ImageFont.truetype(str(installed), size_px)
        if installed.name.startswith(LATIN_FONTS) or _has_glyph(font, _CHINESE_SAMPLE):
            return font
    font_of_pillow = ImageFont.load_default(size_px)
    assert isinstance(font_of_pillow, Font)
    return font_of_pillow


@functools.cache
def system_fonts() -> tuple[Path, ...]:
    """The known fonts of this machine, best first, those with Chinese characters before the others."""
    files = [
        Path(folder, name)
        for top in _FONT_FOLDERS
        for folder, _, names in os.walk(os.path.expanduser(top))  # passes over what this user may not read
        for name in names
        if Path(name).suffix.lower() in (".ttf", ".ttc", ".otf")
    ]
    files = [path for path in files if os.access(path, os.R_OK) and path.is_file()]
    return tuple(
        path for name in _CHINESE_FONTS + LATIN_FONTS for path in files if path.name.startswith(name)
    )


def drawable(text: str, font: Font) -> str:
    """The text without the characters that the font lacks."""
    return "".join(char for char in text if char.isascii() or _has_glyph(font, char))


def wrap(text: str, font: Measure, width_px: int) -> list[str]:
    """Breaks between words, between Chinese characters, and in words wider than a line."""
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
    return [line.strip() for line in lines if line.strip()]


def clip_lines(lines: list[str], count: int, font: Measure, width_px: int, *, end: bool) -> list[str]:
    """At most `count` lines: the first ones or, with `end`, the last ones; "…" marks what is left out."""
    if len(lines) <= count:
        return lines
    if end:
        first, *rest = lines[len(lines) - count :]
        while first and font.getlength("… " + first) > width_px:
            first = first[1:]
        return ["… " + first.lstrip(), *rest]
    *rest, last = lines[:count]
    while last and font.getlength(last + " …") > width_px:
        last = last[:-1]
    return [*rest, last.rstrip() + " …"]


def _pieces(word: str, font: Measure, width_px: int) -> list[str]:
    """The word, split if it is wider than a line; at least one character a piece."""
    pieces = [""]
    for char in word:
        if pieces[-1] and font.getlength(pieces[-1] + char) > width_px:
            pieces.append("")
        pieces[-1] += char
    return pieces


@functools.lru_cache(maxsize=4096)
def _has_glyph(font: Font, char: str) -> bool:
    """False if the font draws the character as it draws one that does not exist."""
    return bytes(font.getmask(char)) != bytes(font.getmask("\uffff"))
