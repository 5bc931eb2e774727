"""Decoder features of every region, computed once and kept: SAM 2 is frozen while texts are trained.

Letters: N images or videos, R regions of each, B = N·R, T frames, C width, S input side, h = w = S / 16.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Generator, Tensor

from pam_ros.datasets.rle import WHOLE
from pam_ros.datasets.schema import Sample, SampleSource
from pam_ros.geometry import CropBox
from pam_ros.model.vision.features import DecoderFeatures, of_regions
from pam_ros.model.vision.region_crop import crop_around
from pam_ros.model.vision.segmenter import Segmenter
from pam_ros.training import augment
from pam_ros.training.config import StageConfig
from pam_ros.training.features.frame_store import View, decoded, unpacked
from pam_ros.training.heads.box_head import normalised_boxes
from pam_ros.training.modules import normalised
from pam_ros.training.prompting import MIN_PIXELS, first_prompts

# Large batches: tracking consists of many steps, each too small to keep a GPU busy.
IMAGES_AT_ONCE, VIDEOS_AT_ONCE, CROPS_AT_ONCE = 96, 64, 512
SPREAD, OFF = (0.85, 1.2), 0.12  # how crops vary: factors on their side, and shifts as fractions of it
EIGHT_BITS = torch.float8_e4m3fn  # its mean error of 2 % is far below the difference between two views
RegionKey = tuple[int, int]  # number of a sample, place of a region in it


@dataclass(frozen=True, slots=True)
class RegionFeatures:
    """The decoder features of K regions, and their true boxes.

    Attributes:
        decoder_features: what the Perceiver reads.
        boxes: (K, 5) float32, see `normalised_boxes`.
    """

    decoder_features: DecoderFeatures
    boxes: Tensor


@torch.no_grad()
def rolled_out(
    segmenter: Segmenter, pixels: Tensor, masks: Tensor, generator: Generator, *, box_fraction: float
) -> RegionFeatures:
    """Prompts B regions in their first frames and tracks them → T·B regions, time first.

    `pixels` (N, T, 3, S, S) 0..255, `masks` (N, R, T, S, S) bool; B = N·R.
    As at inference, see `Segmenter.step`.
    """
    count, frames = pixels.shape[:2]
    regions = masks.shape[1]
    size = (segmenter.image_size, segmenter.image_size)
    # Each kind of prompt goes to a range of regions; shuffled so that no region always gets the same kind.
    order = torch.randperm(count * regions, generator=generator, device=pixels.device)
    back = order.argsort()
    rows = (torch.arange(count * regions, device=pixels.device) // regions)[order]
    first = masks[:, :, 0].flatten(0, 1)[order]
    memory = segmenter.new_memory()
    images, tokens = [], []
    for t in range(frames):
        features = segmenter.encode_pixels(normalised(segmenter, pixels[:, t]), size)
        here = of_regions(features, rows)
        prompts = first_prompts(first, generator, box_fraction) if t == 0 else None
        found = segmenter.step(here, memory, prompts)
        images.append(found.decoder_features.image[back])
        tokens.append(found.decoder_features.tokens[back])
    boxes = normalised_boxes(masks.flatten(0, 1).transpose(0, 1))  # (T, B, 5)
    return RegionFeatures(DecoderFeatures(torch.cat(images), torch.cat(tokens)), boxes.flatten(0, 1))


@dataclass(slots=True)
class FeatureIndex:
    """Where features lie in their store: all that is needed to choose examples, without tensors.

    Attributes:
        variants: number of times that each region's features are kept, each time from other prompts.
        starts: (sample, region, variant) → row of its first frame.
        crops: (sample, region, variant) → row of the crop around a small region of an image.
        usable: (sample, region) pairs that can be prompted in their first frame.
    """

    variants: int
    starts: dict[tuple[int, int, int], int] = field(default_factory=dict)
    crops: dict[tuple[int, int, int], int] = field(default_factory=dict)
    usable: set[RegionKey] = field(default_factory=set)

    def find(self, sample: int, region: int, variant: int, frames: Iterable[int]) -> list[int]:
        """Rows of some frames of a region."""
        start = self.starts[sample, region, variant]
        return [start + frame for frame in frames]

    def find_for_text(self, sample: int, region: int, variant: int) -> int:
        """The row that texts of an image's region are read from: of its crop, if it has one."""
        key = (sample, region, variant)
        return self.crops.get(key, self.starts[key])


