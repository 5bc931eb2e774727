"""Triton kernels of PIL's two-pass resize. The first pass runs along one axis, the second along the other.

Letters: L lines across the first pass's axis, S side of the output, K pixels that the filter reaches.
"""

from __future__ import annotations

import triton
import triton.language as tl

PRECISION_BITS: tl.constexpr = tl.constexpr(22)  # of the fixed-point weights


@triton.jit
def _rounded(total):
    """A fixed-point sum → 0..255, as PIL rounds and clips it."""
    half: tl.constexpr = 2 ** (PRECISION_BITS - 1)
    return tl.minimum(tl.maximum((total + half) >> PRECISION_BITS, 0), 255)


@triton.jit
def resize_along(image, out, first, weights, line_stride, step, reach, S: tl.constexpr, BLOCK: tl.constexpr):
    """Line l of an image, pixels `step` bytes apart, lines `line_stride` → line l of out (L, S, 3) uint8."""
    line = tl.program_id(0)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    x, channel = i // 3, i % 3
    real = i < S * 3
    begin = tl.load(first + x, mask=real, other=0)
    total = tl.zeros((BLOCK,), tl.int32)
    source = image + line.to(tl.int64) * line_stride
    for k in range(reach):
        weight = tl.load(weights + x * reach + k, mask=real, other=0)
        pixel = tl.load(source + (begin + k) * step + channel, mask=weight != 0, other=0)
        total += weight * pixel.to(tl.int32)
    tl.store(out + line * (S * 3) + i, _rounded(total).to(tl.uint8), mask=real)


@triton.jit
def resize_across(
    lines,
    out,
    first,
    weights,
    table,
    across_stride,
    along_stride,
    reach,
    S: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """lines (L, S, 3) uint8 → planes of out (3, S, S), each byte looked up in `table` (3, 256)."""
    y = tl.program_id(0)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    channel, x = i // S, i % S
    real = i < S * 3
    begin = tl.load(first + y)
    total = tl.zeros((BLOCK,), tl.int32)
    for k in range(reach):
        weight = tl.load(weights + y * reach + k)
        pixel = tl.load(lines + (begin + k) * (S * 3) + x * 3 + channel, mask=real & (weight != 0), other=0)
        total += weight * pixel.to(tl.int32)
    value = tl.load(table + channel * 256 + _rounded(total), mask=real)
    tl.store(out + channel * (S * S) + y * across_stride + x * along_stride, value, mask=real)
