"""The language model's layers in a prefill pass: Triton kernels on CUDA devices, torch elsewhere.

Letters: T tokens of a pass, B batch, H model width, Q heads, G key-value heads, D head width, F MLP width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pam_ros.model.text.fast.decoder_weights import DecoderWeights
from pam_ros.model.text.quantized import linear

try:
    import triton

    from pam_ros.model.text.fast.kernels import prefill as prefill_kernels
except ImportError:  # no Triton: a CPU-only build of torch
    triton = None

# Queries that a program of the attention kernel takes, in long and in short passes.
LONG_BLOCK, SHORT_BLOCK = 128, 16
SHORT_PASS = 256  # tokens


def has_kernels(x: Tensor) -> bool:
    """Whether Triton's kernels run where `x` is."""
    return x.is_cuda and triton is not None


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive tokens of one prompt or text in a pass."""

    count: int
    position: int  # of the first in its text
    prefix_start: int  # the prompt that it branches off: where the cache holds it
    prefix_length: int  # and how many of its tokens the text sees; 0 for a prompt
    own_start: int  # where the cache holds the tokens after the prefix

    @property
    def first_place(self) -> int:
        """Where the cache holds the first of these tokens."""
        return self.own_start + self.position - self.prefix_length


@dataclass(frozen=True, slots=True)
class PassPlan:
    """Where the T tokens of a pass stand in their texts and in the cache."""

    segments: Sequence[Segment]
    positions: Tensor  # (T) int32
    places: Tensor  # (T) int32
    blocks: Tensor  # (n, 6) int32, see `prefill_kernels.prefill_attention`
    block: int  # queries a block holds


def plan_numbers(segments: Sequence[Segment], tokens: int, *, block: int, blocks: int) -> NDArray[np.int32]:
    """The three tensors of a plan, flat, padded to `tokens` tokens and `blocks` blocks.

    Padding is written to the scratch place at the cache's start; its blocks have no queries.
    """
    numbers = np.zeros(2 * tokens + 6 * blocks, np.int32)
    positions, places = numbers[:tokens], numbers[tokens : 2 * tokens]
    table = numbers[2 * tokens :].reshape(-1, 6)
    token = entry = 0
    for each in segments:
        offsets = np.arange(each.count, dtype=np.int32)
        positions[token : token + each.count] = each.position + offsets
        places[token : token + each.count] = each.first_place + offsets
        for start in range(0, each.count, block):
            count = min(block, each.count - start)
            table[entry, :3] = token + start, count, each.position + start
            table[entry, 3:] = each.prefix_start, each.prefix_length, each.own_start
            entry += 1
        token += each.count
    return numbers


def plan_size(segments: Sequence[Segment], block: int) -> int:
    """How many blocks of queries the segments make."""
    return sum(-(-each.count // block) for each in segments)


def plan_block(tokens: int) -> int:
    """Queries a block holds in a pass of so many tokens."""
    return SHORT_BLOCK if tokens <= SHORT_PASS else LONG_BLOCK


def make_plan(segments: Sequence[Segment], device: torch.device) -> PassPlan:
    """A plan without padding."""
    tokens = sum(each.count for each in segments)
    block = plan_block(tokens)
    blocks = plan_size(segments, block)
    numbers = torch.from_numpy(plan_numbers(segments, tokens, block=block, blocks=blocks))
    return view_plan(numbers.to(device), segments, tokens, block)


def view_plan(numbers: Tensor, segments: Sequence[Segment], tokens: int, block: int) -> PassPlan:
    """Flat numbers (2T + 6n) int32 of `plan_numbers` → the plan, as views."""
    positions, places, blocks = numbers[:tokens], numbers[tokens : 2 * tokens], numbers[2 * tokens :]
    return PassPlan(segments, positions, places, blocks.view(-1, 6), block)


def run_layers(
    weights: DecoderWeights, cache: Tensor, x: Tensor, plan: PassPlan, window: int | None
) -> Tensor:
    """Embeddings (T, H) → hidden states (T, H) before the last norm; keys and values go to the cache.

    `cache`: (layers, 2, tokens, G, D). `x` is overwritten. `window`: how many tokens back one attends to.
    """
    delta: Tensor | None = None
    for index, layer in enumerate(weights.layers):
        keys, values = cache[index].unbind(0)
        normed = add_norm(x, delta, layer.input_norm, weights.epsilon)
        qkv = linear(normed, layer.qkv, layer.qkv_bias)
        attended = attention(weights, qkv, keys, values, plan, window)
        normed = add_norm(x, linear(attended, layer.out), layer.mlp_norm, weights.epsilon)
        delta = linear(silu_multiply(linear(normed, layer.gate_up)), layer.down)
    assert delta is not None
    return x.add_(delta)


def next_logits(weights: DecoderWeights, hidden: Tensor) -> Tensor:
    """Hidden states (B, H) before the last norm → logits (B, V) float32 of the next tokens."""
    normed = F.rms_norm(hidden.float(), hidden.shape[1:], weights.norm.float(), weights.epsilon)
    return F.linear(normed.to(hidden.dtype), weights.head).float()


def add_norm(x: Tensor, delta: Tensor | None, gain: Tensor, epsilon: float) -> Tensor:
    """x (T, H) += delta; returns its RMS norm."""
    if not has_kernels(x):
        if delta is not None:
            x.add_(delta)
        return F.rms_norm(x.float(), x.shape[1:], gain.float(), epsilon).to(x.dtype)
    out = torch.empty_like(x)
    block = triton.next_power_of_2(x.shape[1])
    other = x if delta is None else delta
    prefill_kernels.add_norm[(len(x),)](
        x, other, gain, out, epsilon, H=x.shape[1], BLOCK=block, ADD=delta is not None, num_warps=8
    )
    return out


def silu_multiply(gate_up: Tensor) -> Tensor:
    """(T, 2F) → silu(gate) · up, (T, F)."""
    width = gate_up.shape[1] // 2
    if not has_kernels(gate_up):
        gate, up = torch.split(gate_up, width, dim=1)
        return F.silu(gate).mul_(up)
    out = gate_up.new_empty(len(gate_up), width)
    grid = (len(gate_up), triton.cdiv(width, 2048))
    prefill_kernels.silu_multiply[grid](gate_up, out, F=width, BLOCK=2048, num_warps=8)
    return out


def attention(
    weights: DecoderWeights, qkv: Tensor, keys: Tensor, values: Tensor, plan: PassPlan, window: int | None
) -> Tensor:
    """Projections (T, (Q + 2G)·D) → attended values (T, Q·D); keys and values (tokens, G, D) are extended."""
    if not has_kernels(qkv) or weights.head_width < 32:
        return _torch_attention(weights, qkv, keys, values, plan, window)
    heads, kv_heads, width = weights.heads, weights.kv_heads, weights.head_width
    shape = {"Q": heads, "G": kv_heads, "D": width}
    prefill_kernels.rotate_store[(len(qkv),)](
        qkv,
        keys,
        values,
        weights.cosines,
        weights.sines,
        plan.positions,
        plan.places,
        **shape,
        HEADS=triton.next_power_of_2(heads),
        KV_HEADS=triton.next_power_of_2(kv_heads),
        num_warps=4,
    )
    out = qkv.new_empty(len(qkv), heads * width)
    long = plan.block == LONG_BLOCK
    exact = qkv.dtype == torch.float32  # its tiles take twice the shared memory
    prefill_kernels.prefill_attention[(len(plan.blocks), heads)](
        qkv,
        keys,
        values,
        out,
        plan.blocks,
        width**-0.5,
        **shape,
        BLOCK_M=plan.block,
        BLOCK_N=32 if exact else 64,
        WINDOW=window or 0,
        num_warps=8 if long else 4,
        num_stages=2 if exact else 3,
    )
    return out


def _torch_attention(
    weights: DecoderWeights, qkv: Tensor, keys: Tensor, values: Tensor, plan: PassPlan, window: int | None
) -> Tensor:
    heads, kv_heads, width = weights.heads, weights.kv_heads, weights.head_width
    q, k, v = torch.split(qkv.view(len(qkv), heads + 2 * kv_heads, width), [heads, kv_heads, kv_heads], dim=1)
    positions, places = plan.positions.long(), plan.places.long()
    cosine, sine = weights.cosines[positions][:, None], weights.sines[positions][:, None]
    q = rotated(q, cosine, sine)
    keys[places], values[places] = rotated(k, cosine, sine), v
    parts, token = [], 0
    for each in plan.segments:
        parts.append(_attend(q[token : token + each.count], keys, values, each, window))
        token += each.count
    parts.append(q.new_zeros(len(q) - token, heads * width))  # padding
    return torch.cat(parts)


def _attend(q: Tensor, keys: Tensor, values: Tensor, segment: Segment, window: int | None) -> Tensor:
    """Queries (L, Q, D) of one segment over the cached tokens of its text → (L, Q·D)."""
    end = segment.position + segment.count
    first = 0 if window is None else max(0, segment.position - window + 1)
    own = segment.own_start - segment.prefix_length
    spans = [
        slice(segment.prefix_start + first, segment.prefix_start + segment.prefix_length),
        slice(own + max(first, segment.prefix_length), own + end),
    ]
    used = [span for span in spans if span.start < span.stop]
    k = keys[used[0]] if len(used) == 1 else torch.cat([keys[span] for span in used])
    v = values[used[0]] if len(used) == 1 else torch.cat([values[span] for span in used])
    mask = None
    if segment.count > 1 or (window is not None and end - first > window):
        mask = _causal_mask(segment.position, segment.count, first, window, q.device)
    q, k, v = (each.transpose(0, 1)[None] for each in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    return out[0].transpose(0, 1).flatten(1)


@lru_cache(maxsize=8)
def _causal_mask(position: int, count: int, first: int, window: int | None, device: torch.device) -> Tensor:
    """Which keys a query attends to, (L, K) bool; cached, because every layer of a pass needs the same."""
    query = torch.arange(position, position + count, device=device)[:, None]
    key = torch.arange(first, position + count, device=device)[None]
    seen = key <= query
    return seen if window is None else seen & (key > query - window)


def rotated(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """x (T, heads, D), rotated by the angles of its positions, (T, 1, D/2)."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat([a * cosine - b * sine, b * cosine + a * sine], dim=-1).to(x.dtype)
