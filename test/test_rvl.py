"""RVL depth: against bytes worked out by hand, against an encoder, and damaged."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from rvl_encoder import encode_rvl

from pam_ros import errors
from pam_ros.nodes.rvl import decode_rvl

# 2 zeros; 3 values: 5, +0, +2; 1 zero, 0 values. Stored: 2 3 | 10 0 4 | 1 0; 10 takes two groups, A and 1.
BY_HAND = struct.pack("<II", 3, 2) + bytes.fromhex("1004a123")


def test_bytes_that_were_worked_out_by_hand() -> None:
    pixels = np.array([[0, 0, 5], [5, 7, 0]], np.uint16)
    assert encode_rvl(pixels) == BY_HAND
    np.testing.assert_array_equal(decode_rvl(BY_HAND, "it"), pixels)


def images() -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    slope = (np.arange(40)[:, None] * 9 + np.arange(56) * 3 + 700).astype(np.uint16)
    holes = np.where(rng.random(slope.shape) < 0.3, 0, slope).astype(np.uint16)
    noise = rng.integers(0, 1 << 16, (31, 17)).astype(np.uint16)
    ends = np.array([[65535, 1, 65535, 0, 0, 1]], np.uint16)
    return [slope, holes, noise, ends, ends[:, ::-1], np.zeros((5, 3), np.uint16)]


@pytest.mark.parametrize("pixels", images(), ids=["slope", "holes", "noise", "ends", "reversed", "zeros"])
def test_what_the_encoder_writes_is_read(pixels: np.ndarray) -> None:
    read = decode_rvl(encode_rvl(pixels), "it")
    assert read.dtype == np.uint16
    np.testing.assert_array_equal(read, pixels)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "it is truncated: it has no size"),
        (struct.pack("<II", 0, 9), "it is empty: 0x9 pixels"),
        (struct.pack("<II", 40000, 40000), "at most 100 megapixels"),
        (BY_HAND[:8], "no RVL numbers"),
        (BY_HAND[:8] + b"\xff" * 12, "no RVL numbers"),
        (encode_rvl(images()[0])[:-40], "its runs do not fit|is truncated"),
        (encode_rvl(images()[1])[:-40], r"is truncated: \d+ of 2240 pixels"),
        (struct.pack("<II", 2, 2) + BY_HAND[8:], "its runs do not fit its 4 pixels"),
    ],
)
def test_damaged_data_say_what_is_wrong(data: bytes, words: str) -> None:
    with pytest.raises(errors.ImageError, match=words):
        decode_rvl(data, "it")


def test_any_bytes_are_read_or_refused() -> None:
    rng = np.random.default_rng(4)
    good = bytearray(encode_rvl(images()[1]))
    for _ in range(300):
        bad = good.copy()
        for place in rng.integers(8, len(bad), 3):
            bad[place] = int(rng.integers(256))
        try:
            assert decode_rvl(bytes(bad), "it").shape == (40, 56)
        except errors.ImageError as error:
            assert str(error).startswith("it is ")  # noqa: PT017
