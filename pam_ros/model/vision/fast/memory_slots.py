"""SAM 2's memory of all regions in fixed tensors: regions own slots, a plan lists what a frame attends to.

The bank holds prompted frames (the first, and the latest corrections) and the last tracked frames, so a
region costs the same after a minute and after a day, and shapes do not depend on its past.

Letters: B regions of a batch, C model width, M memory width, N = h·w grid cells, S spatial slots, P pointers.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pam_ros.errors import CapacityError
from pam_ros.model.vision.memory_bank import MAX_CONDITIONING


@dataclass(slots=True)
class SlotEntry:
    """The slots that one frame fills."""

    index: int  # frames since the region's first
    pointer_slot: int
    feature_slot: int | None  # None once too old to be attended to


@dataclass(eq=False)
class RegionSlots:
    """The slots of one region; made by `SlotBank.open`, given back when nobody holds this object."""

    slot: int  # of the region in the bank
    feature_span: int  # how many frames back spatial features are attended to (SAM 2: 6)
    pointer_span: int  # how many frames back object pointers are (SAM 2: 15)
    free_features: list[int]
    free_pointers: list[int]
    index: int = -1  # of the newest frame
    conditioning: list[SlotEntry] = field(default_factory=list)
    recent: list[SlotEntry] = field(default_factory=list)  # newest last

    @property
    def is_empty(self) -> bool:
        """True before the first prompt."""
        return not self.conditioning

    def add(self, *, prompted: bool) -> tuple[int, int]:
        """Reserves slots for the frame at `index` → (feature slot, pointer slot).

        Frees the slots of entries that this frame replaces or outdates.
        """
        if prompted:
            self._drop([entry for entry in self.recent + self.conditioning if entry.index == self.index])
            if len(self.conditioning) == MAX_CONDITIONING:
                self._drop(self.conditioning[1:2])  # keep the first: it is what the user pointed at
        else:
            self._drop([entry for entry in self.recent if entry.index < self.index - self.pointer_span])
            for entry in self.recent:
                if entry.index < self.index - self.feature_span and entry.feature_slot is not None:
                    self.free_features.append(entry.feature_slot)
                    entry.feature_slot = None
        pointer_slot, feature_slot = self.free_pointers.pop(), self.free_features.pop()
        entry = SlotEntry(self.index, pointer_slot, feature_slot)
        (self.conditioning if prompted else self.recent).append(entry)
        return feature_slot, pointer_slot

    def saved(self) -> Callable[[], None]:
        """What puts the plan of slots back to how it is now; what is in the slots is the bank's."""
        kept = self.index, list(self.conditioning), list(self.recent)
        spatial = [entry.feature_slot for entry in self.recent]
        free = list(self.free_features), list(self.free_pointers)

        def restore() -> None:
            self.index, self.conditioning, self.recent = kept
            self.free_features, self.free_pointers = free
            for entry, slot in zip(self.recent, spatial, strict=True):
                entry.feature_slot = slot

        return restore

    def _drop(self, entries: Sequence[SlotEntry]) -> None:
        for entry in entries:
            self.free_pointers.append(entry.pointer_slot)
            if entry.feature_slot is not None:
                self.free_features.append(entry.feature_slot)
        self.recent = [entry for entry in self.recent if entry not in entries]
        self.conditioning = [entry for entry in self.conditioning if entry not in entries]

    def spatial(self, index: int) -> Iterator[tuple[int, int]]:
        """(slot, age) of what frame `index` attends to; age 0 means prompted, 1 the frame just before."""
        for entry in self.conditioning:
            assert entry.feature_slot is not None
            yield entry.feature_slot, 0
        for entry in self.recent:
            if entry.index < index and index - entry.index <= self.feature_span:
                assert entry.feature_slot is not None
                yield entry.feature_slot, index - entry.index

    def pointers(self, index: int) -> Iterator[tuple[int, int]]:
        """(slot, age) of the object pointers that frame `index` attends to."""
        for entry in self.conditioning:
            yield entry.pointer_slot, index - entry.index
        for entry in self.recent:
            if entry.index < index and index - entry.index <= self.pointer_span:
                yield entry.pointer_slot, index - entry.index


