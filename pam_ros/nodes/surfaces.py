"""Surfaces of regions in space: measured from depth when an output needs them, once for all outputs."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace

from pam_ros.errors import GeometryError, PamError
from pam_ros.geometry import Mask
from pam_ros.nodes.inputs.calibration import CalibrationInput
from pam_ros.nodes.inputs.depth import DepthInput
from pam_ros.nodes.throttled_log import ThrottledLog
from pam_ros.records import CameraModel, DepthImage, Region, VisibleSurface
from pam_ros.runtime.events import FrameResult
from pam_ros.visible_surface import measure_surface

_KEPT = 4096  # surfaces; an answer may come seconds after the frame that it is about
_PATIENCE = 20  # images without depth before that is reported: single messages get lost


@dataclass(frozen=True, slots=True)
class _Measured:
    """What was measured on a mask; None if it could not be. The mask itself may be gone."""

    mask: weakref.ref[Mask]
    surface: VisibleSurface | None


@dataclass(frozen=True, slots=True)
class _Images:
    """What the camera's images are like; `size` is (height, width)."""

    size: tuple[int, int]
    frame_id: str


class Surfaces:
    """Measures on the threads of those who ask, which may wait for the depth of a frame. Thread-safe."""

    def __init__(self, calibration: CalibrationInput, depth: DepthInput, log: ThrottledLog) -> None:
        self._calibration = calibration
        self._depth = depth
        self._log = log
        self._lock = threading.Lock()
        self._without = 0  # how often there was no depth, one after another
        self._images: _Images | None = None  # as of the newest frame
        self._kept: OrderedDict[int, _Measured] = OrderedDict()  # by the mask's id()

    @property
    def has_depth(self) -> bool:
        """Whether any depth has arrived."""
        return self._depth.arrived

    def camera_of(self, size: tuple[int, int]) -> CameraModel:
        """The calibration of images of (height, width). Raises GeometryError if there is none."""
        return self._calibration.model(size)

    def of_frame(self, result: FrameResult) -> FrameResult:
        """The result with the surface of every region whose depth is known."""
        self._images = _Images(result.size, result.frame_id)
        return replace(result, regions=self.of_regions(result.regions, result.stamp_ns))

    def of_regions(
        self, regions: Iterable[Region], stamp_ns: int, depth: DepthImage | None = None
    ) -> tuple[Region, ...]:
        """Regions as of the frame of that stamp; `depth`: of that frame, if it was fetched in time."""
        regions = tuple(regions)
        current = [each for each in regions if each.in_view_at(stamp_ns)]
        with self._lock:
            unknown = any(self._known(region) is None for region in current)
        if unknown and self._images is not None:
            depth = depth or self._depth_for(stamp_ns)  # not under the lock: it may take a while
        with self._lock:
            missing = [region for region in current if self._known(region) is None]
            if missing and depth is not None and self._images is not None:
                self._measure(missing, depth, self._images)
            known = [self._known(region) for region in regions]
        return tuple(
            replace(region, surface=None if measured is None else measured.surface)
            for region, measured in zip(regions, known, strict=True)
        )

    def depth_at(self, stamp_ns: int) -> DepthImage | None:
        """The depth of a frame, for an answer that takes longer than depth is kept; None if there is none."""
        with suppress(PamError):  # reported when it is used
            return self._depth.at(stamp_ns)
        return None

    def _known(self, region: Region) -> _Measured | None:
        """By the mask itself: a prompt can change a region's mask in a frame that was measured before."""
        measured = self._kept.get(id(region.mask))
        return measured if measured is not None and measured.mask() is region.mask else None

    def _depth_for(self, stamp_ns: int) -> DepthImage | None:
        """The depth of a frame; None, and reported, if there is none."""
        try:
            depth = self._depth.at(stamp_ns)
        except PamError as error:
            self._log.warn_once(f"{self._depth.topic} is not used: {error}")
            return None
        with self._lock:
            self._without = self._without + 1 if depth is None else 0
            impatient = self._without == _PATIENCE
        if impatient and (reason := self._depth.missing(stamp_ns)):
            self._log.warn(f"positions are not measured: {reason}")
        return depth

    def _measure(self, regions: list[Region], depth: DepthImage, images: _Images) -> None:
        try:
            camera = self._camera(depth, images)
        except PamError as error:
            self._log.warn_once(f"{self._depth.topic} is not used: {error}")
            return
        for region in regions:
            surface = measure_surface(camera, depth.depth_m, region.box_xyxy, region.mask)
            self._kept[id(region.mask)] = _Measured(weakref.ref(region.mask), surface)
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)

    def _camera(self, depth: DepthImage, images: _Images) -> CameraModel:
        """The camera that image and depth share. Raises GeometryError if they do not."""
        check_aligned(images.size, images.frame_id, depth)
        return self._calibration.model(images.size)


def check_aligned(size: tuple[int, int], frame_id: str, depth: DepthImage) -> None:
    """Raises GeometryError unless depth is aligned to images of `size`, (height, width), in that frame."""
    (height, width), (rows, columns) = size, depth.depth_m.shape
    if (height, width) != (rows, columns):
        raise GeometryError(
            f"depth has {columns}x{rows} pixels and the image {width}x{height}; "
            "publish depth that is aligned to the image"
        )
    ours, theirs = frame_id.lstrip("/"), depth.frame_id.lstrip("/")
    if ours and theirs and ours != theirs:
        raise GeometryError(
            f"depth is in frame {theirs!r} and the image in {ours!r}; "
            "publish depth that is aligned to the image"
        )
