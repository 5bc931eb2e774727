"""One sample: an image or a video, its regions, their annotations and provenance.

Every format has one reader that yields samples of this type; training and evaluation read nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pam_ros import media
from pam_ros.datasets.rle import PixelBox, RleMask
from pam_ros.errors import DatasetError
from pam_ros.geometry import CropBox, Mask
from pam_ros.records import Frame, Language, Prompt, Task


class Picture(Protocol):
    """Pixels that are loaded when they are needed. Can be hashed and pickled (into loader processes)."""

    def __hash__(self) -> int: ...

    def read(self) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB."""


@dataclass(frozen=True, slots=True)
class PictureFile:
    """An image in a file."""

    path: Path

    def read(self) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB. Raises ImageError if the file cannot be read."""
        return media.read_image(self.path)


@dataclass(frozen=True, slots=True, eq=False)
class LoadedPicture:
    """An image in memory, (H, W, 3) uint8 RGB."""

    pixels: NDArray[np.uint8]

    def read(self) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB."""
        return self.pixels


class Kind(Enum):
    """What a region is."""

    OBJECT = "object"  # a whole object
    PART = "part"  # a named part of one, e.g. a handle
    BACKGROUND = "background"  # table, wall, floor
    UNKNOWN = "unknown"  # the data do not say


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where annotations come from; empty strings and None mean not known.

    Attributes:
        source: the data set or program, e.g. "simulator".
        annotator: who made the annotations: a model's name, a person's, "simulator".
        confidence: probability that they are right, 0..1.
    """

    source: str = ""
    annotator: str = ""
    confidence: float | None = None


@dataclass(frozen=True, slots=True)
class FramePrompt:
    """How a region is prompted in one frame: a box, clicks (x, y, label; 1 on the region, 0 not), or both."""

    box_xyxy: PixelBox | None = None
    clicks: tuple[tuple[float, float, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Clip:
    """A stretch of a video, frames start..end (end exclusive), with its captions.

    Attributes:
        captions: right captions by language, in several wordings.
        events: what happens, ids of the ontology in order; () if the data do not say.
        previous: the caption before it by language, if the data ask with one.
        backward: the clip is played from its last frame to its first, and a frame follows it in the video.
    """

    start: int
    end: int
    captions: Mapping[Language, tuple[str, ...]]
    events: tuple[str, ...] = ()
    previous: Mapping[Language, str] = field(default_factory=dict)
    backward: bool = False


Segment = tuple[int, int, str]  # frames start..end (end exclusive) and the event in them


@dataclass(frozen=True, slots=True)
class SampleRegion:
    """One region: masks, prompts and annotations. Empty values mean that the data do not say.

    Attributes:
        name: e.g. "region 3": its place among the sample's regions, from 1.
        kind: object, part, background or unknown.
        object_id: number of the object it is, or is a part of, in its sample; from 1, 0 = not known.
        part: name of the part, "" for a whole object.
        masks: by frame; None if it has no pixel there. () if the data have no masks.
        prompts: boxes and clicks by frame.
        texts: right texts of image tasks in several wordings.
        clips: sequences of clips; in a sequence each caption continues the one before.
        segments: (videos) what happens from the first frame to the last; `backward_segments`: the same if the
            video is played backwards, in frames of the video.
        path_m: (videos) metres to the right, away and up by frame, relative to the first frame.
        category, function: ids of the ontology; colour, material: as captions name them.
        mesh_id: of the rendered object.
        provenance: of texts and masks.
        extra: whatever else the source says; not read.
    """

    name: str = ""
    kind: Kind = Kind.UNKNOWN
    object_id: int = 0
    part: str = ""
    masks: tuple[RleMask | None, ...] = ()
    prompts: Mapping[int, FramePrompt] = field(default_factory=dict)
    texts: Mapping[tuple[Task, Language], tuple[str, ...]] = field(default_factory=dict)
    clips: tuple[tuple[Clip, ...], ...] = ()
    segments: tuple[Segment, ...] = ()
    backward_segments: tuple[Segment, ...] = ()
    path_m: tuple[tuple[float, ...], ...] = ()
    category: str = ""
    function: str = ""
    colour: str = ""
    material: str = ""
    mesh_id: str = ""
    provenance: Provenance = Provenance()
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Its first English label, "" if it has none."""
        return next(iter(self.texts.get((Task.LABEL, Language.EN), ())), "")

    @property
    def is_static(self) -> bool:
        """Whether the data say that one and the same event fills the whole video."""
        return len(self.segments) == 1

    @property
    def by_others(self) -> bool:
        """Whether its mesh is one of the open meshes: "category/package/file"."""
        return self.mesh_id.count("/") == 2

    def mask(self, frame: int = 0) -> Mask | None:
        """(H, W) bool in one frame, empty while it is hidden; None if the data have no masks."""
        if not self.masks:
            return None
        mask = self.masks[frame]
        if mask is not None:
            return mask.decode()
        known = next(each for each in self.masks if each is not None)
        return np.zeros((known.height, known.width), np.bool_)

    def box_xyxy(self, frame: int = 0) -> PixelBox | None:
        """Its box in one frame, given or around its mask; None if neither is there."""
        prompt = self.prompts.get(frame)
        if prompt is not None and prompt.box_xyxy is not None:
            return prompt.box_xyxy
        mask = self.masks[frame] if self.masks else None
        return mask.box_xyxy if mask is not None else None

    def can_be_prompted(self, frame: int = 0) -> bool:
        """Whether it has a box or a positive click in this frame."""
        given = self.prompts.get(frame, FramePrompt())
        return self.box_xyxy(frame) is not None or any(label == 1 for *_, label in given.clicks)

    def prompt(self, frame: int = 0) -> Prompt:
        """Its box as a prompt, or its clicks if it has no box. Raises DatasetError if it has neither."""
        if (box := self.box_xyxy(frame)) is not None:
            return Prompt.from_clicks(box_xyxy=box)
        if not self.can_be_prompted(frame):
            raise DatasetError(f"{self.name} has no box and no positive click in frame {frame}")
        clicks = self.prompts[frame].clicks
        return Prompt.from_clicks([(x, y) for x, y, _ in clicks], [label for *_, label in clicks])


