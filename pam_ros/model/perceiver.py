"""Semantic Perceiver (paper, section 3.2): mask tokens, image embedding → semantic tokens, image tokens.

Letters: B regions, C width, T queries (2 mask tokens + K semantic tokens), N = h·w image tokens.
"""

from __future__ import annotations

import torch
from sam2.modeling.position_encoding import PositionEmbeddingRandom
from sam2.modeling.sam.transformer import Attention, TwoWayAttentionBlock
from torch import Tensor, nn

from pam_ros.model.interface import FIRST_FRAME_STRIDE, LATER_FRAME_STRIDE

MASK_TOKENS = 2  # the stability pick and mask token 0
ATTENTION_SHRINK = 2  # the inner width of cross attention is C / 2


class SemanticPerceiver(nn.Module):
    """Reads a region's decoder features; returns K semantic tokens and refined image tokens.

    Its attention blocks are SAM 2's own, under SAM 2's weight names.
    """

    def __init__(self, *, width: int, semantic_tokens: int, depth: int, heads: int, hidden: int) -> None:
        """Raises ValueError if `heads` does not divide the inner width of every attention."""
        super().__init__()
        if width // ATTENTION_SHRINK % heads or width % heads:
            raise ValueError(f"attention width {width // ATTENTION_SHRINK} is not divisible by {heads} heads")
        self.width = width
        self.pe_layer = PositionEmbeddingRandom(width // 2)
        self.sem_tokens = nn.Embedding(semantic_tokens, width)
        self.layers = nn.ModuleList(
            TwoWayAttentionBlock(width, heads, hidden, skip_first_layer_pe=i == 0) for i in range(depth)
        )
        self.final_attn_token_to_image = Attention(width, heads, downsample_rate=ATTENTION_SHRINK)
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
        attended = self.final_attn_token_to_image(queries + query_code, keys + code, keys)
        queries = self.norm_final_attn(queries + attended)
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
