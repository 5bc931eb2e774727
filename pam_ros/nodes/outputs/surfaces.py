"""Surfaces of regions in space: measured from depth when an output needs them, once for all outputs."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, replace

from pam_ros.errors import GeometryError, PamError
from pam_ros.geometry import Mask, measure_surface
from pam_ros.nodes.inputs.calibration import CalibrationInput
from pam_ros.nodes.inputs.depth import DepthInput
from pam_ros.nodes.throttled_log import ThrottledLog
from pam_ros.records import CameraModel, DepthImage, Region, VisibleSurface
from pam_ros.runtime.events import FrameResult

_KEPT = 4096  # surfaces; an answer may come seconds after the frame that it is about

_PATIENCE = 20  # images without depth before that is reported: single messages get lost


@dataclass(frozen=True, slots=True)
class _Measured:
    """What was measured on a mask; None if it could not be."""

    mask: Mask
    surface: VisibleSurface | None


class Surfaces:
    """Measures on the threads of those who ask, which may wait for the depth of a frame. Thread-safe."""

    def __init__(self, calibration: CalibrationInput, depth: DepthInput, log: ThrottledLog) -> None:
        self._calibration = calibration
        self._depth = depth
        self._log = log
        self._lock = threading.Lock()
        self._without = 0  # how often there was no depth, one after another
        self._kept: OrderedDict[tuple[int, int], _Measured] = OrderedDict()  # by region id and stamp

    def of_frame(self, result: FrameResult) -> FrameResult:
        """The result with the surface of every region whose depth is known."""
        with self._lock:
            missing = [region for region in result.regions if self._missing(region, result.stamp_ns)]
            if missing:
                self._measure(missing, result)
            regions = tuple(
                replace(region, surface=self._surface(region, result.stamp_ns)) for region in result.regions
            )
        return replace(result, regions=regions)

    @property
    def has_depth(self) -> bool:
        """Whether any depth has arrived."""
        return self._depth.arrived

    def camera_of(self, size: tuple[int, int]) -> CameraModel:
        """The calibration of images of (height, width). Raises GeometryError if there is none."""
        return self._calibration.model(size)

    def of_region(self, region: Region, newest: FrameResult) -> Region:
        """A region as of the frame it was last visible in; `newest` is any frame of the camera."""
        frame = replace(newest, stamp_ns=region.last_visible_ns, regions=(region,))
        return self.of_frame(frame).regions[0]

    def _missing(self, region: Region, stamp_ns: int) -> bool:
        known = self._kept.get((region.region_id, stamp_ns))
        # A prompt can change the mask of a frame that was measured before.
        return bool(region.mask.size) and (known is None or known.mask is not region.mask)

    def _surface(self, region: Region, stamp_ns: int) -> VisibleSurface | None:
        known = self._kept.get((region.region_id, stamp_ns))
        return known.surface if known is not None and region.mask.size else None

    def _measure(self, regions: list[Region], result: FrameResult) -> None:
        try:
            depth = self._depth.at(result.stamp_ns)
            self._without = self._without + 1 if depth is None else 0
            if self._without == _PATIENCE and (reason := self._depth.missing(result.stamp_ns)):
                self._log.warn(f"positions are not measured: {reason}")
            if depth is None:
                return
            camera = self._camera(depth, result)
        except PamError as error:
            self._log.warn_once(f"{self._depth.topic} is not used: {error}")
            return
        for region in regions:
            surface = measure_surface(camera, depth.depth_m, region.box_xyxy, region.mask)
            self._kept[region.region_id, result.stamp_ns] = _Measured(region.mask, surface)
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)

    def _camera(self, depth: DepthImage, result: FrameResult) -> CameraModel:
        """The camera that image and depth share. Raises GeometryError if they do not."""
        (height, width), (rows, columns) = result.size, depth.depth_m.shape
        if (height, width) != (rows, columns):
            raise GeometryError(
                f"depth has {columns}x{rows} pixels and the image {width}x{height}; "
                "publish depth that is aligned to the image"
            )
        ours, theirs = result.frame_id.lstrip("/"), depth.frame_id.lstrip("/")
        if ours and theirs and ours != theirs:
            raise GeometryError(
                f"depth is in frame {theirs!r} and the image in {ours!r}; "
                "publish depth that is aligned to the image"
            )
        return self._calibration.model(result.size)
