"""Stage 0: SAM 2 from clicks, boxes and corrections on pictures, and with memory on videos.

Letters: N pictures or videos, R regions of each, B = N·R, T frames, S input side.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.utils.data import Dataset

from pam_ros.model.pam import Pam
from pam_ros.model.segmenter import Tap
from pam_ros.records import Language, Task
from pam_ros.training import augment
from pam_ros.training.config import StageConfig
from pam_ros.training.losses import MaskLosses, mask_losses
from pam_ros.training.prompting import correction, first_prompts
from pam_ros.training.rollout import Found, normalised, picked, prompt, track
from pam_ros.training.source import RegionEntry, Source

MIN_PIXELS = 24  # of a region in its first frame, at input size
MAX_WORDS = 512
UNNAMED = -1


@dataclass(frozen=True, slots=True)
class SegmentBatch:
    """Tensors of one step."""

    pixels: Tensor  # (N, T, 3, S, S) uint8
    masks: Tensor  # (N, R, T, S, S) bool
    labels: Tensor  # (N, R) index into Words.labels, UNNAMED where there is none
    words: Tensor  # (N, R, W) bool, which of Words.words its captions hold

    def to(self, device: torch.device) -> SegmentBatch:
        """A copy on another device."""
        return SegmentBatch(
            *(
                getattr(self, name).to(device, non_blocking=True)
                for name in ("pixels", "masks", "labels", "words")
            )
        )


class Words:
    """The labels and the caption words of the training data, numbered; the same for the same data."""

    def __init__(self, regions: Sequence[RegionEntry]) -> None:
        self.labels = sorted({_label(region) for region in regions} - {""})
        counts = Counter(word for region in regions for word in _words(region))
        self.words = sorted(word for word, count in counts.most_common(MAX_WORDS) if count > 1)
        self._label_rows = {label: row for row, label in enumerate(self.labels)}
        self._word_rows = {word: row for row, word in enumerate(self.words)}

    def rows(self, region: RegionEntry) -> tuple[int, list[int]]:
        """The region's label and words by number."""
        known = [self._word_rows[word] for word in _words(region) if word in self._word_rows]
        return self._label_rows.get(_label(region), UNNAMED), known


def _label(region: RegionEntry) -> str:
    return next(iter(region.texts.get((Task.LABEL, Language.EN), ())), "")


def _words(region: RegionEntry) -> set[str]:
    texts = region.texts.get((Task.BRIEF, Language.EN), ())
    return {word for text in texts[:1] for word in re.findall("[a-z]+", text.lower())}


class SegmentDataset(Dataset[SegmentBatch]):
    """Pictures, or short videos, with some of their regions. Items are asked for as (index, draw)."""

    def __init__(
        self, source: Source, indices: Sequence[int], *, words: Words, size: int, frames: int, regions: int
    ) -> None:
        self._source, self._indices, self._words = source, list(indices), words
        self._size, self._frames, self._regions = size, frames, regions

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, key: tuple[int, int]) -> SegmentBatch:
        """`draw` seeds the choice of frames and regions."""
        index, draw = self._indices[key[0]], key[1]
        random = np.random.default_rng((index, draw))
        entry = self._source.entries[index]
        scene = self._source.load(index, _frames(random, entry.frames, self._frames), self._size)
        seen = np.flatnonzero(scene.masks[:, 0].sum((1, 2)) >= MIN_PIXELS)
        chosen = random.permutation(seen)[: self._regions]
        if not len(chosen):  # nothing in view: an absent region stands in, it trains presence only
            masks = np.zeros((self._regions, *scene.masks.shape[1:]), np.bool_)
        else:
            chosen = np.resize(chosen, self._regions)
            masks = scene.masks[chosen]
        labels = torch.full((self._regions,), UNNAMED)
        words = torch.zeros(self._regions, len(self._words.words), dtype=torch.bool)
        for row, region in enumerate(chosen):
            label, known = self._words.rows(entry.regions[region])
            labels[row], words[row, known] = label, True
        pixels = torch.from_numpy(np.ascontiguousarray(scene.pixels.transpose(0, 3, 1, 2)))
        return SegmentBatch(pixels, torch.from_numpy(masks), labels, words)


