"""Stages 1, 1.5 and 2: texts from regions; and the language stage, the language model alone.

Letters: B samples, n frames of each, C width, S input side, H language width, L tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Generator, Tensor, nn
from torch.utils.data import Dataset
from transformers import DynamicCache

from pam_ros.datasets.loading import load_masks, load_pixels
from pam_ros.datasets.rle import WHOLE
from pam_ros.datasets.schema import Kind, Sample, SampleSource
from pam_ros.model.interface import FIRST_FRAME_STRIDE, LATER_FRAME_STRIDE
from pam_ros.model.pam import Pam
from pam_ros.model.text.prompts import TEXT_BEFORE_IMAGE
from pam_ros.model.vision.features import DecoderFeatures
from pam_ros.training import augment
from pam_ros.training.config import StageConfig, StageKind, TrainingError
from pam_ros.training.features.feature_store import (
    FeatureIndex,
    FeatureStore,
    RegionFeatures,
    RegionKey,
    random_crop,
    rolled_out,
)
from pam_ros.training.heads.box_head import box_head, box_loss
from pam_ros.training.heads.event_head import EventHead, Events, moved
from pam_ros.training.loading import is_video_step
from pam_ros.training.qa_examples import (
    QAExample,
    Tokenisation,
    Tokens,
    clip_questions,
    clips_of,
    context_questions,
    image_questions,
    image_tasks_of,
)


@dataclass(frozen=True, slots=True)
class CaptionBatch:
    """One step: the texts, and rows of the feature store, or pixels and masks, or neither."""

    tokens: Tokens
    frames: int = 0  # n; 0 = texts only
    clip: bool = False
    feature_rows: Tensor | None = None  # (B·n,) rows of the feature store
    pixels: Tensor | None = None  # (B, n, 3, S, S) uint8
    masks: Tensor | None = None  # (B, 1, n, S, S) bool
    events: Tensor | None = None  # (B, n) int64, see `Events.numbers`; of clips only
    moved: Tensor | None = None  # (B, n, 3) float32, see `event_head.moved`; of clips only

    def to(self, device: torch.device) -> CaptionBatch:
        """A copy on another device."""
        return self.mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> CaptionBatch:
        """For the loader: from pinned memory it is sent without waiting for the device."""
        return self.mapped(Tensor.pin_memory)

    def mapped(self, change: Callable[[Tensor], Tensor]) -> CaptionBatch:
        """Every tensor changed."""
        optional = (
            None if tensor is None else change(tensor)
            for tensor in (self.feature_rows, self.pixels, self.masks, self.events, self.moved)
        )
        return CaptionBatch(self.tokens.mapped(change), self.frames, self.clip, *optional)


class CaptionDataset(Dataset[CaptionBatch]):
    """Whole batches by step number, so that all samples of a batch have equally many frames."""

    def __init__(
        self,
        source: SampleSource,
        outlines: Sequence[Sample],
        config: StageConfig,
        tokenisation: Tokenisation,
        events: Events,
        *,
        size: int,
        region_features: FeatureIndex | None,
        crop_small_regions: bool,
        rank: int,
    ) -> None:
        self._source, self._config, self._tokenisation = source, config, tokenisation
        self._events, self._size, self._features, self._rank = events, size, region_features, rank
        self._crop_small_regions = crop_small_regions
        usable = None if region_features is None else region_features.usable
        regions = {
            (number, place): region
            for number, outline in enumerate(outlines)
            for place, region in enumerate(outline.regions)
            if usable is None or (number, place) in usable
        }
        self._images = [key for key, region in regions.items() if image_tasks_of(region, config)]
        weights = balanced([regions[key].label for key in self._images], config.label_balance)
        parts = [regions[key].kind is Kind.PART for key in self._images]
        self._cumulative_weights = with_fraction(parts, config.part_fraction, weights).cumsum()
        self._clips = {
            frames: [
                (key, where) for key, region in regions.items() for where in clips_of(region, config, frames)
            ]
            for frames in config.clip_frames
        }
        self._clip_cumulative_weights = {}
        for frames, clips in self._clips.items():
            is_static = [regions[key].is_static for key, _ in clips]
            events_of_clips = [
                "" if static else "+".join(regions[key].clips[sequence][place].events)
                for static, (key, (sequence, place)) in zip(is_static, clips, strict=True)
            ]
            weights = balanced(events_of_clips, config.event_balance)
            weights = with_fraction(is_static, config.static_fraction, weights)
            self._clip_cumulative_weights[frames] = weights.cumsum()
        self._lengths = [frames for frames, clips in self._clips.items() if clips]
        if not self._images and config.video_fraction < 1:
            raise TrainingError("the data has no region with an image text of the chosen tasks and languages")
        if not self._lengths and config.video_fraction > 0:
            raise TrainingError(
                f"no captioned clip has {config.clip_frames} frames; give other data, "
                "smaller clip_frames, or video_fraction 0"
            )

    def __getitem__(self, step: int) -> CaptionBatch:
        random = np.random.default_rng((self._config.seed, step, self._rank))
        if is_video_step(step, self._config.video_fraction):
            common = np.random.default_rng((self._config.seed, step))  # all processes get equally long steps
            frames = int(self._lengths[int(common.integers(len(self._lengths)))])
            count, cumulative_weights = self._config.video_batch, self._clip_cumulative_weights[frames]
            chosen = [self._clips[frames][i] for i in drawn(random, cumulative_weights, count)]
            keys, wheres = [key for key, _ in chosen], [where for _, where in chosen]
            samples = [self._source[number] for number, _ in keys]
            regions = [sample.regions[place] for sample, (_, place) in zip(samples, keys, strict=True)]
            examples = [
                clip_questions(random, region, where, self._config, frames)
                for region, where in zip(regions, wheres, strict=True)
            ]
            return self._batch(keys, samples, examples, random, clip=True)
        keys = [self._images[i] for i in drawn(random, self._cumulative_weights, self._config.batch)]
        samples = [self._source[number] for number, _ in keys]
        examples = [
            image_questions(random, sample.regions[place], self._config)
            for sample, (_, place) in zip(samples, keys, strict=True)
        ]
        return self._batch(keys, samples, examples, random, clip=False)

    def _batch(
        self,
        keys: Sequence[RegionKey],
        samples: Sequence[Sample],
        examples: Sequence[Sequence[QAExample]],
        random: np.random.Generator,
        *,
        clip: bool,
    ) -> CaptionBatch:
        tokens, shown = self._tokenisation.tokens(examples), [each[0].frames for each in examples]
        frames, events, far = len(shown[0]), None, None
        if clip:
            regions = [sample.regions[place] for sample, (_, place) in zip(samples, keys, strict=True)]
            pairs = list(zip(regions, shown, strict=True))
            events = torch.tensor([self._events.numbers(*pair) for pair in pairs])
            far = torch.tensor([moved(*pair) for pair in pairs])
        if self._features is not None:
            variants = random.integers(self._features.variants, size=len(keys)).tolist()
            rows = [
                row
                for key, variant, seen in zip(keys, variants, shown, strict=True)
                for row in (
                    self._features.find(*key, variant, seen)
                    if clip
                    else [self._features.find_for_text(*key, variant)]
                )
            ]
            return CaptionBatch(
                tokens, frames, clip, feature_rows=torch.tensor(rows), events=events, moved=far
            )
        pixels, masks = [], []
        for sample, (_, place), seen in zip(samples, keys, shown, strict=True):
            near = self._crop_small_regions and not clip
            crop = random_crop(sample.crop_box(sample.regions[place]), random) if near else WHOLE
            frames_first = load_pixels(sample, seen, self._size, crop).transpose(0, 3, 1, 2)
            pixels.append(torch.from_numpy(np.ascontiguousarray(frames_first)))
            masks.append(torch.from_numpy(load_masks(sample, [place], seen, self._size, crop)))
        views = torch.stack(pixels), torch.stack(masks)
        return CaptionBatch(tokens, frames, clip, None, *views, events, far)


def balanced(labels: Sequence[str], balance: float) -> NDArray[np.float64]:
    """(N,) weights: the label's frequency to the power of -`balance`; "" gets the mean weight."""
    counts = Counter(labels)
    weights = np.array([counts[label] ** -balance if label else np.nan for label in labels])
    mean = np.nanmean(weights) if any(labels) else 1.0
    return np.nan_to_num(weights, nan=float(mean))


