"""Draws masks, outlines, labels and a band of captions over a frame.

Images are `(H, W, 3)` uint8 RGB; coordinates are `(x, y)` pixels of the frame. The image keeps the
frame's size, so that a click on the overlay means the same pixel of the frame.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pam_ros.records import Region, RegionState
from pam_ros.runtime.fonts import Font, Measure, clip_lines, drawable, find_font, wrap

Colour = tuple[int, int, int]  # RGB

# One per region of the default maximum; every pair is at least 0.08 apart in OKLab.
_COLOURS: tuple[Colour, ...] = (
    (66, 135, 245), (255, 140, 26), (46, 184, 92), (235, 64, 120),
    (0, 190, 200), (250, 210, 40), (150, 90, 240), (160, 214, 60),
    (230, 60, 50), (120, 200, 255), (190, 120, 60), (240, 130, 230),
    (0, 130, 130), (255, 180, 150), (110, 130, 30), (190, 170, 255),
)  # fmt: skip
_BAND_SHADE = 0.3  # brightness that the image keeps under the captions
_BAND_HEIGHT = 0.4  # most of the image's height that captions may take
_CAPTION_LINES = 4  # most lines of one caption
_LABEL_WIDTH = 0.6  # most of the image's width that a label may take
_LABEL_STEP_PX = 4  # by how much a label is moved to find a free place
_DASH_PX, _GAP_PX = 8, 6


@dataclass(frozen=True, slots=True)
class OverlayStyle:
    """Opacity, texts and font.

    Attributes:
        opacity: of the tint over masks, 0..1.
        texts: write ids, labels and captions.
        font_px: height of the letters in pixels; 0 scales them with the image's height.
        font_file: TrueType or OpenType file; empty selects an installed font, a Chinese one if possible.
    """

    opacity: float = 0.45
    texts: bool = True
    font_px: int = 0
    font_file: str = ""


class LastSeen:
    """Remembers where each region was last in view, to outline it while it is lost."""

    def __init__(self) -> None:
        self._regions: dict[int, Region] = {}

    def update(self, regions: Iterable[Region]) -> Mapping[int, Region]:
        """Region id → its newest record with a mask, of these regions only; a new mapping."""
        self._regions = {
            region.region_id: region if region.mask.size else self._regions[region.region_id]
            for region in regions
            if region.mask.size or region.region_id in self._regions
        }
        return self._regions


def draw_overlay(
    image: NDArray[np.uint8],
    regions: Sequence[Region],
    *,
    captions: Mapping[int, str] | None = None,
    growing: Collection[int] = (),
    last_seen: Mapping[int, Region] | None = None,
    style: OverlayStyle | None = None,
    mark: str = "",
) -> NDArray[np.uint8]:
    """A new image with every region drawn over `image`: masks, labels, and captions in a band below.

    `captions`: texts by region id; `growing`: ids whose caption is not finished, so that its end is shown
    rather than its beginning; `last_seen`: where lost regions are outlined with dashes; `mark`: what
    the upper right corner says, if there are texts.
    """
    style, last_seen = style or OverlayStyle(), last_seen or {}
    canvas = image.copy()
    visible = [region for region in regions if region.state is RegionState.TRACKED and region.mask.size]
    for region in sorted(visible, key=lambda region: int(region.mask.sum()), reverse=True):
        _tint(canvas, region, style.opacity)
        _outline(canvas, region, dashed=False)
    for region in regions:
        if region.state is RegionState.LOST and region.region_id in last_seen:
            _outline(canvas, last_seen[region.region_id], dashed=True)
    if not (style.texts and regions):
        return canvas
    font = find_font(style.font_file, style.font_px or max(12, image.shape[0] // 32))
    band = _caption_band(canvas, regions, captions or {}, growing, font)
    marks = [_mark_block(canvas, mark, font)] if mark else []
    floor = band.y if band else canvas.shape[0]
    labels = list(_label_blocks(canvas, regions, last_seen, font, floor, marks))
    return _write(canvas, [*marks, *labels, *([band] if band else [])], font)


def region_colour(region_id: int) -> Colour:
    """RGB; the same for an id at all times, distinct for sixteen ids in a row."""
    return _COLOURS[(region_id - 1) % len(_COLOURS)]


def font_hint(texts: Iterable[str], style: OverlayStyle) -> str:
    """What to install if the font lacks characters of these texts; empty if it has them all."""
    font = find_font(style.font_file, 16)
    if all(drawable(text, font) == text for text in texts):
        return ""
    return (
        "the overlay font lacks some characters; for Chinese install a font "
        "(Debian, Ubuntu: apt install fonts-wqy-microhei) or set the parameter overlay.font_file"
    )


def check_font_file(font_file: str) -> None:
    """Raises ValueError if `OverlayStyle.font_file` cannot be used."""
    find_font(font_file, 16)


def mask_contours(region: Region) -> list[NDArray[np.int32]]:
    """Outer contours of the mask, each (N, 2) pixels of the frame; none without a mask."""
    if not region.mask.size:
        return []
    contours, _ = cv2.findContours(
        region.mask.astype(np.uint8),
        cv2.RETR_EXTERNAL,
        cv2.CHAIN_APPROX_NONE,
        offset=(int(region.box_xyxy[0]), int(region.box_xyxy[1])),
    )
    return [np.asarray(contour[:, 0], np.int32) for contour in contours]


# --- masks


def _tint(canvas: NDArray[np.uint8], region: Region, opacity: float) -> None:
    x1, y1, x2, y2 = (int(edge) for edge in region.box_xyxy)
    window = canvas[y1:y2, x1:x2]
    colour = np.array(region_colour(region.region_id), np.float32)
    window[region.mask] = (window[region.mask] * (1 - opacity) + colour * opacity).astype(np.uint8)


def _outline(canvas: NDArray[np.uint8], region: Region, *, dashed: bool) -> None:
    colour, thickness = region_colour(region.region_id), max(1, canvas.shape[0] // 240)
    for contour in mask_contours(region):
        pieces = list(_dashes(contour, thickness)) if dashed else [contour]
        cv2.polylines(canvas, pieces, not dashed, colour, thickness, cv2.LINE_AA)


def _dashes(contour: NDArray[np.int32], thickness: int) -> Iterator[NDArray[np.int32]]:
    """Pieces of a closed contour whose points are neighbours, with gaps between them."""
    step = (_DASH_PX + _GAP_PX) * thickness
    for begin in range(0, len(contour), step):
        yield contour[begin : begin + _DASH_PX * thickness]


# --- texts


@dataclass(frozen=True, slots=True)
class _Block:
    """Lines of text on a ground; `x, y` is its top-left corner, `line_px` the height of a line.

    Attributes:
        ground: colour under the text, or None for the darkened image.
        lines: (text, colour, indent in pixels) of each line.
    """

    x: int
    y: int
    width: int
    height: int
    line_px: int
    ground: Colour | None
    lines: tuple[tuple[str, Colour, int], ...]


def band_rows(height_px: int, line_px: float) -> int:
    """Lines of captions that may stand at the bottom of an image."""
    return max(1, int(height_px * _BAND_HEIGHT / line_px))


def caption_mark(region_id: int) -> str:
    """What stands before a region's caption."""
    return f"#{region_id} "


