"""Augments training images on the device: mirror, zoom, light and colour, occlusion."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from pam_ros.training.prompting import random_numbers

COVERED, CUT_AWAY = 0.4, 0.15  # fractions of videos in which something moves in front, or hides everything
ZOOM = (0.5, 1.0)  # fraction of the image that is seen
STRETCH = 0.85  # at least, of one axis against the other
WHOLE = 0.4  # fraction of images that are seen whole, as at inference


def colours(pixels: Tensor, generator: Generator) -> Tensor:
    """(N, T, 3, S, S) uint8 → float 0..255; brightness, contrast and colour vary, but not within a video."""
    count = len(pixels)

    def factor(spread: float, channels: int = 1) -> Tensor:
        noise = random_numbers(generator, count, 1, channels, 1, 1)
        return ((noise * 2 - 1) * spread).exp()

    changed = pixels.float()
    grey = changed.mean((2, 3, 4), keepdim=True)
    changed = (changed - grey) * factor(0.25) + grey * factor(0.25)
    luminance = changed.mean(2, keepdim=True)
    changed = (changed - luminance) * factor(0.3) + luminance
    return (changed * factor(0.06, channels=3)).clamp(0, 255)


def views(
    pixels: Tensor, owners: Tensor, masks: Tensor, generator: Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Mirrors and zooms, in the same way within a video.

    Pixels (N, T, 3, S, S) float, owners (N, T, S, S) int16, masks (N, R, T, S, S) bool.
    """
    count, side = pixels.shape[0], pixels.shape[-1]
    low, high = ZOOM
    zoom = low + (high - low) * random_numbers(generator, count, 1)
    zoom = zoom * (STRETCH + (1 - STRETCH) * random_numbers(generator, count, 2))
    zoom = torch.where(random_numbers(generator, count, 1) < WHOLE, 1.0, zoom)
    shift = (random_numbers(generator, count, 2) * 2 - 1) * (1 - zoom)
    mirror = (random_numbers(generator, count) < 0.5).float() * 2 - 1
    theta = zoom.new_zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = zoom[:, 0] * mirror, zoom[:, 1]
    theta[:, :, 2] = shift
    grid = F.affine_grid(theta, [count, 1, side, side], align_corners=False).to(pixels.dtype)

    def seen(picture: Tensor, mode: str) -> Tensor:
        return F.grid_sample(picture, grid, mode=mode, padding_mode="reflection", align_corners=False)

    moved = seen(pixels.flatten(1, 2), "bilinear").reshape(pixels.shape)
    moved_masks = seen(masks.flatten(1, 2).float(), "nearest").reshape(masks.shape) > 0
    return moved, seen(owners.float(), "nearest").to(owners.dtype), moved_masks


def occlusions(
    pixels: Tensor, owners: Tensor, masks: Tensor, generator: Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Moves a piece of another video in front of some videos, or hides the whole image for a while.

    Tensors are those of `views`, T > 1. The first frame, in which regions are prompted, stays free. Owners of
    covered pixels are 0, and masks leave them out.
    """
    count, frames, _, side, _ = pixels.shape
    chance = random_numbers(generator, count)
    start = 1 + (random_numbers(generator, count) * (frames - 1)).long()
    length = 1 + (random_numbers(generator, count) * (frames - 1)).long()
    size = 0.15 + 0.45 * random_numbers(generator, count, 2)  # (x, y), fractions of the side
    begin, way = random_numbers(generator, count, 2), random_numbers(generator, count, 2) * 1.2 - 0.6
    time = torch.arange(frames, device=pixels.device)
    during = (time >= start[:, None]) & (time < (start + length)[:, None])  # (N, T)
    middle = begin[:, None] + way[:, None] * (time / frames)[None, :, None]  # (N, T, 2)
    grid = (torch.arange(side, device=pixels.device) + 0.5) / side
    inside = (grid - middle[..., None]).abs() < size[:, None, :, None] / 2  # (N, T, 2, S): within x, within y
    cover = inside[:, :, 1, :, None] & inside[:, :, 0, None, :]  # (N, T, S, S)
    cover |= (chance < CUT_AWAY)[:, None, None, None]
    cover &= (during & (chance < CUT_AWAY + COVERED)[:, None])[:, :, None, None]
    covered = torch.where(cover[:, :, None], pixels.roll(1, 0), pixels)
    return covered, owners.masked_fill(cover, 0), masks & ~cover[:, None]