class FeatureStore:
    """Features of all regions of a source, on the device; `index` has their rows."""

    def __init__(
        self, outlines: Sequence[Sample], segmenter: Segmenter, variants: int, dtype: torch.dtype
    ) -> None:
        self.index = FeatureIndex(variants)
        rows = 0
        for sample, outline in enumerate(outlines):
            for region in captioned_regions(outline):
                for variant in range(variants):
                    self.index.starts[sample, region, variant] = rows
                    rows += len(outline)
        for sample, region in small_regions(outlines) if segmenter.crop_small_regions else ():
            for variant in range(variants):
                self.index.crops[sample, region, variant] = rows
                rows += 1
        grid, width, device = segmenter.grid_size, segmenter.width, segmenter.pixel_mean.device
        self._dtype = dtype
        stored = torch.uint8 if dtype is EIGHT_BITS else dtype  # as bytes: they can be indexed
        self.image = torch.empty(rows, width, grid, grid, dtype=stored, device=device)
        self.tokens = torch.empty(rows, 2, width, device=device)
        self.boxes = torch.empty(rows, 5, device=device)

    def take(self, rows: Tensor) -> RegionFeatures:
        """Rows (K,) → K regions."""
        image = self.image[rows].view(self._dtype).float()
        return RegionFeatures(DecoderFeatures(image, self.tokens[rows]), self.boxes[rows])

    def put(
        self, samples: Sequence[int], outlines: Sequence[Sample], variant: int, found: RegionFeatures
    ) -> None:
        """Keeps the captioned regions of N samples of T frames; they come time first."""
        frames = len(outlines[samples[0]])
        shape = (frames, len(samples), -1)
        for stored, values in self._pairs(found):
            values = values.reshape(*shape, *values.shape[1:])
            for row, sample in enumerate(samples):
                for column, region in enumerate(captioned_regions(outlines[sample])):
                    start = self.index.starts[sample, region, variant]
                    stored[start : start + frames] = values[:, row, column]

    def put_crops(self, regions: Sequence[RegionKey], variant: int, found: RegionFeatures) -> None:
        """Keeps crops around regions."""
        rows = [self.index.crops[sample, region, variant] for sample, region in regions]
        where = torch.tensor(rows, device=self.image.device)
        for stored, values in self._pairs(found):
            stored[where] = values

    def _pairs(self, found: RegionFeatures) -> list[tuple[Tensor, Tensor]]:
        """Each stored tensor with what goes into it."""
        image = found.decoder_features.image.to(self._dtype).view(self.image.dtype)
        tokens = found.decoder_features.tokens
        return [(self.image, image), (self.tokens, tokens), (self.boxes, found.boxes)]


@dataclass(slots=True)
class StageCache:
    """A filled store that the next stage reuses if everything it depends on is the same."""

    feature_key: tuple[object, ...] = ()
    region_features: FeatureStore | None = None


def feature_key(config: StageConfig, segmenter: Segmenter) -> tuple[object, ...]:
    """Everything that features depend on."""
    weights = sum(float(parameter.double().abs().sum()) for parameter in segmenter.parameters())
    how = (config.cache_features, config.precision, config.box_fraction, config.seed)
    return config.data, *how, segmenter.perceiver_input, segmenter.crop_small_regions, weights


def captioned_regions(outline: Sample) -> list[int]:
    """Places of the regions whose features are kept: in a video with captions, the captioned ones only."""
    captioned = [place for place, region in enumerate(outline.regions) if region.clips]
    return captioned if len(outline) > 1 and captioned else list(range(len(outline.regions)))


def small_regions(outlines: Sequence[Sample]) -> list[RegionKey]:
    """Regions of images that inference encodes a second time, in a crop."""
    return [
        (sample, place)
        for sample, outline in enumerate(outlines)
        for place, region in enumerate(outline.regions)
        if not outline.is_video
        and (box := outline.crop_box(region)) is not None
        and crop_around(box) is not None
    ]


def random_crop(box: CropBox | None, random: np.random.Generator) -> CropBox:
    """A varied crop around a region in a box; the whole image for a large region, or if there is no box."""
    if box is None:
        return WHOLE
    x, y = random.uniform(-OFF, OFF, 2)
    return crop_around(box, scale=float(random.uniform(*SPREAD)), shift=(float(x), float(y))) or WHOLE


