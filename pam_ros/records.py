"""Frozen value types shared by all layers; NumPy only.

Coordinates are `(x, y)` pixels of the frame they belong to, x right, y down, the centre of
the top-left pixel at (0, 0). Images are `(H, W, 3)` uint8, RGB. Stamps are integer
nanoseconds of the camera's clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from enum import Enum, IntEnum
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pam_ros.errors import GeometryError, ImageError, LanguageError, PromptError, TaskError

MAX_CLICKS = 64  # of one prompt


class Task(Enum):
    """A text about a region. Values are the names used on every interface."""

    LABEL = "label"  # the category's name
    EXPLAIN = "explain"  # name, definition, and function in this context
    BRIEF = "brief"  # one-sentence caption
    DETAIL = "detail"  # comprehensive caption
    CLIP = "clip"  # what happens to the region in a clip (streaming captions)

    @classmethod
    def parse(cls, name: str) -> Task:
        """`"label"` → `Task.LABEL`. Raises TaskError naming what is allowed."""
        try:
            return cls(name)
        except ValueError:
            allowed = ", ".join(task.value for task in cls)
            raise TaskError(f"unknown task {name!r}; allowed: {allowed}") from None


IMAGE_TASKS = (Task.LABEL, Task.EXPLAIN, Task.BRIEF, Task.DETAIL)


def image_tasks(names: Iterable[str]) -> tuple[Task, ...]:
    """`["label"]` → tasks a prompt may ask for, in order, each once. Raises TaskError, for "clip" too."""
    known = {task.value: task for task in IMAGE_TASKS}
    tasks = []
    for name in names:
        if name not in known:
            what = "task 'clip' is for clips, not for images" if name == "clip" else f"unknown task {name!r}"
            raise TaskError(f"{what}; allowed: {', '.join(known)}")
        tasks.append(known[name])
    return tuple(dict.fromkeys(tasks))


class Language(Enum):
    """Languages the model answers in. Values are BCP 47 codes."""

    EN = "en"
    ZH = "zh"

    @classmethod
    def parse(cls, code: str) -> Language:
        """`"zh"` → `Language.ZH`. Raises LanguageError naming what is allowed."""
        try:
            return cls(code)
        except ValueError:
            allowed = ", ".join(language.value for language in cls)
            raise LanguageError(f"unknown language {code!r}; allowed: {allowed}") from None


def language_of(text: str) -> Language:
    """Chinese if the text has a Chinese character, else English."""
    return Language.ZH if any("\u4e00" <= letter <= "\u9fff" for letter in text) else Language.EN


class RegionState(IntEnum):
    """Tracking state; the values equal the constants of Region.msg."""

    TRACKED = 1  # in view in this frame
    LOST = 2  # not in view; its memory is kept and it may be found again


def plain(pixels: NDArray[np.float32]) -> list[Any]:
    """Coordinates as messages show them: numbers with two decimals at most."""
    shown: list[Any] = np.round(np.asarray(pixels, np.float64), 2).tolist()
    return shown


@dataclass(frozen=True, slots=True)
class Frame:
    """One camera image. Raises ImageError if the array is not an image."""

    image: NDArray[np.uint8]  # (H, W, 3) RGB
    stamp_ns: int
    frame_id: str = ""
    camera: str = ""

    def __post_init__(self) -> None:
        image = self.image
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
            raise ImageError(
                f"a frame must be a non-empty (H, W, 3) uint8 RGB array, not {image.shape} {image.dtype}"
            )

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.image.shape[0], self.image.shape[1]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A region, by clicks, a box, a mask, or clicks and a box together.

    Attributes:
        points: (N, 2) float32, (x, y) pixels; N may be 0.
        labels: (N,) int32, 1 = on the region, 0 = not on it. If none is 1 and there is no box, the prompt can
            only refine a region.
        box: (4,) float32 (x1, y1, x2, y2) with x1 < x2 and y1 < y2, or None.
        mask: (H, W) bool of the frame's size, or None; not together with clicks or box.

    Raises PromptError for anything else, NaN and infinity included.
    """

    points: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 2), np.float32))
    labels: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    box: NDArray[np.float32] | None = None
    mask: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        if self.points.ndim != 2 or self.points.shape[1] != 2:
            raise PromptError(f"points must be (N, 2) pixel coordinates, not of shape {self.points.shape}")
        if len(self.points) > MAX_CLICKS:
            raise PromptError(f"a prompt has {len(self.points)} clicks; at most {MAX_CLICKS} are allowed")
        if self.labels.shape != (len(self.points),):
            raise PromptError(
                f"{len(self.points)} points but {self.labels.size} labels; give one label per point"
            )
        if not np.isfinite(self.points).all():
            raise PromptError(f"points must be finite, not {plain(self.points)}")
        if not np.isin(self.labels, (0, 1)).all():
            raise PromptError(f"labels must be 1 (on the region) or 0 (off it), not {self.labels.tolist()}")
        if self.mask is not None:
            self._check_mask(self.mask)
        elif self.box is not None:
            self._check_box(self.box)
        elif not len(self.points):
            raise PromptError("a prompt needs a positive click, a box or a mask; it has none")

    @property
    def shows_region(self) -> bool:
        """False if it has negative clicks only, which say what a region is not."""
        return self.mask is not None or self.box is not None or bool((self.labels == 1).any())

    def _check_mask(self, mask: NDArray[np.bool_]) -> None:
        if self.box is not None or len(self.points):
            raise PromptError("a mask prompt cannot be combined with clicks or a box; send one or the other")
        if mask.ndim != 2 or mask.dtype != np.bool_:
            raise PromptError(f"a mask prompt must be (H, W) bool, not {mask.shape} {mask.dtype}")
        if not mask.any():
            raise PromptError("the mask prompt is empty; at least one pixel must be set")

    @staticmethod
    def _check_box(box: NDArray[np.float32]) -> None:
        if box.shape != (4,):
            raise PromptError(f"a box must be (x1, y1, x2, y2), not of shape {box.shape}")
        if not np.isfinite(box).all():
            raise PromptError(f"a box must be finite, not {plain(box)}")
        if box[0] >= box[2] or box[1] >= box[3]:
            raise PromptError(f"a box must be (x1, y1, x2, y2) with x1 < x2 and y1 < y2, not {plain(box)}")

    @classmethod
    def from_clicks(
        cls,
        points_xy: Iterable[Iterable[float]] = (),
        labels: Iterable[int] | None = None,
        box_xyxy: Iterable[float] | None = None,
    ) -> Prompt:
        """Builds from plain numbers; without labels every point is a positive click."""
        rows = [tuple(point) for point in points_xy]
        if any(len(row) != 2 for row in rows):
            raise PromptError(f"each point must be (x, y), not {rows}")
        with np.errstate(over="ignore"):  # too large for float32: infinite, and refused
            points = np.asarray(rows, np.float32).reshape(-1, 2)
            box = None if box_xyxy is None else np.asarray(list(box_xyxy), np.float32)
        marks = np.ones(len(points), np.int32) if labels is None else np.asarray(list(labels), np.int32)
        return cls(points=points, labels=marks, box=box)

    @classmethod
    def from_mask(cls, mask: NDArray[np.bool_]) -> Prompt:
        """Builds from a (H, W) mask; nonzero is inside."""
        return cls(mask=np.asarray(mask) != 0)

    def check_size(self, height: int, width: int) -> None:
        """Raises PromptError if the prompt does not lie in an image of this size, in pixels."""
        xs, ys = self.points[:, 0], self.points[:, 1]
        outside = (xs < 0) | (ys < 0) | (xs > width - 1) | (ys > height - 1)
        if outside.any():
            raise PromptError(
                f"click {plain(self.points[outside][0])} is outside the {width}x{height} image; "
                f"allowed: x 0..{width - 1}, y 0..{height - 1}"
            )
        if self.box is not None:
            x1, y1, x2, y2 = self.box.tolist()
            if x2 <= 0 or y2 <= 0 or x1 >= width or y1 >= height:
                raise PromptError(
                    f"box {plain(self.box)} is outside the {width}x{height} image; "
                    f"it must overlap x 0..{width}, y 0..{height}"
                )
        if self.mask is not None and self.mask.shape != (height, width):
            raise PromptError(
                f"the mask is {self.mask.shape[1]}x{self.mask.shape[0]}, the image {width}x{height}; "
                "they must be the same size"
            )


