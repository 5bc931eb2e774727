"""Stage 0: SAM 2 from clicks, boxes and corrections on images, and with memory on videos.

Letters: N images or videos, R regions of each, B = N·R, T frames, S input side.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from pam_ros.datasets.schema import Kind, Sample, SampleRegion
from pam_ros.model.pam import Pam
from pam_ros.model.vision.features import DecoderFeatures, FrameFeatures, of_regions
from pam_ros.model.vision.segmenter import SegmentedBatch
from pam_ros.records import Language, Task
from pam_ros.training import augment
from pam_ros.training.config import StageConfig, TrainingError
from pam_ros.training.features.frame_store import NO_MASK, FrameStore, sent
from pam_ros.training.heads.box_head import box_head, box_loss, normalised_boxes
from pam_ros.training.loading import is_video_step, samples_of_step, video_steps_before
from pam_ros.training.losses import compare_masks, mask_losses
from pam_ros.training.modules import normalised
from pam_ros.training.prompting import MIN_PIXELS, correction, first_prompts, on_host, random_numbers

VANISHING_FIRST = 0.5  # fraction of the videos in which regions that vanish are chosen before others
MAX_WORDS = 512
BOX_WEIGHT = 3.0  # of a region's box, relative to its name
UNNAMED = -1


@dataclass(frozen=True, slots=True)
class SegmentBatch:
    """Tensors of one step, on the store's device."""

    pixels: Tensor  # (N, T, 3, S, S) uint8
    owners: Tensor  # (N, T, S, S) int16: number of the object that a pixel belongs to, 0 for none
    masks: Tensor  # (N, R, T, S, S) bool
    labels: Tensor  # (N, R) index into Words.labels, UNNAMED if there is none
    words: Tensor  # (N, R, W) bool: which of Words.words its caption contains
    names: Tensor  # (N, I) label of every object by its number, UNNAMED if it has none

    def to(self, device: torch.device) -> SegmentBatch:
        """A copy on the training device; the batch is there already unless the store is on the host."""
        tensors = (self.pixels, self.owners, self.masks, self.labels, self.words, self.names)
        return SegmentBatch(*(tensor.to(device, non_blocking=True) for tensor in tensors))


class Words:
    """The labels and the caption words of the training data, numbered; the same for the same data."""

    def __init__(self, regions: Sequence[SampleRegion]) -> None:
        self.labels = sorted({region.label for region in regions} - {""})
        counts = Counter(word for region in regions for word in _words(region))
        self.words = sorted(word for word, count in counts.most_common(MAX_WORDS) if count > 1)
        self._label_numbers = {label: number for number, label in enumerate(self.labels)}
        self._word_numbers = {word: number for number, word in enumerate(self.words)}

    def numbers(self, region: SampleRegion) -> tuple[int, list[int]]:
        """The numbers of the region's label (UNNAMED if it has none) and words."""
        known = [self._word_numbers[word] for word in _words(region) if word in self._word_numbers]
        return self._label_numbers.get(region.label, UNNAMED), known


def _words(region: SampleRegion) -> set[str]:
    texts = region.texts.get((Task.BRIEF, Language.EN), ())
    return {word for text in texts[:1] for word in re.findall("[a-z]+", text.lower())}


