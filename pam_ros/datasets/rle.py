"""Masks as COCO's run lengths: small enough for a line of JSON, any number of them, free to overlap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pam_ros.geometry import CropBox, Mask

PixelBox = tuple[float, float, float, float]  # (x1, y1, x2, y2) pixels, far edges exclusive
WHOLE: CropBox = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True, slots=True)
class RleMask:
    """A mask of `height` × `width` pixels; `counts` are pycocotools' compressed run lengths."""

    height: int
    width: int
    counts: str

    @classmethod
    def of(cls, mask: Mask) -> RleMask:
        """(H, W) bool → run lengths."""
        from pycocotools import mask as coco  # in the extra `training`; data with boxes alone work without

        encoded = coco.encode(np.asfortranarray(mask, np.uint8))
        return cls(mask.shape[0], mask.shape[1], encoded["counts"].decode("ascii"))

    def decode(self) -> Mask:
        """(H, W) bool. Raises ValueError if the run lengths do not fill the mask."""
        from pycocotools import mask as coco

        if (total := int(run_lengths(self.counts).sum())) != self.height * self.width:
            raise ValueError(  # pycocotools would leave the rest of the mask undefined
                f"the run lengths cover {total} pixels, not {self.height} x {self.width}"
            )
        decoded: NDArray[np.uint8] = coco.decode(self._coco())
        return decoded.view(np.bool_)

    @property
    def area(self) -> int:
        """Number of pixels inside."""
        from pycocotools import mask as coco

        return int(coco.area(self._coco()))

    @property
    def box_xyxy(self) -> PixelBox:
        """Tight box in pixels; zeros if the mask is empty."""
        from pycocotools import mask as coco

        x, y, width, height = (float(side) for side in coco.toBbox(self._coco()))
        return x, y, x + width, y + height

    def _coco(self) -> dict[str, Any]:
        return {"size": [self.height, self.width], "counts": self.counts}


def run_lengths(counts: str) -> NDArray[np.int64]:
    """COCO's compressed counts → (N,) lengths of alternating runs, outside first.

    Letters carry 5 bits each, lowest first, and whether another follows; from the fourth number on, a number
    is the difference to the one two before.
    """
    letters = np.frombuffer(counts.encode("ascii"), np.uint8).astype(np.int64) - 48
    if not len(letters):
        return np.zeros(0, np.int64)
    last = (letters & 32) == 0  # of its number
    number = np.cumsum(last) - last
    start = np.flatnonzero(np.concatenate([[True], last[:-1]]))
    place = np.arange(len(letters)) - start[number]
    values = np.bincount(number, (letters & 31) << 5 * place).astype(np.int64)
    negative = last & ((letters & 16) != 0)
    values -= np.bincount(number, negative * (1 << 5 * (place + 1))).astype(np.int64)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def sampled(picture: NDArray[Any], size: int, crop: CropBox = WHOLE) -> NDArray[Any]:
    """A crop of (H, W) → (S, S): the value under the centre of every new pixel."""
    middles = (np.arange(size) + 0.5) / size
    rows, columns = (
        np.minimum(((low + (high - low) * middles) * length).astype(int), length - 1)
        for low, high, length in ((crop[1], crop[3], picture.shape[0]), (crop[0], crop[2], picture.shape[1]))
    )
    # Decoded run lengths lie column by column in memory; this order of steps is three times as fast.
    return np.asarray(picture.T.take(columns, axis=0).take(rows, axis=1).T)


def filled_box(box_xyxy: PixelBox, height: int, width: int, size: int, crop: CropBox = WHOLE) -> Mask:
    """A box of a (height, width) image as a mask of a crop of it, (S, S) bool; at least one pixel."""
    x1, y1, x2, y2 = (
        min(max(round((side / full - low) / (high - low) * size), 0), size)
        for side, full, low, high in zip(
            box_xyxy, (width, height) * 2, crop[:2] * 2, (crop[2], crop[3]) * 2, strict=True
        )
    )
    mask = np.zeros((size, size), np.bool_)
    mask[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)] = True
    return mask