@dataclass(frozen=True, slots=True)
class Sample:
    """An image, or a video's frames in time order, with regions.

    Attributes:
        name: e.g. "image 7000001"; unique in its data set.
        is_video: a video may have a single frame.
        size: (height, width) pixels, or None if it is known only when a frame is read.
        fps: frames a second, 0 for an image.
        other_masks: by object, then by frame: whole objects that are not regions, whose outlines training
            uses, too; None if an object has no pixel there.
        actor: `object_id` of the object that acts, 0 if the data do not say.
        extra: whatever else the source says; not read.
    """

    name: str
    frames: tuple[Picture, ...]
    regions: tuple[SampleRegion, ...]
    is_video: bool = False
    size: tuple[int, int] | None = None
    fps: float = 0.0
    other_masks: tuple[tuple[RleMask | None, ...], ...] = ()
    actor: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.frames)

    def image(self, index: int = 0) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB of one frame."""
        return self.frames[index].read()

    def stamps_ns(self) -> list[int]:
        """Stamp of every frame, nanoseconds from the first."""
        return [round(index / self.fps * 1e9) for index in range(len(self))] if len(self) > 1 else [0]

    def stream(self) -> Iterator[Frame]:
        """All frames with their stamps, decoded one by one."""
        for index, stamp_ns in enumerate(self.stamps_ns()):
            yield Frame(image=self.image(index), stamp_ns=stamp_ns)

    def crop_box(self, region: SampleRegion) -> CropBox | None:
        """The region's box in the first frame as fractions of it; None if box or size is not known."""
        box = region.box_xyxy(0)
        if box is None or self.size is None:
            return None
        height, width = self.size
        return box[0] / width, box[1] / height, box[2] / width, box[3] / height


class SampleSource(Protocol):
    """Samples with random access; each is read when it is asked for. Survives pickling into loader processes.

    A sequence of samples is one, too.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...

    def __iter__(self) -> Iterator[Sample]: ...
