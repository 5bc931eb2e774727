"""What the Perceiver reads of every region, computed once and kept: SAM 2 is frozen when texts are learned.

Letters: N pictures or videos, R regions of each, B = N·R, T frames, C width, S input side, h = w = S / 16.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Generator, Tensor

from pam_ros.datasets.schema import WHOLE, Entry, Scene, Source
from pam_ros.geometry import CropBox
from pam_ros.model.vision.features import DecoderFeatures, of_regions
from pam_ros.model.vision.region_crop import crop_around
from pam_ros.model.vision.segmenter import Segmenter
from pam_ros.training import augment
from pam_ros.training.config import StageConfig
from pam_ros.training.features.frame_store import NO_CODE, THIS_PART, Codes, code_of, decoded
from pam_ros.training.heads.box_head import normalised_boxes
from pam_ros.training.modules import normalised
from pam_ros.training.prompting import MIN_PIXELS, first_prompts

# Many: tracking is many small steps, which a GPU does not feel.
IMAGES_AT_ONCE, VIDEOS_AT_ONCE, CROPS_AT_ONCE = 96, 64, 512
SPREAD, OFF = (0.85, 1.2), 0.12  # how cuts vary: sizes, and shares of their side
EIGHT_BITS = torch.float8_e4m3fn  # its errors, of 2 % on average, are far below what another view changes


@dataclass(frozen=True, slots=True)
class Shown:
    """What SAM 2 says about K regions, and where they truly are."""

    decoder_features: DecoderFeatures
    where: Tensor  # (K, 5) float32: middle x, y, width, height as shares of the picture; 1 in view, 0 not


@torch.no_grad()
def rolled_out(
    segmenter: Segmenter, pixels: Tensor, masks: Tensor, generator: Generator, *, box_fraction: float
) -> Shown:
    """Prompts B regions in their first frames and tracks them → T·B regions, time first.

    `pixels` (N, T, 3, S, S) 0..255, `masks` (N, R, T, S, S) bool; B = N·R. As at inference, see `Segmenter.step`.
    """
    count, frames = pixels.shape[:2]
    regions = masks.shape[1]
    size = (segmenter.image_size, segmenter.image_size)
    # Prompts come in groups of neighbours; shuffled, so that no region meets always the same kind.
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
    where = normalised_boxes(masks.flatten(0, 1).transpose(0, 1))  # (T, B, 5)
    return Shown(DecoderFeatures(torch.cat(images), torch.cat(tokens)), where.flatten(0, 1))


@dataclass(slots=True)
class FeatureIndex:
    """Where the region_features of a source lie in their store: all that is needed to choose examples, without tensors.

    Attributes:
        variants: how many region_features, by other prompts, there are of every region.
        starts: (sample, region, variant) → row of its first frame.
        closer: (sample, region, variant) → row of the closer look at a small region of a picture.
        usable: (sample, region) that can be prompted in their first frame.
    """

    variants: int
    starts: dict[tuple[int, int, int], int] = field(default_factory=dict)
    closer: dict[tuple[int, int, int], int] = field(default_factory=dict)
    usable: set[tuple[int, int]] = field(default_factory=set)

    def find(self, sample: int, region: int, variant: int, frames: Iterable[int]) -> list[int]:
        """Rows of some frames of a region."""
        start = self.starts[sample, region, variant]
        return [start + frame for frame in frames]

    def find_for_text(self, sample: int, region: int, variant: int) -> int:
        """Row of what a text of a picture's region is read from."""
        where = (sample, region, variant)
        return self.closer.get(where, self.starts[where])