class Lens(Enum):
    """Distortion of a camera's lens. Values are the names that sensor_msgs/CameraInfo uses."""

    PLUMB_BOB = "plumb_bob"  # k1 k2 p1 p2 k3
    RATIONAL = "rational_polynomial"  # k1 k2 p1 p2 k3 k4 k5 k6, and OpenCV's further ones
    EQUIDISTANT = "equidistant"  # k1 k2 k3 k4 of OpenCV's fisheye model


_COEFFICIENTS = {
    Lens.PLUMB_BOB: (0, 4, 5, 8, 12, 14),
    Lens.RATIONAL: (0, 4, 5, 8, 12, 14),
    Lens.EQUIDISTANT: (0, 4),
}


@dataclass(frozen=True, slots=True)
class CameraModel:
    """How a camera maps points of its optical frame (x right, y down, z forward) to the pixels of its images.

    Attributes:
        size: (height, width) of the images, pixels.
        fx, fy, cx, cy: pinhole intrinsics, pixels of these images.
        coefficients: distortion in OpenCV's order; empty = none.

    Raises GeometryError for values that describe no camera.
    """

    size: tuple[int, int]
    fx: float
    fy: float
    cx: float
    cy: float
    lens: Lens = Lens.PLUMB_BOB
    coefficients: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        numbers = (self.fx, self.fy, self.cx, self.cy, *self.coefficients)
        if not np.isfinite(numbers).all() or self.fx <= 0 or self.fy <= 0 or min(self.size) <= 0:
            raise GeometryError(
                f"the calibration is not valid: size {self.size}, fx {self.fx}, fy {self.fy}, cx {self.cx}, "
                f"cy {self.cy}, coefficients {list(self.coefficients)}; calibrate the camera"
            )
        allowed = _COEFFICIENTS[self.lens]
        if len(self.coefficients) not in allowed:
            raise GeometryError(
                f"distortion {self.lens.value} has {len(self.coefficients)} coefficients; "
                f"allowed: {', '.join(map(str, allowed))}"
            )


