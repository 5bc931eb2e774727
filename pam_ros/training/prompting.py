"""Draws prompts from true masks as a user would give them: clicks, imprecise boxes, corrections.

Generators are on the device of the masks.

Letters: B regions, S side of the input, K clicks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

ONE_CLICK = 0.75  # fraction of the regions that are not prompted by a box alone
BOX_JITTER = 0.08  # standard deviation of a box corner, as a fraction of the box side
MIN_PIXELS = 24  # least size of a region in its first frame, at input size
MOST_PROCESSES = 4096  # a step's seed is a multiple of it, plus the process's number
QUARTER = 4  # pixels: resolution of neighbourhoods, since large windows would take most of a step


class Clicks(NamedTuple):
    """Prompts of B regions with K clicks each; a box is its two corners, labelled 2 and 3."""

    points: Tensor  # (B, K, 2) float32 (x, y) input pixels
    labels: Tensor  # (B, K) int32: 1 on the region, 0 not on it, 2 and 3 box corners


def random_numbers(generator: Generator, *shape: int) -> Tensor:
    """Uniform 0..1, on the generator's device."""
    return torch.rand(shape, generator=generator, device=generator.device)


def on_host(generator: Generator, purpose: int) -> Generator:
    """A generator on the host, one for each purpose, for choices that must not wait for the device.

    It is the same in all processes, so that none waits for another's longer step.
    """
    return Generator().manual_seed(generator.initial_seed() // MOST_PROCESSES * 16 + purpose)


def _pick(weights: Tensor) -> Tensor:
    """(B, S, S) → (B, 2) float32 (x, y) of the largest value."""
    flat = weights.flatten(1).argmax(1)
    side = weights.shape[2]
    return torch.stack([flat % side, flat // side], dim=1).float()


def _nearby(masks: Tensor, side: int, pool: Callable[..., Tensor]) -> Tensor:
    """(B, S, S) float → (B, S, S): `pool` over about `side` pixels around each, at a QUARTER resolution."""
    quarter = F.avg_pool2d(masks[:, None], QUARTER)
    window = max(3, side // QUARTER) | 1
    found = pool(quarter, window, stride=1, padding=window // 2)
    return F.interpolate(found, size=masks.shape[1:], mode="nearest")[:, 0]


def click(masks: Tensor, generator: Generator) -> Clicks:
    """One positive click for each of (B, S, S) bool: half of them anywhere, half well inside."""
    inside = masks.float()
    noise = random_numbers(generator, *masks.shape)
    depth = _nearby(inside, masks.shape[2] // 16, F.avg_pool2d)
    central = random_numbers(generator, len(masks)) < 0.5
    weights = torch.where(central[:, None, None], depth + 0.2 * noise, noise)
    points = _pick((weights + 1e-3) * inside)
    return Clicks(points[:, None], torch.ones(len(masks), 1, dtype=torch.int32, device=masks.device))


def tight_boxes(masks: Tensor) -> Tensor:
    """(…, S, S) bool → (…, 4) float32 (x1, y1, x2, y2), far edges exclusive; (0, 0, S, S) if empty."""
    side, sides = masks.shape[-1], (masks.any(-2).int(), masks.any(-1).int())
    low = [seen.argmax(-1) for seen in sides]
    high = [side - seen.flip(-1).argmax(-1) for seen in sides]
    return torch.stack([*low, *high], dim=-1).float()


def box(masks: Tensor, generator: Generator) -> Clicks:
    """Tight boxes of (B, S, S) bool, two thirds of them jittered; (0, 0, S, S) if a mask is empty."""
    side, corners = masks.shape[2], tight_boxes(masks).reshape(-1, 2, 2)
    spread = (corners[:, 1:] - corners[:, :1]) * BOX_JITTER
    noise = torch.randn(len(masks), 2, 2, generator=generator, device=masks.device).clamp(-1.5, 1.5)
    shaken = random_numbers(generator, len(masks), 1, 1) < 2 / 3
    corners = torch.where(shaken, corners + noise * spread, corners).clamp(0, side)
    labels = torch.arange(2, 4, dtype=torch.int32, device=masks.device).expand(len(masks), -1)
    return Clicks(corners, labels)


def correction(truth: Tensor, found: Tensor, generator: Generator) -> Clicks:
    """One click in the error of each of (B, S, S) bool masks: positive on a missed pixel, else negative."""
    wrong = truth ^ found
    none = ~wrong.flatten(1).any(1)
    wrong = torch.where(none[:, None, None], truth, wrong)
    depth = _nearby(wrong.float(), truth.shape[2] // 32, F.avg_pool2d)
    points = _pick((depth + 0.3 * random_numbers(generator, *truth.shape) + 1e-3) * wrong)
    rows = torch.arange(len(truth), device=truth.device)
    labels = truth[rows, points[:, 1].long(), points[:, 0].long()].int()
    return Clicks(points[:, None], labels[:, None])


def joined(*parts: Clicks) -> Clicks:
    """Clicks of the same regions, one after the other."""
    return Clicks(
        torch.cat([part.points for part in parts], dim=1), torch.cat([part.labels for part in parts], dim=1)
    )


def first_prompts(masks: Tensor, generator: Generator, box_fraction: float) -> list[Clicks]:
    """Prompts for three groups of consecutive regions, B in all: a click; a box; a richer prompt."""
    count = len(masks)
    clicked = round(ONE_CLICK * (1 - box_fraction) * count)
    boxed = clicked + round(box_fraction * count)
    groups = []
    if clicked:
        groups.append(click(masks[:clicked], generator))
    if boxed > clicked:
        groups.append(box(masks[clicked:boxed], generator))
    rest = masks[boxed:]
    if len(rest):
        choice = int(torch.randint(3, (1,), generator=on_host(generator, 1)))
        around = _nearby(rest.float(), rest.shape[2] // 24, F.max_pool2d) > 0
        off = correction(around & ~rest, torch.zeros_like(rest), generator)
        off = Clicks(off.points, torch.zeros_like(off.labels))
        richer = (
            joined(click(rest, generator), click(rest, generator)),
            joined(box(rest, generator), click(rest, generator)),
            joined(click(rest, generator), off),
        )
        groups.append(richer[choice])
    return groups