def caption_lines(
    texts: Mapping[int, str], font: Measure, width_px: int, rows: int, growing: Collection[int]
) -> dict[int, list[str]]:
    """The lines of each region's caption beside its mark, in all at most `rows`, or one each.

    A caption that is too long shows its beginning, one that grows its end.
    """
    shown = list(texts.items())[:rows]
    each = min(_CAPTION_LINES, max(1, rows // max(1, len(shown))))
    lines = {}
    for region_id, text in shown:
        wide = max(1, width_px - int(font.getlength(caption_mark(region_id))))
        lines[region_id] = clip_lines(wrap(text, font, wide), each, font, wide, end=region_id in growing)
    return lines


def _caption_band(
    canvas: NDArray[np.uint8],
    regions: Sequence[Region],
    captions: Mapping[int, str],
    growing: Collection[int],
    font: Font,
) -> _Block | None:
    """The captions of all regions, one below the other, at the bottom; None if there is none."""
    height, width = canvas.shape[:2]
    line_px = _line_px(font)
    texts = {
        region.region_id: text
        for region in regions
        if (text := drawable(captions.get(region.region_id, ""), font).strip())
    }
    room = band_rows(height, line_px)
    if not texts or line_px + 4 > height:
        return None
    lines: list[tuple[str, Colour, int]] = []
    for region_id, kept in caption_lines(texts, font, width - 8, room, growing).items():
        mark = caption_mark(region_id)
        lines.append((mark, region_colour(region_id), -1))  # -1: the next line continues it
        lines += [(line, (255, 255, 255), int(font.getlength(mark))) for line in kept]
    rows = sum(indent >= 0 for _, _, indent in lines)
    tall = min(height, rows * line_px + 4)
    return _Block(0, height - tall, width, tall, line_px, None, tuple(lines))


def _mark_block(canvas: NDArray[np.uint8], mark: str, font: Font) -> _Block:
    """In the upper right corner."""
    width = min(canvas.shape[1], int(font.getlength(mark)) + 8)
    height = min(canvas.shape[0], _line_px(font) + 2)
    lines = ((drawable(mark, font), (255, 255, 255), 0),)
    return _Block(canvas.shape[1] - width, 0, width, height, _line_px(font), None, lines)


def _label_blocks(
    canvas: NDArray[np.uint8],
    regions: Sequence[Region],
    last_seen: Mapping[int, Region],
    font: Font,
    floor: int,
    others: Sequence[_Block],
) -> Iterator[_Block]:
    """A label above each region, not over `others` or a label if there is room; captions begin at `floor`.

    Lost regions that were never seen are listed in the lower left corner.
    """
    width, line_px = canvas.shape[1], _line_px(font)
    taken = [*others]
    for region in regions:
        lost = region.state is RegionState.LOST
        wide = max(1, int(width * _LABEL_WIDTH))
        heading = f"#{region.region_id} {_label(region, font)}".strip() + (" (lost)" if lost else "")
        line = clip_lines(wrap(drawable(heading, font), font, wide), 1, font, wide, end=False)[0]
        size = (min(width, int(font.getlength(line)) + 8), min(canvas.shape[0], line_px + 2))
        place = last_seen.get(region.region_id) if lost else region
        corner = (0, floor) if place is None else (int(place.box_xyxy[0]), int(place.box_xyxy[1]))
        x, y = _free_place(corner, size, (width, max(floor, size[1])), taken)
        colour = region_colour(region.region_id)
        block = _Block(x, y, *size, line_px, colour, ((line, _ink(colour), 0),))
        taken.append(block)
        yield block


def _free_place(
    corner: tuple[int, int], size: tuple[int, int], limits: tuple[int, int], taken: Sequence[_Block]
) -> tuple[int, int]:
    """Top-left corner of a label whose region begins at `corner`: above it or, if that is taken, near it."""
    width, height = size
    x = max(0, min(corner[0], limits[0] - width))
    lowest = limits[1] - height
    wanted = max(0, min(corner[1] - height, lowest))
    for y in sorted(
        {*range(wanted, -1, -_LABEL_STEP_PX), *range(wanted, lowest + 1, _LABEL_STEP_PX)},
        key=lambda y: abs(y - wanted),
    ):
        if not any(
            x < it.x + it.width and it.x < x + width and y < it.y + it.height and it.y < y + height
            for it in taken
        ):
            return x, y
    return x, wanted


def _write(canvas: NDArray[np.uint8], blocks: Sequence[_Block], font: Font) -> NDArray[np.uint8]:
    for block in blocks:
        window = canvas[block.y : block.y + block.height, block.x : block.x + block.width]
        window[:] = (window * _BAND_SHADE).astype(np.uint8) if block.ground is None else block.ground
    picture = Image.fromarray(canvas)
    pen = ImageDraw.Draw(picture)
    for block in blocks:
        row = 0
        for line, colour, indent in block.lines:
            place = (block.x + 4 + max(0, indent), block.y + 1 + row * block.line_px)
            pen.text(place, line, fill=colour, font=font)
            row += indent >= 0
    return np.array(picture)


def _line_px(font: Font) -> int:
    return int(font.size * 1.35)


def _ink(ground: Colour) -> Colour:
    """Black or white, whichever is easier to read on this colour."""
    return (0, 0, 0) if ground[0] * 0.299 + ground[1] * 0.587 + ground[2] * 0.114 > 128 else (255, 255, 255)


def _label(region: Region, font: Font) -> str:
    """The first label that the font has all characters of, whatever its language, with its confidence."""
    best = next((label for label in region.labels if drawable(label.text, font) == label.text), None)
    best = best or (region.labels[0] if region.labels else None)
    if best is None:
        return ""
    return best.sure_text
