"""RVL as its paper describes it (A. D. Wilson, 2017), number by number: what cameras send."""

from __future__ import annotations

import struct

import numpy as np


def encode_rvl(pixels: np.ndarray) -> bytes:
    """(H, W) uint16 → width and height, then the words."""
    groups: list[int] = []

    def put(number: int) -> None:
        while number >= 8:
            groups.append(number % 8 + 8)
            number //= 8
        groups.append(number)

    values, at, before = pixels.ravel().tolist(), 0, 0
    while at < len(values):
        start = at
        while at < len(values) and values[at] == 0:
            at += 1
        put(at - start)
        start = at
        while at < len(values) and values[at] != 0:
            at += 1
        put(at - start)
        for value in values[start:at]:
            step = value - before
            put(2 * step if step >= 0 else -2 * step - 1)
            before = value
    groups += [0] * (-len(groups) % 8)
    words = [int("".join(f"{each:x}" for each in groups[i : i + 8]), 16) for i in range(0, len(groups), 8)]
    height, width = pixels.shape
    return struct.pack(f"<II{len(words)}I", width, height, *words)
