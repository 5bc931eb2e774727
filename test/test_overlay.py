"""The overlay: where it draws, what it writes, Chinese text with and without a font for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pam_ros.geometry import crop_mask
from pam_ros.records import Language, Region, RegionState, Task, Text
from pam_ros.runtime import overlay
from pam_ros.runtime.overlay import OverlayStyle, check_font_file, draw_overlay, font_hint, region_colour

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


def test_names_and_captions_are_drawn_above_the_region() -> None:
    box = (50, 150, 150, 200)
    named = changed(draw_overlay(picture(), [region(1, box, "kettle")]))
    assert named[120:149, 50:100].any()
    captioned = changed(draw_overlay(picture(), [region(1, box, "kettle")], captions={1: "It boils. " * 5}))
    assert captioned.sum() > named.sum()


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
    assert len(blocks) == 9
    assert sum(len(block.lines) > 1 for block in blocks) >= 6  # all, with a font for Chinese
    for block in blocks:
        assert 0 <= block.x <= block.x + block.width <= SIZE[1]
        assert 0 <= block.y <= block.y + block.height <= SIZE[0]


def test_tiny_images_can_be_drawn_on() -> None:
    mask = np.ones((4, 4), np.bool_)
    box, cropped = crop_mask(mask)
    tiny = Region(1, RegionState.TRACKED, box, cropped, 1.0, 1.0, {}, 0, 0)
    assert draw_overlay(np.zeros((4, 4, 3), np.uint8), [tiny], captions={1: "words"}).shape == (4, 4, 3)


def test_lost_regions_are_listed_in_the_corner() -> None:
    drawn = changed(draw_overlay(picture(), [region(4, None, "kettle"), region(5, None)]))
    assert drawn[200:, :80].any()
    assert not drawn[:180].any()


def test_colours_of_neighbours_differ() -> None:
    colours = [np.array(region_colour(number), float) for number in range(1, 20)]
    assert all(np.abs(one - other).sum() > 100 for one, other in zip(colours, colours[1:], strict=False))


def test_wrapping() -> None:
    font = overlay._font("", 16)
    assert overlay._wrap("one two three four", font, int(font.getlength("one two "))) == [
        "one two",
        "three",
        "four",
    ]
    chinese = overlay._wrap("水壶在煮水", font, 40)
    assert len(chinese) > 1
    assert "".join(chinese) == "水壶在煮水"
    assert overlay._wrap("", font, 100) == []
    for words in ("x" * 500, "see " + "x" * 500, "\\" * 64):
        lines = overlay._wrap(words, font, 100)
        assert len(lines) == 4
        assert all(font.getlength(line) <= 100 for line in lines[:3])
        assert font.getlength(lines[3].removesuffix(" …")) <= 100
    assert len(overlay._wrap("one " * 100, font, 60)) == 4
    assert overlay._wrap("one " * 100, font, 60)[-1].endswith("…")


def test_chinese_without_a_font_leaves_the_id_and_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    latin = [path for path in overlay._system_fonts() if path.name.startswith(overlay._LATIN_FONTS)]
    monkeypatch.setattr(overlay, "_system_fonts", lambda: tuple(latin))
    overlay._font.cache_clear()
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
        overlay._font.cache_clear()


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
