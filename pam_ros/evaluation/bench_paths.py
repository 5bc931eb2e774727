"""The steps that `pam bench` times, on both paths: `PlainPath` (`Pam`) and `FastPath` (the engines)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pam_ros.evaluation.fixed_texts import finish, open_prompt, plain_texts
from pam_ros.model.engines import Engines
from pam_ros.model.interface import FIRST_FRAME_STRIDE, LATER_FRAME_STRIDE
from pam_ros.model.pam import Pam
from pam_ros.model.text.fast.text_engine import CachedPrompt
from pam_ros.model.vision.fast.vision_engine import MaskBatch
from pam_ros.model.vision.features import DecoderFeatures
from pam_ros.records import Prompt

PREFIX_TOKENS = 14  # of the chat template, before a region's embeddings
SUFFIX_TOKENS = 15  # a task and the end of the turn
PREVIOUS_CAPTION_TOKENS = 60  # in a clip's prompt, in addition to the task
CLIP_FRAMES = 16
FRAME_SIZE = (720, 1280)  # (height, width), pixels

Image = NDArray[np.uint8]  # (H, W, 3) RGB


class EngineKind(Enum):
    """Which path runs. Values are their names on the command line."""

    PLAIN = "plain"  # transformers and package sam2
    FAST = "fast"  # `model.engines`, which the node runs on a GPU


class BenchPath(Protocol):
    """One path through a model. Texts are token ids of fixed length, without stop token or tokenizer."""

    device: torch.device
    model: Pam

    def warm_up(self) -> None:
        """Compiles kernels and captures graphs, if the path has any."""

    def preprocess(self, image: Image) -> object:
        """A frame on the host → the encoder's input on the device."""

    def segment(self, image: Image, count: int) -> Any:
        """A frame and `count` clicks at its centre → regions, on the device."""

    def fetch_masks(self, regions: Any) -> None:
        """Copies masks and scores of the newest frame to the host."""

    def track(self, image: Image, regions: Any) -> None:
        """Tracks the regions in the next frame; masks on the host."""

    def generate(self, regions: Any, lengths: Sequence[int]) -> None:
        """Generates, for every region, a text of each length (tokens); they share one image prompt."""

    def decode(self, tokens: int) -> None:
        """Generates one text of `tokens` tokens after an image prompt of constant embeddings."""

    def open_clip(self) -> Any:
        """Starts a clip's prompt."""

    def extend_clip(self, clip: Any, image: Image, regions: Any, *, first: bool) -> None:
        """Tracks the first region in a frame and adds its embeddings to the clip."""

    def settle(self) -> None:
        """Finishes work that can be done before the decode timestamp."""

    def caption(self, clip: Any, tokens: int) -> None:
        """Captions the clip with `tokens` tokens."""

    def release(self, regions: Any) -> None:
        """Forgets regions."""


def clip_tokens(model: Pam) -> int:
    """Embeddings of a clip of 16 frames, with a separator after every frame."""
    first, later = (model.region_tokens(stride) + 1 for stride in (FIRST_FRAME_STRIDE, LATER_FRAME_STRIDE))
    return first + (CLIP_FRAMES - 1) * later


