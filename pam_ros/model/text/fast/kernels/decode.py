"""Triton kernels of a decoding step: embeddings in, attention over cached tokens, choice of the next token.

They accumulate in float32. With PDL (programmatic dependent launch) a kernel starts while the one before it
drains: it loads early what is older than this step, and the rest only after `gdc_wait`.

Letters: B batch slots, H model width, Q heads, G key-value heads, D head width, S splits of a text's keys,
V vocabulary. A board is int32 (fields, slots), see `board`.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

LOG2E = tl.constexpr(1.4426950408889634)
# Fields of a board, in the order of `board.Field`.
TOKEN = tl.constexpr(0)
POSITION = tl.constexpr(1)
PREFIX_START = tl.constexpr(2)
PREFIX_LENGTH = tl.constexpr(3)
OWN_START = tl.constexpr(4)
REMAINING = tl.constexpr(5)
EMITTED = tl.constexpr(6)
SEED = tl.constexpr(7)
TEMPERATURE = tl.constexpr(8)
FIELDS = tl.constexpr(9)


@triton.jit
def cached_token(j, prefix_start, prefix_length, own_start):
    """Where the cache holds token j of a text: in the prompt it branches off, or in its own span."""
    return tl.where(j < prefix_length, prefix_start + j, own_start + j - prefix_length)


@triton.jit
def _cached_block(
    keys, values, j, used, prefix_start, prefix_length, own_start, g, G: tl.constexpr, D: tl.constexpr
):
    """Both halves of keys j (D/2, n) and their values (n, D)."""
    d, full = tl.arange(0, D // 2), tl.arange(0, D)
    at = (cached_token(j, prefix_start, prefix_length, own_start) * G + g) * D
    ka = tl.load(keys + at[None, :] + d[:, None], mask=used[None, :], other=0.0)
    kb = tl.load(keys + at[None, :] + D // 2 + d[:, None], mask=used[None, :], other=0.0)
    return ka, kb, tl.load(values + at[:, None] + full[None, :], mask=used[:, None], other=0.0)


@triton.jit
def _attend_block(qa, qb, ka, kb, v, used, acc, peak, total, scale):
    """One block of cached tokens, as in FlashAttention."""
    score = tl.dot(qa, ka, input_precision="ieee") + tl.dot(qb, kb, input_precision="ieee")
    score = tl.where(used[None, :], score * scale * LOG2E, -float("inf"))
    higher = tl.maximum(peak, tl.max(score, 1))
    safe = tl.where(higher == -float("inf"), 0.0, higher)  # nothing seen so far
    weight = tl.exp2(score - safe[:, None])
    fade = tl.exp2(peak - safe)
    acc = acc * fade[:, None] + tl.dot(weight.to(v.dtype), v, input_precision="ieee")
    return acc, higher, total * fade + tl.sum(weight, 1)


@triton.jit
def decode_attention(
    qkv,
    keys,
    values,
    cosines,
    sines,
    board,
    partial,
    peaks,
    sums,
    slots,
    scale,
    Q: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    GROUP: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
    WINDOW: tl.constexpr,
    PDL: tl.constexpr,
):
    """One new token a slot: rotates it, stores it in the cache, attends over the used tokens.

    qkv (B, (Q + 2G)·D); keys, values (tokens, G, D); cosines, sines (positions, D/2);
    out: partial (B, Q, S, D), peaks and sums (B, Q, S), float32.
    """
    slot, g, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if PDL:
        gdc_launch_dependents()
    HALF: tl.constexpr = D // 2
    # The board and all tokens but the newest are older than this step: they may be loaded early.
    position = tl.load(board + POSITION * slots + slot)
    prefix_start = tl.load(board + PREFIX_START * slots + slot)
    prefix_length = tl.load(board + PREFIX_LENGTH * slots + slot)
    own_start = tl.load(board + OWN_START * slots + slot)
    first = 0
    if WINDOW > 0:
        first = tl.maximum(position - WINDOW + 1, 0)
    blocks = tl.cdiv(position - first, BLOCK)
    per_split = tl.cdiv(blocks, SPLITS)
    j = first + split * per_split * BLOCK + tl.arange(0, BLOCK)
    used = j < tl.minimum(position, first + (split + 1) * per_split * BLOCK)
    ka, kb, v = _cached_block(keys, values, j, used, prefix_start, prefix_length, own_start, g, G, D)
    d, full, h = tl.arange(0, HALF), tl.arange(0, D), tl.arange(0, 16)
    cosine, sine = tl.load(cosines + position * HALF + d), tl.load(sines + position * HALF + d)
    if PDL:
        gdc_wait()
    new = qkv + slot * (Q + 2 * G) * D
    heads = (g * GROUP + h)[:, None] * D + d[None, :]
    real = (h < GROUP)[:, None]
    q1 = tl.load(new + heads, mask=real, other=0.0).to(tl.float32)
    q2 = tl.load(new + heads + HALF, mask=real, other=0.0).to(tl.float32)
    kind = keys.dtype.element_ty
    qa = (q1 * cosine - q2 * sine).to(kind)
    qb = (q2 * cosine + q1 * sine).to(kind)
    peak = tl.full((16,), -float("inf"), tl.float32)
    total = tl.zeros((16,), tl.float32)
    acc = tl.zeros((16, D), tl.float32)
    if split == 0:
        k1 = tl.load(new + (Q + g) * D + d).to(tl.float32)
        k2 = tl.load(new + (Q + g) * D + HALF + d).to(tl.float32)
        na, nb = (k1 * cosine - k2 * sine).to(kind), (k2 * cosine + k1 * sine).to(kind)
        nv = tl.load(new + (Q + G + g) * D + full)
        to = (cached_token(position, prefix_start, prefix_length, own_start) * G + g) * D
        tl.store(keys + to + d, na)
        tl.store(keys + to + HALF + d, nb)
        tl.store(values + to + full, nv)
        own = tl.sum(qa.to(tl.float32) * na.to(tl.float32), 1) + tl.sum(
            qb.to(tl.float32) * nb.to(tl.float32), 1
        )
        peak = own * scale * LOG2E
        total += 1.0
        acc += nv.to(tl.float32)[None, :]
    acc, peak, total = _attend_block(qa, qb, ka, kb, v, used, acc, peak, total, scale)
    for block in range(split * per_split + 1, tl.minimum((split + 1) * per_split, blocks)):
        j = first + block * BLOCK + tl.arange(0, BLOCK)
        used = j < position
        ka, kb, v = _cached_block(keys, values, j, used, prefix_start, prefix_length, own_start, g, G, D)
        acc, peak, total = _attend_block(qa, qb, ka, kb, v, used, acc, peak, total, scale)
    to = ((slot * Q + g * GROUP + h) * SPLITS) + split
    tl.store(partial + to[:, None] * D + full[None, :], acc, mask=real)
    tl.store(peaks + to, peak, mask=h < GROUP)
    tl.store(sums + to, total, mask=h < GROUP)


@triton.jit
def merge_splits(partial, peaks, sums, out, D: tl.constexpr, SPLITS: tl.constexpr, PDL: tl.constexpr):
    """Joins the splits of one slot and head: partial (B, Q, S, D) → out (B, Q·D)."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    head = tl.program_id(0)
    s, d = tl.arange(0, SPLITS), tl.arange(0, D)
    peak = tl.load(peaks + head * SPLITS + s)
    fade = tl.exp2(peak - tl.max(peak, 0))
    total = tl.sum(tl.load(sums + head * SPLITS + s) * fade, 0)
    live = fade > 0
    parts = tl.load(partial + (head * SPLITS + s)[:, None] * D + d[None, :], mask=live[:, None], other=0.0)
    tl.store(out + head * D + d, (tl.sum(parts * fade[:, None], 0) / total).to(out.dtype.element_ty))