@dataclass(frozen=True, slots=True, eq=False)
class DepthImage:
    """Depth for every pixel of a camera's image. Raises ImageError if the array is not a depth image.

    Attributes:
        depth_m: (H, W) float32, distance along the optical axis, metres; 0, NaN or infinity = not measured.
    """

    depth_m: NDArray[np.float32]
    stamp_ns: int
    frame_id: str = ""

    def __post_init__(self) -> None:
        depth = self.depth_m
        if depth.ndim != 2 or depth.dtype != np.float32 or depth.size == 0:
            raise ImageError(
                f"depth must be a non-empty (H, W) float32 array, not {depth.shape} {depth.dtype}"
            )


@dataclass(frozen=True, slots=True, eq=False)
class OrientedBox:
    """A box of any orientation in the camera's optical frame, metres.

    Attributes:
        centre_m, size_m: (3,) float64; the longest side first.
        axes: (3, 3) float64 rotation whose columns are the box's axes.
    """

    centre_m: NDArray[np.float64]
    size_m: NDArray[np.float64]
    axes: NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class VisibleSurface:
    """The part of an object that the camera sees, in the camera's optical frame, metres.

    Attributes:
        position_m: (3,) float64 centroid, each visible pixel counting once.
        size_m: (3,) float64 extent along x (right), y (down) and z (forward), without the outermost
            thousandth of the pixels at either end.
        box: a small box around it; None if it was not passed on.
    """

    position_m: NDArray[np.float64]
    size_m: NDArray[np.float64]
    box: OrientedBox | None = None


