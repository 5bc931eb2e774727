"""Triton kernels of a decoding step's linear layers: every weight is read once, whatever the batch.

They accumulate in float32. With PDL (programmatic dependent launch) a kernel starts while the one before it
drains: it loads its first weights early, but touches activations only after `gdc_wait`.

Letters: B batch slots, K inputs, N outputs, H model width.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def _weight_tile(w, n, k, N, K: tl.constexpr, ALIGNED: tl.constexpr):
    """Weights (N, K) of outputs n and inputs k → a tile; read once, so they need not stay in the cache."""
    at = w + n[:, None] * K + k[None, :]
    if ALIGNED:
        return tl.load(at, eviction_policy="evict_first")
    return tl.load(at, mask=(n < N)[:, None] & (k < K)[None, :], other=0.0, eviction_policy="evict_first")


@triton.jit
def finish_linear(
    y,
    up,
    squares,
    at,
    n,
    N,
    mask,
    bias,
    residual,
    scales,
    out,
    eps,
    K: tl.constexpr,
    NORM: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    GATED: tl.constexpr,
    SCALED: tl.constexpr,
):
    """The part after the products: scales, bias, SiLU gate, residual; `at` are offsets into the output.

    SCALED: output n of int8 weights has scale n, `up` has scale n + N.
    """
    if SCALED:
        y = y * tl.load(scales + n, mask=n < N, other=0.0)
        if GATED:
            up = up * tl.load(scales + n + N, mask=n < N, other=0.0)
    if NORM:
        scale = tl.rsqrt(squares / K + eps)
        y = y * scale
        up = up * scale
    if BIAS:
        y += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)
    if GATED:
        y = y / (1 + tl.exp(-y)) * up
    if RESIDUAL:
        y += tl.load(residual + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + at, y.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _slot_products(
    x, k, gain, tile, tile_up, acc, acc_up, squares, K: tl.constexpr, NORM: tl.constexpr, GATED: tl.constexpr
):
    """Adds the products of one slot's inputs k with a tile of the weights, and their squares."""
    v = tl.load(x + k, mask=k < K, other=0.0).to(tl.float32)
    squares += v * v
    if NORM:
        v *= tl.load(gain + k, mask=k < K, other=0.0).to(tl.float32)
    acc += tile.to(tl.float32) * v[None, :]
    if GATED:
        acc_up += tile_up.to(tl.float32) * v[None, :]
    return acc, acc_up, squares


@triton.jit
def vector_linear(
    x,
    w,
    bias,
    gain,
    residual,
    scales,
    out,
    N,
    eps,
    B: tl.constexpr,
    K: tl.constexpr,
    NORM: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    GATED: tl.constexpr,
    SCALED: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    """out (B, N) = epilogue(x (B, K) · w (N, K)ᵀ) for B = 1 or 2. GATED: w (2N, K), out = silu(gate) * up.

    SCALED: w is int8, and every output has a scale.

    NORM: x is RMS-normalised with `gain`; its scale is a number a slot, so it is applied at the end.
    """
    if PDL:
        gdc_launch_dependents()
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    tile = _weight_tile(w, n, k, N, K, ALIGNED)
    tile_up = tile
    if GATED:
        tile_up = _weight_tile(w + N * K, n, k, N, K, ALIGNED)
    if PDL:
        gdc_wait()
    zero = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    none = tl.zeros((BLOCK_K,), tl.float32)
    y0, u0, s0 = _slot_products(x, k, gain, tile, tile_up, zero, zero, none, K, NORM, GATED)
    if B > 1:
        y1, u1, s1 = _slot_products(x + K, k, gain, tile, tile_up, zero, zero, none, K, NORM, GATED)
    for start in tl.range(BLOCK_K, K, BLOCK_K, num_stages=STAGES):
        k = start + tl.arange(0, BLOCK_K)
        tile = _weight_tile(w, n, k, N, K, ALIGNED)
        tile_up = tile
        if GATED:
            tile_up = _weight_tile(w + N * K, n, k, N, K, ALIGNED)
        y0, u0, s0 = _slot_products(x, k, gain, tile, tile_up, y0, u0, s0, K, NORM, GATED)
        if B > 1:
            y1, u1, s1 = _slot_products(x + K, k, gain, tile, tile_up, y1, u1, s1, K, NORM, GATED)
    mask = n < N
    finish_linear(
        tl.sum(y0, 1),
        tl.sum(u0, 1),
        tl.sum(s0, 0),
        n,
        n,
        N,
        mask,
        bias,
        residual,
        scales,
        out,
        eps,
        K,
        NORM,
        BIAS,
        RESIDUAL,
        GATED,
        SCALED,
    )
    if B > 1:
        finish_linear(
            tl.sum(y1, 1),
            tl.sum(u1, 1),
            tl.sum(s1, 0),
            n + N,
            n,
            N,
            mask,
            bias,
            residual,
            scales,
            out,
            eps,
            K,
            NORM,
            BIAS,
            RESIDUAL,
            GATED,
            SCALED,
        )


@triton.jit
def batch_linear(
    x,
    w,
    bias,
    residual,
    scales,
    out,
    N,
    B: tl.constexpr,
    K: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    GATED: tl.constexpr,
    SCALED: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    """The same for B ≤ 16 on the tensor cores; x is normalised already."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    b = tl.arange(0, 16)
    acc = tl.zeros((BLOCK_N, 16), tl.float32)
    acc_up = acc
    for start in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        k = start + tl.arange(0, BLOCK_K)
        v = tl.load(x + b[None, :] * K + k[:, None], mask=(b < B)[None, :] & (k < K)[:, None], other=0.0)
        tile = _weight_tile(w, n, k, N, K, ALIGNED).to(v.dtype)
        acc = tl.dot(tile, v, acc, input_precision="ieee")
        if GATED:
            tile = _weight_tile(w + N * K, n, k, N, K, ALIGNED).to(v.dtype)
            acc_up = tl.dot(tile, v, acc_up, input_precision="ieee")
    at = b[None, :] * N + n[:, None]
    mask = (b < B)[None, :] & (n < N)[:, None]
    finish_linear(
        acc, acc_up, 0.0, at, n[:, None], N, mask, bias, residual, scales, out, 0.0, K,
        False, BIAS, RESIDUAL, GATED, SCALED,
    )  # fmt: skip


@triton.jit
def rms_norm(x, gain, out, eps, H: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """out = RMSNorm(x (B, H)) * gain."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    k = tl.arange(0, BLOCK)
    v = tl.load(x + tl.program_id(0) * H + k, mask=k < H, other=0.0).to(tl.float32)
    g = tl.load(gain + k, mask=k < H, other=0.0).to(tl.float32)
    normed = v * tl.rsqrt(tl.sum(v * v, 0) / H + eps) * g
    tl.store(out + tl.program_id(0) * H + k, normed.to(out.dtype.element_ty), mask=k < H)


@triton.jit
def widen(values, out, count, BLOCK: tl.constexpr):
    """out = values, in another dtype; both are contiguous."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    seen = at < count
    tl.store(out + at, tl.load(values + at, mask=seen).to(out.dtype.element_ty), mask=seen)
