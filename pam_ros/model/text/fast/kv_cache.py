"""One static key-value cache for all prompts and texts: a fixed tensor, allocated in contiguous spans.

A text that branches off a prompt reads the prompt's span and appends to its own, so nothing is copied.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pam_ros.errors import CapacityError

SCRATCH = 1  # tokens at the start that padding writes to


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive places in the cache."""

    start: int
    capacity: int  # tokens


class KeyValueCache:
    """Keys and values of every layer, and the spans that are free. Memory is allocated once."""

    def __init__(
        self, *, layers: int, tokens: int, heads: int, width: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        # (layers, 2, tokens, heads, width): keys, then values; keys are stored rotated
        self.tensor = torch.zeros(layers, 2, SCRATCH + tokens, heads, width, dtype=dtype, device=device)
        self.tokens = tokens
        self._free = [Span(SCRATCH, tokens)]  # ordered by start, never adjacent

    @property
    def free_tokens(self) -> int:
        """Tokens that are free, in all spans together."""
        return sum(span.capacity for span in self._free)

    @property
    def largest_free(self) -> int:
        """Tokens of the longest prompt or text that still fits."""
        return max((span.capacity for span in self._free), default=0)

    def allocate(self, capacity: int) -> Span:
        """Takes the smallest free span that fits. Raises CapacityError if there is none."""
        fitting = [span for span in self._free if span.capacity >= capacity]
        if not fitting:
            raise CapacityError(
                f"{capacity} tokens do not fit the key-value cache: {self.largest_free} of its {self.tokens} "
                "are free in one piece; release prompts, or give the cache more tokens"
            )
        span = min(fitting, key=lambda each: each.capacity)
        index = self._free.index(span)
        rest = Span(span.start + capacity, span.capacity - capacity)
        self._free[index : index + 1] = [rest] if rest.capacity else []
        return Span(span.start, capacity)

    def free(self, span: Span) -> None:
        """Gives a span back and joins it with its free neighbours."""
        merged: list[Span] = []
        for each in sorted([*self._free, span], key=lambda each: each.start):
            if merged and merged[-1].start + merged[-1].capacity == each.start:
                last = merged.pop()
                each = Span(last.start, last.capacity + each.capacity)
            merged.append(each)
        self._free = merged

    def clear(self) -> None:
        """Gives every span back."""
        self._free = [Span(SCRATCH, self.tokens)]
