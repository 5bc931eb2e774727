"""Small regions are looked at once more, from nearer: which part of the frame is encoded again.

Not in the paper, whose SAM 2 sees 1024 pixels; for models with a smaller input, see `PerceiverConfig`.
"""

from __future__ import annotations

CropBox = tuple[float, float, float, float]  # (x1, y1, x2, y2) as shares of the frame's width and height

# A cut's side, in sides of its region: what a thing stands on and beside belongs to its description.
ROOM = 2.5
LEAST, MOST = 0.5, 0.8  # shares of the frame: smaller cuts blur, larger ones bring nothing


def crop_around(
    box: CropBox, *, spread: float = 1.0, off: tuple[float, float] = (0.0, 0.0)
) -> CropBox | None:
    """The cut for a region in `box`: inside the frame and of its aspect ratio; None for a large region.

    Training varies it: `spread` scales it, `off` moves it by shares of its side.
    """
    x1, y1, x2, y2 = box
    extent = max(x2 - x1, y2 - y1)
    side = max(LEAST, ROOM * extent)
    if side > MOST or extent <= 0:
        return None
    side = min(max(side * spread, extent), 1.0)
    left, top = (
        min(max((low + high - side) / 2 + shift * side, 0.0), 1 - side)
        for low, high, shift in ((x1, x2, off[0]), (y1, y2, off[1]))
    )
    return left, top, left + side, top + side
