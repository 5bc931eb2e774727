"""The overlay: where it draws, what it writes, Chinese text with and without a font for it.

`python test/test_overlay.py` draws the stored pictures of test/data/overlay again; look at
them before you keep them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pam_ros import media
from pam_ros.geometry import crop_mask
from pam_ros.records import Language, Region, RegionState, Task, Text
from pam_ros.runtime import fonts, overlay
from pam_ros.runtime.overlay import (
    LastSeen,
    OverlayStyle,
    check_font_file,
    draw_overlay,
    font_hint,
    region_colour,
)

_INSTALLED = fonts.system_fonts()
STORED = Path(__file__).parent / "data" / "overlay"
SIZE = (240, 320)  # height, width
PLAIN = OverlayStyle(texts=False)


def region(region_id: int, box: tuple[int, int, int, int] | None, label: str = "") -> Region:
    mask = np.zeros(SIZE, np.bool_)
    if box is not None:
        x1, y1, x2, y2 = box
        mask[y1:y2, x1:x2] = True
    box_xyxy, cropped = crop_mask(mask)
    return Region(
        region_id=region_id,
        state=RegionState.TRACKED if box else RegionState.LOST,
        box_xyxy=box_xyxy,
        mask=cropped,
        mask_score=1.0,
        presence_score=1.0,
        texts={(Task.LABEL, Language.EN): Text(label, 0)} if label else {},
        created_ns=0,
        last_visible_ns=0,
    )


def picture() -> np.ndarray:
    return np.full((*SIZE, 3), 100, np.uint8)


def changed(drawn: np.ndarray) -> np.ndarray:
    """(H, W) bool: the pixels that differ from the plain picture."""
    return (drawn != 100).any(axis=2)


def test_tint_and_outline_cover_the_mask_only() -> None:
    image = picture()
    drawn = draw_overlay(image, [region(1, (50, 100, 150, 200))], style=PLAIN)
    assert (image == 100).all(), "the frame itself was changed"
    assert changed(drawn)[100:200, 50:150].all()
    outside = changed(drawn)
    outside[99:201, 49:151] = False
    assert not outside.any()
    expected = 100 * 0.55 + np.array(region_colour(1)) * 0.45
    np.testing.assert_allclose(drawn[150, 100], expected, atol=1)


def test_smaller_regions_lie_on_top() -> None:
    regions = [region(1, (100, 100, 120, 120)), region(2, (50, 50, 200, 200))]
    drawn = draw_overlay(picture(), regions, style=OverlayStyle(texts=False, opacity=1.0))
    np.testing.assert_array_equal(drawn[110, 110], region_colour(1))
    np.testing.assert_array_equal(drawn[60, 60], region_colour(2))


def test_without_regions_nothing_changes() -> None:
    assert not changed(draw_overlay(picture(), [])).any()


def test_labels_are_drawn_above_the_region_and_captions_at_the_bottom() -> None:
    box = (50, 100, 150, 150)
    named = changed(draw_overlay(picture(), [region(1, box, "kettle")]))
    assert named[80:99, 50:100].any()
    assert not named[160:].any()
    captioned = changed(draw_overlay(picture(), [region(1, box, "kettle")], captions={1: "It boils. " * 5}))
    assert captioned[220:].mean() > 0.98, "a band as wide as the picture"
    np.testing.assert_array_equal(captioned[:150], named[:150])


def test_a_growing_caption_shows_its_end_and_a_finished_one_its_beginning() -> None:
    regions, words = [region(1, (50, 50, 150, 100))], [f"word{number}" for number in range(200)]
    shown: list[str] = []

    def lines_of(text: str, growing: tuple[int, ...]) -> str:
        font = fonts.find_font("", 12)
        block = overlay._caption_band(picture(), regions, {1: text}, growing, font)
        assert block is not None
        return " ".join(line for line, _, _ in block.lines)

    for count in (1, 20, 200):
        shown.append(lines_of(" ".join(words[:count]), (1,)))
        assert shown[-1].endswith(words[count - 1])
    assert "word0 " not in shown[-1]
    final = lines_of(" ".join(words), ())
    assert "word0 " in final and final.endswith(" …")


def test_every_region_has_a_line_for_its_caption() -> None:
    regions = [region(number, (10 * number, 50, 10 * number + 8, 100)) for number in range(1, 6)]
    block = overlay._caption_band(
        picture(), regions, dict.fromkeys(range(1, 6), "word " * 100), (), fonts.find_font("", 12)
    )
    assert block is not None
    assert [line.strip() for line, _, indent in block.lines if indent < 0] == [f"#{n}" for n in range(1, 6)]
    assert block.height <= SIZE[0] / 2


def test_long_captions_stay_in_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks: list[overlay._Block] = []

    class RecordedBlock(overlay._Block):
        def __init__(self, *fields: Any) -> None:
            super().__init__(*fields)
            blocks.append(self)

    monkeypatch.setattr(overlay, "_Block", RecordedBlock)
    for box in ((0, 0, 20, 20), (300, 220, 320, 240), (0, 0, 320, 240)):
        for words in ("word " * 200, "x" * 500, "水壶在煮水。" * 60):
            drawn = draw_overlay(picture(), [region(1, box, words)], captions={1: words})
            assert drawn.shape == (*SIZE, 3)
    assert len(blocks) == 18
    assert sum(len(block.lines) > 2 for block in blocks) >= 6  # all captions, with a font for Chinese
    for block in blocks:
        assert 0 <= block.x <= block.x + block.width <= SIZE[1]
        assert 0 <= block.y <= block.y + block.height <= SIZE[0]


def test_tiny_images_can_be_drawn_on() -> None:
    mask = np.ones((4, 4), np.bool_)
    box, cropped = crop_mask(mask)
    tiny = Region(1, RegionState.TRACKED, box, cropped, 1.0, 1.0, {}, 0, 0)
    assert draw_overlay(np.zeros((4, 4, 3), np.uint8), [tiny], captions={1: "words"}).shape == (4, 4, 3)


def test_lost_regions_are_dashed_where_they_were_last_seen() -> None:
    memory, tracked, lost = LastSeen(), region(4, (50, 100, 150, 200)), region(4, None)
    memory.update([tracked, region(5, (0, 0, 9, 9))])
    solid = changed(draw_overlay(picture(), [tracked], style=OverlayStyle(opacity=0.0, texts=False)))
    last_seen = memory.update([lost])
    drawn = changed(draw_overlay(picture(), [lost], last_seen=last_seen, style=PLAIN))
    assert last_seen.keys() == {4}, "a region that is gone is forgotten"
    assert 0.3 < drawn.sum() / solid.sum() < 0.9
    assert not (drawn & ~solid)[105:195, 55:145].any(), "the place itself is not tinted"
    labelled = changed(draw_overlay(picture(), [lost], last_seen=last_seen))
    assert labelled[80:99, 50:80].any()


def test_labels_do_not_cover_one_another() -> None:
    regions = [region(number, (100, 100, 140, 140), "kettle") for number in range(1, 7)]
    blocks = list(overlay._label_blocks(picture(), regions, {}, fonts.find_font("", 12), SIZE[0], []))
    for one, other in combinations(blocks, 2):
        assert one.y + one.height <= other.y or other.y + other.height <= one.y


def test_a_label_does_not_cover_the_mark() -> None:
    font = fonts.find_font("", 12)
    mark = overlay._mark_block(picture(), "pam-tiny: demonstration model", font)
    below = region(1, (SIZE[1] - 60, mark.height, SIZE[1], 80), "kettle")
    (label,) = overlay._label_blocks(picture(), [below], {}, font, SIZE[0], [mark])
    assert label.y >= mark.y + mark.height or label.x + label.width <= mark.x


def test_the_label_shows_how_sure_the_model_is_where_known() -> None:
    font = fonts.find_font("", 12)
    named = region(1, (50, 100, 150, 200), "kettle")
    assert overlay._label(named, font) == "kettle"
    sure = {(Task.LABEL, Language.EN): Text("kettle", 0, confidence=0.873)}
    assert overlay._label(replace(named, texts=sure), font) == "kettle 87%"
    doubted = {(Task.LABEL, Language.EN): Text("kettle", 0, confidence=0.001)}
    assert overlay._label(replace(named, texts=doubted), font).endswith(" <1%")


def test_lost_regions_never_seen_are_listed_in_the_corner() -> None:
    drawn = changed(draw_overlay(picture(), [region(4, None, "kettle"), region(5, None)]))
    assert drawn[200:, :80].any()
    assert not drawn[:180].any()


def test_colours_are_stable_and_distinct() -> None:
    pixels = np.array([[region_colour(number) for number in range(1, 17)]], np.uint8)
    lab = cv2.cvtColor(pixels.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[0]
    nearest = min(np.linalg.norm(one - other) for one, other in combinations(lab, 2))
    assert nearest > 15, "CIE76; 2.3 is just noticeable"
    assert region_colour(17) == region_colour(1)


def test_wrapping() -> None:
    font = fonts.find_font("", 16)
    assert fonts.wrap("one two three four", font, int(font.getlength("one two "))) == [
        "one two",
        "three",
        "four",
    ]
    chinese = fonts.wrap("水壶在煮水", font, 40)
    assert len(chinese) > 1
    assert "".join(chinese) == "水壶在煮水"
    assert fonts.wrap("", font, 100) == []
    for words in ("x" * 500, "see " + "x" * 500, "\\" * 64, "one " * 100):
        lines = fonts.wrap(words, font, 100)
        assert all(font.getlength(line) <= 100 for line in lines)
        head = fonts.clip_lines(lines, 3, font, 100, end=False)
        tail = fonts.clip_lines(lines, 3, font, 100, end=True)
        assert head[:2] == lines[:2] and head[2].endswith(" …")
        assert tail[1:] == lines[-2:] and tail[0].startswith("… ")
        assert all(font.getlength(line) <= 100 for line in head + tail)
    assert fonts.clip_lines(["one", "two"], 2, font, 100, end=True) == ["one", "two"]


def test_chinese_without_a_font_leaves_the_id_and_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    latin = [path for path in fonts.system_fonts() if path.name.startswith(fonts.LATIN_FONTS)]
    monkeypatch.setattr(fonts, "system_fonts", lambda: tuple(latin))
    fonts.find_font.cache_clear()
    try:
        assert "fonts-wqy-microhei" in font_hint(["水壶"], OverlayStyle())
        assert font_hint(["kettle"], OverlayStyle()) == ""
        box = (50, 150, 150, 200)
        chinese = draw_overlay(picture(), [region(1, box, "水壶")])
        bare = draw_overlay(picture(), [region(1, box)])
        np.testing.assert_array_equal(chinese, bare)
        assert changed(bare)[120:149, 50:100].any(), "the id is missing, too"
        names = {(Task.LABEL, Language.ZH): Text("水壶", 0), (Task.LABEL, Language.EN): Text("kettle", 0)}
        both = replace(region(1, box), texts=names)
        kettle = draw_overlay(picture(), [region(1, box, "kettle")])
        np.testing.assert_array_equal(draw_overlay(picture(), [both]), kettle)
        assert (kettle != bare).any()
    finally:
        fonts.find_font.cache_clear()


def test_chinese_with_a_font_of_this_machine() -> None:
    if font_hint(["水壶"], OverlayStyle()):
        pytest.skip("this machine has no font with Chinese characters")
    box = (50, 150, 150, 200)
    one, other, neither = (draw_overlay(picture(), [region(1, box, label)]) for label in ("水壶", "苹果", ""))
    assert (one != other).any()
    assert (one != neither).any()


def test_a_bad_font_file_is_refused() -> None:
    with pytest.raises(ValueError, match="not a font file"):
        check_font_file(__file__)
    check_font_file("")


# --- stored pictures


def _scene() -> np.ndarray:
    """A (144, 192, 3) ground with light and dark parts."""
    ramp = np.linspace(40, 220, 192, dtype=np.float32)[None, :, None]
    return np.broadcast_to(ramp, (144, 192, 3)).astype(np.uint8)


def _blob(region_id: int, centre: tuple[int, int], radius: int, label: str, confidence: float) -> Region:
    mask = cv2.circle(np.zeros((144, 192), np.uint8), centre, radius, 1, -1) > 0
    box, cropped = crop_mask(mask)
    texts = {(Task.LABEL, Language.EN): Text(label, 0, confidence)}
    return replace(
        region(region_id, None), state=RegionState.TRACKED, box_xyxy=box, mask=cropped, texts=texts
    )


def _two_regions(style: OverlayStyle) -> np.ndarray:
    regions = [_blob(1, (60, 60), 28, "kettle", 0.91), _blob(2, (130, 60), 20, "mug", 0.6)]
    captions = {1: "The kettle slides to the left and stops beside the mug.", 2: "Nothing happens"}
    return draw_overlay(_scene(), regions, captions=captions, growing={2}, style=style)


def _lost(style: OverlayStyle) -> np.ndarray:
    mug = _blob(2, (130, 60), 20, "mug", 0.6)
    lost = replace(mug, state=RegionState.LOST, mask=mug.mask[:0, :0])
    regions = [_blob(1, (60, 60), 28, "kettle", 0.91), lost]
    return draw_overlay(_scene(), regions, last_seen={2: mug}, style=style)


def _chinese(style: OverlayStyle) -> np.ndarray:
    regions = [_blob(3, (96, 60), 30, "水壶", 0.91)]
    return draw_overlay(_scene(), regions, captions={3: "水壶向左滑动，然后停在杯子旁边。"}, style=style)


PICTURES: dict[str, tuple[Callable[[OverlayStyle], np.ndarray], str]] = {  # and a file name of their font
    "two_regions": (_two_regions, ""),
    "lost": (_lost, ""),
    "chinese": (_chinese, "wqy-microhei.ttc"),
}


def _drawn(name: str, set_attribute: Callable[[object, str, object], None]) -> np.ndarray:
    """The picture with the font that it names, else with Pillow's own, which is the same everywhere."""
    function, file_name = PICTURES[name]
    paths = [str(path) for path in _INSTALLED if path.name == file_name]
    if file_name and not paths:
        pytest.skip(f"the font {file_name} is not installed")
    set_attribute(fonts, "system_fonts", tuple)  # none
    fonts.find_font.cache_clear()
    try:
        return function(OverlayStyle(font_px=12, font_file=paths[0] if paths else ""))
    finally:
        fonts.find_font.cache_clear()


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_look_as_stored(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = _drawn(name, monkeypatch.setattr)
    stored = media.read_image(STORED / f"{name}.png")
    assert drawn.shape == stored.shape
    difference = np.abs(drawn.astype(int) - stored).max(axis=2)
    assert (difference > 40).mean() < 0.01, "letters may differ by a pixel between versions of FreeType"
    assert difference.mean() < 1.5


if __name__ == "__main__":
    STORED.mkdir(exist_ok=True)
    for each in PICTURES:
        media.write_image(STORED / f"{each}.png", _drawn(each, setattr))


def test_a_font_file_is_a_regular_file(tmp_path: Path) -> None:
    pipe = tmp_path / "font.ttf"
    os.mkfifo(pipe)
    for file in (pipe, tmp_path, Path("/dev/zero")):
        with pytest.raises(ValueError, match="no regular file of this name"):
            check_font_file(str(file))
