"""Random views of training pictures, on the device: mirror, zoom, light and colour, things in the way."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

COVERED, CUT_AWAY = 0.4, 0.15  # shares of videos in which something moves in front, or the view is gone
ZOOM = (0.65, 1.0)  # share of the picture that is seen


def colours(pixels: Tensor, generator: Generator) -> Tensor:
    """(N, T, 3, S, S) uint8 → float 0..255, brightness, contrast and colour changed, alike within a video."""
    count = len(pixels)

    def factor(spread: float, channels: int = 1) -> Tensor:
        noise = torch.rand(count, 1, channels, 1, 1, generator=generator)
        return ((noise * 2 - 1) * spread).exp().to(pixels.device)

    changed = pixels.float()
    grey = changed.mean((2, 3, 4), keepdim=True)
    changed = (changed - grey) * factor(0.25) + grey * factor(0.25)
    luminance = changed.mean(2, keepdim=True)
    changed = (changed - luminance) * factor(0.3) + luminance
    return (changed * factor(0.06, channels=3)).clamp(0, 255)


def views(pixels: Tensor, masks: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Pixels (N, T, 3, S, S) float, masks (N, R, T, S, S) bool: mirrored and zoomed, alike within a video."""
    count, side = pixels.shape[0], pixels.shape[-1]
    zoom = torch.empty(count, 2).uniform_(*ZOOM, generator=generator)
    shift = (torch.rand(count, 2, generator=generator) * 2 - 1) * (1 - zoom)
    mirror = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = zoom[:, 0] * mirror, zoom[:, 1]
    theta[:, :, 2] = shift
    grid = F.affine_grid(theta, [count, 1, side, side], align_corners=False).to(pixels.device)
    grid = grid.to(pixels.dtype)
    seen = F.grid_sample(
        pixels.flatten(1, 2), grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )
    regions = masks.flatten(1, 2)  # (N, R·T, S, S)
    moved = F.grid_sample(
        regions.to(pixels.dtype), grid, mode="nearest", padding_mode="reflection", align_corners=False
    )
    return seen.reshape(pixels.shape), (moved > 0.5).reshape(masks.shape)


def occlusions(pixels: Tensor, masks: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Videos (N, T, 3, S, S), masks (N, R, T, S, S), T > 1: a piece of another video moves in front, or all.

    The first frame, where regions are prompted, stays free.
    """
    count, frames, _, side, _ = pixels.shape
    chance = torch.rand(count, generator=generator)
    start = torch.randint(1, frames, (count,), generator=generator)
    length = torch.randint(1, frames, (count,), generator=generator)
    size = torch.empty(count, 2).uniform_(0.15, 0.6, generator=generator)  # (x, y), shares of the side
    begin, way = (
        torch.rand(count, 2, generator=generator),
        torch.empty(count, 2).uniform_(-0.6, 0.6, generator=generator),
    )
    time = torch.arange(frames)
    during = (time >= start[:, None]) & (time < (start + length)[:, None])  # (N, T)
    middle = begin[:, None] + way[:, None] * (time / frames)[None, :, None]  # (N, T, 2)
    grid = (torch.arange(side) + 0.5) / side
    inside = (grid - middle[..., None]).abs() < size[:, None, :, None] / 2  # (N, T, 2, S): within x, within y
    cover = inside[:, :, 1, :, None] & inside[:, :, 0, None, :]  # (N, T, S, S)
    cover |= (chance < CUT_AWAY)[:, None, None, None]
    cover &= (during & (chance < CUT_AWAY + COVERED)[:, None])[:, :, None, None]
    cover = cover.to(pixels.device)
    return torch.where(cover[:, :, None], pixels.roll(1, 0), pixels), masks & ~cover[:, None]