class SlotBank:
    """The slots of all regions on the device. Memory is allocated once."""

    def __init__(
        self,
        *,
        regions: int,
        feature_span: int,
        pointer_span: int,
        cells: int,
        width: int,
        pointer_width: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.feature_span, self.pointer_span = feature_span, pointer_span
        # One frame more than the next one needs: a correction looks as far back from the newest.
        self.feature_slots = MAX_CONDITIONING + feature_span + 1
        self.pointer_slots = MAX_CONDITIONING + pointer_span + 1
        self.max_pointers = MAX_CONDITIONING + pointer_span
        count = regions + 1  # the last one is scratch, for a batch's padding
        self.scratch = regions
        shape = (count * self.feature_slots, cells, width)
        self.features = torch.zeros(shape, dtype=dtype, device=device)  # (slots, N, M)
        self.pointers = torch.zeros(count * self.pointer_slots, pointer_width, dtype=dtype, device=device)
        self._free = list(range(regions))[::-1]

    def open(self) -> RegionSlots:
        """Opens an empty memory for a new region. Raises CapacityError if every slot is in use."""
        if not self._free:
            gc.collect()  # errors may hold memories in reference cycles
        if not self._free:
            raise CapacityError(
                f"all {self.scratch} slots of the memory bank are in use; remove a region, "
                "or raise the limit and load the model again"
            )
        slot = self._free.pop()
        features = range(slot * self.feature_slots, (slot + 1) * self.feature_slots)
        pointers = range(slot * self.pointer_slots, (slot + 1) * self.pointer_slots)
        memory = RegionSlots(slot, self.feature_span, self.pointer_span, list(features), list(pointers))
        weakref.finalize(memory, self._free.append, slot).atexit = False
        return memory

    def contents(self, memory: RegionSlots) -> tuple[Tensor, Tensor]:
        """The features and pointers of one region's slots, not copied."""
        features, pointers = memory.slot * self.feature_slots, memory.slot * self.pointer_slots
        return (
            self.features[features : features + self.feature_slots],
            self.pointers[pointers : pointers + self.pointer_slots],
        )

    def plan(
        self, memories: Sequence[RegionSlots], indices: Sequence[int], batch: int, spatial: int
    ) -> BankPlan:
        """Plans what frame `indices[b]` of each region attends to, padded to `batch` and `spatial`."""
        plan = BankPlan.empty(batch, spatial, self.max_pointers, self.scratch * self.feature_slots)
        for b, (memory, index) in enumerate(zip(memories, indices, strict=True)):
            plan.fill(b, list(memory.spatial(index)), list(memory.pointers(index)))
        return plan


@dataclass(frozen=True, slots=True)
class BankPlan:
    """Slots and ages that each region of a batch attends to, on the host.

    Padding follows the spatial slots and precedes the pointers. The device lays pointers before spatial
    features, so a region's valid tokens are contiguous.
    """

    spatial: NDArray[np.int32]  # (B, S) slots; unused ones repeat a valid slot
    spatial_ages: NDArray[np.int32]  # (B, S)
    pointers: NDArray[np.int32]  # (B, P) slots
    pointer_ages: NDArray[np.int32]  # (B, P)
    spatial_counts: NDArray[np.int32]  # (B)
    pointer_counts: NDArray[np.int32]  # (B)

    @classmethod
    def empty(cls, batch: int, spatial: int, pointers: int, scratch: int) -> BankPlan:
        """Every region attends to one scratch slot."""
        zeros = np.zeros((batch, pointers), np.int32)
        counts = np.ones(batch, np.int32), np.zeros(batch, np.int32)
        slots = np.full((batch, spatial), scratch, np.int32)
        return cls(slots, np.zeros_like(slots), zeros, zeros.copy(), *counts)

    def fill(self, b: int, spatial: Sequence[tuple[int, int]], pointers: Sequence[tuple[int, int]]) -> None:
        """Enters (slot, age) pairs of region `b`."""
        count = len(spatial)
        self.spatial[b, :count], self.spatial_ages[b, :count] = np.array(spatial).T
        self.spatial[b, count:] = spatial[0][0]
        self.spatial_counts[b] = count
        first = self.pointers.shape[1] - len(pointers)
        self.pointers[b, first:], self.pointer_ages[b, first:] = np.array(pointers).T
        self.pointers[b, :first] = pointers[0][0]
        self.pointer_counts[b] = len(pointers)