@triton.jit
def gather_embeddings(board, table, out, H: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """Each slot's newest token → its embedding, out (B, H)."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    slot = tl.program_id(0)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    token = tl.load(board + TOKEN + slot).to(tl.int64)
    tl.store(out + slot * H + k, tl.load(table + token * H + k, mask=k < H), mask=k < H)


@triton.jit
def select_partial(
    logits,
    order,
    board,
    best,
    best_id,
    best_logit,
    peaks,
    sums,
    slots,
    V,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Logits (B, V) float32 → the best token of each block of the vocabulary, and sums for its probability.

    Greedy at temperature 0; else the maximum of logits / temperature + Gumbel noise, which is a sample.
    """
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    b, block, blocks = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    slot = tl.load(order + b)
    v = block * BLOCK + tl.arange(0, BLOCK)
    logit = tl.load(logits + b * V + v, mask=v < V, other=-float("inf"))
    at = tl.maximum(slot, 0)
    temperature = tl.load(board + TEMPERATURE * slots + at).to(tl.float32, bitcast=True)
    chosen = logit
    if temperature > 0:
        seed = tl.load(board + SEED * slots + at) + tl.load(board + POSITION * slots + at) * 7919
        chosen = logit / temperature - tl.log(-tl.log(tl.rand(seed, v) + 1e-20))
        chosen = tl.where(v < V, chosen, -float("inf"))
    value, index = tl.max(chosen, 0, return_indices=True, return_indices_tie_break_left=True)
    peak = tl.max(logit, 0)
    to = b * blocks + block
    tl.store(best + to, value)
    tl.store(best_id + to, block * BLOCK + index)
    tl.store(best_logit + to, tl.sum(tl.where(v == block * BLOCK + index, logit, 0.0), 0))
    tl.store(peaks + to, peak)
    tl.store(sums + to, tl.sum(tl.exp2((logit - peak) * LOG2E), 0))


@triton.jit
def select_final(
    order,
    board,
    best,
    best_id,
    best_logit,
    peaks,
    sums,
    stops,
    slots,
    blocks,
    RING: tl.constexpr,
    STOPS: tl.constexpr,
    BLOCKS: tl.constexpr,
    ADVANCE: tl.constexpr,
    PDL: tl.constexpr,
):
    """Takes each slot's token and updates its board; ADVANCE: its newest token is in the cache now."""
    if PDL:  # no early launch: the next step reads the board before it waits
        gdc_wait()
    b = tl.program_id(0)
    slot = tl.load(order + b)
    i = tl.arange(0, BLOCKS)
    at = b * blocks + i
    value = tl.load(best + at, mask=i < blocks, other=-float("inf"))
    _, index = tl.max(value, 0, return_indices=True, return_indices_tie_break_left=True)
    token = tl.load(best_id + b * blocks + index)
    peak = tl.load(peaks + at, mask=i < blocks, other=-float("inf"))
    top = tl.max(peak, 0)
    total = tl.sum(tl.load(sums + at, mask=i < blocks, other=0.0) * tl.exp2((peak - top) * LOG2E), 0)
    log_probability = tl.load(best_logit + b * blocks + index) - top - tl.log(total)
    at_slot = tl.maximum(slot, 0)
    remaining = tl.load(board + REMAINING * slots + at_slot)
    if (slot >= 0) & (remaining > 0):
        ends = 0
        for stop in tl.static_range(STOPS):
            ends = ends | (token == tl.load(stops + stop)).to(tl.int32)
        if ADVANCE:
            tl.store(board + POSITION * slots + slot, tl.load(board + POSITION * slots + slot) + 1)
        if ends == 1:
            tl.store(board + REMAINING * slots + slot, 0)
        else:
            emitted = tl.load(board + EMITTED * slots + slot)
            place = FIELDS + emitted % RING
            tl.store(board + place * slots + slot, token)
            tl.store(board + (place + RING) * slots + slot, log_probability.to(tl.int32, bitcast=True))
            tl.store(board + EMITTED * slots + slot, emitted + 1)
            tl.store(board + TOKEN * slots + slot, token)
            tl.store(board + REMAINING * slots + slot, remaining - 1)