def batches_of_equal_length(outlines: Sequence[Sample]) -> Iterator[list[int]]:
    """Numbers of samples with equally many frames and similarly many regions, as the device can hold."""
    groups: dict[int, list[int]] = defaultdict(list)
    for index, outline in enumerate(outlines):
        if outline.regions:
            groups[len(outline)].append(index)
    for frames, indices in groups.items():
        indices.sort(key=lambda index: len(captioned_regions(outlines[index])))
        at_once = VIDEOS_AT_ONCE if frames > 1 else IMAGES_AT_ONCE
        for start in range(0, len(indices), at_once):
            yield indices[start : start + at_once]


def fill_store(
    store: FeatureStore,
    source: SampleSource,
    outlines: Sequence[Sample],
    segmenter: Segmenter,
    config: StageConfig,
) -> Iterator[int]:
    """Computes all features; yields the number of samples, then of crops, done after each batch."""
    device, size = segmenter.pixel_mean.device, segmenter.image_size
    batches = list(batches_of_equal_length(outlines))
    places = [[tuple(captioned_regions(outlines[sample])) for sample in samples] for samples in batches]
    views = [
        [
            View(sample, frame, regions)
            for sample, regions in zip(samples, chosen, strict=True)
            for frame in range(len(outlines[sample]))
        ]
        for samples, chosen in zip(batches, places, strict=True)
    ]
    found = decoded(source, views, size, config.workers, device)
    for number, (samples, chosen, batch) in enumerate(zip(batches, places, found, strict=True)):
        count = len(samples)
        pixels = batch.pixels.reshape(count, -1, size, size, 3).permute(0, 1, 4, 2, 3)
        masks = padded_masks(unpacked(batch.masks, size), [len(each) for each in chosen], pixels.shape[1])
        # This waits for the device, so it comes before its long work.
        seen = (masks[:, :, 0].sum((2, 3)) >= MIN_PIXELS).tolist()
        for variant in range(store.index.variants):
            features = _in_other_colours(segmenter, pixels, masks, config, variant, number)
            store.put(samples, outlines, variant, features)
        store.index.usable |= {
            (sample, region)
            for row, sample in enumerate(samples)
            for column, region in enumerate(chosen[row])
            if seen[row][column]
        }
        yield count
    if segmenter.crop_small_regions:
        yield from _fill_crops(store, source, outlines, segmenter, config)


def padded_masks(masks: Tensor, counts: Sequence[int], frames: int) -> Tensor:
    """Masks (M, S, S), by sample, frame and region → (N, R, T, S, S), empty ones where regions are missing.

    `counts`: how many regions each of the N samples has.
    """
    padded = masks.new_zeros(len(counts), max(counts), frames, *masks.shape[1:])
    row = 0
    for sample, count in enumerate(counts):
        own = masks[row : row + frames * count].reshape(frames, count, *masks.shape[1:])
        padded[sample, :count] = own.transpose(0, 1)
        row += frames * count
    return padded


def _fill_crops(
    store: FeatureStore,
    source: SampleSource,
    outlines: Sequence[Sample],
    segmenter: Segmenter,
    config: StageConfig,
) -> Iterator[int]:
    """The same for small regions of images, each in a crop of its own."""
    device, size = segmenter.pixel_mean.device, segmenter.image_size
    regions = small_regions(outlines)
    starts = range(0, len(regions), CROPS_AT_ONCE)
    for variant in range(store.index.variants):
        seed = config.seed * 64 + variant
        views = []
        for number, (sample, place) in enumerate(regions):
            box = outlines[sample].crop_box(outlines[sample].regions[place])
            crop = random_crop(box, np.random.default_rng([seed, number]))
            views.append(View(sample, 0, (place,), crop))
        groups = [views[start : start + CROPS_AT_ONCE] for start in starts]
        found = decoded(source, groups, size, config.workers, device)
        for start, batch in zip(starts, found, strict=True):
            pixels = batch.pixels.permute(0, 3, 1, 2)[:, None]
            masks = unpacked(batch.masks, size)[:, None, None]
            features = _in_other_colours(segmenter, pixels, masks, config, variant, start)
            store.put_crops(regions[start : start + len(pixels)], variant, features)
            yield len(pixels)


def _in_other_colours(
    segmenter: Segmenter, pixels: Tensor, masks: Tensor, config: StageConfig, variant: int, number: int
) -> RegionFeatures:
    """`rolled_out` in colours drawn for batch `number`."""
    device = pixels.device
    generator = Generator(device).manual_seed((config.seed * 64 + variant) * 1_000_003 + number)
    coloured = augment.colours(pixels, generator)
    with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        return rolled_out(segmenter, coloured, masks, generator, box_fraction=config.box_fraction)