class SegmentData:
    """Images, or short videos, with some of their regions, by step number, from the store."""

    def __init__(
        self,
        outlines: Sequence[Sample],
        store: FrameStore,
        words: Words,
        config: StageConfig,
        *,
        rank: int = 0,
    ) -> None:
        self._store, self._config, self._rank = store, config, rank
        self._videos = np.flatnonzero(store.lengths > 1)
        if config.video_fraction and not len(self._videos):
            raise TrainingError("the data has no video; set video_fraction to 0")
        device, shape = store.pixels.device, (len(outlines), store.areas.shape[1])
        labels = np.full(shape, UNNAMED)
        known = np.zeros((*shape, len(words.words)), np.bool_)
        for sample, outline in enumerate(outlines):
            for place, region in enumerate(outline.regions):
                labels[sample, place], numbers = words.numbers(region)
                known[sample, place, numbers] = True
        self._labels = torch.from_numpy(labels).to(device)
        self._words = torch.from_numpy(known).to(device)
        self._names = torch.from_numpy(names_of_objects(outlines, words)).to(device)

    def __getitem__(self, step: int) -> SegmentBatch:
        config, lengths = self._config, self._store.lengths
        random = np.random.default_rng((config.seed, step, self._rank))
        before = video_steps_before(step, config.video_fraction, config.video_after)
        if is_video_step(step, config.video_fraction, config.video_after):
            samples = self._videos[self._samples(before, len(self._videos), config.video_batch)]
            frames = frames_of_videos(random, lengths[samples], config.video_frames)
            regions = config.video_regions
        else:
            samples = self._samples(step - before, len(lengths), config.batch)
            frames = random.integers(lengths[samples])[:, None]
            regions = config.image_regions
        rows = self._store.starts[samples][:, None] + frames
        visible = self._store.areas[rows] >= MIN_PIXELS  # (N, T, R)
        places, absent = choose_regions(random, visible[:, 0], ~visible.all(1), regions)
        pixels, owners = self._store.take(rows)
        device = pixels.device
        at = (sent(samples, device)[:, None], sent(places, device))
        nothing = sent(absent, device)[:, None]
        return SegmentBatch(
            pixels,
            owners,
            self._store.masks(rows, np.where(absent[:, None], NO_MASK, places)),
            self._labels[at].masked_fill(nothing, UNNAMED),
            self._words[at],
            self._names[at[0][:, 0]],
        )

    def _samples(self, step: int, length: int, batch: int) -> NDArray[np.int64]:
        return samples_of_step(step, length=length, batch=batch, seed=self._config.seed)


def names_of_objects(outlines: Sequence[Sample], words: Words) -> NDArray[np.int64]:
    """(samples, objects) label by an object's number, UNNAMED if no region is the whole object."""
    most = max((region.object_id for outline in outlines for region in outline.regions), default=0)
    names = np.full((len(outlines), most + 1), UNNAMED)
    for sample, outline in enumerate(outlines):
        for region in outline.regions:
            if region.kind is not Kind.PART and region.object_id:
                names[sample, region.object_id] = words.numbers(region)[0]
    return names


