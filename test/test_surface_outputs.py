"""Surfaces for outputs: measured once for all, again if a mask changes, and not without what it takes."""

from __future__ import annotations

import weakref
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("pam_ros.msg", reason="needs the built ROS interfaces")

from pam_ros.errors import GeometryError
from pam_ros.geometry import crop_mask
from pam_ros.nodes.surfaces import Surfaces
from pam_ros.records import CameraModel, DepthImage, Region, RegionState
from pam_ros.runtime.events import FrameResult

SIZE = (60, 80)


class Camera:
    """Depth of a plane 1 m away, and its calibration; counts how often depth is asked for."""

    topic = "/depth"

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.depth: DepthImage | None = DepthImage(np.ones(SIZE, np.float32), 0, "optical")
        self.calibrated = True

    def at(self, image_ns: int) -> DepthImage | None:
        self.asked.append(image_ns)
        return self.depth

    def missing(self, image_ns: int) -> str:
        return "it sleeps"

    def model(self, size: tuple[int, int]) -> CameraModel:
        if not self.calibrated:
            raise GeometryError("no calibration")
        return CameraModel(size, 100.0, 100.0, 39.5, 29.5)


class Log:
    """Keeps the lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def warn(self, message: str) -> None:
        self.lines.append(message)

    def warn_once(self, message: str) -> None:
        if message not in self.lines:
            self.lines.append(message)


def region(x1: int, x2: int, region_id: int = 1) -> Region:
    """A region of 20 rows."""
    mask = np.zeros(SIZE, np.bool_)
    mask[20:40, x1:x2] = True
    box, cropped = crop_mask(mask)
    state = RegionState.TRACKED if x2 > x1 else RegionState.LOST
    return Region(region_id, state, box, cropped, 0.9, 0.9, {}, 0, 7)


def result(*regions: Region) -> FrameResult:
    """The frame with stamp 7."""
    return FrameResult("front", 7, "optical", SIZE, regions, np.zeros((*SIZE, 3), np.uint8), 0.0)


def surfaces(camera: Camera, log: Log) -> Surfaces:
    return Surfaces(camera, camera, log)  # type: ignore[arg-type]


def test_a_frame_is_measured_once_for_all_outputs() -> None:
    camera = Camera()
    known = surfaces(camera, Log())
    frame = result(region(10, 30))
    first, again = known.of_frame(frame).regions[0].surface, known.of_frame(frame).regions[0].surface
    assert first is again and first is not None
    assert first.position_m == pytest.approx([(19.5 - 39.5) / 100, 0, 1])
    assert len(camera.asked) == 1
    # An answer about that frame, after others have come.
    known.of_frame(replace(result(), stamp_ns=99))
    assert known.of_regions(frame.regions, 7)[0].surface is first


def test_a_mask_that_a_prompt_has_changed_is_measured_again() -> None:
    known = surfaces(Camera(), Log())
    known.of_frame(result(region(10, 30)))
    changed = known.of_frame(result(region(40, 60))).regions[0].surface
    assert changed is not None
    assert changed.position_m[0] == pytest.approx((49.5 - 39.5) / 100)


def test_a_lost_region_has_no_surface_and_asks_for_no_depth() -> None:
    camera = Camera()
    assert surfaces(camera, Log()).of_frame(result(region(0, 0))).regions[0].surface is None
    assert camera.asked == []


def test_depth_that_comes_late_is_used_when_it_is_there() -> None:
    camera, log = Camera(), Log()
    known = surfaces(camera, log)
    depth, camera.depth = camera.depth, None
    assert known.of_frame(result(region(10, 30))).regions[0].surface is None
    camera.depth = depth
    assert known.of_frame(result(region(10, 30))).regions[0].surface is not None
    assert log.lines == []  # a camera without depth is no fault


def test_depth_that_never_comes_is_reported_once() -> None:
    camera, log = Camera(), Log()
    known = surfaces(camera, log)
    depth, camera.depth = camera.depth, None
    for count in range(100):
        assert not log.lines or count >= 20
        known.of_frame(result(region(10, 30)))
    assert log.lines == ["positions are not measured: it sleeps"]
    camera.depth = depth
    known.of_frame(result(region(10, 30)))
    camera.depth = None
    for _ in range(100):
        known.of_frame(result(region(10, 30)))
    assert len(log.lines) == 2  # it was gone again


def test_an_answer_that_takes_long_uses_the_depth_that_was_fetched_in_time() -> None:
    camera = Camera()
    known = surfaces(camera, Log())
    known.of_frame(result())
    fetched = known.depth_at(7)
    camera.depth = None  # too old by now
    found = [region(10, 30, region_id=0), region(40, 60, region_id=0)]  # regions that are not kept
    left, right = known.of_regions(found, 7, fetched)
    assert left.surface is not None and right.surface is not None
    assert left.surface.position_m[0] < 0 < right.surface.position_m[0]
    assert known.of_regions([region(10, 30)], 7)[0].surface is None
    older = replace(region(10, 30), last_visible_ns=3)
    assert known.of_regions([older], 7, fetched)[0].surface is None  # its mask is of another frame


def test_surfaces_do_not_keep_masks_alive() -> None:
    known = surfaces(Camera(), Log())
    seen = region(10, 30)
    mask = weakref.ref(seen.mask)
    known.of_frame(result(seen))
    del seen
    assert mask() is None


@pytest.mark.parametrize(
    ("shape", "frame_id", "calibrated", "words"),
    [
        (
            (30, 40),
            "optical",
            True,
            "depth has 40x30 pixels and the image 80x60; publish depth that is aligned",
        ),
        (SIZE, "depth_optical", True, "depth is in frame 'depth_optical' and the image in 'optical'"),
        (SIZE, "optical", False, "no calibration"),
    ],
)
def test_what_does_not_fit_is_said_once(
    shape: tuple[int, int], frame_id: str, calibrated: bool, words: str
) -> None:
    camera, log = Camera(), Log()
    camera.depth, camera.calibrated = DepthImage(np.ones(shape, np.float32), 7, frame_id), calibrated
    known = surfaces(camera, log)
    for _ in range(2):
        assert known.of_frame(result(region(10, 30))).regions[0].surface is None
    (line,) = log.lines
    assert line.startswith("/depth is not used: ") and words in line