@dataclass(frozen=True, slots=True)
class Region:
    """A snapshot of one region at one frame.

    Attributes:
        region_id: above 0, unique in its camera, never reused.
        state: tracked or lost.
        box_xyxy: (4,) float32 tight box (x1, y1, x2, y2) of the mask, x2 and y2 exclusive; zeros when lost.
        mask: (y2 - y1, x2 - x1) bool, the mask cut to `box_xyxy`; (0, 0) when lost.
        mask_score: the model's own estimate of the mask's IoU, 0..1.
        presence_score: probability that the object is in view, 0..1.
        texts: what is known so far, final texts only, in the order in which they were asked for.
        created_ns: stamp of the frame of its prompt.
        last_visible_ns: stamp of the last frame in which it was in view.
        asked: the requested texts, in their order, without those that failed.
    """

    region_id: int
    state: RegionState
    box_xyxy: NDArray[np.float32]
    mask: NDArray[np.bool_]
    mask_score: float
    presence_score: float
    texts: Mapping[tuple[Task, Language], Text]
    created_ns: int
    last_visible_ns: int
    source_id: str = ""  # `id` of the detection it was made from; "" if a person or a service prompted it
    source_class: str = ""  # class of that detection, as the detector names it; "" if unknown
    surface: VisibleSurface | None = None  # in the frame of `last_visible_ns`; None without depth
    asked: tuple[tuple[Task, Language], ...] = ()

    def __reduce__(self) -> tuple[partial[Region], tuple[()]]:
        """For pickle and copy: the view of the texts becomes a dictionary."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return partial(Region, **values | {"texts": dict(self.texts)}), ()

    def in_view_at(self, stamp_ns: int) -> bool:
        """Whether box and mask are those of the frame with this stamp."""
        return bool(self.mask.size) and self.last_visible_ns == stamp_ns

    def asked_texts(self) -> list[tuple[tuple[Task, Language], Text | None]]:
        """Every text in the order asked for; None while it is not finished."""
        return [(key, self.texts.get(key)) for key in dict.fromkeys((*self.asked, *self.texts))]

    @property
    def labels(self) -> list[Text]:
        """Its labels, in the order of the languages asked for; none until the first of them is finished."""
        labels = [text for (task, _), text in self.asked_texts() if task is Task.LABEL]
        return [text for text in labels if text is not None] if labels and labels[0] is not None else []

    @property
    def name(self) -> str:
        """The label in the language asked for first, as shown; empty until it is finished."""
        return self.labels[0].shown if self.labels else ""

    @property
    def name_confidence(self) -> float | None:
        """The probability that `name` is right; None if there is no name or it is not known."""
        return self.labels[0].confidence if self.labels else None


@dataclass(frozen=True, slots=True)
class Text:
    """One generated text.

    Attributes:
        stamp_ns: stamp of the frame (of a clip: its last frame) that the text describes.
        confidence: probability that the text is right, 0..1; None if it is not known.
        unsure: the confidence is known and low: not to be taken as a fact.
    """

    text: str
    stamp_ns: int
    confidence: float | None = None
    unsure: bool = False

    @property
    def shown(self) -> str:
        """The text as displayed; an unsure one ends with a question mark: "cutting board?"."""
        return f"{self.text.rstrip('.。')}?" if self.unsure and self.text else self.text

    @property
    def sure_text(self) -> str:
        """`shown` with the confidence: "mug 97%"; only the text if it is not known."""
        return self.shown if self.confidence is None else f"{self.shown} {percent(self.confidence)}"


def percent(confidence: float) -> str:
    """A confidence as displayed, in percent: never "100%" or "0%"."""
    return "<1%" if confidence < 0.005 else f"{min(confidence, 0.99):.0%}"


@dataclass(frozen=True, slots=True)
class Detection:
    """One box of a detector, with what the detector says about it.

    Attributes:
        box_xyxy: (x1, y1, x2, y2) pixels of the frame it was detected in.
        source_id: the detector's own id of the object, "" if it gives none.
        source_class: the detector's class of the object, "" if it gives none.
    """

    box_xyxy: tuple[float, float, float, float]
    source_id: str = ""
    source_class: str = ""