def frames_of_videos(
    random: np.random.Generator, available: NDArray[np.int64], wanted: int
) -> NDArray[np.int64]:
    """(N, wanted) frame numbers: neighbours or every 2nd to 5th one, forwards or backwards."""
    count = len(available)
    stride = np.minimum(random.integers(1, 6, count), (available - 1) // max(1, wanted - 1)).clip(1)
    span = np.minimum(available, stride * (wanted - 1) + 1)
    start = random.integers(available - span + 1)
    frames = start[:, None] + np.minimum(np.arange(wanted) * stride[:, None], span[:, None] - 1)
    backwards = random.random(count) < 0.3
    return np.where(backwards[:, None], frames[:, ::-1], frames)


def choose_regions(
    random: np.random.Generator, seen: NDArray[np.bool_], vanishing: NDArray[np.bool_], wanted: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Chooses `wanted` of the `seen` (N, R) regions of each sample, some repeatedly if there are fewer.

    In half of the videos the few regions that vanish for a while come first. Returns places (N, wanted), and
    (N,) bool: no region is seen, and an absent one is chosen instead.
    """
    rank = random.random(seen.shape) - (vanishing & (random.random((len(seen), 1)) < VANISHING_FIRST))
    order = np.where(seen, rank, 2.0).argsort(1)
    count = seen.sum(1)
    turn = np.arange(wanted) % count.clip(1)[:, None]
    return np.take_along_axis(order, turn, axis=1), count == 0


class WordsHead(nn.Module):
    """Predicts a region's label, caption words and box from its decoder features; not part of the model.

    It stands in for the large-scale pretraining of the paper's SAM 2, whose features tell objects apart.
    """

    def __init__(self, width: int, words: Words) -> None:
        super().__init__()
        hidden = 2 * width
        self.trunk = nn.Sequential(nn.LayerNorm(2 * width), nn.Linear(2 * width, hidden), nn.GELU())
        self.label = nn.Linear(hidden, max(1, len(words.labels)))
        self.words = nn.Linear(hidden, max(1, len(words.words)))
        # The box is predicted from the mask token alone: the pooled features know it from the mask.
        self.box = box_head(width)

    def forward(self, decoder_features: DecoderFeatures, masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features of B regions, masks (B, S, S) bool → logits (B, labels) and (B, words), boxes (B, 5)."""
        weights = F.adaptive_avg_pool2d(masks.float()[:, None], decoder_features.image.shape[-1])
        pooled = (decoder_features.image * weights).sum((2, 3)) / weights.sum((2, 3)).clamp(min=1e-3)
        hidden = self.trunk(torch.cat([pooled, decoder_features.tokens[:, 1]], dim=1))
        return self.label(hidden), self.words(hidden), self.box(decoder_features.tokens[:, 1])


class CellsHead(nn.Module):
    """Predicts the labels in each cell of the encoder's grid; not part of the model, as `WordsHead`.

    It learns from every object of an image, prompted or not, and from small ones as much as from large ones.
    """

    def __init__(self, width: int, words: Words) -> None:
        super().__init__()
        self.labels = max(1, len(words.labels))
        self.head = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, self.labels)
        )

    def forward(self, embedding: Tensor, owners: Tensor, names: Tensor) -> Tensor:
        """Embedding (N, C, h, w), owners (N, S, S) int16, names (N, I) → the loss, a scalar.

        A cell's targets are the labels of its pixels. A pixel of an object of A pixels weighs A to the -3/4.
        """
        count, _, side, _ = embedding.shape
        side_px = owners.shape[-1]
        owners = owners.long().flatten(1)  # (N, S²); 0 = nothing
        known = owners.clamp(max=names.shape[1] - 1)
        label = names.gather(1, known).masked_fill(owners != known, UNNAMED)
        areas = torch.zeros_like(names, dtype=torch.float32)
        areas.scatter_add_(1, known, (owners == known).float())
        weight = areas.clamp(min=1).pow(-0.75).gather(1, known).masked_fill(label == UNNAMED, 0)
        cell = torch.arange(side, device=names.device).repeat_interleave(side_px // side)
        cell = (cell[:, None] * side + cell).flatten()  # (S²,)
        place = cell * self.labels + label.clamp(min=0)
        wanted = weight.new_zeros(count, side * side * self.labels).scatter_add_(1, place, weight)
        wanted = wanted.view(-1, self.labels)
        logits = self.head(embedding.flatten(2).transpose(1, 2)).float().flatten(0, 1)
        loss: Tensor = F.cross_entropy(logits, wanted, reduction="sum") / wanted.sum().clamp(min=1e-6)
        return loss


class GroupHead(nn.Module):
    """Predicts from features which pixels share an object; not part of the model, as `WordsHead`.

    It learns from every pixel, not only from prompted regions; without pretraining, masks improve sooner.
    """

    points, codes = 128, 16  # pixels compared in a frame; width of the codes that are compared

    def __init__(self, width: int) -> None:
        super().__init__()
        levels = width + width // 4 + width // 8
        self.project = nn.Sequential(nn.LayerNorm(levels), nn.Linear(levels, self.codes))
        self.threshold = nn.Parameter(torch.tensor(1.0))

    def forward(self, features: FrameFeatures, owners: Tensor, generator: Generator) -> Tensor:
        """Features of N frames and the owners of their pixels (N, S, S) → the loss, a scalar."""
        places = random_numbers(generator, len(owners), self.points, 1, 2) * 2 - 1  # (x, y), -1..1
        levels = (features.embedding, *features.high_resolution)
        read = [F.grid_sample(level.float(), places, align_corners=False)[..., 0] for level in levels]
        codes = self.project(torch.cat(read, dim=1).transpose(1, 2)).float()  # (N, P, codes)
        owner = F.grid_sample(owners[:, None].float(), places, mode="nearest", align_corners=False)[:, 0]
        same = (owner == owner.transpose(1, 2)).float()  # (N, P, P)
        logits = self.threshold - (codes[:, :, None] - codes[:, None]).square().sum(3)
        entropy = F.binary_cross_entropy_with_logits(logits, same, reduction="none")
        together, apart = same.sum(), (1 - same).sum().clamp(min=1)
        loss: Tensor = (entropy * same).sum() / together + (entropy * (1 - same)).sum() / apart
        return loss


class SegmentStage(nn.Module):
    """The stage's loss as a module, so that accelerate can wrap it."""

    def __init__(self, pam: Pam, words: Words, config: StageConfig) -> None:
        super().__init__()
        self.pam = pam
        self.head = WordsHead(pam.segmenter.width, words) if config.words_weight else None
        self.cells_head = CellsHead(pam.segmenter.width, words) if config.words_weight else None
        self.group_head = GroupHead(pam.segmenter.width) if config.group_weight else None
        self._config = config
        self._compare = compare_masks
        if config.compile and pam.device.type == "cuda":  # on a CPU compiling takes longer than it saves
            pam.segmenter.sam2.image_encoder.compile(dynamic=False)
            self._compare = torch.compile(compare_masks, dynamic=False)

    def forward(self, batch: SegmentBatch, generator: Generator) -> dict[str, Tensor]:
        """One step's loss (`loss`) and figures for the curves."""
        frames = batch.pixels.shape[1]
        pixels, owners, masks = augment.views(
            augment.colours(batch.pixels, generator), batch.owners, batch.masks, generator
        )
        if frames > 1:
            pixels, owners, masks = augment.occlusions(pixels, owners, masks, generator)
        count, regions = masks.shape[:2]
        segmenter = self.pam.segmenter
        size = (segmenter.image_size, segmenter.image_size)
        # (N, T) frames → one encoder pass over T·N, time first, so that a frame's features are one slice.
        features = segmenter.encode_pixels(normalised(segmenter, pixels.transpose(0, 1).flatten(0, 1)), size)
        truth = masks.flatten(0, 1).transpose(0, 1)  # (T, B, S, S)
        # Which region gets which kind of prompt.
        order = torch.randperm(count * regions, generator=generator, device=pixels.device)
        truth = truth[:, order]
        rows = (torch.arange(count * regions, device=pixels.device) // regions)[order]
        memory = segmenter.new_memory()
        correct_at = self._correction_frame(frames, generator)
        answers: list[SegmentedBatch] = []
        truths: list[Tensor] = []
        for t in range(frames):
            here = of_regions(features, rows + t * count)
            if t == 0:
                groups = first_prompts(truth[0], generator, self._config.box_fraction)
                found = segmenter.step(here, memory, groups, remember=frames > 1)
            else:
                found = segmenter.step(here, memory)
            answers.append(found)
            truths.append(truth[t])
            if t == correct_at:
                shown = F.interpolate(
                    found.masks[:, :1].detach().float(), size=size, mode="bilinear", align_corners=False
                )
                clicks = correction(truth[t], (shown[:, 0] > 0) & (found.presence > 0)[..., None], generator)
                found = segmenter.step(here, memory, [clicks], remember=t < frames - 1)
                answers.append(found)
                truths.append(truth[t])
        losses = mask_losses(answers, truths, loss_size=self._config.loss_size, compare=self._compare)
        figures = {
            "loss": losses.total,
            "iou_first": losses.iou_first,
            "iou_last": losses.iou_last,
            "presence": losses.presence_accuracy,
        }
        owners = owners.transpose(0, 1).flatten(0, 1)  # (T·N, S, S), as the features
        if self.head is not None and self.cells_head is not None:
            ends = [(answers[0], truths[0]), (answers[-1], truths[-1])][: len(answers)]
            named = [self._name_loss(found.decoder_features, seen, batch, order) for found, seen in ends]
            name_loss = torch.stack([loss for loss, _ in named]).mean()
            cells = self.cells_head(features.embedding, owners, batch.names.repeat(frames, 1))
            figures["loss"] = figures["loss"] + self._config.words_weight * (name_loss + cells)
            figures |= {"label": named[-1][1], "cells": cells}
        if self.group_head is not None:
            grouped = self.group_head(features, owners, generator)
            figures |= {"loss": figures["loss"] + self._config.group_weight * grouped, "group": grouped}
        return figures

    def _correction_frame(self, frames: int, generator: Generator) -> int:
        """The frame in which a click corrects the mask; -1 = none."""
        chance, place = torch.rand(2, generator=on_host(generator, 0)).tolist()
        return int(place * frames) if chance < self._config.correction else -1

    def _name_loss(
        self, decoder_features: DecoderFeatures, masks: Tensor, batch: SegmentBatch, order: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The loss of the regions' labels, words and boxes in one answer; the fraction of right labels."""
        assert self.head is not None
        label_logits, word_logits, boxes = self.head(decoder_features, masks)
        labels = batch.labels.flatten()[order]
        words = batch.words.flatten(0, 1)[order].float()
        named = ((labels != UNNAMED) & masks.any(2).any(1)).float()
        entropy = F.cross_entropy(label_logits.float(), labels.clamp(min=0), reduction="none")
        known = F.binary_cross_entropy_with_logits(word_logits.float(), words, reduction="none").sum(1)
        known = known / words.sum(1).clamp(min=1)
        count = named.sum().clamp(min=1)
        right = ((label_logits.argmax(1) == labels) * named).sum() / count
        off = box_loss(boxes, normalised_boxes(masks))
        return ((entropy + 0.3 * known) * named).sum() / count + BOX_WEIGHT * off, right
