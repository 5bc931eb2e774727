"""Triton kernels on the int4 weights of `quantized.Int4Matrix`: a product with one or two rows, unpacking.

Scale and zero of a group are read as one int32, the scale in its lower half.

Letters: B batch slots, K inputs, N outputs, W words.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from pam_ros.model.text.fast.kernels.linear import finish_linear


@triton.jit
def _pair(scales):
    """int32 of two bfloat16 numbers → both as float32."""
    lower = (scales << 16).to(tl.float32, bitcast=True)
    upper = (scales & -65536).to(tl.float32, bitcast=True)
    return lower, upper


@triton.jit
def _first_inputs(w, K: tl.constexpr, TILES: tl.constexpr):
    """The first input of words w; K for words beyond the last, so that none of theirs counts."""
    first = (w // 16) * 128 + (w % 4) * 32 + ((w // 4) % 4) * 2
    return tl.where(w < 16 * TILES, first, K)


@triton.jit
def _load_words(words, scales, tile, w, N, TILES: tl.constexpr, GROUP: tl.constexpr):
    """Words w of a tile's 8 outputs, (8, W), and the scales of their groups; 0 beyond the last."""
    r = tl.arange(0, 8)
    seen = (w < 16 * TILES)[None, :]
    place = (tile * TILES + w // 16) * 128 + w % 16
    at = words + place[None, :] + 16 * r[:, None]
    found = tl.load(at, mask=seen, other=0, eviction_policy="evict_first")
    group = ((w // 16) * 128 + (w % 4) * 32) // GROUP
    return found, tl.load(scales + group[None, :] * N + tile * 8 + r[:, None], mask=seen, other=0)


@triton.jit
def _add_rows(
    x, gain, words, scales, up, up_scales, first, acc, acc_up, squares,
    K: tl.constexpr, NORM: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """Adds the products of one slot's inputs with words (8, W), given their first inputs, and the squares."""
    dots = tl.zeros(words.shape, tl.float32)
    dots_up = dots
    total = tl.zeros(first.shape, tl.float32)
    for i in tl.static_range(8):
        k = first + (i % 4) * 8 + i // 4
        v = tl.load(x + k, mask=k < K, other=0.0).to(tl.float32)
        squares += v * v
        if NORM:
            v *= tl.load(gain + k, mask=k < K, other=0.0).to(tl.float32)
        total += v
        dots += ((words >> (4 * i)) & 15).to(tl.float32) * v[None, :]
        if GATED:
            dots_up += ((up >> (4 * i)) & 15).to(tl.float32) * v[None, :]
    scale, zero = _pair(scales)
    acc += scale * dots + (zero - 8 * scale) * total[None, :]
    if GATED:
        scale, zero = _pair(up_scales)
        acc_up += scale * dots_up + (zero - 8 * scale) * total[None, :]
    return acc, acc_up, squares


@triton.jit
def vector_int4(
    x,
    words,
    scales,
    bias,
    gain,
    residual,
    out,
    N,
    eps,
    B: tl.constexpr,
    K: tl.constexpr,
    TILES: tl.constexpr,
    GROUP: tl.constexpr,
    NORM: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK_W: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    """`linear.vector_linear` with int4 weights; a program computes 8 outputs. scales: (groups, N or 2N)."""
    if PDL:
        gdc_launch_dependents()
    tile = tl.program_id(0)
    rows = N
    if GATED:
        rows = 2 * N
    w = tl.arange(0, BLOCK_W)
    found, pairs = _load_words(words, scales, tile, w, rows, TILES, GROUP)
    up, ups = found, pairs
    if GATED:
        up, ups = _load_words(words, scales, tile + N // 8, w, rows, TILES, GROUP)
    if PDL:
        gdc_wait()
    zero = tl.zeros((8, BLOCK_W), tl.float32)
    none = tl.zeros((BLOCK_W,), tl.float32)
    first = _first_inputs(w, K, TILES)
    y0, u0, s0 = _add_rows(x, gain, found, pairs, up, ups, first, zero, zero, none, K, NORM, GATED)
    if B > 1:
        y1, u1, s1 = _add_rows(x + K, gain, found, pairs, up, ups, first, zero, zero, none, K, NORM, GATED)
    for start in tl.range(BLOCK_W, 16 * TILES, BLOCK_W, num_stages=STAGES):
        w = start + tl.arange(0, BLOCK_W)
        first = _first_inputs(w, K, TILES)
        found, pairs = _load_words(words, scales, tile, w, rows, TILES, GROUP)
        up, ups = found, pairs
        if GATED:
            up, ups = _load_words(words, scales, tile + N // 8, w, rows, TILES, GROUP)
        y0, u0, s0 = _add_rows(x, gain, found, pairs, up, ups, first, y0, u0, s0, K, NORM, GATED)
        if B > 1:
            y1, u1, s1 = _add_rows(x + K, gain, found, pairs, up, ups, first, y1, u1, s1, K, NORM, GATED)
    n = tile * 8 + tl.arange(0, 8)
    mask = n < N
    finish_linear(
        tl.sum(y0, 1), tl.sum(u0, 1), tl.sum(s0, 0), n, n, N, mask, bias, residual, bias, out, eps, K,
        NORM, BIAS, RESIDUAL, GATED, False,
    )  # fmt: skip
    if B > 1:
        finish_linear(
            tl.sum(y1, 1), tl.sum(u1, 1), tl.sum(s1, 0), n + N, n, N, mask, bias, residual, bias, out, eps, K,
            NORM, BIAS, RESIDUAL, GATED, False,
        )  # fmt: skip


@triton.jit
def unpack_int4(
    words, scales, out, stride,
    K: tl.constexpr, TILES: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """8 outputs and BLOCK pairs of adjacent inputs → out (N, K); `stride` of the scales from group to group.

    Bits 4i and 4i + 16 of a word are such a pair, so that rows of `out` are written without gaps.
    """
    row = tl.program_id(0)
    m = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    r = tl.arange(0, 8)
    tile, j = m // 64, (m // 16) % 4
    seen = (m < 64 * TILES)[None, :]
    at = (row * TILES + tile)[None, :] * 128 + 16 * r[:, None] + (4 * (m % 4) + j)[None, :]
    found = tl.load(words + at, mask=seen, other=0) >> (4 * ((m // 4) % 4))[None, :]
    n = row * 8 + r
    group = (tile * 128 + j * 32) // GROUP
    scale, zero = _pair(tl.load(scales + group[None, :] * stride + n[:, None], mask=seen, other=0))
    first = ((found & 15) - 8).to(tl.float32) * scale + zero
    second = (((found >> 16) & 15) - 8).to(tl.float32) * scale + zero
    k = 2 * tl.program_id(1) * BLOCK + tl.arange(0, 2 * BLOCK)
    place = out + n.to(tl.int64)[:, None] * K + k[None, :]
    tl.store(place, tl.interleave(first, second).to(out.dtype.element_ty), mask=(k < K)[None, :])
