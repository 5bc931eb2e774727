"""Texts for RViz's markers, which have no characters beyond ASCII and do not break lines by themselves."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Iterable

from pam_ros.nodes.outputs.snapshot import Caption
from pam_ros.records import Language, Region, Task

LINE_CHARACTERS, LINES = 32, 4
_PUNCTUATION = str.maketrans({
    "“": '"', "”": '"', "‘": "'", "’": "'", "–": "-", "—": "-", "−": "-", "×": "x", "…": "...", "·": "-",
    "°": " deg", "，": ", ", "。": ". ", "：": ": ", "；": "; ", "（": " (", "）": ") ", "％": "%",
})  # fmt: skip
# Widths of RViz's font (a copy of Arial), of the height of a line.
_NARROW, _WIDE = frozenset("ijl'|!.,:;/()[]ftr-I "), frozenset("mwMW@%")
_WIDTHS = (0.3, 0.5, 0.65, 0.85)  # narrow characters, other ones, capitals, wide ones


def ascii_text(text: str) -> str | None:
    """The text with accents and typographic marks replaced; None if letters would be lost, as of Chinese."""
    parts = unicodedata.normalize("NFKD", text.translate(_PUNCTUATION))
    kept = "".join(char for char in parts if not unicodedata.combining(char))
    return kept if kept.isascii() else None


def marker_text(region: Region, captions: Iterable[Caption]) -> str:
    """The region's id, label and caption, in ASCII, with line breaks.

    A label or caption in Chinese is replaced by the English one, or left out if there is none.
    """
    label = next((plain for text in region.labels if (plain := ascii_text(text.shown))), "")
    heading = textwrap.shorten(f"#{region.region_id} {label}".strip(), LINE_CHARACTERS, placeholder="...")
    caption = _caption(region, captions)
    lines = textwrap.wrap(caption.text, LINE_CHARACTERS) if caption is not None else []
    if len(lines) > LINES:  # of a growing text the end is new
        cut = lines[:LINES] if caption is None or caption.final else lines[-LINES:]
        lines = (
            [*cut[:-1], f"{cut[-1]}..."] if caption is None or caption.final else [f"...{cut[0]}", *cut[1:]]
        )
    return "\n".join([heading, *lines])


def line_width(line: str) -> float:
    """About the width of a line in RViz, of the line's height; rather too wide."""
    narrow, other, capital, wide = _WIDTHS
    return sum(
        narrow if char in _NARROW else wide if char in _WIDE else capital if char.isupper() else other
        for char in line
    )


def _caption(region: Region, captions: Iterable[Caption]) -> Caption | None:
    """The newest caption that ASCII can show; else the newest English text that is no label."""
    for caption in captions:
        if plain := ascii_text(caption.text):
            return Caption(plain, caption.language, caption.final)
    texts = [
        text
        for (task, language), text in region.texts.items()
        if task is not Task.LABEL and language is Language.EN
    ]
    plain = ascii_text(texts[-1].shown) if texts else None
    return Caption(plain, Language.EN, True) if plain else None
