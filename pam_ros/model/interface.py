"""What the runtime needs of a model: `Pam` provides it, tests provide fakes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pam_ros.records import Language, Prompt, Task


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Facts about a loaded model, for logs and diagnostics."""

    name: str
    device: str
    dtype: str
    parameters: int  # count
    licence: str
    crop_small_regions: bool = (
        False  # texts of small regions are read from nearer, see `PerceptionModel.rows`
    )


# Pixel shuffle of the Perceiver's image tokens (paper, section 3.2): an image and the first frame of a clip keep one
# visual token for 2 × 2 of them, later frames one for 4 × 4.
FIRST_FRAME_STRIDE = 2
LATER_FRAME_STRIDE = 4


class FrameFeatures(Protocol):
    """SAM 2's features of one encoded frame; stay on the device."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the frame, pixels."""


class RegionMemory(Protocol):
    """SAM 2's memory of one region: bounded, written by `segment` and `track`."""


class Observation(Protocol):
    """One region in one frame."""

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(H, W) bool of the frame's size; empty when the object is not in view."""

    @property
    def mask_score(self) -> float:
        """The model's estimate of the mask's IoU, 0..1."""

    @property
    def presence_score(self) -> float:
        """Probability that the object is in view, 0..1."""


class RegionEmbeddings(Protocol):
    """One frame of a region as rows for the language model; stay on the device."""

    def __len__(self) -> int:
        """How many rows."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One text to decode. Requests with the identical `rows` tuple share one prefill."""

    # Each a RegionEmbeddings of the model that decodes: one for an image task; for Task.CLIP a clip's, oldest first.
    embeddings: tuple[Any, ...]
    task: Task
    language: Language
    previous_caption: str | None = None  # Task.CLIP only
    max_new_tokens: int = 512
    temperature: float = 0.0  # 0 = greedy, a robot's default; the reference samples at 0.1


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A request's text so far; `index` counts the requests given to `decode`."""

    index: int
    text: str
    final: bool


class Decode(Protocol):
    """A batch of texts being decoded, one bounded step at a time."""

    @property
    def done(self) -> bool:
        """True once every request is final or cancelled."""

    def step(self) -> list[TextDelta]:
        """Does one prefill chunk, or one token for every running request; reports the texts that changed."""

    def cancel(self, index: int) -> None:
        """Stops one request; it is reported no more. Idempotent."""


class PerceptionModel(Protocol):
    """Masks and texts of regions. Not thread-safe: one thread owns it.

    What it hands out (features, memories, observations, rows) only the model that made it can read;
    so it comes out as a protocol and goes back in as `Any`.
    """

    @property
    def info(self) -> ModelInfo:
        """What is loaded."""

    def encode(self, image: NDArray[np.uint8]) -> FrameFeatures:
        """(H, W, 3) uint8 RGB → features. One encoder pass serves every region of the frame."""

    def new_memory(self) -> RegionMemory:
        """An empty memory for a new region."""

    def segment(
        self, features: Any, prompts: Sequence[Prompt], memories: Sequence[Any]
    ) -> Sequence[Observation]:
        """Segments prompted regions, batched. An empty memory is started.

        A memory that holds frames is refined: `features` are those of the newest frame it holds.
        """

    def track(self, features: Any, memories: Sequence[Any]) -> Sequence[Observation]:
        """Finds every remembered region in the next frame, batched, and remembers it there."""

    def embeddings(
        self, observations: Sequence[Any], *, stride: int, crop: bool = False
    ) -> Sequence[RegionEmbeddings]:
        """Perceiver and projector, batched.

        `fine`: the density of an image and of a clip's first frame; else that of a clip's later frames.
        `closer`: for texts of images; small regions are read from a cut of the frame, by models that do so.
        """

    def decode(self, requests: Sequence[GenerationRequest]) -> Decode:
        """Starts decoding a batch of texts."""

    def close(self) -> None:
        """Frees the memory; the model cannot be used afterwards."""
