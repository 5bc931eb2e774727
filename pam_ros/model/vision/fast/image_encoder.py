"""SAM 2's image encoder with few passes over memory: norm, residual and window partition are one kernel.

It computes what package sam2 does. Blocks that change the width or the grid run unchanged.

Letters: H, W grid of a stage, C its width, T = H·W tokens.
"""

from __future__ import annotations

import torch
from sam2.modeling.backbones.hieradet import Hiera, MultiScaleBlock
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor, nn
from torch.nn import functional as F

try:
    import triton

    from pam_ros.model.vision.fast.kernels import sam2 as sam2_kernels
except ImportError:  # no Triton: a CPU-only build of torch
    triton = None


class ImageEncoder:
    """Pixels → the levels of the feature pyramid that SAM 2's decoder reads."""

    def __init__(self, sam2: SAM2Base, *, fused: bool = True) -> None:
        self._sam2 = sam2
        self._trunk: Hiera = sam2.image_encoder.trunk
        self._fused = fused and triton is not None and sam2.no_mem_embed.is_cuda
        self._position: Tensor | None = None  # (1, H, W, C) of the trunk's first grid

    def levels(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(1, 3, S, S) → strides 4, 8 and 16: (1, C/8, …), (1, C/4, …), (1, C, S/16, S/16)."""
        sam2 = self._sam2
        if not self._fused:
            levels = sam2.forward_image(pixels)["backbone_fpn"][-sam2.num_feature_levels :]
            return levels[0], levels[1], levels[2]
        neck, decoder = sam2.image_encoder.neck, sam2.sam_mask_decoder
        features, _ = neck(self._stages(pixels))
        kept = features[: len(features) - sam2.image_encoder.scalp] if sam2.image_encoder.scalp else features
        stride_4, stride_8, embedding = kept[-3:]
        return decoder.conv_s0(stride_4), decoder.conv_s1(stride_8), embedding

    def _stages(self, pixels: Tensor) -> list[Tensor]:
        """Outputs of the trunk's stages, each (1, C, H, W)."""
        trunk = self._trunk
        x = trunk.patch_embed(pixels)
        if self._position is None:
            self._position = trunk._get_pos_embed(x.shape[1:3]).contiguous()
        x = (x + self._position).contiguous()
        outputs: list[Tensor] = []
        delta: Tensor | None = None  # the last block's MLP output, not added yet
        for index, block in enumerate(trunk.blocks):
            if _is_plain(block, x):
                x, delta = _run_block(block, x, delta)
            else:
                x, delta = block(x if delta is None else x + delta.view_as(x)).contiguous(), None
            if index in trunk.stage_ends:
                if delta is not None:
                    x, delta = x + delta.view_as(x), None
                outputs.append(x.permute(0, 3, 1, 2))
        return outputs


def _is_plain(block: MultiScaleBlock, x: Tensor) -> bool:
    """Whether a block keeps its grid and width and its windows tile the grid."""
    fits = block.window_size == 0 or all(side % block.window_size == 0 for side in x.shape[1:3])
    return fits and block.dim == block.dim_out and not block.q_stride


def _run_block(block: MultiScaleBlock, x: Tensor, delta: Tensor | None) -> tuple[Tensor, Tensor]:
    """Overwrites x (1, H, W, C); returns it, and the MLP's output (T, C), not added yet."""
    normed = _add_norm(x, delta, block.norm1, block.window_size, out_windowed=True)
    normed = _add_norm(x, _attend(block, normed), block.norm2, block.window_size, delta_windowed=True)
    first, second = block.mlp.layers
    # The encoder's peak of memory: attention's tensors are gone, and GELU works in place.
    hidden = torch.ops.aten.gelu_(F.linear(normed, first.weight, first.bias))
    return x, F.linear(hidden, second.weight, second.bias)


def _attend(block: MultiScaleBlock, normed: Tensor) -> Tensor:
    """Attention within windows: (T, C), window after window, → the same."""
    tokens, channels = normed.shape
    heads, length = block.attn.num_heads, block.window_size**2 or tokens
    qkv = F.linear(normed, block.attn.qkv.weight, block.attn.qkv.bias)
    q, k, v = qkv.view(tokens // length, length, 3, heads, channels // heads).permute(2, 0, 3, 1, 4)
    attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(tokens, channels)
    return F.linear(attended, block.attn.proj.weight, block.attn.proj.bias)


def _add_norm(
    x: Tensor,
    delta: Tensor | None,
    norm: nn.LayerNorm,
    window: int,
    *,
    delta_windowed: bool = False,
    out_windowed: bool = False,
) -> Tensor:
    """x (1, H, W, C) += delta (T, C); returns its norm (T, C). Windowed: window after window."""
    _, height, width, channels = x.shape
    tokens = height * width
    out = torch.empty(tokens, channels, dtype=x.dtype, device=x.device)
    block_c = triton.next_power_of_2(channels)
    block_t = max(1, 2048 // block_c)
    sam2_kernels.add_layer_norm[(triton.cdiv(tokens, block_t),)](
        x,
        x if delta is None else delta,
        norm.weight,
        norm.bias,
        out,
        norm.eps,
        tokens,
        C=channels,
        BLOCK_C=block_c,
        BLOCK_T=block_t,
        WIDTH=width,
        WINDOW=window,
        ADD=delta is not None,
        DELTA_WINDOWED=delta_windowed,
        OUT_WINDOWED=out_windowed,
        num_warps=4,
    )
    return out