class FeatureStore:
    """Taps of all regions of a source, on the device; `index` says where."""

    def __init__(
        self, entries: Sequence[Entry], segmenter: Segmenter, variants: int, dtype: torch.dtype
    ) -> None:
        self.index = FeatureIndex(variants)
        rows = 0
        for sample, entry in enumerate(entries):
            for region in captioned_regions(entry):
                for variant in range(variants):
                    self.index.starts[sample, region, variant] = rows
                    rows += entry.frames
        for sample, region in small_regions(entries) if segmenter.crop_small_regions else ():
            for variant in range(variants):
                self.index.closer[sample, region, variant] = rows
                rows += 1
        grid, width, device = segmenter.grid_size, segmenter.width, segmenter.pixel_mean.device
        self._dtype = dtype
        kept = torch.uint8 if dtype is EIGHT_BITS else dtype  # as bytes: they can be indexed
        self.image = torch.empty(rows, width, grid, grid, dtype=kept, device=device)
        self.tokens = torch.empty(rows, 2, width, device=device)
        self.where = torch.empty(rows, 5, device=device)

    def take(self, rows: Tensor) -> Shown:
        """Rows (K,) → K regions."""
        image = self.image[rows].view(self._dtype).float()
        return Shown(DecoderFeatures(image, self.tokens[rows]), self.where[rows])

    def put(self, samples: Sequence[int], entries: Sequence[Entry], variant: int, shown: Shown) -> None:
        """Keeps the regions told of, of N samples of T frames; they come time first."""
        frames = entries[samples[0]].frames
        shape = (frames, len(samples), -1)
        image = shown.decoder_features.image.to(self._dtype).view(self.image.dtype)
        stores = {self.image: image, self.tokens: shown.decoder_features.tokens, self.where: shown.where}
        for row, sample in enumerate(samples):
            for column, region in enumerate(captioned_regions(entries[sample])):
                start = self.index.starts[sample, region, variant]
                for kept, found in stores.items():
                    kept[start : start + frames] = found.reshape(*shape, *found.shape[1:])[:, row, column]

    def put_crops(self, regions: Sequence[tuple[int, int]], variant: int, shown: Shown) -> None:
        """Keeps closer looks at regions (sample, region)."""
        image = shown.decoder_features.image.to(self._dtype).view(self.image.dtype)
        rows = [self.index.closer[sample, region, variant] for sample, region in regions]
        where = torch.tensor(rows, device=self.image.device)
        self.image[where], self.tokens[where], self.where[where] = (
            image,
            shown.decoder_features.tokens,
            shown.where,
        )


@dataclass(slots=True)
class StageCache:
    """A filled store that goes from one stage to the next, where what it depends on is the same."""

    feature_key: tuple[object, ...] = ()
    region_features: FeatureStore | None = None


def feature_key(config: StageConfig, segmenter: Segmenter) -> tuple[object, ...]:
    """Everything that region_features depend on."""
    weights = sum(float(parameter.double().abs().sum()) for parameter in segmenter.parameters())
    how = (config.cache_features, config.precision, config.box_fraction, config.seed)
    return config.data, *how, segmenter.perceiver_input, segmenter.crop_small_regions, weights


def captioned_regions(entry: Entry) -> list[int]:
    """The regions that are worth their region_features: of a video those that have captions, where any has."""
    captioned = [place for place, region in enumerate(entry.regions) if region.clips]
    return captioned if entry.frames > 1 and captioned else list(range(len(entry.regions)))


def small_regions(entries: Sequence[Entry]) -> list[tuple[int, int]]:
    """(sample, region) of those in pictures that are looked at closer."""
    return [
        (sample, place)
        for sample, entry in enumerate(entries)
        for place, region in enumerate(entry.regions)
        if region.box is not None and crop_around(region.box) is not None
    ]


def random_crop(box: CropBox | None, random: np.random.Generator) -> CropBox:
    """A cut for a region in a box, varied; the whole picture for a large region."""
    if box is None:
        return WHOLE
    x, y = random.uniform(-OFF, OFF, 2)
    return crop_around(box, scale=float(random.uniform(*SPREAD)), shift=(float(x), float(y))) or WHOLE


class _CropSource:
    """RegionCrop looks at regions of a source as pictures of their own."""

    def __init__(self, source: Source, regions: Sequence[tuple[int, int]], seed: int) -> None:
        self._source, self._regions, self._seed = source, regions, seed
        self.entries = [Entry(1, (source.entries[sample].regions[place],)) for sample, place in regions]

    def load(self, index: int, frames: Sequence[int], size: int, cut: CropBox = WHOLE) -> Scene:
        """Decodes the cut; the same for the same seed."""
        assert cut == WHOLE
        varied = random_crop(self.entries[index].regions[0].box, np.random.default_rng([self._seed, index]))
        return self._source.load(self._regions[index][0], frames, size, varied)