def with_fraction(
    chosen: Sequence[bool], fraction: float, weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(N,) weights scaled so that the chosen ones make up this fraction; unchanged if all or none are."""
    mask = np.array(chosen, dtype=bool)
    if mask.all() or not mask.any():
        return weights
    factors = np.where(mask, fraction / weights[mask].sum(), (1 - fraction) / weights[~mask].sum())
    return np.asarray(weights * factors)


def drawn(random: np.random.Generator, cumulative_weights: NDArray[np.float64], count: int) -> list[int]:
    """Numbers drawn by their weights; (N,) `cumulative_weights` holds the sums of these."""
    found: list[int] = cumulative_weights.searchsorted(
        random.random(count) * cumulative_weights[-1], side="right"
    ).tolist()
    return found


class TextDataset(Dataset[CaptionBatch]):
    """Batches for the language model alone, by step number."""

    def __init__(
        self,
        source: SampleSource,
        outlines: Sequence[Sample],
        config: StageConfig,
        tokenisation: Tokenisation,
        *,
        rank: int,
    ) -> None:
        self._source, self._config, self._tokenisation, self._rank = source, config, tokenisation, rank
        self._keys = [
            (number, place)
            for number, outline in enumerate(outlines)
            for place, region in enumerate(outline.regions)
            if region.texts or region.clips
        ]

    def __getitem__(self, step: int) -> CaptionBatch:
        random = np.random.default_rng((self._config.seed, step, self._rank))
        contexts: list[str] = []
        examples: list[list[QAExample]] = []
        while len(examples) < self._config.batch:
            sample, place = self._keys[int(random.integers(len(self._keys)))]
            given = context_questions(random, self._source[sample].regions[place], self._config)
            if given is not None:
                contexts.append(given[0])
                examples.append(given[1])
        return CaptionBatch(self._tokenisation.tokens(examples, contexts))


class CaptionStage(nn.Module):
    """The stages' loss as a module, so that accelerate can wrap it."""

    before: Tensor  # (P,) ids of the text before the region embeddings

    def __init__(self, pam: Pam, store: FeatureStore | None, config: StageConfig, events: Events) -> None:
        super().__init__()
        self.pam = pam
        self._config = config
        self._store = store
        perceiver = pam.perceiver
        is_caption = config.kind is StageKind.CAPTION
        has_boxes = is_caption and config.box_weight and len(perceiver.sem_tokens.weight)
        self.box_head = box_head(perceiver.width) if has_boxes else None
        has_events = is_caption and config.events_weight and config.video_fraction and events.names
        self.event_head = EventHead(pam.language.width, events) if has_events else None
        self.register_buffer(
            "before", torch.tensor(pam.language.encode_text(TEXT_BEFORE_IMAGE)), persistent=False
        )

    def forward(self, batch: CaptionBatch, generator: Generator) -> dict[str, Tensor]:
        """One step's loss (`loss`) and figures for the curves."""
        transformer = self.pam.language.transformer
        tokens = batch.tokens
        embed = transformer.get_input_embeddings()
        parts = [embed(self.before).expand(len(tokens.ids), -1, -1)]
        figures: dict[str, Tensor] = {}
        if batch.frames:
            found = self._features(batch, generator)  # B·n regions, frames of a sample next to each other
            semantic, refined = self.pam.perceiver(
                found.decoder_features.image, found.decoder_features.tokens
            )
            parts.append(self._embeddings(batch, semantic, refined).to(parts[0].dtype))
            if self.box_head is not None:
                figures["box"] = box_loss(self.box_head(semantic.mean(1)), found.boxes)
        seen = torch.cat(parts, dim=1)  # (B, P, H): what all questions of a sample have in common
        at = torch.arange(seen.shape[1], device=seen.device)[None]
        cache = DynamicCache()
        states = transformer.model(
            inputs_embeds=seen,
            attention_mask=self.pam.language.mask(at, at),
            position_ids=at,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        if self.event_head is not None and batch.events is not None and batch.moved is not None:
            closing = self._frame_ends(parts[0].shape[1], parts[1].shape[1], batch.frames)
            figures |= self.event_head(states[:, closing], batch.events, batch.moved)  # states (B, n, H)
        places = seen.shape[1] + tokens.places
        states = transformer.model(
            inputs_embeds=embed(tokens.ids),
            attention_mask=self._attention_mask(at, places, tokens.parts),
            position_ids=places,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state  # (B, L, H)
        logits = transformer.lm_head(states.flatten(0, 1)[tokens.learned - 1]).float()
        labels, weights = tokens.labels, tokens.weights
        loss = (F.cross_entropy(logits, labels, reduction="none") * weights).sum() / weights.sum()
        hits = logits.argmax(1) == labels
        weights_of = {"box": self._config.box_weight}
        weights_of |= dict.fromkeys(("event", "moved"), self._config.events_weight)
        for name, weight in weights_of.items():
            if name in figures:
                loss = loss + weight * figures[name]
        figures |= {"loss": loss, "token": hits.float().mean()}
        if tokens.has_labels:
            misses = torch.zeros_like(tokens.is_label, dtype=torch.float32)
            misses.index_add_(0, tokens.answers, (~hits).float())
            figures["label"] = ((misses == 0) & tokens.is_label).sum() / tokens.is_label.sum()
        return figures

    def _attention_mask(self, before: Tensor, places: Tensor, parts: Tensor) -> Tensor:
        """Places of common tokens (1, P) and of others (B, L), `Tokens.parts` (B, L) → (B, 1, L, P + L)."""
        keys = torch.cat([before.expand(len(places), -1), places], dim=1)
        by_place = self.pam.language.mask(places, keys, padded=True)
        assert by_place is not None
        own = parts[:, None, :, None] == parts[:, None, None, :]
        return by_place & F.pad(own, (before.shape[1], 0), value=True)

    def _embeddings(self, batch: CaptionBatch, semantic: Tensor, refined: Tensor) -> Tensor:
        """The region embeddings (B, E, H) in place of `<image>`, as `Pam` makes them."""
        count, frames, pam = len(batch.tokens.ids), batch.frames, self.pam
        semantic = semantic.reshape(count, frames, *semantic.shape[1:])
        refined = refined.reshape(count, frames, *refined.shape[1:])
        embeddings: Tensor = pam.projector(
            pam.perceiver.shuffle(refined[:, 0], stride=FIRST_FRAME_STRIDE), semantic[:, 0]
        )
        if not batch.clip:
            return embeddings
        newline = pam.projector.frame_newline.expand(count, 1, -1).to(embeddings.dtype)
        parts = [embeddings, newline]
        if frames > 1:
            later = pam.perceiver.shuffle(refined[:, 1:].flatten(0, 1), stride=LATER_FRAME_STRIDE)
            fewer = pam.projector(later, semantic[:, 1:].flatten(0, 1))  # (B·(n-1), fewer embeddings, H)
            closed = torch.cat([fewer, newline.repeat_interleave(frames - 1, dim=0)], dim=1)
            parts.append(closed.reshape(count, -1, closed.shape[2]))
        return torch.cat(parts, dim=1)

    def _frame_ends(self, before: int, embeddings: int, frames: int) -> list[int]:
        """Places of the last embedding of each of a clip's frames; `before` tokens stand before the first."""
        side = self.pam.segmenter.grid_size // FIRST_FRAME_STRIDE
        first = side**2 + len(self.pam.perceiver.sem_tokens.weight) + 3  # three separators
        later = (embeddings - first) // max(1, frames - 1)
        return [before + first - 1 + frame * later for frame in range(frames)]

    def _features(self, batch: CaptionBatch, generator: Generator) -> RegionFeatures:
        if batch.feature_rows is not None:
            assert self._store is not None
            return self._store.take(batch.feature_rows)
        assert batch.pixels is not None and batch.masks is not None
        pixels = augment.colours(batch.pixels, generator)
        found = rolled_out(
            self.pam.segmenter, pixels, batch.masks, generator, box_fraction=self._config.box_fraction
        )  # time first
        count, frames = len(batch.tokens.ids), batch.frames

        def by_sample(tensor: Tensor) -> Tensor:
            return tensor.reshape(frames, count, *tensor.shape[1:]).transpose(0, 1).flatten(0, 1)

        decoder_features = DecoderFeatures(
            by_sample(found.decoder_features.image), by_sample(found.decoder_features.tokens)
        )
        return RegionFeatures(decoder_features, by_sample(found.boxes))
