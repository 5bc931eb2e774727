"""The board: the state of every running text on the device, as one int32 tensor that is copied as a whole.

The kernels of a decoding step read and write it, so that several steps run without the host. The host reads
it after each burst of steps and writes it when texts come and go.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import torch
from numpy.typing import NDArray

RING = 32  # tokens a slot keeps for the host; a burst of steps is no longer


class Field(IntEnum):
    """Fields of the board. `kernels.decode` repeats the numbers."""

    TOKEN = 0  # the newest token; not in the cache yet
    POSITION = 1  # of that token in its text
    PREFIX_START = 2  # where the cache holds the prompt that the text branches off
    PREFIX_LENGTH = 3  # tokens of that prompt that the text sees
    OWN_START = 4  # where the cache holds the text's own tokens
    REMAINING = 5  # tokens that may still be generated; 0 = the slot is idle
    EMITTED = 6  # tokens generated since the host last wrote the board
    SEED = 7  # of the random numbers
    TEMPERATURE = 8  # float32 bits; 0 = greedy


FIELDS = len(Field)


class Board:
    """The device's board and the host's copy of it."""

    def __init__(self, slots: int, device: torch.device) -> None:
        pinned = device.type == "cuda"
        # After the fields: tokens, then their log probabilities (float32 bits).
        shape = (FIELDS + 2 * RING, slots)
        self.device = torch.zeros(shape, dtype=torch.int32, device=device)
        self._up = torch.zeros(shape, dtype=torch.int32, pin_memory=pinned)
        self._down = torch.zeros(shape, dtype=torch.int32, pin_memory=pinned)
        self.host: NDArray[np.int32] = np.zeros(shape, np.int32)
        self.slots = slots
        self._event = torch.cuda.Event() if pinned else None  # type: ignore[no-untyped-call]

    def write(self) -> None:
        """Sends the host's copy to the device, in stream order."""
        self.host[Field.EMITTED] = 0
        self._up.numpy()[:] = self.host
        self.device.copy_(self._up, non_blocking=True)

    def request(self) -> None:
        """Starts to fetch the device's board, in stream order."""
        self._down.copy_(self.device, non_blocking=True)
        if self._event is not None:
            self._event.record()

    def read(self) -> None:
        """Waits for the board that was requested; the host's copy becomes it."""
        if self._event is not None:
            self._event.synchronize()
        np.copyto(self.host, self._down.numpy())

    def tokens(self, slot: int, read: int) -> tuple[list[int], list[float]]:
        """Tokens of a slot after the first `read` emitted ones, and their log probabilities."""
        places = [i % RING for i in range(read, int(self.host[Field.EMITTED, slot]))]
        column = self.host[FIELDS:, slot]
        odds = np.ascontiguousarray(column[RING:]).view(np.float32)
        return [int(column[i]) for i in places], [float(odds[i]) for i in places]


def float_bits(value: float) -> int:
    """A float32 as the int32 of the same bits."""
    return int(np.float32(value).view(np.int32))
