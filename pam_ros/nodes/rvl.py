"""Decodes RVL: lossless run-length coding of 16-bit depth.

The coding is of A. D. Wilson, Fast Lossless Depth Image Compression, 2017. An image is a row of runs: a
number of zeros, a number of other values, and the difference of each of these to the value before it, 0 at
first. All numbers are cut into groups of three bits, the lowest first; a fourth bit says whether another
group follows. Words of 32 bits, little-endian, hold eight groups, the first uppermost.

Letters: N numbers, G groups.
"""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

from pam_ros.errors import ImageError
from pam_ros.media import check_image_size

_SIZE = struct.Struct("<II")  # width, height; compressed_depth_image_transport puts them before the words
_SHIFTS = np.arange(28, -1, -4, dtype=np.uint32)
_MORE = 8  # the bit of a group that says that another follows
_MOST_GROUPS = 11  # of a number of 32 bits


def decode_rvl(data: bytes, what: str) -> NDArray[np.uint16]:
    """Size and words → (H, W) uint16. Raises ImageError, which begins with `what`, for damaged data."""
    if len(data) < _SIZE.size:
        raise ImageError(f"{what} is truncated: it has no size")
    width, height = _SIZE.unpack_from(data)
    check_image_size(what, width, height)
    if not width * height:
        raise ImageError(f"{what} is empty: {width}x{height} pixels")
    numbers = _numbers(data[_SIZE.size :], what)
    heads, lengths = _runs(numbers, width * height, what)
    is_value = np.ones(len(numbers), np.bool_)
    is_value[heads] = False
    is_value[heads[-1] + 1 + lengths[-1] :] = False  # what fills the last word
    # Differences are stored without sign: 0, -1, 1, -2, 2, …; unsigned arithmetic wraps as 16 bits do.
    stored = numbers[is_value]
    values = np.cumsum((stored >> 1) ^ -(stored & 1)).astype(np.uint16)
    pixels = np.zeros(width * height, np.uint16)
    pixels[np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)] = values
    return pixels.reshape(height, width)


def _numbers(data: bytes, what: str) -> NDArray[np.int64]:
    """Words → (N,) every number that ends in them."""
    words = np.frombuffer(data, "<u4", len(data) // 4)
    groups = ((words[:, None] >> _SHIFTS) & 15).ravel()  # (G,)
    last = np.flatnonzero(groups < _MORE)
    first = np.concatenate([[0], last[:-1] + 1])
    if not len(last) or (last - first).max() >= _MOST_GROUPS:
        raise ImageError(f"{what} is damaged: it holds no RVL numbers of up to 32 bits")
    place = np.arange(last[-1] + 1) - np.repeat(first, last - first + 1)
    bits = (groups[: last[-1] + 1] & (_MORE - 1)).astype(np.int64) << (3 * place)
    return np.add.reduceat(bits, first)


def _runs(numbers: NDArray[np.int64], pixels: int, what: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where the runs' lengths are among the numbers, and these: zeros, others, zeros, …"""
    heads: list[int] = []
    lengths: list[int] = []
    at, left = 0, pixels
    while left > 0:
        if at + 1 >= len(numbers):
            raise ImageError(f"{what} is truncated: {pixels - left} of {pixels} pixels are in it")
        zeros, others = int(numbers[at]), int(numbers[at + 1])
        heads += (at, at + 1)
        lengths += (zeros, others)
        at += 2 + others
        left -= zeros + others
    if left < 0 or at > len(numbers):
        raise ImageError(f"{what} is damaged: its runs do not fit its {pixels} pixels")
    return np.array(heads), np.array(lengths)
