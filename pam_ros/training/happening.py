"""What happens in a frame of a clip: the language model is asked after its rows, to learn motion sooner.

A caption says once what sixteen frames show; from so little it takes long to learn what motion looks like.
Letters: B clips, n frames of each, H language width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pam_ros.training.source import Entry, RegionEntry

UNKNOWN = -1


class Events:
    """The events of the training data, numbered; the same for the same data."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        counts: Counter[str] = Counter()
        for entry in entries:
            for region in entry.regions:
                for start, end, event in region.segments if region.clips else ():
                    counts[event] += end - start
        self.names = sorted(counts)
        self.counts = [counts[name] for name in self.names]  # frames of each
        self._numbers = {name: number for number, name in enumerate(self.names)}

    def numbers(self, region: RegionEntry, frames: Sequence[int]) -> list[int]:
        """What happens to the region in these frames; UNKNOWN where the data do not say."""
        return [
            next(
                (self._numbers[event] for start, end, event in region.segments if start <= frame < end),
                UNKNOWN,
            )
            for frame in frames
        ]


class EventHead(nn.Module):
    """Asks the language model's state after a frame what happens in it; is not part of the model."""

    weights: Tensor  # of each event: those of few frames count more

    def __init__(self, width: int, events: Events) -> None:
        super().__init__()
        self.head = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, len(events.names))
        )
        rarity = torch.tensor(events.counts).float().rsqrt()
        self.register_buffer("weights", rarity / rarity.mean(), persistent=False)

    def forward(self, states: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """States (B, n, H) and `Events.numbers` (B, n) → the loss, and the share that is right."""
        logits = self.head(states).float().flatten(0, 1)
        wanted = truth.flatten()
        loss = F.cross_entropy(logits, wanted, self.weights, ignore_index=UNKNOWN)
        known = wanted != UNKNOWN
        right = ((logits.argmax(1) == wanted) & known).sum() / known.sum().clamp(min=1)
        return torch.where(known.any(), loss, 0.0), right