def _frames(random: np.random.Generator, available: int, wanted: int) -> list[int]:
    """Neighbouring frames or every second or third one, forwards or backwards."""
    stride = max(1, min(int(random.integers(1, 4)), (available - 1) // max(1, wanted - 1)))
    span = min(available, stride * (wanted - 1) + 1)
    start = int(random.integers(0, available - span + 1))
    frames = list(range(start, start + span, stride))
    frames += frames[-1:] * (wanted - len(frames))
    return frames[::-1] if random.random() < 0.3 else frames


def collate(items: Sequence[SegmentBatch]) -> SegmentBatch:
    """Items without the batch axis → a batch."""
    return SegmentBatch(
        *(
            torch.stack([getattr(item, name) for item in items])
            for name in ("pixels", "masks", "labels", "words")
        )
    )


def _in_views(batch: SegmentBatch, views: int) -> SegmentBatch:
    """N pictures with views·R regions each → N·views pictures with R regions each."""

    def split(tensor: Tensor) -> Tensor:
        return tensor.reshape(tensor.shape[0] * views, tensor.shape[1] // views, *tensor.shape[2:])

    pixels = batch.pixels.repeat_interleave(views, dim=0)
    return SegmentBatch(pixels, split(batch.masks), split(batch.labels), split(batch.words))


class WordsHead(nn.Module):
    """Asks the tap for the region's name and words; only trains the features, is not part of the model.

    Stands in for what SAM 2's large-scale pretraining gives the paper's model: features that know things.
    """

    def __init__(self, width: int, words: Words) -> None:
        super().__init__()
        hidden = 2 * width
        self.trunk = nn.Sequential(nn.LayerNorm(2 * width), nn.Linear(2 * width, hidden), nn.GELU())
        self.label = nn.Linear(hidden, max(1, len(words.labels)))
        self.words = nn.Linear(hidden, max(1, len(words.words)))

    def forward(self, tap: Tap, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Tap of B regions and their masks (B, S, S) bool → logits (B, labels) and (B, words)."""
        weights = F.adaptive_avg_pool2d(masks.float()[:, None], tap.image.shape[-1])
        pooled = (tap.image * weights).sum((2, 3)) / weights.sum((2, 3)).clamp(min=1e-3)
        hidden = self.trunk(torch.cat([pooled, tap.tokens[:, 1]], dim=1))
        return self.label(hidden), self.words(hidden)


class SegmentStage(nn.Module):
    """The stage's loss as a module, so that accelerate can wrap it."""

    def __init__(self, pam: Pam, words: Words, config: StageConfig) -> None:
        super().__init__()
        self.pam = pam
        self.head = WordsHead(pam.segmenter.width, words) if config.words_weight else None
        self._config = config

    def forward(self, batch: SegmentBatch, generator: Generator) -> dict[str, Tensor]:
        """One step's loss (`loss`) and figures for the curves."""
        frames = batch.pixels.shape[1]
        if frames == 1:
            batch = _in_views(batch, self._config.views)
        pixels, masks = augment.views(augment.colours(batch.pixels, generator), batch.masks, generator)
        if frames > 1:
            pixels, masks = augment.occlusions(pixels, masks, generator)
        count, regions = masks.shape[:2]
        segmenter = self.pam.segmenter
        size = (segmenter.image_size, segmenter.image_size)
        # (N, T) frames → one encoder pass over T·N, time first, so that a frame's features are one slice.
        features = segmenter.encode_pixels(normalised(segmenter, pixels.transpose(0, 1).flatten(0, 1)), size)
        truth = masks.flatten(0, 1).transpose(0, 1)  # (T, B, S, S)
        order = torch.randperm(count * regions, generator=generator).to(
            pixels.device
        )  # who gets which kind of prompt
        truth = truth[:, order]
        rows = (torch.arange(count * regions, device=pixels.device) // regions)[order]
        memory = segmenter.new_memory()
        correct_at = self._correction_frame(frames, generator)
        losses: list[MaskLosses] = []
        first: Found | None = None
        for t in range(frames):
            here = picked(features, rows + t * count)
            if t == 0:
                found = prompt(segmenter, here, memory, first_prompts(truth[0], generator))
                first = found
            else:
                found = track(segmenter, here, memory)
            losses.append(mask_losses(found, truth[t], loss_size=self._config.loss_size))
            if t == correct_at:
                shown = F.interpolate(
                    found.masks[:, :1].detach().float(), size=size, mode="bilinear", align_corners=False
                )
                clicks = correction(truth[t], (shown[:, 0] > 0) & (found.presence > 0)[..., None], generator)
                found = prompt(segmenter, here, memory, [clicks])
                losses.append(mask_losses(found, truth[t], loss_size=self._config.loss_size))
        assert first is not None
        return self._figures(losses, first, truth[0], batch, order)

    def _correction_frame(self, frames: int, generator: Generator) -> int:
        """Where a correcting click comes; -1 = nowhere."""
        chance, place = torch.rand(2, generator=generator).tolist()
        return int(place * frames) if chance < self._config.correction else -1

    def _figures(
        self, losses: Sequence[MaskLosses], first: Found, truth: Tensor, batch: SegmentBatch, order: Tensor
    ) -> dict[str, Tensor]:
        total = torch.stack([loss.total for loss in losses]).mean()
        figures = {
            "iou_first": losses[0].iou,
            "iou_last": losses[-1].iou,
            "presence": torch.stack([loss.presence_accuracy for loss in losses]).mean(),
        }
        if self.head is not None:
            label_logits, word_logits = self.head(first.tap, truth)
            labels = batch.labels.flatten()[order]
            words = batch.words.flatten(0, 1)[order].float()
            named = (labels != UNNAMED).float()
            entropy = F.cross_entropy(label_logits.float(), labels.clamp(min=0), reduction="none")
            known = F.binary_cross_entropy_with_logits(word_logits.float(), words, reduction="none").sum(1)
            known = known / words.sum(1).clamp(min=1)
            total = total + self._config.words_weight * (
                (entropy + 0.3 * known) * named
            ).sum() / named.sum().clamp(min=1)
            figures["label"] = ((label_logits.argmax(1) == labels) * named).sum() / named.sum().clamp(min=1)
        return {"loss": total, **figures}
