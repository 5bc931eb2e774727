"""Matrices with int8 or int4 weights, in torchao's layouts: how they multiply, join and part.

Letters: N outputs, K inputs, T rows, G inputs of a group, whose weights share a scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

try:
    import triton

    from pam_ros.model.text.fast.kernels import int4 as int4_kernels
    from pam_ros.model.text.fast.kernels import linear as linear_kernels
except ImportError:  # no Triton: a CPU-only build of torch
    triton = None

# Rows up to which a product unpacks the weights on its way; for more they are unpacked first.
INT4_ROWS, INT8_CPU_ROWS = 16, 16
WIDENING_BLOCK = 4096  # weights that a program widens
UNPACKING_BLOCK = 128  # pairs of inputs of eight outputs that a program unpacks
TILE_OUTPUTS, TILE_INPUTS = 8, 128  # of a tile of `Int4Matrix.words`


@dataclass(frozen=True, slots=True, eq=False)
class Int8Matrix:
    """int8 weights with one scale for each output: torchao's Int8Tensor."""

    values: Tensor  # (N, K) int8
    scales: Tensor  # (N) float32

    @property
    def shape(self) -> torch.Size:
        """(N, K)."""
        return self.values.shape

    @property
    def nbytes(self) -> int:
        """Bytes of weights and scales."""
        return self.values.nbytes + self.scales.nbytes

    def linear(self, x: Tensor) -> Tensor:
        """x (T, K) → (T, N)."""
        if x.device.type == "cpu" and len(x) <= INT8_CPU_ROWS:
            low = x.to(torch.bfloat16)  # the dtype that this kernel is fast in
            return torch._weight_int8pack_mm(low, self.values, self.scales.to(low.dtype)).to(x.dtype)
        if x.dtype is torch.float16:  # sums of unscaled weights would overflow
            return F.linear(x, (self.values * self.scales[:, None]).to(x.dtype))
        return F.linear(x, self._widened(x.dtype)).mul_(self.scales.to(x.dtype))

    def _widened(self, dtype: torch.dtype) -> Tensor:
        """The values without their scales (N, K). PyTorch's own conversion takes several times as long."""
        if not self.values.is_cuda or triton is None:
            return self.values.to(dtype)
        wide = torch.empty(self.shape, dtype=dtype, device=self.values.device)
        count = self.values.numel()
        grid = (triton.cdiv(count, WIDENING_BLOCK),)
        with torch.cuda.device(wide.device):
            linear_kernels.widen[grid](self.values, wide, count, BLOCK=WIDENING_BLOCK, num_warps=4)
        return wide

    def part(self, start: int, count: int) -> Int8Matrix:
        """`count` outputs from `start` on, as a view."""
        return Int8Matrix(self.values.narrow(0, start, count), self.scales.narrow(0, start, count))

    @staticmethod
    def joined(parts: Sequence[Int8Matrix]) -> Int8Matrix:
        """One matrix with the outputs of all."""
        return Int8Matrix(
            torch.cat([each.values for each in parts]), torch.cat([each.scales for each in parts])
        )


