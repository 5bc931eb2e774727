"""Frames → the image encoder's input, on the device: PIL's bicubic resize to the last bit, normalised.

PIL resizes uint8 images in two passes with fixed-point weights and rounding in between; this
computes the same integers on a device, with Triton or with torch.

Letters: H, W height and width of a frame, S side of the square input, K reach of the filter, pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

try:
    import triton

    from pam_ros.model.vision.fast.kernels.resize import resize_across, resize_along
except ImportError:  # no Triton: a CPU-only build of torch
    triton = None

PIL_MAJOR = int(PIL.__version__.split(".")[0])
PRECISION_BITS = 22  # PIL's: 32 bits less 8 of a pixel and 2 for weights that overshoot
CUBIC = -0.5  # PIL's parameter of the bicubic filter
SUPPORT = 2.0  # pixels to each side that the filter reaches


class Preprocessor:
    """uint8 RGB frames → normalised encoder input (1, 3, S, S)."""

    def __init__(
        self,
        *,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.size = size
        self.device = device
        levels = torch.arange(256, device=device).float()[None] / 255
        shape = (3, 1)
        means, stds = (torch.tensor(values, device=device).view(shape) for values in (mean, std))
        self._table = ((levels - means) / stds).to(dtype)  # (3, 256): each channel's value of each byte
        self._staging = [_Staging(), _Staging()]  # one is filled while the other is sent

    def upload(self, image: NDArray[np.uint8]) -> Tensor:
        """(H, W, 3) uint8 RGB → the same on the device; `image` may change as soon as this returns."""
        if self.device.type != "cuda":
            return torch.from_numpy(np.ascontiguousarray(image))
        self._staging.reverse()
        return self._staging[0].send(image, self.device)

    def pixels(self, image: Tensor) -> Tensor:
        """(H, W, 3) uint8 on the device, a crop's view too → (1, 3, S, S); the aspect ratio is not kept."""
        if image.is_cuda and triton is not None:
            return self._kernel_pixels(image)
        resized = resize(image, self.size)
        channels = torch.arange(3, device=image.device)[:, None, None]
        return self._table[channels, resized.permute(2, 0, 1).long()][None]

    def _kernel_pixels(self, image: Tensor) -> Tensor:
        height, width, _ = image.shape
        if image.stride()[1:] != (3, 1):
            image = image.contiguous()
        size, block = self.size, 256
        lines, length, strides, out_strides = height, width, (image.stride(0), 3), (size, 1)
        if vertical_first(height, width, size):
            lines, length, strides, out_strides = width, height, strides[::-1], out_strides[::-1]
        first, weights = filter_weights(length, size, image.device)
        resized = torch.empty(lines, size, 3, dtype=torch.uint8, device=image.device)
        resize_along[(lines, triton.cdiv(size * 3, block))](
            image, resized, first, weights, *strides, weights.shape[1], S=size, BLOCK=block
        )
        first, weights = filter_weights(lines, size, image.device)
        out = torch.empty(1, 3, size, size, dtype=self._table.dtype, device=image.device)
        resize_across[(size, triton.cdiv(size * 3, block))](
            resized, out, first, weights, self._table, *out_strides, weights.shape[1], S=size, BLOCK=block
        )
        return out


def vertical_first(height: int, width: int, size: int) -> bool:
    """Whether PIL runs the vertical pass first; the order matters, because each pass rounds and clips."""
    if PIL_MAJOR >= 13:
        return height > size and height - size > 2 * (width - size)
    return height > 100 * width and height > size


def resize(image: Tensor, size: int) -> Tensor:
    """(H, W, 3) uint8 → (S, S, 3) uint8: PIL on the host, its equal on a device."""
    if image.device.type == "cpu":
        return torch.from_numpy(np.array(Image.fromarray(image.numpy()).resize((size, size))))
    return torch_resize(image, size)


def torch_resize(image: Tensor, size: int) -> Tensor:
    """(H, W, 3) uint8 → (S, S, 3) uint8, as PIL's `Image.resize((S, S))`."""
    if vertical_first(image.shape[0], image.shape[1], size):
        return _resize_first_axis(_resize_first_axis(image, size).transpose(0, 1), size).transpose(0, 1)
    return _resize_first_axis(_resize_first_axis(image.transpose(0, 1), size).transpose(0, 1), size)


def _resize_first_axis(image: Tensor, size: int) -> Tensor:
    """(L, M, 3) uint8 → (S, M, 3) uint8."""
    length = image.shape[0]
    if length == size:
        return image
    first, weights = filter_weights(length, size, image.device)
    total = torch.full(
        (size, *image.shape[1:]), 1 << (PRECISION_BITS - 1), dtype=torch.int32, device=image.device
    )
    for k in range(weights.shape[1]):  # pixels beyond the border weigh 0
        source = image[(first + k).clamp(max=length - 1).long()].int()
        total.addcmul_(source, weights[:, k, None, None])
    return (total >> PRECISION_BITS).clamp_(0, 255).byte()


@lru_cache(maxsize=64)
def filter_weights(length: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """First pixels (S) and fixed-point weights (S, K), int32, of a pass from `length` to `size` pixels."""
    scale = length / size
    stretch = max(scale, 1.0)
    reach = SUPPORT * stretch
    support = int(np.ceil(reach)) * 2 + 1
    center = (np.arange(size) + 0.5) * scale
    first = np.maximum((center - reach + 0.5).astype(np.int64), 0)
    last = np.minimum((center + reach + 0.5).astype(np.int64), length)
    offset = np.arange(support)
    weights = _bicubic((offset + first[:, None] - center[:, None] + 0.5) * (1.0 / stretch))
    weights[offset >= (last - first)[:, None]] = 0.0
    total = np.zeros(size)
    for k in range(support):  # in PIL's order, so that the sums agree to the last bit
        total += weights[:, k]
    weights = np.where(total[:, None] != 0, weights / np.where(total == 0, 1, total)[:, None], weights)
    fixed = np.trunc(weights * (1 << PRECISION_BITS) + np.where(weights < 0, -0.5, 0.5)).astype(np.int32)
    tensors = torch.from_numpy(first.astype(np.int32)), torch.from_numpy(fixed)
    return tensors[0].to(device), tensors[1].to(device)


def _bicubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    x = np.abs(x)
    near = ((CUBIC + 2.0) * x - (CUBIC + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * CUBIC
    return np.where(x < 1.0, near, np.where(x < SUPPORT, far, 0.0))


class _Staging:
    """Pinned memory for one frame on its way to the device."""

    def __init__(self) -> None:
        self._pinned: Tensor | None = None
        self._sent: torch.cuda.Event | None = None

    def send(self, image: NDArray[np.uint8], device: torch.device) -> Tensor:
        """Copies a frame to the device without waiting."""
        if self._pinned is None or self._pinned.numel() < image.size:
            self._pinned = torch.empty(image.size, dtype=torch.uint8, pin_memory=True)
        elif self._sent is not None:
            self._sent.synchronize()  # the frame before has left
        pinned = self._pinned[: image.size].view(image.shape)
        np.copyto(pinned.numpy(), image)
        sent = pinned.to(device, non_blocking=True)
        self._sent = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._sent.record()
        return sent
