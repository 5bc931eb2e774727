"""SAM 2's memory attention at fixed shapes: each region attends to as many tokens as are valid.

It computes what package sam2 does. Shapes do not depend on a region's past, so it can be captured.

Letters: B regions, C model width, M memory width, N = h·w grid cells, S spatial slots, P pointers, K clicks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from sam2.modeling.memory_attention import MemoryAttention, MemoryAttentionLayer
from sam2.modeling.sam.transformer import RoPEAttention
from torch import Tensor, nn
from torch.nn import functional as F

from pam_ros.model.cuda_device import shared_bytes

try:
    import triton

    from pam_ros.model.vision.fast.kernels import sam2 as sam2_kernels
except ImportError:  # no Triton: a CPU-only build of torch
    triton = None


@dataclass(frozen=True, slots=True)
class BatchedMemory:
    """Tokens that B regions attend to: pointers, then spatial features; valid tokens are contiguous.

    Without `starts` and `lengths` all are valid.
    """

    tokens: Tensor  # (B, L, M)
    positions: Tensor  # (B, L, M)
    pointer_tokens: int  # of the L, how many (at the start) come from pointers: they have no rotary code
    starts: Tensor | None = None  # (B) int32: of each region's valid tokens among all B·L
    lengths: Tensor | None = None  # (B) int32: how many are valid


@dataclass(frozen=True, slots=True)
class Tile:
    """How attention to the memory is divided among programs."""

    queries: int
    keys: int
    warps: int
    stages: int
    splits: int  # parts of the keys, so that even one region fills the device


TILE = Tile(128, 64, 8, 2, 4)  # measured on an H100, for 1 and for 5 regions
SMALL_TILE = Tile(64, 32, 4, 2, 4)  # where programs have less shared memory
_TILE_BYTES = 147_456  # of shared memory, at a width of 256


class Rotary(Protocol):
    """The axial rotary code of a square grid, behind a linear layer."""

    def project(self, linear: nn.Linear, x: Tensor, skip: int = 0) -> Tensor:
        """x (B, T, …) → (B, T, C), rotated from token `skip` on; the code repeats every N tokens."""
        ...


class RotaryCode:
    """The axial rotary code of a square grid, as cosines and sines."""

    def __init__(self, attention: RoPEAttention, side: int, device: torch.device) -> None:
        code = attention.compute_cis(end_x=side, end_y=side)  # (N, C/2) complex
        self._code = code.to(device)
        self.cosines = code.real.contiguous().float().to(device)
        self.sines = code.imag.contiguous().float().to(device)

    def project(self, linear: nn.Linear, x: Tensor, skip: int = 0) -> Tensor:
        """See `Rotary`."""
        return self.rotate(linear(x), skip)

    def rotate(self, x: Tensor, skip: int = 0) -> Tensor:
        """x (B, T, C), rotated in place from token `skip` on; the code repeats every N tokens."""
        if x.is_cuda and triton is not None:
            batch, tokens, width = x.shape
            sam2_kernels.rotate_pairs[(batch, tokens - skip)](
                x, self.cosines, self.sines, tokens, skip, len(self.cosines), HALF=width // 2, num_warps=1
            )
            return x
        part = x[:, skip:].float()
        pairs = torch.view_as_complex(part.reshape(len(x), -1, *self._code.shape, 2))  # (B, repeats, N, C/2)
        x[:, skip:] = torch.view_as_real(pairs * self._code).reshape(part.shape)
        return x


def attend_memory(
    attention: MemoryAttention, code: Rotary, current: Tensor, position: Tensor, memory: BatchedMemory
) -> Tensor:
    """Frame tokens and their position code (B, N, C) attend to the memories → (B, N, C)."""
    x = current + 0.1 * position if attention.pos_enc_at_input else current
    keys = memory.tokens + memory.positions
    for layer in attention.layers:
        x = _attend_layer(layer, code, x, position, keys, memory)
    out: Tensor = attention.norm(x)
    return out


def _attend_layer(
    layer: MemoryAttentionLayer,
    code: Rotary,
    x: Tensor,
    position: Tensor,
    keys: Tensor,
    memory: BatchedMemory,
) -> Tensor:
    own, cross = layer.self_attn, layer.cross_attn_image
    normed = layer.norm1(x)
    coded = normed + position if layer.pos_enc_at_attn else normed
    q, k = code.project(own.q_proj, coded), code.project(own.k_proj, coded)
    x = x + own.out_proj(_one_head(q, k, own.v_proj(normed)))
    normed = layer.norm2(x)
    coded = normed + position if layer.pos_enc_at_cross_attn_queries else normed
    q = code.project(cross.q_proj, coded)
    coded = keys if layer.pos_enc_at_cross_attn_keys else memory.tokens
    k = code.project(cross.k_proj, coded, memory.pointer_tokens)
    x = x + cross.out_proj(_valid_attention(q, k, cross.v_proj(memory.tokens), memory))
    hidden = layer.activation(layer.linear1(layer.norm3(x)))
    out: Tensor = x + layer.linear2(hidden)
    return out


def _one_head(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]


def _valid_attention(q: Tensor, k: Tensor, v: Tensor, memory: BatchedMemory) -> Tensor:
    """Attention (one head) of q (B, N, C) over the valid tokens of k and v (B, L, C)."""
    if memory.starts is None or memory.lengths is None:
        return _one_head(q, k, v)
    batch, queries, width = q.shape
    fits = width in (128, 256) and queries % TILE.queries == 0 and q.dtype in (torch.bfloat16, torch.float16)
    if q.is_cuda and triton is not None and fits:
        tile = TILE if shared_bytes(q.device) >= _TILE_BYTES else SMALL_TILE
        return _split_attention(q, k, v, memory, tile)
    if not q.is_cuda:  # lengths are on the host: padding costs nothing
        flat = k.flatten(0, 1), v.flatten(0, 1)
        spans = zip(memory.starts.tolist(), memory.lengths.tolist(), strict=True)
        valid_parts = [[each[None, start : start + length] for each in flat] for start, length in spans]
        return torch.cat([_one_head(q[b : b + 1], *part) for b, part in enumerate(valid_parts)])
    index = torch.arange(k.shape[1], device=k.device)[None]
    first = memory.starts[:, None] - torch.arange(batch, device=k.device)[:, None] * k.shape[1]
    valid = (index >= first) & (index < first + memory.lengths[:, None])
    return F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], attn_mask=valid[:, None, None])[
        :, 0
    ]


def _split_attention(q: Tensor, k: Tensor, v: Tensor, memory: BatchedMemory, tile: Tile) -> Tensor:
    """The same with Triton: reads no mask, computes nothing for padding."""
    batch, queries, width = q.shape
    splits = tile.splits
    partial = torch.empty(batch, splits, queries, width, device=q.device)
    peaks, sums = (torch.empty(batch, splits, queries, device=q.device) for _ in range(2))
    out = torch.empty_like(q)
    shape = {"C": width, "N": queries, "SPLITS": splits}
    sam2_kernels.valid_attention[(queries // tile.queries, batch, splits)](
        q,
        k,
        v,
        memory.starts,
        memory.lengths,
        partial,
        peaks,
        sums,
        width**-0.5,
        **shape,
        BLOCK_M=tile.queries,
        BLOCK_N=tile.keys,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    sam2_kernels.merge_valid[(queries // 16, batch)](
        partial, peaks, sums, out, **shape, BLOCK=16, num_warps=4
    )
    return out
