"""`~/markers`: texts, places, deletion and lifetimes; the image plane's pixels; no DDS."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("pam_ros.msg", reason="needs the built ROS interfaces")

from visualization_msgs.msg import Marker

from pam_ros.errors import GeometryError
from pam_ros.geometry import crop_mask, project, undistort
from pam_ros.nodes.outputs import markers as module
from pam_ros.nodes.outputs.image_plane import image_plane, plane_marker
from pam_ros.nodes.outputs.label_markers import LABELS, PLATES
from pam_ros.nodes.outputs.markers import BOXES, IMAGE, OUTLINES, MarkersOutput
from pam_ros.nodes.outputs.plain_text import ascii_text, marker_text
from pam_ros.nodes.outputs.snapshot import Caption, Snapshot
from pam_ros.nodes.parameters import MarkersStyle, PerceptionSettings
from pam_ros.nodes.requests import PromptDefaults
from pam_ros.records import (
    CameraModel,
    Language,
    Lens,
    OrientedBox,
    Region,
    RegionState,
    Task,
    Text,
    VisibleSurface,
)
from pam_ros.runtime.events import FrameResult
from pam_ros.runtime.overlay import OverlayStyle

SIZE = (240, 320)
PINHOLE = CameraModel(SIZE, 300.0, 310.0, 158.0, 121.0)
BARREL = replace(PINHOLE, coefficients=(-0.3, 0.1, 0.001, -0.002, 0.0))
FISHEYE = CameraModel(SIZE, 180.0, 180.0, 158.0, 121.0, Lens.EQUIDISTANT, (0.02, -0.01, 0.001, 0.0))


class Publisher:
    """Keeps what is published."""

    def __init__(self) -> None:
        self.messages: list[Any] = []
        self.subscribers = 1

    def publish(self, message: Any) -> None:
        self.messages.append(message)

    def get_subscription_count(self) -> int:
        return self.subscribers


class Node:
    def __init__(self) -> None:
        self.publisher = Publisher()

    def create_publisher(self, kind: type, topic: str, profile: Any, **options: Any) -> Publisher:
        assert topic == "~/markers"
        return self.publisher


class Log:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def warn(self, message: str) -> None:
        self.lines.append(message)

    warn_once = warn


class World:
    """A MarkersOutput with what it asks for."""

    def __init__(self) -> None:
        self.node, self.log = Node(), Log()
        self.style, self.depth = MarkersStyle(distance_m=2.0), False
        self.camera: CameraModel | None = PINHOLE
        self.surface: VisibleSurface | None = None
        self.output = MarkersOutput(
            self.node,  # type: ignore[arg-type]
            self.log,  # type: ignore[arg-type]
            lambda: PerceptionSettings(
                defaults=PromptDefaults((Task.LABEL,), (Language.EN,)),
                depth_tolerance_s=0.05,
                overlay=OverlayStyle(),
                jpeg_quality=80,
                markers=self.style,
            ),
            measured=self.measured,
            camera_of=self.camera_of,
            has_depth=lambda: self.depth,
        )

    def measured(self, result: FrameResult) -> FrameResult:
        regions = tuple(replace(region, surface=self.surface) for region in result.regions)
        return replace(result, regions=regions)

    def camera_of(self, size: tuple[int, int]) -> CameraModel:
        assert size == SIZE
        if self.camera is None:
            raise GeometryError("no calibration has arrived on /camera_info")
        return self.camera

    def published(self, count: int) -> list[Marker]:
        """The markers of message number `count`."""
        messages = self.node.publisher.messages
        wait_until(lambda: len(messages) >= count)
        assert len(messages) == count
        return list(messages[-1].markers)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(module, "PERIOD_S", 0.0)
    world = World()
    yield world
    world.output.sink.close()
    assert world.output.sink.join()


def wait_until(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    until_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until_s, "it did not happen in time"
        time.sleep(0.002)


def region(region_id: int = 1, texts: dict | None = None) -> Region:
    mask = cv2.circle(np.zeros(SIZE, np.uint8), (100 + 10 * region_id, 120), 30, 1, -1) > 0
    box, cropped = crop_mask(mask)
    return Region(region_id, RegionState.TRACKED, box, cropped, 1.0, 1.0, texts or {}, 0, 0)


def snapshot(*regions: Region, captions: dict | None = None) -> Snapshot:
    picture = np.zeros((*SIZE, 3), np.uint8)
    result = FrameResult("camera", 7, "optical", SIZE, regions, picture, 0.0)
    return Snapshot(result=result, names={}, captions=captions or {}, last_seen={})


def of(markers: list[Marker], namespace: str) -> list[Marker]:
    return [marker for marker in markers if marker.ns == namespace]


def pixels_of(marker: Marker, camera: CameraModel) -> np.ndarray:
    return project(camera, np.array([(it.x, it.y, it.z) for it in marker.points]))


# --- texts


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("It’s a café – “Größe” 3×4…", None),
        ("It’s a café – 3×4…", "It's a cafe - 3x4..."),
        ("水壶", None),
        ("kettle", "kettle"),
    ],
)
def test_ascii(text: str, plain: str | None) -> None:
    assert ascii_text(text) == plain


def test_chinese_drops_to_the_english_text() -> None:
    zh, en = Language.ZH, Language.EN
    chinese = (Caption("水壶在煮水。", zh, True),)
    both = {(Task.LABEL, zh): Text("水壶", 0), (Task.LABEL, en): Text("kettle", 0)}
    assert marker_text(region(3, both), chinese) == "#3 kettle"
    assert marker_text(region(3, {(Task.LABEL, zh): Text("水壶", 0)}), chinese) == "#3"
    english = (*chinese, Caption("It boils.", en, True))
    assert marker_text(region(3, both), english) == "#3 kettle\nIt boils."
    brief = {**both, (Task.BRIEF, en): Text("A red kettle.", 0)}
    assert marker_text(region(3, brief), chinese) == "#3 kettle\nA red kettle."


def test_long_texts_are_wrapped_and_a_growing_one_shows_its_end() -> None:
    words = " ".join(f"word{number}" for number in range(60))
    for final, first, last in ((True, "word0", "..."), (False, "...", "word59")):
        lines = marker_text(region(), [Caption(words, Language.EN, final)]).split("\n")
        assert len(lines) == 5
        assert all(len(line) <= 35 for line in lines)
        assert lines[1].startswith(first) and lines[-1].endswith(last)


# --- regions


def test_label_and_outline_stand_on_the_rays_of_their_pixels(world: World) -> None:
    world.style = replace(world.style, show="regions")
    for camera in (PINHOLE, BARREL, FISHEYE):
        world.camera = camera
        world.output.on_frame(snapshot(region(texts={(Task.LABEL, Language.EN): Text("kettle", 0)})))
        markers = world.published(len(world.node.publisher.messages) + 1)
        assert [marker.ns for marker in markers] == [LABELS, PLATES, OUTLINES]
        label, _, outline = markers
        assert (label.text, label.id, label.header.frame_id, label.header.stamp.nanosec) == (
            "#1 kettle", 1, "optical", 7,
        )  # fmt: skip
        assert 0 < label.lifetime.sec <= 5
        place = label.pose.position
        assert place.z == pytest.approx(2.0, rel=0.02)
        ((x, y),) = project(camera, np.array([[place.x, place.y, place.z]]))
        assert x == pytest.approx(110, abs=1.5)
        assert 60 < y < 90, "above the mask"
        distances = np.hypot(*(pixels_of(outline, camera) - (110, 120)).T)
        assert len(distances) % 2 == 0
        np.testing.assert_allclose(distances, 30, atol=1.5)


@pytest.mark.parametrize("text", ["kettle", "A red kettle that stands on the stove beside a blue pot."])
def test_a_plate_lies_behind_the_text_and_above_the_region(world: World, text: str) -> None:
    brief = {(Task.BRIEF, Language.EN): Text(text, 0)}
    world.output.on_frame(snapshot(region(texts=brief)))
    label, plate = world.published(1)[:2]
    assert (label.ns, label.id, plate.ns, plate.id) == (LABELS, 1, PLATES, 1)
    front, back = label.pose.position, plate.pose.position
    assert back.z > front.z
    assert (back.x / back.z, back.y / back.z) == pytest.approx((front.x / front.z, front.y / front.z))
    # As RViz draws it: every line as high as scale.z, half a centimetre between lines.
    lines = label.text.split("\n")
    assert plate.scale.y > len(lines) * label.scale.z + (len(lines) - 1) * 0.005
    assert plate.scale.x > 0.4 * max(map(len, lines)) * label.scale.z
    ((_, bottom),) = project(PINHOLE, np.array([[back.x, back.y + plate.scale.y / 2, back.z]]))
    assert 84 < bottom < 90, "the mask begins in row 90"


def test_rviz_2_is_told_how_wide_a_space_is(world: World) -> None:
    world.output.on_frame(snapshot(region()))
    label = of(world.published(1), LABELS)[0]
    assert 0.15 < label.scale.x / 2 / label.scale.z < 0.5, (
        "RViz halves scale.x; without it a space takes half a metre"
    )


def test_no_label_covers_another_one(world: World) -> None:
    world.output.on_frame(snapshot(*(region(number) for number in range(1, 6))))
    plates = of(world.published(1), PLATES)
    assert len(plates) == 5
    for one, other in itertools.combinations(plates, 2):
        between = one.pose.position, other.pose.position
        assert (
            abs(between[0].x - between[1].x) > (one.scale.x + other.scale.x) / 2 - 1e-6
            or abs(between[0].y - between[1].y) > (one.scale.y + other.scale.y) / 2 - 1e-6
        )


def test_depth_gives_the_distance_and_a_box(world: World) -> None:
    world.depth = True
    axes = cv2.Rodrigues(np.array([0.0, 0.5, 0.0]))[0]
    box = OrientedBox(np.array([0.1, 0.0, 0.82]), np.array([0.2, 0.1, 0.0]), axes)
    world.surface = VisibleSurface(np.array([0.1, 0.0, 0.8]), np.ones(3), box)
    world.output.on_frame(snapshot(region()))
    markers = world.published(1)
    label, plate, outline, cube = markers
    assert (label.ns, plate.ns, outline.ns, cube.ns) == (LABELS, PLATES, OUTLINES, BOXES)
    assert label.pose.position.z == pytest.approx(0.8, rel=0.02)
    assert outline.points[0].z == pytest.approx(0.8, rel=0.02)
    assert cube.pose.position.z == 0.82
    assert cube.scale.x == 0.2 and cube.scale.z > 0, "RViz draws nothing for a side of zero"
    assert (cube.pose.orientation.y, cube.pose.orientation.w) == pytest.approx((np.sin(0.25), np.cos(0.25)))


def test_a_region_that_goes_is_deleted(world: World) -> None:
    world.style = replace(world.style, show="regions")
    lost = replace(region(2), state=RegionState.LOST, mask=np.zeros((0, 0), np.bool_))
    for step, (regions, gone) in enumerate(
        [([region(1), region(2)], set()), ([region(1), lost], {2}), ([], {1}), ([region(2)], set())], 1
    ):
        world.output.on_frame(snapshot(*regions))
        deleted = [it for it in world.published(step) if it.action == Marker.DELETE]
        namespaces = (LABELS, PLATES, OUTLINES)
        assert {(it.ns, it.id) for it in deleted} == {(ns, i) for i in gone for ns in namespaces}
    world.output.clear()
    assert {(it.id, it.action) for it in world.published(5)} == {(2, Marker.DELETE)}


def test_no_message_names_a_marker_twice(world: World) -> None:
    for step in range(1, 4):
        world.output.on_frame(snapshot(region(1), region(2)))
        keys = [(it.ns, it.id) for it in world.published(step)]
        assert len(keys) == len(set(keys)), "RViz reports that as an error"


def test_nothing_is_made_without_a_subscriber(world: World) -> None:
    world.node.publisher.subscribers = 0
    world.output.on_frame(snapshot(region()))
    assert world.output.sink.waiting == 0
    assert not world.node.publisher.messages


def test_a_still_picture_is_repeated_before_its_markers_expire(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = snapshot(region())
    world.output.on_frame(newest)
    world.published(1)
    world.output.repeat(newest)
    world.published(1)
    assert module.REPEAT_S < module.LIFETIME_S / 2
    monkeypatch.setattr(module, "REPEAT_S", 0.0)
    world.output.repeat(newest)
    world.published(2)


def test_without_a_calibration_the_log_says_what_to_do(world: World) -> None:
    world.camera = None
    world.output.on_frame(snapshot(region()))
    wait_until(lambda: world.log.lines)
    assert "no calibration has arrived on /camera_info" in world.log.lines[0]
    assert not world.node.publisher.messages


# --- the image plane


@pytest.mark.parametrize(
    ("show", "depth", "shown"), [("all", False, 1), ("all", True, 0), ("regions", False, 0)]
)
def test_the_plane_is_for_cameras_without_depth(world: World, show: str, depth: bool, shown: int) -> None:
    world.style, world.depth = replace(world.style, show=show), depth
    world.output.on_frame(snapshot(region()))
    assert len(of(world.published(1), IMAGE)) == shown


def test_the_plane_comes_seldom_and_goes_when_it_is_switched_off(world: World) -> None:
    world.output.on_frame(snapshot(region()))
    assert of(world.published(1), IMAGE)
    world.output.on_frame(snapshot(region()))
    assert not of(world.published(2), IMAGE)
    world.style = replace(world.style, show="none")
    world.output.on_frame(snapshot(region()))
    markers = world.published(3)
    assert {marker.action for marker in markers} == {Marker.DELETE}
    assert {marker.ns for marker in markers} == {LABELS, PLATES, OUTLINES, IMAGE}


@pytest.mark.parametrize("camera", [PINHOLE, BARREL, FISHEYE], ids=["pinhole", "barrel", "fisheye"])
def test_a_click_on_the_plane_gives_its_pixel(camera: CameraModel) -> None:
    rows, columns = (np.arange(SIZE[0]), np.arange(SIZE[1]))
    picture = np.stack(np.broadcast_arrays(rows[:, None], columns[None] / 2, 0), axis=-1).astype(np.uint8)
    marker = plane_marker(picture, camera, 2.0)
    assert len(marker.points) == len(marker.colors)
    triangles = np.array([(it.x, it.y, it.z) for it in marker.points]).reshape(-1, 3, 3)
    assert np.all(triangles[..., 2] == 2.0)
    plane = image_plane(camera, 2.0)
    assert plane.used.all()
    pixels = np.random.default_rng(0).uniform(1, (SIZE[1] - 2, SIZE[0] - 2), (400, 2))
    hit = 0
    for x, y in pixels:
        first = _cell(plane.shape, x, y) * 2
        ray = np.append(undistort(camera, np.array([[x, y]]))[0], 1.0)
        for triangle in triangles[first : first + 2]:
            if (place := _hit(ray, triangle)) is not None:
                hit += 1
                np.testing.assert_allclose(project(camera, place[None])[0], (x, y), atol=1.0)
                break
        for place, colour in zip(triangles[first], marker.colors[3 * first : 3 * first + 3], strict=True):
            column, row = project(camera, place[None])[0]
            assert abs(colour.r * 255 - row) < 4 and abs(colour.g * 255 - column / 2) < 4
    assert hit > 380, "the others lie on the curved border of two cells"


def test_pixels_far_from_the_axis_are_left_out() -> None:
    wide = replace(FISHEYE, fx=90.0, fy=90.0)
    plane = image_plane(wide, 1.0)
    assert 0.3 < plane.used.mean() < 1.0
    assert plane.used[plane.shape[0] // 2, plane.shape[1] // 2]
    marker = plane_marker(np.zeros((*SIZE, 3), np.uint8), wide, 1.0)
    assert len(marker.points) == plane.used.sum() * 6
    assert all(abs(it.x) < 5 and abs(it.y) < 5 for it in marker.points)


def _cell(shape: tuple[int, int], x: float, y: float) -> int:
    """Number of the cell of a pixel."""
    column, row = (x + 0.5) * shape[1] / SIZE[1], (y + 0.5) * shape[0] / SIZE[0]
    return int(row) * shape[1] + int(column)


def _hit(ray: np.ndarray, triangle: np.ndarray) -> np.ndarray | None:
    """Where a line of sight from the origin crosses a triangle; None if it does not."""
    weights = np.linalg.solve(triangle.T, ray)
    weights /= weights.sum()
    return triangle.T @ weights if (weights > -1e-6).all() else None
