"""Every frame of the training data, decoded once at a stage's start and kept on the device.

Letters: F frames of all samples, M masks, S input side, N samples of a step, R regions and T frames of each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pam_ros.datasets.loading import load_masks, load_owners, load_pixels
from pam_ros.datasets.rle import WHOLE
from pam_ros.datasets.schema import Sample, SampleSource
from pam_ros.geometry import CropBox

FRAMES_AT_ONCE = 32  # decoded by a worker before it hands them over
NO_MASK = -1  # in place of the row of a region that a sample lacks


@dataclass(frozen=True, slots=True)
class View:
    """One frame, or a crop of it, with the masks of some of its regions."""

    sample: int
    frame: int
    regions: tuple[int, ...]
    crop: CropBox = WHOLE


@dataclass(frozen=True, slots=True)
class Decoded:
    """F views; the masks of the first one's regions, then those of the second's, …

    Attributes:
        pixels: (F, S, S, 3) uint8.
        owners: (F, S, S) int16, see `load_owners`; of a crop zeros.
        masks: (M, S·S / 8) uint8, packed: see `unpacked`.
    """

    pixels: Tensor
    owners: Tensor
    masks: Tensor


class _Decoder(Dataset[Decoded]):
    """Stretches of views."""

    def __init__(
        self, source: SampleSource, stretches: Sequence[Sequence[View]], size: int, owners: bool
    ) -> None:
        self._source, self._stretches, self._size, self._owners = source, stretches, size, owners

    def __len__(self) -> int:
        return len(self._stretches)

    def __getitem__(self, index: int) -> Decoded:
        views, size = self._stretches[index], self._size
        pixels = np.empty((len(views), size, size, 3), np.uint8)
        owners = np.zeros((len(views) if self._owners else 0, size, size), np.int16)
        masks = []
        for row, view in enumerate(views):
            sample = self._source[view.sample]
            pixels[row] = load_pixels(sample, [view.frame], size, view.crop)[0]
            masks.append(packed(load_masks(sample, view.regions, [view.frame], size, view.crop)[:, 0]))
            if self._owners:
                owners[row] = load_owners(sample, view.frame, size)
        return Decoded(*(torch.from_numpy(each) for each in (pixels, owners, np.concatenate(masks))))


def packed(masks: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """(M, S, S) bool → (M, S·S / 8) uint8."""
    return np.packbits(masks.reshape(len(masks), masks.shape[1] * masks.shape[2]), axis=1)


def unpacked(bits: Tensor, size: int) -> Tensor:
    """(…, S·S / 8) uint8 → (…, S, S) bool."""
    shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=bits.device)
    return ((bits[..., None] >> shifts) & 1).bool().reshape(*bits.shape[:-1], size, size)


def decoded(
    source: SampleSource,
    groups: Sequence[Sequence[View]],
    size: int,
    workers: int,
    device: torch.device,
    *,
    owners: bool = False,
) -> Iterator[Decoded]:
    """The views of each group, decoded ahead by processes, on the device.

    They are sent to a GPU while it still works on the previous group.
    """
    stretches = [
        [group[start : start + FRAMES_AT_ONCE] for start in range(0, len(group), FRAMES_AT_ONCE)]
        for group in groups
    ]
    flat = [stretch for parts in stretches for stretch in parts]
    decoder = _Decoder(source, flat, size, owners)
    loader = iter(
        DataLoader(
            decoder,
            batch_size=1,
            num_workers=workers,
            collate_fn=_tensors,
            pin_memory=device.type == "cuda",
        )
    )
    for parts in stretches:
        found = [[tensor.to(device, non_blocking=True) for tensor in next(loader)] for _ in parts]
        yield Decoded(*(torch.cat(tensors) for tensors in zip(*found, strict=True)))


class FrameStore:
    """All frames with the owner of each pixel and every region's mask.

    Frame `frame` of a sample stands in row `starts[sample] + frame`.
    """

    def __init__(self, outlines: Sequence[Sample], size: int, device: torch.device) -> None:
        self.lengths: NDArray[np.int64] = np.array([len(sample) for sample in outlines])
        self.starts: NDArray[np.int64] = np.cumsum(self.lengths) - self.lengths
        self._views = [
            View(index, frame, tuple(range(len(sample.regions))))
            for index, sample in enumerate(outlines)
            for frame in range(len(sample))
        ]
        counts = [len(view.regions) for view in self._views]
        frames, masks = len(counts), sum(counts)
        # Row of each region's mask in each frame; an empty mask comes last.
        self._mask_rows: NDArray[np.int64] = np.full((frames, max(1, *counts)), masks)
        row = 0
        for frame, count in enumerate(counts):
            self._mask_rows[frame, :count] = range(row, row + count)
            row += count
        self.pixels = torch.empty(frames, 3, size, size, dtype=torch.uint8, device=device)
        self.owners = torch.empty(frames, size, size, dtype=torch.int16, device=device)
        self._masks = torch.zeros(masks + 1, size * size // 8, dtype=torch.uint8, device=device)
        self.areas: NDArray[np.int32] = np.zeros(
            self._mask_rows.shape, np.int32
        )  # pixels of each region in a frame

    def fill(self, source: SampleSource, workers: int) -> Iterator[int]:
        """Decodes everything on `workers` processes; yields the number of frames after each stretch."""
        frame = row = 0
        size, areas = self.pixels.shape[2], []
        starts = range(0, len(self._views), FRAMES_AT_ONCE)
        groups = [self._views[start : start + FRAMES_AT_ONCE] for start in starts]
        for found in decoded(source, groups, size, workers, self.pixels.device, owners=True):
            frames, rows = slice(frame, frame + len(found.pixels)), slice(row, row + len(found.masks))
            frame, row = frames.stop, rows.stop
            self.pixels[frames] = found.pixels.permute(0, 3, 1, 2)
            self.owners[frames] = found.owners
            self._masks[rows] = found.masks
            areas.append(unpacked(found.masks, size).sum((1, 2), dtype=torch.int32))
            yield len(found.pixels)
        by_row = torch.cat([*areas, areas[0].new_zeros(1)]).cpu().numpy()
        self.areas = by_row[self._mask_rows]

    def take(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Rows (N, T) → pixels (N, T, 3, S, S) uint8 and owners (N, T, S, S) int16."""
        where = sent(rows, self.pixels.device)
        return self.pixels[where], self.owners[where]

    def masks(self, rows: NDArray[np.int64], places: NDArray[np.int64]) -> Tensor:
        """Rows (N, T) and regions (N, R), NO_MASK for none → (N, R, T, S, S) bool."""
        found = self._mask_rows[rows[:, None], places[:, :, None]]  # (N, R, T)
        found[places == NO_MASK] = len(self._masks) - 1
        return unpacked(self._masks[sent(found, self.pixels.device)], self.pixels.shape[2])


def sent(array: NDArray[Any], device: torch.device) -> Tensor:
    """The array on a device, copied without waiting for the device."""
    tensor = torch.from_numpy(array)
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def _tensors(items: list[Decoded]) -> tuple[Tensor, Tensor, Tensor]:
    (item,) = items
    return item.pixels, item.owners, item.masks
