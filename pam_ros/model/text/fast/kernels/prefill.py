"""Triton kernels of a prefill pass: fused norm, rotary code and cache write, attention of several texts.

Letters: T tokens of the pass, H model width, Q heads, G key-value heads, D head width, F width of the MLP.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pam_ros.model.text.fast.kernels.decode import LOG2E, cached_token


@triton.jit
def add_norm(x, delta, gain, out, eps, H: tl.constexpr, BLOCK: tl.constexpr, ADD: tl.constexpr):
    """x (T, H) += delta; out = RMSNorm(x) * gain. One program a token."""
    k = tl.arange(0, BLOCK)
    at = tl.program_id(0).to(tl.int64) * H + k
    v = tl.load(x + at, mask=k < H, other=0.0)
    if ADD:
        v = (v.to(tl.float32) + tl.load(delta + at, mask=k < H, other=0.0).to(tl.float32)).to(v.dtype)
        tl.store(x + at, v, mask=k < H)
    v = v.to(tl.float32)
    scale = tl.rsqrt(tl.sum(v * v, 0) / H + eps)
    g = tl.load(gain + k, mask=k < H, other=0.0).to(tl.float32)
    tl.store(out + at, (v * scale * g).to(out.dtype.element_ty), mask=k < H)


@triton.jit
def rotate_store(
    qkv,
    keys,
    values,
    cosines,
    sines,
    positions,
    places,
    Q: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
):
    """Rotates queries in place; writes rotated keys and values of token t to place `places[t]` of the cache.

    qkv (T, (Q + 2G)·D); HEADS and KV_HEADS: Q and G rounded up to powers of two.
    """
    t = tl.program_id(0)
    HALF: tl.constexpr = D // 2
    position, place = tl.load(positions + t), tl.load(places + t).to(tl.int64)
    d, full = tl.arange(0, HALF), tl.arange(0, D)
    cosine, sine = tl.load(cosines + position * HALF + d), tl.load(sines + position * HALF + d)
    projected = qkv + t.to(tl.int64) * (Q + 2 * G) * D
    h = tl.arange(0, HEADS)
    at, real = projected + h[:, None] * D + d[None, :], (h < Q)[:, None]
    q1 = tl.load(at, mask=real, other=0.0).to(tl.float32)
    q2 = tl.load(at + HALF, mask=real, other=0.0).to(tl.float32)
    tl.store(at, (q1 * cosine - q2 * sine).to(qkv.dtype.element_ty), mask=real)
    tl.store(at + HALF, (q2 * cosine + q1 * sine).to(qkv.dtype.element_ty), mask=real)
    g = tl.arange(0, KV_HEADS)
    at, real = projected + (Q + g)[:, None] * D + d[None, :], (g < G)[:, None]
    k1 = tl.load(at, mask=real, other=0.0).to(tl.float32)
    k2 = tl.load(at + HALF, mask=real, other=0.0).to(tl.float32)
    to = keys + (place * G + g)[:, None] * D + d[None, :]
    tl.store(to, (k1 * cosine - k2 * sine).to(keys.dtype.element_ty), mask=real)
    tl.store(to + HALF, (k2 * cosine + k1 * sine).to(keys.dtype.element_ty), mask=real)
    v = tl.load(projected + (Q + G + g)[:, None] * D + full[None, :], mask=real, other=0.0)
    tl.store(values + (place * G + g)[:, None] * D + full[None, :], v, mask=real)


@triton.jit
def _attend_block(
    q,
    keys,
    values,
    j,
    used,
    at,
    g,
    acc,
    peak,
    total,
    scale,
    query,
    G: tl.constexpr,
    D: tl.constexpr,
    WINDOW: tl.constexpr,
    MASKED: tl.constexpr,
):
    """One block of keys, as in FlashAttention; `at` (n): places in the cache, `query` (m): positions."""
    d = tl.arange(0, D)
    k = tl.load(keys + (at * G + g)[None, :] * D + d[:, None], mask=used[None, :], other=0.0)
    score = tl.dot(q, k, input_precision="ieee") * (scale * LOG2E)
    if MASKED:
        seen = used[None, :] & (j[None, :] <= query[:, None])
        if WINDOW > 0:
            seen = seen & (j[None, :] > query[:, None] - WINDOW)
        score = tl.where(seen, score, -float("inf"))
    higher = tl.maximum(peak, tl.max(score, 1))
    safe = higher
    if MASKED:  # nothing seen so far: any finite number keeps the exponentials at 0
        safe = tl.where(higher == -float("inf"), 0.0, higher)
    weight = tl.exp2(score - safe[:, None])
    fade = tl.exp2(peak - safe)
    v = tl.load(values + (at * G + g)[:, None] * D + d[None, :], mask=used[:, None], other=0.0)
    acc = acc * fade[:, None]
    acc = tl.dot(weight.to(v.dtype), v, acc, input_precision="ieee")
    return acc, higher, total * fade + tl.sum(weight, 1)


@triton.jit
def prefill_attention(
    qkv,
    keys,
    values,
    out,
    blocks,
    scale,
    Q: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WINDOW: tl.constexpr,
):
    """Causal attention of blocks of queries, each over its prompt's and its own cached tokens → out (T, Q·D).

    blocks int32 (n, 6): first token in the pass, count (0 = padding), position of the first, then the
    prefix's start and length and the start of the text's own span.
    """
    block, head = tl.program_id(0), tl.program_id(1)
    count = tl.load(blocks + block * 6 + 1)
    if count > 0:
        token, first = tl.load(blocks + block * 6), tl.load(blocks + block * 6 + 2)
        prefix_start, prefix_length = tl.load(blocks + block * 6 + 3), tl.load(blocks + block * 6 + 4)
        own_start = tl.load(blocks + block * 6 + 5)
        g = head // (Q // G)
        m, d, n = tl.arange(0, BLOCK_M), tl.arange(0, D), tl.arange(0, BLOCK_N)
        at_token = (token + m).to(tl.int64)[:, None]
        q = tl.load(
            qkv + at_token * ((Q + 2 * G) * D) + head * D + d[None, :], mask=(m < count)[:, None], other=0.0
        )
        query = first + m
        peak = tl.full((BLOCK_M,), -float("inf"), tl.float32)
        total = tl.zeros((BLOCK_M,), tl.float32)
        acc = tl.zeros((BLOCK_M, D), tl.float32)
        start = 0
        clear = (first + 1) // BLOCK_N * BLOCK_N  # keys before this are seen by every query of the block
        if WINDOW > 0:
            start = tl.maximum(first - WINDOW + 1, 0) // BLOCK_N * BLOCK_N
            clear = start
        for begin in range(start, clear, BLOCK_N):
            j = begin + n
            at = cached_token(j, prefix_start, prefix_length, own_start)
            acc, peak, total = _attend_block(
                q, keys, values, j, j >= 0, at, g, acc, peak, total, scale, query, G, D, WINDOW, False
            )
        for begin in range(clear, first + count, BLOCK_N):
            j = begin + n
            at = cached_token(j, prefix_start, prefix_length, own_start)
            acc, peak, total = _attend_block(
                q,
                keys,
                values,
                j,
                j < first + count,
                at,
                g,
                acc,
                peak,
                total,
                scale,
                query,
                G,
                D,
                WINDOW,
                True,
            )
        to = out + at_token * (Q * D) + head * D + d[None, :]
        tl.store(to, (acc / total[:, None]).to(out.dtype.element_ty), mask=(m < count)[:, None])


@triton.jit
def silu_multiply(gate_up, out, F: tl.constexpr, BLOCK: tl.constexpr):
    """gate_up (T, 2F) → silu(gate) * up, out (T, F)."""
    t = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(gate_up + t * (2 * F) + k, mask=k < F, other=0.0).to(tl.float32)
    up = tl.load(gate_up + t * (2 * F) + F + k, mask=k < F, other=0.0).to(tl.float32)
    tl.store(out + t * F + k, (gate / (1 + tl.exp(-gate)) * up).to(out.dtype.element_ty), mask=k < F)
