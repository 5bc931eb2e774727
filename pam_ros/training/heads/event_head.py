"""An event head: predicts the event in each frame of a clip, and how far the object has moved.

It reads the language model's states after each frame. A caption says once what sixteen frames show, so from
captions alone the model learns motion slowly, and hardly tells a moving object from a moving camera.
Letters: B clips, n frames of each, H language width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pam_ros.datasets.schema import Sample, SampleRegion

UNKNOWN = -1
MOVED_UNIT_M, MOST_MOVED = 0.1, 5.0  # unit of distances; farther ones are clipped


class Events:
    """The events of the training data, numbered; the same for the same data."""

    def __init__(self, outlines: Iterable[Sample]) -> None:
        counts: Counter[str] = Counter()
        for outline in outlines:
            for region in outline.regions:
                segments = (*region.segments, *region.backward_segments) if region.clips else ()
                for start, end, event in segments:
                    counts[event] += end - start
        self.names = sorted(counts)
        self.counts = [counts[name] for name in self.names]  # frames of each
        self._numbers = {name: number for number, name in enumerate(self.names)}

    def numbers(self, region: SampleRegion, frames: Sequence[int]) -> list[int]:
        """Number of the event in each of these frames, in their order; UNKNOWN if the data do not say."""
        segments = region.backward_segments if frames[0] > frames[-1] else region.segments
        return [
            next(
                (self._numbers[event] for start, end, event in segments if start <= frame < end),
                UNKNOWN,
            )
            for frame in frames
        ]


def moved(region: SampleRegion, frames: Sequence[int]) -> list[list[float]]:
    """(n, 3) displacement to the right, away and up since the first of these frames.

    In units of `MOVED_UNIT_M`; NaN if the data do not say.
    """
    if not region.path_m:
        return [[float("nan")] * 3 for _ in frames]
    path = np.array(region.path_m)[list(frames)]
    far = ((path - path[0]) / MOVED_UNIT_M).clip(-MOST_MOVED, MOST_MOVED)
    distances: list[list[float]] = far.tolist()
    return distances


class EventHead(nn.Module):
    """Predicts a frame's event from the language model's state after it; not part of the model."""

    weights: Tensor  # of each event: rare ones count more

    def __init__(self, width: int, events: Events) -> None:
        super().__init__()
        self.head = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, len(events.names) + 3)
        )
        rarity = torch.tensor(events.counts).float().rsqrt()
        self.register_buffer("weights", rarity / rarity.mean(), persistent=False)

    def forward(self, states: Tensor, truth: Tensor, far: Tensor) -> dict[str, Tensor]:
        """States (B, n, H), `Events.numbers` (B, n), `moved` (B, n, 3) → losses, fractions that are right.

        `acting_right` leaves out frames of the most frequent event, as a rule "still".
        """
        answers = self.head(states).float().flatten(0, 1)
        logits, places = answers[:, :-3], answers[:, -3:]
        wanted = truth.flatten()
        loss = F.cross_entropy(logits, wanted, self.weights, ignore_index=UNKNOWN)
        known = wanted != UNKNOWN
        hits = logits.argmax(1) == wanted
        acting = known & (wanted != self.weights.argmin())
        far = far.flatten(0, 1)
        off = F.smooth_l1_loss(places, far.nan_to_num(), reduction="none")
        seen = ~far.isnan()
        return {
            "event": torch.where(known.any(), loss, 0.0),
            "moved": (off * seen).sum() / seen.sum().clamp(min=1),
            "event_right": (hits & known).sum() / known.sum().clamp(min=1),
            "acting_right": (hits & acting).sum() / acting.sum().clamp(min=1),
        }
