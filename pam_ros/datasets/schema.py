"""Where training samples come from: pictures and videos with regions, their masks and their texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pam_ros.geometry import CropBox
from pam_ros.records import Language, Task

PART_STEP = 256  # an id picture's value is instance + PART_STEP * part
WHOLE: CropBox = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True, slots=True)
class ClipEntry:
    """A stretch of a video with its captions, in many wordings; frames start..end, end exclusive.

    A `backward` one is shown from its last frame to its first, and has a frame after it.
    """

    start: int
    end: int
    texts: Mapping[Language, tuple[str, ...]]
    event: str = ""  # what happens, joined by "+"; "" where the data do not say
    backward: bool = False


@dataclass(frozen=True, slots=True)
class RegionEntry:
    """One region: what is said about it, and which pixels of the id pictures are its own."""

    texts: Mapping[tuple[Task, Language], tuple[str, ...]] = field(
        default_factory=dict
    )  # image tasks, all wordings
    clips: tuple[tuple[ClipEntry, ...], ...] = ()  # sequences; each clip's caption continues the one before
    instance: int = 1
    part: int = 0  # 0 = the whole instance
    segments: tuple[tuple[int, int, str], ...] = ()  # what happens in a video: start, end (exclusive), event
    backward_segments: tuple[tuple[int, int, str], ...] = ()  # the same where it is played backwards
    path_m: tuple[tuple[float, ...], ...] = ()  # of a video: how far right, away, up it is in each frame
    box: CropBox | None = None  # around it in a picture; None where that is not known before it is decoded

    @property
    def label(self) -> str:
        """Its first label in English, "" where it has none."""
        return next(iter(self.texts.get((Task.LABEL, Language.EN), ())), "")

    @property
    def is_static(self) -> bool:
        """Whether the same goes on all through the video, as with things that stand by."""
        return len(self.segments) == 1


@dataclass(frozen=True, slots=True)
class Entry:
    """A picture (one frame) or a video."""

    frames: int
    regions: tuple[RegionEntry, ...]


@dataclass(frozen=True, slots=True)
class Scene:
    """Decoded frames: pixels (T, S, S, 3) uint8 RGB and ids (T, S, S) uint16, instance + PART_STEP * part."""

    pixels: NDArray[np.uint8]
    ids: NDArray[np.uint16]


class Source(Protocol):
    """A set of samples with random access; must survive pickling into loader processes."""

    @property
    def entries(self) -> Sequence[Entry]:
        """Everything but the pixels."""

    def load(self, index: int, frames: Sequence[int], size: int, cut: CropBox = WHOLE) -> Scene:
        """Decodes some frames of a sample, or a cut of them.

        Resized to `size` × `size` without keeping the aspect ratio.
        """


def resized(picture: Image.Image, size: int, cut: CropBox = WHOLE) -> NDArray[np.uint8]:
    """A cut of a picture → (S, S, 3), by the very filter that inference uses."""
    width, height = picture.size
    box = (cut[0] * width, cut[1] * height, cut[2] * width, cut[3] * height)
    return np.asarray(picture.resize((size, size), box=box))


def sample_ids(ids: NDArray[Any], size: int, cut: CropBox = WHOLE) -> NDArray[Any]:
    """A cut of (H, W) → (S, S): the value under the middle of every new pixel."""
    middles = (np.arange(size) + 0.5) / size
    rows, columns = (
        np.minimum(((low + (high - low) * middles) * length).astype(int), length - 1)
        for low, high, length in ((cut[1], cut[3], ids.shape[0]), (cut[0], cut[2], ids.shape[1]))
    )
    picked: NDArray[Any] = ids[rows].take(columns, axis=1)
    return picked