def batches_of_equal_length(entries: Sequence[Entry]) -> Iterator[list[int]]:
    """Samples with as many frames and about as many regions as each other, in batches that fit the device."""
    groups: dict[int, list[int]] = defaultdict(list)
    for index, entry in enumerate(entries):
        if entry.regions:
            groups[entry.frames].append(index)
    for frames, indices in groups.items():
        indices.sort(key=lambda index: len(captioned_regions(entries[index])))
        at_once = VIDEOS_AT_ONCE if frames > 1 else IMAGES_AT_ONCE
        for start in range(0, len(indices), at_once):
            yield indices[start : start + at_once]


def fill_store(
    store: FeatureStore, source: Source, segmenter: Segmenter, config: StageConfig
) -> Iterator[int]:
    """Computes every decoder_features; yields the number of samples done after each batch."""
    device, entries, size = segmenter.pixel_mean.device, source.entries, segmenter.image_size
    batches = list(batches_of_equal_length(entries))
    frames = [
        [(sample, frame) for sample in samples for frame in range(entries[sample].frames)]
        for samples in batches
    ]
    found = decoded(source, frames, size, config.workers, device)
    for number, (samples, (pixels, ids)) in enumerate(zip(batches, found, strict=True)):
        count = len(samples)
        pixels = pixels.reshape(count, -1, size, size, 3).permute(0, 1, 4, 2, 3)
        places = [captioned_regions(entries[sample]) for sample in samples]
        ids = ids.reshape(count, -1, size, size)
        masks = codes_of(entries, samples, places, device).masks(ids)
        # This waits for the device, so it comes before its long work.
        seen = (masks[:, :, 0].sum((2, 3)) >= MIN_PIXELS).tolist()
        for variant in range(store.index.variants):
            shown = _coloured_and_seen(segmenter, pixels, masks, config, variant, number)
            store.put(samples, entries, variant, shown)
        store.index.usable |= {
            (sample, region)
            for row, sample in enumerate(samples)
            for column, region in enumerate(places[row])
            if seen[row][column]
        }
        yield count
    if segmenter.crop_small_regions:
        yield from _fill_crops(store, source, segmenter, config)


def _fill_crops(
    store: FeatureStore, source: Source, segmenter: Segmenter, config: StageConfig
) -> Iterator[int]:
    """The same for small regions of pictures, each in a cut of its own."""
    device, size = segmenter.pixel_mean.device, segmenter.image_size
    regions = small_regions(source.entries)
    starts = range(0, len(regions), CROPS_AT_ONCE)
    groups = [[(i, 0) for i in range(len(regions))[start : start + CROPS_AT_ONCE]] for start in starts]
    for variant in range(store.index.variants):
        cuts = _CropSource(source, regions, config.seed * 64 + variant)
        found = decoded(cuts, groups, size, config.workers, device)
        for start, (pixels, ids) in zip(starts, found, strict=True):
            chosen = range(start, start + len(pixels))
            masks = codes_of(cuts.entries, chosen, [[0]] * len(chosen), device).masks(ids[:, None])
            pixels = pixels.permute(0, 3, 1, 2)[:, None]
            shown = _coloured_and_seen(segmenter, pixels, masks, config, variant, start)
            store.put_crops([regions[i] for i in chosen], variant, shown)
            yield len(chosen)


def _coloured_and_seen(
    segmenter: Segmenter, pixels: Tensor, masks: Tensor, config: StageConfig, variant: int, number: int
) -> Shown:
    """`rolled_out` in colours of the batch's own: `number` is that of the batch."""
    device = pixels.device
    generator = Generator(device).manual_seed((config.seed * 64 + variant) * 1_000_003 + number)
    coloured = augment.colours(pixels, generator)
    with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        return rolled_out(segmenter, coloured, masks, generator, box_fraction=config.box_fraction)


def codes_of(
    entries: Sequence[Entry], samples: Sequence[int], places: Sequence[Sequence[int]], device: torch.device
) -> Codes:
    """Codes (N, R) of some regions of N samples; where there are fewer than R, of none."""
    nothing, most = (NO_CODE, THIS_PART), max(map(len, places))
    codes = [
        [code_of(entries[sample].regions[region]) for region in own] + [nothing] * (most - len(own))
        for sample, own in zip(samples, places, strict=True)
    ]
    value, bits = torch.tensor(codes, dtype=torch.int16, device=device).unbind(2)
    return Codes(value, bits)
