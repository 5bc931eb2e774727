"""Triton kernels of SAM 2: rotary code, attention to valid tokens, norm with window partition.

Letters: B regions, T tokens, C width, N grid cells, S splits of the keys.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rotate_pairs(x, cosines, sines, tokens, skip, cells, HALF: tl.constexpr):
    """Rotates neighbouring pairs of x (B, T, 2·HALF) from token `skip` on; the code repeats every N."""
    b, t = tl.program_id(0), tl.program_id(1)
    i = tl.arange(0, HALF)
    at = x + (b.to(tl.int64) * tokens + skip + t) * (2 * HALF) + 2 * i
    code = (t % cells) * HALF + i
    cosine, sine = tl.load(cosines + code), tl.load(sines + code)
    first, second = tl.load(at).to(tl.float32), tl.load(at + 1).to(tl.float32)
    tl.store(at, (first * cosine - second * sine).to(x.dtype.element_ty))
    tl.store(at + 1, (first * sine + second * cosine).to(x.dtype.element_ty))


LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _attend_keys(q, k, v, at, used, acc, peak, total, scale, C: tl.constexpr, MASKED: tl.constexpr):
    """One block of keys, as in FlashAttention; `at` (n) are tokens."""
    c = tl.arange(0, C)
    if MASKED:
        keys = tl.load(k + at[None, :] * C + c[:, None], mask=used[None, :], other=0.0)
        values = tl.load(v + at[:, None] * C + c[None, :], mask=used[:, None], other=0.0)
    else:
        keys = tl.load(k + at[None, :] * C + c[:, None])
        values = tl.load(v + at[:, None] * C + c[None, :])
    score = tl.dot(q, keys) * (scale * LOG2E)
    if MASKED:
        score = tl.where(used[None, :], score, -float("inf"))
    higher = tl.maximum(peak, tl.max(score, 1))
    weight = tl.exp2(score - higher[:, None])
    fade = tl.exp2(peak - higher)
    acc = tl.dot(weight.to(values.dtype), values, acc * fade[:, None])
    return acc, higher, total * fade + tl.sum(weight, 1)


@triton.jit
def valid_attention(
    q,
    k,
    v,
    starts,
    lengths,
    partial,
    peaks,
    sums,
    scale,
    C: tl.constexpr,
    N: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One head: q (B, N, C) over each region's valid tokens of k and v (B·L, C), one split per program.

    `starts`, `lengths` (B): valid tokens. Out: partial (B, S, N, C) float32, peaks and sums (B, S, N).
    """
    block, b, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    start, length = tl.load(starts + b), tl.load(lengths + b)
    per_split = tl.cdiv(tl.cdiv(length, BLOCK_N), SPLITS) * BLOCK_N
    begin = tl.minimum(split * per_split, length)
    end = tl.minimum(begin + per_split, length)
    m, n, c = block * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, C)
    queries = tl.load(q + (b * N + m)[:, None] * C + c[None, :])
    peak = tl.full((BLOCK_M,), -1e30, tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, C), tl.float32)
    whole = begin + (end - begin) // BLOCK_N * BLOCK_N
    for j in range(begin, whole, BLOCK_N):
        acc, peak, total = _attend_keys(
            queries, k, v, start + j + n, n >= 0, acc, peak, total, scale, C, False
        )
    if whole < end:
        acc, peak, total = _attend_keys(
            queries, k, v, start + whole + n, whole + n < end, acc, peak, total, scale, C, True
        )
    to = (b * SPLITS + split) * N + m
    tl.store(partial + to[:, None] * C + c[None, :], acc)
    tl.store(peaks + to, peak)
    tl.store(sums + to, total)


@triton.jit
def merge_valid(
    partial, peaks, sums, out, C: tl.constexpr, N: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr
):
    """Joins the parts of `valid_attention` → out (B, N, C)."""
    b = tl.program_id(1)
    n, c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, C)
    top = tl.full((BLOCK,), -1e30, tl.float32)
    for split in tl.static_range(SPLITS):
        top = tl.maximum(top, tl.load(peaks + (b * SPLITS + split) * N + n))
    total = tl.zeros((BLOCK,), tl.float32)
    acc = tl.zeros((BLOCK, C), tl.float32)
    for split in tl.static_range(SPLITS):
        at = (b * SPLITS + split) * N + n
        fade = tl.exp2(tl.load(peaks + at) - top)
        total += tl.load(sums + at) * fade
        acc += tl.load(partial + at[:, None] * C + c[None, :]) * fade[:, None]
    tl.store(out + (b * N + n)[:, None] * C + c[None, :], (acc / total[:, None]).to(out.dtype.element_ty))


@triton.jit
def add_layer_norm(
    x,
    delta,
    gain,
    bias,
    out,
    eps,
    tokens,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_T: tl.constexpr,
    WIDTH: tl.constexpr,
    WINDOW: tl.constexpr,
    ADD: tl.constexpr,
    DELTA_WINDOWED: tl.constexpr,
    OUT_WINDOWED: tl.constexpr,
):
    """x (tokens, C) += delta; out = LayerNorm(x). Tokens of x in image order, `WIDTH` a line.

    Windowed tensors hold window after window of WINDOW × WINDOW tokens, so the partition costs nothing.
    """
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    image = t
    if WINDOW > 0:
        window, rest = t // (WINDOW * WINDOW), t % (WINDOW * WINDOW)
        across = WIDTH // WINDOW
        y = window // across * WINDOW + rest // WINDOW
        image = y * WIDTH + window % across * WINDOW + rest % WINDOW
    c = tl.arange(0, BLOCK_C)
    mask = (t < tokens)[:, None] & (c < C)[None, :]
    at = image[:, None] * C + c[None, :]
    windowed = t[:, None] * C + c[None, :]
    value = tl.load(x + at, mask=mask, other=0.0)
    if ADD:
        added = tl.load(delta + (windowed if DELTA_WINDOWED else at), mask=mask, other=0.0)
        value = (value.to(tl.float32) + added.to(tl.float32)).to(value.dtype)
        tl.store(x + at, value, mask=mask)
    wide = value.to(tl.float32)
    mean = tl.sum(wide, 1) / C
    centered = tl.where(mask, wide - mean[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(centered * centered, 1) / C + eps)
    g = tl.load(gain + c, mask=c < C, other=0.0).to(tl.float32)
    shift = tl.load(bias + c, mask=c < C, other=0.0).to(tl.float32)
    normed = centered * scale[:, None] * g[None, :] + shift[None, :]
    tl.store(out + (windowed if OUT_WINDOWED else at), normed.to(out.dtype.element_ty), mask=mask)
