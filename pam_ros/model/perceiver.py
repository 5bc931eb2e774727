"""Semantic Perceiver (paper, section 3.2): mask tokens, image embedding → semantic tokens, image tokens.

Letters: B regions, C width, T queries (2 mask tokens + K semantic tokens), N = h·w image tokens.
"""

from __future__ import annotations

import torch
from sam2.modeling.position_encoding import PositionEmbeddingRandom
from torch import Tensor, nn
from torch.nn.functional import relu, scaled_dot_product_attention

from pam_ros.model.interface import FIRST_FRAME_STRIDE, LATER_FRAME_STRIDE

MASK_TOKENS = 2  # the stability pick and mask token 0


class Attention(nn.Module):
    """Multi-head attention whose inner width is C / `shrink`."""

    def __init__(self, *, width: int, heads: int, shrink: int = 1) -> None:
        super().__init__()
        inner = width // shrink
        if inner % heads:
            raise ValueError(f"{heads} heads do not divide the attention's width {inner}")
        self.heads = heads
        self.q_proj = nn.Linear(width, inner)
        self.k_proj = nn.Linear(width, inner)
        self.v_proj = nn.Linear(width, inner)
        self.out_proj = nn.Linear(inner, width)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, Tq, C), (B, Tk, C), (B, Tk, C) → (B, Tq, C)."""

        def split(x: Tensor) -> Tensor:  # (B, T, inner) → (B, heads, T, inner / heads)
            return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)

        q, k, v = split(self.q_proj(q)), split(self.k_proj(k)), split(self.v_proj(v))
        out = scaled_dot_product_attention(q, k, v)
        projected: Tensor = self.out_proj(out.transpose(1, 2).flatten(2))
        return projected


class TwoLayerMlp(nn.Module):
    """Linear, ReLU, linear, under SAM's weight names."""

    def __init__(self, *, width: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(width, hidden), nn.Linear(hidden, width)])

    def forward(self, x: Tensor) -> Tensor:
        """(…, C) → (…, C)."""
        out: Tensor = self.layers[1](relu(self.layers[0](x)))
        return out


class TwoWayBlock(nn.Module):
    """Queries look at each other and at the image, then the image looks back at the queries."""

    def __init__(self, *, width: int, heads: int, hidden: int, first: bool) -> None:
        super().__init__()
        self.first = first  # in the first block the queries are still their own position code
        self.self_attn = Attention(width=width, heads=heads)
        self.norm1 = nn.LayerNorm(width)
        self.cross_attn_token_to_image = Attention(width=width, heads=heads, shrink=2)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = TwoLayerMlp(width=width, hidden=hidden)
        self.norm3 = nn.LayerNorm(width)
        self.norm4 = nn.LayerNorm(width)
        self.cross_attn_image_to_token = Attention(width=width, heads=heads, shrink=2)

    def forward(
        self, queries: Tensor, keys: Tensor, query_code: Tensor, key_code: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Queries (B, T, C), keys (B, N, C) and their position codes → updated queries and keys."""
        if self.first:
            queries = self.self_attn(queries, queries, queries)
        else:
            q = queries + query_code
            queries = queries + self.self_attn(q, q, queries)
        queries = self.norm1(queries)
        k = keys + key_code
        queries = self.norm2(queries + self.cross_attn_token_to_image(queries + query_code, k, keys))
        queries = self.norm3(queries + self.mlp(queries))
        keys = self.norm4(keys + self.cross_attn_image_to_token(k, queries + query_code, queries))
        return queries, keys


class SemanticPerceiver(nn.Module):
    """Reads a region's decoder_features; gives K semantic tokens and the image tokens at fine or coarse density."""

    def __init__(self, *, width: int, semantic_tokens: int, depth: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.width = width
        self.pe_layer = PositionEmbeddingRandom(width // 2)
        self.sem_tokens = nn.Embedding(semantic_tokens, width)
        self.layers = nn.ModuleList(
            TwoWayBlock(width=width, heads=heads, hidden=hidden, first=i == 0) for i in range(depth)
        )
        self.final_attn_token_to_image = Attention(width=width, heads=heads, shrink=2)
        self.norm_final_attn = nn.LayerNorm(width)
        self.proj = nn.Linear(width * LATER_FRAME_STRIDE**2, width * FIRST_FRAME_STRIDE**2)

    def forward(self, image: Tensor, mask_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, h, w) and (B, 2, C) → semantic tokens (B, K, C) and refined image tokens (B, h, w, C)."""
        count, _, height, width = image.shape
        code = self.pe_layer((height, width)).to(image.dtype).flatten(1).T[None]  # (1, N, C)
        keys = image.flatten(2).transpose(1, 2)
        queries = torch.cat([mask_tokens, self.sem_tokens.weight[None].expand(count, -1, -1)], dim=1)
        query_code = queries
        for layer in self.layers:
            queries, keys = layer(queries, keys, query_code, code)
        looked = self.final_attn_token_to_image(queries + query_code, keys + code, keys)
        queries = self.norm_final_attn(queries + looked)
        return queries[:, MASK_TOKENS:], keys.view(count, height, width, -1)

    def shuffle(self, image: Tensor, *, stride: int) -> Tensor:
        """Refined image tokens (B, h, w, C) → (B, h·w / stride², 4·C)."""
        tokens = pixel_shuffle(image, stride)
        return tokens if stride == FIRST_FRAME_STRIDE else self.proj(tokens)


def pixel_shuffle(image: Tensor, stride: int) -> Tensor:
    """(B, h, w, C) → (B, h·w / stride², stride²·C).

    Token i is row `i % (h/stride)`, column `i // (h/stride)` (column-major); channel blocks in the
    order (row 0, column 0), (0, 1), … , (stride-1, stride-1). This order is the reference's.
    """
    count, height, width, channels = image.shape
    blocks = image.reshape(count, height // stride, stride, width // stride, stride, channels)
    return blocks.permute(0, 3, 1, 2, 4, 5).flatten(3).flatten(1, 2)
