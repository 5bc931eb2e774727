"""Every frame of the training data, decoded once at a stage's start and kept on the device.

Letters: F frames of all samples, S input side, R regions of a sample (the most there are, others filled up).
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

from pam_ros.datasets.schema import PART_STEP, Entry, RegionEntry, Source

FRAMES_AT_ONCE = 32  # decoded by a worker before it hands them over
ANY_PART, THIS_PART = PART_STEP - 1, 2**15 - 1  # bits of an id that a region's code is compared with
NO_CODE = -1  # what no pixel has: the region of a filled-up place
Place = tuple[int, int]  # a frame's: sample, number


@dataclass(frozen=True, slots=True)
class Codes:
    """Which pixels are a region's: those whose id, reduced to `bits`, is `value`. Any shape, int16."""

    value: Tensor
    bits: Tensor

    def masks(self, ids: Tensor) -> Tensor:
        """Ids (N, T, S, S) int16 of pictures, own shape (N, R) → (N, R, T, S, S) bool."""
        value, bits = (code[..., None, None, None] for code in (self.value, self.bits))
        return (ids[:, None] & bits) == value


class _Decoder(Dataset[tuple[Tensor, Tensor]]):
    """Stretches of frames: pixels (n, S, S, 3) uint8 and ids (n, S, S) int16."""

    def __init__(self, source: Source, stretches: Sequence[Sequence[Place]], size: int) -> None:
        self._source, self._stretches, self._size = source, stretches, size

    def __len__(self) -> int:
        return len(self._stretches)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        wanted = self._stretches[index]
        pixels = torch.empty(len(wanted), self._size, self._size, 3, dtype=torch.uint8)
        ids = torch.empty(len(wanted), self._size, self._size, dtype=torch.int16)
        for row, (sample, frame) in enumerate(wanted):
            scene = self._source.load(sample, [frame], self._size)
            pixels[row] = torch.from_numpy(scene.pixels[0])
            ids[row] = torch.from_numpy(scene.ids[0].astype(np.int16))
        return pixels, ids


def decoded(
    source: Source, groups: Sequence[Sequence[Place]], size: int, workers: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Frames of each group, decoded ahead by processes: pixels (F, S, S, 3) uint8 and ids (F, S, S) int16.

    They are sent to a GPU while it still works on the group before.
    """
    stretches = [
        [group[start : start + FRAMES_AT_ONCE] for start in range(0, len(group), FRAMES_AT_ONCE)]
        for group in groups
    ]
    flat = [stretch for parts in stretches for stretch in parts]
    decoder = _Decoder(source, flat, size)
    pinned = device.type == "cuda"
    loader = iter(DataLoader(decoder, batch_size=1, num_workers=workers, collate_fn=_only, pin_memory=pinned))
    for parts in stretches:
        found = [[tensor.to(device, non_blocking=True) for tensor in next(loader)] for _ in parts]
        yield torch.cat([pixels for pixels, _ in found]), torch.cat([ids for _, ids in found])


class FrameStore:
    """All frames and id pictures; row `starts[sample] + frame` is a frame's."""

    def __init__(self, entries: Sequence[Entry], size: int, device: torch.device) -> None:
        self.lengths: NDArray[np.int64] = np.array([entry.frames for entry in entries])
        self.starts: NDArray[np.int64] = np.cumsum(self.lengths) - self.lengths
        self._rows = [
            (sample, frame) for sample, entry in enumerate(entries) for frame in range(entry.frames)
        ]
        most = max(1, *(len(entry.regions) for entry in entries))
        values, bits = np.full((len(entries), most), NO_CODE), np.full((len(entries), most), THIS_PART)
        for sample, entry in enumerate(entries):
            for place, region in enumerate(entry.regions):
                values[sample, place], bits[sample, place] = code_of(region)
        self.codes = Codes(*(torch.from_numpy(code.astype(np.int16)).to(device) for code in (values, bits)))
        frames = len(self._rows)
        self.pixels = torch.empty(frames, 3, size, size, dtype=torch.uint8, device=device)
        self.ids = torch.empty(frames, size, size, dtype=torch.int16, device=device)
        self.areas: NDArray[np.int32] = np.zeros((frames, most), np.int32)  # pixels of each region in a frame

    def fill(self, source: Source, workers: int) -> Iterator[int]:
        """Decodes everything on `workers` processes; yields the number of frames after each stretch."""
        device, areas, first = self.pixels.device, [], 0
        samples = torch.tensor([sample for sample, _ in self._rows], device=device)
        groups = [
            self._rows[start : start + FRAMES_AT_ONCE] for start in range(0, len(self._rows), FRAMES_AT_ONCE)
        ]
        for pixels, ids in decoded(source, groups, self.pixels.shape[2], workers, device):
            rows = slice(first, first + len(ids))
            first = rows.stop
            self.pixels[rows] = pixels.permute(0, 3, 1, 2)
            self.ids[rows] = ids
            codes = Codes(self.codes.value[samples[rows]], self.codes.bits[samples[rows]])
            areas.append(codes.masks(self.ids[rows][:, None]).sum((2, 3, 4), dtype=torch.int32))
            yield len(ids)
        self.areas = torch.cat(areas).cpu().numpy()

    def take(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Rows (N, T) → pixels (N, T, 3, S, S) uint8 and ids (N, T, S, S) int16."""
        where = sent(rows, self.pixels.device)
        return self.pixels[where], self.ids[where]


def sent(array: NDArray[Any], device: torch.device) -> Tensor:
    """The array on a device, without waiting for what that is doing."""
    tensor = torch.from_numpy(array)
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def code_of(region: RegionEntry) -> tuple[int, int]:
    """A region's value and bits, see `Codes`."""
    if region.part:
        return region.instance + PART_STEP * region.part, THIS_PART
    return region.instance, ANY_PART


def mask_of(ids: NDArray[np.uint16], region: RegionEntry) -> NDArray[np.bool_]:
    """A region's pixels in id pictures of any shape."""
    value, bits = code_of(region)
    return np.asarray((ids & bits) == value)


def _only(items: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    (item,) = items
    return item
