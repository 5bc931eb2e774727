"""SAM 2's four networks by OpenVINO, for CPUs: the same results in less time.

Regions run one by one: on a CPU a batch gains nothing, and fixed shapes do.
Letters: B regions, C model width, M memory width, S input size, N = h·w grid cells, h = w = S / 16, K clicks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor, nn
from torch.nn import functional as F

from pam_ros.model.openvino_network import Free, OpenVinoNetwork, digest
from pam_ros.model.vision import mask_decoder, memory_bank
from pam_ros.model.vision.fast import sam2_ops
from pam_ros.model.vision.fast.sam2_ops import BatchedMemory, attend_memory
from pam_ros.model.vision.features import FrameFeatures
from pam_ros.model.vision.mask_decoder import DecodedMasks, decode_masks
from pam_ros.model.vision.memory_bank import MemoryTokens, fuse_memory

SOURCES = (__file__, mask_decoder.__file__, memory_bank.__file__, sam2_ops.__file__)


class OpenVinoNetworks:
    """Implements `networks.Networks` for a float32 model. Not thread-safe."""

    def __init__(self, sam2: SAM2Base) -> None:
        """Compiles the networks. Raises what OpenVINO raises, and ValueError for an unknown attention."""
        if any(layer.cross_attn_image.num_heads != 1 for layer in sam2.memory_attention.layers):
            raise ValueError("memory attention has several heads")
        size, side, width, memory = (
            sam2.image_size,
            sam2.sam_image_embedding_size,
            sam2.hidden_dim,
            sam2.mem_dim,
        )
        folder = Path(digest([sam2], SOURCES))
        grid, cells, pointers = [1, width, side, side], [1, Free(side**2), memory], [1, Free(8), memory]
        levels = [[1, width // 8, 4 * side, 4 * side], [1, width // 4, 2 * side, 2 * side]]
        mask = [1, 1, 4 * side, 4 * side]
        self._encoder = OpenVinoNetwork(_ImageEncoder(sam2), [[1, 3, size, size]], folder / "encoder.xml")
        self._attention = OpenVinoNetwork(
            _MemoryAttention(sam2), [grid, cells, cells, pointers, pointers], folder / "attention.xml"
        )
        self._decoder = OpenVinoNetwork(
            _MaskDecoder(sam2), [grid, [1, Free(2), width], grid, *levels], folder / "decoder.xml"
        )
        self._memory = OpenVinoNetwork(
            _MemoryEncoder(sam2), [grid, mask, [1, 1], [1, 1]], folder / "memory.xml"
        )

    def encode(self, pixels: Tensor) -> list[Tensor]:
        """See `Networks`."""
        frames = [self._encoder(frame) for frame in torch.split(pixels, 1)]
        return _joined(frames)

    def attend(self, features: FrameFeatures, memory: MemoryTokens) -> Tensor:
        """See `Networks`."""
        cells = len(memory.tokens) - memory.pointer_count
        parts = [
            whole[part].transpose(0, 1)  # (B, L, M)
            for part in (slice(cells), slice(cells, None))
            for whole in (memory.tokens, memory.positions)
        ]
        fused = [
            self._attention(features.embedding, *(part[b : b + 1] for part in parts))
            for b in range(memory.tokens.shape[1])
        ]
        return _joined(fused)[0]

    def decode(
        self, embedding: Tensor, sparse: Tensor, dense: Tensor, high_resolution: Sequence[Tensor]
    ) -> DecodedMasks:
        """See `Networks`."""
        count = len(embedding)
        levels = [level.expand(count, -1, -1, -1) for level in high_resolution]
        inputs = (embedding, sparse, dense, *levels)
        return DecodedMasks(
            *_joined([self._decoder(*(each[b : b + 1] for each in inputs)) for b in range(count)])
        )

    def remember(self, embedding: Tensor, logits: Tensor, present: Tensor, *, binarise: bool) -> Tensor:
        """See `Networks`."""
        count = len(logits)
        frames, flag = embedding.expand(count, -1, -1, -1), torch.full((count, 1), float(binarise))
        inputs = (frames, logits, present.float(), flag)
        return _joined([self._memory(*(each[b : b + 1] for each in inputs)) for b in range(count)])[0]


def _joined(results: Sequence[list[Tensor]]) -> list[Tensor]:
    """Results of one region each → as one batch."""
    return [torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*results, strict=True)]


class _ImageEncoder(nn.Module):
    """Pixels (1, 3, S, S) → levels of the feature pyramid."""

    def __init__(self, sam2: SAM2Base) -> None:
        super().__init__()
        self.sam2 = sam2

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.sam2.forward_image(pixels)["backbone_fpn"][-self.sam2.num_feature_levels :])


class _MemoryAttention(nn.Module):
    """Embedding (1, C, h, w), spatial and pointer tokens, each with codes (1, L, M) → (1, C, h, w)."""

    position: Tensor  # (1, N, C)

    def __init__(self, sam2: SAM2Base) -> None:
        super().__init__()
        self.attention = sam2.memory_attention
        side = sam2.sam_image_embedding_size
        code = sam2.image_encoder.neck.position_encoding(torch.zeros(1, 1, side, side))
        self.register_buffer("position", code.flatten(2).transpose(1, 2).clone())
        self.rotary = _RotaryProjection(
            self.attention.layers[0].self_attn.compute_cis(end_x=side, end_y=side)
        )

    def forward(
        self, embedding: Tensor, cells: Tensor, cell_codes: Tensor, pointers: Tensor, pointer_codes: Tensor
    ) -> Tensor:
        memory = BatchedMemory(
            tokens=torch.cat([pointers, cells], dim=1),
            positions=torch.cat([pointer_codes, cell_codes], dim=1),
            pointer_tokens=pointers.shape[1],
        )
        frame = embedding.flatten(2).transpose(1, 2)
        fused = attend_memory(self.attention, self.rotary, frame, self.position, memory)
        return fused.transpose(1, 2).reshape(embedding.shape)


class _RotaryProjection(nn.Module):
    """A linear layer followed by the axial rotary code, as two products: nothing is shuffled."""

    cosines: Tensor  # (N, C)
    sines: Tensor

    def __init__(self, code: Tensor) -> None:
        """`code`: (N, C/2) complex."""
        super().__init__()
        self.register_buffer("cosines", code.real.float().repeat_interleave(2, dim=1))
        self.register_buffer("sines", code.imag.float().repeat_interleave(2, dim=1))

    def project(self, linear: nn.Linear, x: Tensor, skip: int = 0) -> Tensor:
        """See `sam2_ops.Rotary`."""
        rotated = x[:, skip:]
        shape = (len(x), -1, *self.cosines.shape)
        straight = linear(rotated).reshape(shape)
        turned = F.linear(rotated, _turned(linear.weight), _turned(linear.bias)).reshape(shape)
        out = (straight * self.cosines + turned * self.sines).flatten(1, 2)
        return torch.cat([linear(x[:, :skip]), out], dim=1)


def _turned(weight: Tensor) -> Tensor:
    """Rows (a, b) of each pair → (-b, a): the imaginary unit times the product."""
    first, second = weight[0::2], weight[1::2]
    return torch.stack([-second, first], dim=1).flatten(0, 1)


class _MaskDecoder(nn.Module):
    """See `decode_masks`."""

    position: Tensor  # (1, C, h, w)

    def __init__(self, sam2: SAM2Base) -> None:
        super().__init__()
        self.decoder = sam2.sam_mask_decoder
        self.register_buffer("position", sam2.sam_prompt_encoder.get_dense_pe().detach().clone())

    def forward(
        self, embedding: Tensor, sparse: Tensor, dense: Tensor, stride_4: Tensor, stride_8: Tensor
    ) -> tuple[Tensor, ...]:
        found = decode_masks(self.decoder, embedding, self.position, sparse, dense, (stride_4, stride_8))
        return found.masks, found.ious, found.presence, found.mask_tokens, found.image


class _MemoryEncoder(nn.Module):
    """See `encode_memory`; `present` and `binarise` are 0 or 1, (1, 1)."""

    resize: Tensor  # (S, 4h)

    def __init__(self, sam2: SAM2Base) -> None:
        super().__init__()
        self.sam2 = sam2
        # Bilinear resizing as a product, which is faster here.
        identity = torch.eye(4 * sam2.sam_image_embedding_size)
        resize = F.interpolate(identity[None], size=sam2.image_size, mode="linear", align_corners=False)
        self.register_buffer("resize", resize[0].T.clone())

    def forward(self, embedding: Tensor, logits: Tensor, present: Tensor, binarise: Tensor) -> Tensor:
        masks = self.resize @ logits @ self.resize.T
        masks = (masks > 0).float() * binarise + masks.sigmoid() * (1 - binarise)
        return fuse_memory(self.sam2, embedding, masks, present > 0)