def noise_frames(count: int) -> list[Image]:
    """Frames of `FRAME_SIZE`; the time a frame takes does not depend on its content."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*FRAME_SIZE, 3), dtype=np.uint8) for _ in range(count)]


def token_ids(count: int) -> list[int]:
    """Ids that every vocabulary has."""
    return [id_ % 100 for id_ in range(count)]


@dataclass(slots=True)
class PlainRegions:
    """Regions of `PlainPath`, with their observations in the newest frame."""

    memories: list[Any]
    observations: list[Any]


class PlainPath:
    """`Pam` and `GenerationBatch`, as the node runs them without the engines."""

    def __init__(self, model: Pam) -> None:
        self.device = model.device
        self.model = model
        self._prefix = model.language.embed(token_ids(PREFIX_TOKENS)).detach()

    def warm_up(self) -> None:
        """See `BenchPath`: there is nothing to do."""

    def preprocess(self, image: Image) -> object:
        """See `BenchPath`."""
        return self.model.segmenter.pixels(image)

    def segment(self, image: Image, count: int) -> PlainRegions:
        """See `BenchPath`."""
        features = self.model.encode(image)
        memories = [self.model.new_memory() for _ in range(count)]
        prompt = Prompt.from_clicks([(image.shape[1] / 2, image.shape[0] / 2)])
        return PlainRegions(memories, self.model.segment(features, [prompt] * count, memories))

    def fetch_masks(self, regions: PlainRegions) -> None:
        """See `BenchPath`. The plain path copies each value when it is first read."""
        for each in regions.observations:
            _ = each.mask, each.mask_score, each.presence_score

    def track(self, image: Image, regions: PlainRegions) -> None:
        """See `BenchPath`."""
        regions.observations = self.model.track(self.model.encode(image), regions.memories)
        self.fetch_masks(regions)

    def generate(self, regions: PlainRegions, lengths: Sequence[int]) -> None:
        """See `BenchPath`."""
        found = self.model.embeddings(regions.observations, stride=FIRST_FRAME_STRIDE, crop=True)
        prompts = torch.stack([torch.cat([self._prefix, each.tensor]) for each in found])
        self._run(prompts, [(prompt, tokens) for prompt in range(len(found)) for tokens in lengths])

    def decode(self, tokens: int) -> None:
        """See `BenchPath`."""
        length = PREFIX_TOKENS + self.model.region_tokens(FIRST_FRAME_STRIDE)
        self._run(self._prefix[:1].expand(length, -1)[None], [(0, tokens)])

    def open_clip(self) -> list[Tensor]:
        """See `BenchPath`."""
        return []

    def extend_clip(self, clip: list[Tensor], image: Image, regions: PlainRegions, *, first: bool) -> None:
        """See `BenchPath`."""
        self.track(image, regions)
        stride = FIRST_FRAME_STRIDE if first else LATER_FRAME_STRIDE
        clip.append(self.model.embeddings(regions.observations[:1], stride=stride)[0].tensor)

    def settle(self) -> None:
        """See `BenchPath`: the plain path prefills at the decode timestamp."""

    def caption(self, clip: list[Tensor], tokens: int) -> None:
        """See `BenchPath`."""
        embeddings = self.model.projector.prompt_embeddings(clip, clip=True)
        self._run(torch.cat([self._prefix, embeddings])[None], [(0, tokens)], PREVIOUS_CAPTION_TOKENS)

    def release(self, regions: PlainRegions) -> None:
        """See `BenchPath`."""

    def _run(self, prompts: Tensor, texts: Sequence[tuple[int, int]], more_suffix: int = 0) -> None:
        plain_texts(self.model.language, prompts, texts, token_ids(SUFFIX_TOKENS + more_suffix))


@dataclass(slots=True)
class FastRegions:
    """Regions of `FastPath`, with their masks and decoder features in the newest frame."""

    memories: list[Any]
    found: MaskBatch


class FastPath:
    """`Engines`, driven step by step."""

    def __init__(self, engines: Engines) -> None:
        self.engines, self.model = engines, engines.model
        self.device = engines.vision.device
        self._newline = engines.model.projector.frame_newline.detach()[None]
        self.prefix = engines.text.embed(token_ids(PREFIX_TOKENS))

    def warm_up(self) -> None:
        """See `BenchPath`."""
        self.engines.warm_up()

    def preprocess(self, image: Image) -> object:
        """See `BenchPath`."""
        return self.engines.preprocessor.pixels(self.engines.preprocessor.upload(image))

    def segment(self, image: Image, count: int) -> FastRegions:
        """See `BenchPath`."""
        vision = self.engines.vision
        memories = [vision.open() for _ in range(count)]
        points = np.full((count, 1, 2), vision.sam2.image_size / 2, np.float32)
        labels = np.ones((count, 1), np.int32)
        return FastRegions(memories, vision.segment(self.engines.encode(image), points, labels, memories))

    def fetch_masks(self, regions: FastRegions) -> None:
        """See `BenchPath`."""
        regions.found.to_host()

    def track(self, image: Image, regions: FastRegions) -> None:
        """See `BenchPath`."""
        regions.found = self.engines.vision.track(self.engines.encode(image), regions.memories)
        self.fetch_masks(regions)

    def generate(self, regions: FastRegions, lengths: Sequence[int]) -> None:
        """See `BenchPath`."""
        found = self.engines.region_embeddings(regions.found.features, stride=FIRST_FRAME_STRIDE)
        prompts = [self._prompt(each) for each in found]
        for prompt in prompts:
            for tokens in lengths:
                self.engines.text.generate(prompt, token_ids(SUFFIX_TOKENS), max_new_tokens=tokens)
        finish(self.engines.text, prompts)

    def decode(self, tokens: int) -> None:
        """See `BenchPath`."""
        length = self.engines.model.region_tokens(FIRST_FRAME_STRIDE)
        prompt = self._prompt(self.prefix[:1].expand(length, -1))
        self.engines.text.generate(prompt, token_ids(SUFFIX_TOKENS), max_new_tokens=tokens)
        finish(self.engines.text, [prompt])

    def open_clip(self) -> CachedPrompt:
        """See `BenchPath`."""
        capacity = PREFIX_TOKENS + clip_tokens(self.engines.model)
        return open_prompt(self.engines.text, self.prefix, capacity=capacity)

    def extend_clip(self, clip: CachedPrompt, image: Image, regions: FastRegions, *, first: bool) -> None:
        """See `BenchPath`."""
        self.track(image, regions)
        stride = FIRST_FRAME_STRIDE if first else LATER_FRAME_STRIDE
        features = regions.found.features.split()[0]
        self.engines.text.extend(clip, self.frame_embeddings(features, stride=stride))

    def frame_embeddings(self, features: DecoderFeatures, *, stride: int) -> Tensor:
        """One region in one frame of a clip → (L, H), its separator included."""
        return torch.cat([self.engines.region_embeddings(features, stride=stride)[0], self._newline])

    def settle(self) -> None:
        """See `BenchPath`: prefills the frames that have arrived."""
        finish(self.engines.text)

    def caption(self, clip: CachedPrompt, tokens: int) -> None:
        """See `BenchPath`."""
        suffix = token_ids(SUFFIX_TOKENS + PREVIOUS_CAPTION_TOKENS)
        self.engines.text.generate(clip, suffix, max_new_tokens=tokens)
        finish(self.engines.text, [clip])

    def release(self, regions: FastRegions) -> None:
        """See `BenchPath`."""
        regions.memories.clear()

    def _prompt(self, embeddings: Tensor) -> CachedPrompt:
        return open_prompt(self.engines.text, torch.cat([self.prefix, embeddings]))