@dataclass(frozen=True, slots=True, eq=False)
class Int4Matrix:
    """int4 weights on a CUDA device: torchao's Int4TilePackedTo4dTensor, without its padding of whole tiles.

    A weight is (its four bits - 8) * scale + zero. Tiles are of 8 outputs and 128 inputs; word j of the four
    that lane l holds has the inputs p, p + 8, p + 16, p + 24, p + 1, p + 9, p + 17, p + 25 of output l // 4,
    lowest bits first, where p = 32 * j + 2 * (l % 4).
    """

    words: Tensor  # (N / 8, tiles of 128 inputs, 32 lanes, 4) int32
    scales: Tensor  # (groups, N, 2) bfloat16: scale and zero
    inputs: int  # K
    group: int  # G: 32, 64 or 128

    @property
    def shape(self) -> torch.Size:
        """(N, K)."""
        return torch.Size((TILE_OUTPUTS * len(self.words), self.inputs))

    @property
    def nbytes(self) -> int:
        """Bytes of weights and scales."""
        return self.words.nbytes + self.scales.nbytes

    def linear(self, x: Tensor) -> Tensor:
        """x (T, K) → (T, N)."""
        if not x.is_cuda or len(x) > INT4_ROWS:
            return F.linear(x, self.dense(x.dtype))
        low = x.to(torch.bfloat16)
        if padding := TILE_INPUTS * self.words.shape[1] - self.inputs:
            low = F.pad(low, (0, padding))
        product = torch._weight_int4pack_mm(low, self.words, self.group, self.scales.contiguous())
        return product.to(x.dtype)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weights (N, K)."""
        if self.words.is_cuda and triton is not None:
            dense = torch.empty(self.shape, dtype=dtype, device=self.words.device)
            tiles = self.words.shape[1]
            grid = (len(self.words), triton.cdiv(TILE_INPUTS // 2 * tiles, UNPACKING_BLOCK))
            with torch.cuda.device(dense.device):
                int4_kernels.unpack_int4[grid](
                    self.words,
                    self.scales.view(torch.int32),
                    dense,
                    self.scales.stride(0) // 2,
                    K=self.inputs,
                    TILES=tiles,
                    GROUP=self.group,
                    BLOCK=UNPACKING_BLOCK,
                    num_warps=4,
                )
            return dense
        return self._unpacked(dtype)

    def _unpacked(self, dtype: torch.dtype) -> Tensor:
        rows, tiles = self.words.shape[:2]
        shifts = 4 * torch.arange(8, device=self.words.device)
        bits = (self.words[..., None] >> shifts) & 15
        # (rows, tiles, output, pair, j, odd, eighth) → rows, output, tiles, j, eighth, pair, odd
        ordered = bits.view(rows, tiles, 8, 4, 4, 2, 4).permute(0, 2, 1, 4, 6, 3, 5)
        values = ordered.reshape(8 * rows, TILE_INPUTS * tiles)[:, : self.inputs].float() - 8
        scale, zero = self.scales.float().repeat_interleave(self.group, 0)[: self.inputs].unbind(-1)
        return (values * scale.T + zero.T).to(dtype)

    def part(self, start: int, count: int) -> Int4Matrix:
        """`count` outputs from `start` on, as a view."""
        words = self.words.narrow(0, start // TILE_OUTPUTS, count // TILE_OUTPUTS)
        return replace(self, words=words, scales=self.scales.narrow(1, start, count))

    @staticmethod
    def joined(parts: Sequence[Int4Matrix]) -> Int4Matrix:
        """One matrix with the outputs of all."""
        words, scales = [each.words for each in parts], [each.scales for each in parts]
        return replace(parts[0], words=torch.cat(words), scales=torch.cat(scales, dim=1))


@dataclass(frozen=True, slots=True, eq=False)
class Int4CpuMatrix:
    """int4 weights on a CPU: torchao's Int4OpaqueTensor, in a layout that its kernel alone knows."""

    packed: Tensor  # (N, K / 2) uint8
    scales: Tensor  # (groups, N, 2) bfloat16: scale and zero
    group: int  # G

    @property
    def shape(self) -> torch.Size:
        """(N, K)."""
        return torch.Size((len(self.packed), 2 * self.packed.shape[1]))

    @property
    def nbytes(self) -> int:
        """Bytes of weights and scales."""
        return self.packed.nbytes + self.scales.nbytes

    def linear(self, x: Tensor) -> Tensor:
        """x (T, K) → (T, N)."""
        low = x.to(torch.bfloat16)
        return torch._weight_int4pack_mm_for_cpu(low, self.packed, self.group, self.scales).to(x.dtype)


Quantized = Int8Matrix | Int4Matrix | Int4CpuMatrix
Matrix = Tensor | Int8Matrix | Int4Matrix  # what the fast engine reads


def linear(x: Tensor, matrix: Tensor | Quantized, bias: Tensor | None = None) -> Tensor:
    """x (T, K) · matrix (N, K)ᵀ + bias (N) → (T, N)."""
    if isinstance(matrix, Tensor):
        return F.linear(x, matrix, bias)
    product = matrix.linear(x)
    return product if bias is None else product.add_(bias)


class QuantizedLinear(nn.Module):
    """A linear layer with quantised weights, which are no parameters: `to` leaves them where they are."""

    def __init__(self, matrix: Quantized, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.matrix = matrix
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """x (…, K) → (…, N)."""
        return linear(x.flatten(0, -2), self.matrix, self.bias).view(*x.shape[:-1], self.matrix.shape[0])

    def extra_repr(self) -> str:
        """A short description."""
        return f"{type(self.matrix).__name__}, {self.matrix.shape[1]} → {self.matrix.shape[0]}"
