"""Draws a scene from a seed and a split: room, objects that do not touch, lights, camera."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pam_ros.simulator.assets.catalogue import CATEGORIES, check_split, draw_object, largest_extent_m
from pam_ros.simulator.assets.open_meshes import varied
from pam_ros.simulator.assets.parts import between, chance
from pam_ros.simulator.ontology import ontology
from pam_ros.simulator.render import rest_rotation
from pam_ros.simulator.scene.rooms import KINDS, Area, Room, draw_room
from pam_ros.simulator.spec import CameraSpec, LightSpec, LookSpec, ObjectSpec, SceneSpec

Rng = np.random.Generator
SPLIT_SALT = {"train": 1, "val": 2, "test": 3}  # the same seed gives another scene in each split


@dataclass(frozen=True, slots=True)
class Zoom:
    """How close the camera is: spread of the objects, camera distance, allowed object extents; metres."""

    reach_x_m: float
    reach_y_m: float
    near_m: float
    far_m: float
    smallest_m: float
    largest_m: float


CLOSE = Zoom(0.19, 0.13, 0.36, 0.52, 0.0, 0.24)
MIDDLE = Zoom(0.31, 0.2, 0.52, 0.85, 0.08, 0.34)
FAR = Zoom(0.5, 0.28, 0.8, 1.15, 0.15, 0.6)
OPENABLE = ("pot", "microwave", "toolbox", "laptop", "drawer_unit")
TALL = (
    "bottle",
    "wine_glass",
    "carton",
    "cereal_box",
    "spray_bottle",
    "coffee_machine",
    "lamp",
    "candle",
    "vase",
    "watering_can",
    "paper_roll",
    "jar",
    "plant",
    "can",
)
HOMES = {"table": "everyday", "kitchen": "kitchen", "workbench": "workshop", "shelf": "everyday"}


@dataclass(slots=True)
class _Footprint:
    """A rectangle on the ground: centre, half sizes and two axes."""

    centre: NDArray[np.float64]
    half: NDArray[np.float64]
    axes: NDArray[np.float64]

    def overlaps(self, other: _Footprint, margin: float) -> bool:
        axes = np.concatenate([self.axes, other.axes])
        reach = sum(np.abs(axes @ shape.axes.T) @ shape.half for shape in (self, other))
        return bool((np.abs(axes @ (self.centre - other.centre)) <= reach + margin).all())


def resting_size(item: ObjectSpec) -> NDArray[np.float64]:
    """(3,) extents of the resting object before its yaw, metres."""
    flat = replace(item, yaw_deg=0.0)
    points = (
        np.concatenate([piece.mesh.vertices for piece in item.shape.pieces])
        @ rest_rotation(flat).T
        * item.scale
    )
    return np.asarray(np.ptp(points, axis=0))


def footprint(item: ObjectSpec, size: NDArray[np.float64] | None = None) -> tuple[_Footprint, float]:
    """The object's rectangle on the ground and its height, metres; `size` is its resting size, if known."""
    size = resting_size(item) if size is None else size
    yaw = np.radians(item.yaw_deg)
    axes = np.array([[np.cos(yaw), np.sin(yaw)], [-np.sin(yaw), np.cos(yaw)]])
    return _Footprint(np.asarray(item.position[:2], float), size[:2] / 2, axes), float(size[2])


def draw_scene(
    seed: int,
    split: str,
    kind: str | None = None,
    objects: tuple[int, int] = (2, 8),
    categories: tuple[str, ...] = (),
    open_meshes: float = 0.0,
) -> SceneSpec:
    """The scene of a seed.

    Args:
        seed: any integer >= 0.
        split: one of `catalogue.SPLITS`.
        kind: one of `rooms.KINDS`, or None for any.
        objects: smallest and largest number to draw; a crowded room gets fewer.
        categories: the first object is of one of these, if any are given.
        open_meshes: fraction of objects with an open mesh, among the categories that have one; see
            `assets/open_meshes.py`.

    Raises:
        ValueError: the split or kind is unknown, or the fraction is outside 0..1.
        MeshStoreError: open meshes are needed but not fetched.
    """
    check_split(split)
    if not 0 <= open_meshes <= 1:
        raise ValueError(f"open_meshes is a fraction in 0..1, not {open_meshes}")
    if kind is not None and kind not in KINDS:
        raise ValueError(f"unknown kind of scene {kind!r}; allowed: {', '.join(KINDS)}")
    rng = np.random.default_rng([seed, SPLIT_SALT[split]])
    kind = kind or KINDS[int(rng.choice(len(KINDS), p=[0.34, 0.28, 0.24, 0.14]))]
    zoom = (CLOSE, MIDDLE, FAR)[int(rng.choice(3, p=[0.36, 0.35, 0.29]))]
    if kind == "shelf" and zoom is FAR:
        zoom = MIDDLE
    room = draw_room(rng, split, kind)
    wanted = int(rng.integers(objects[0], objects[1] + 1))
    chosen = rng.random()
    first = categories[int(chosen * len(categories))] if categories else None
    if first and zoom is CLOSE:
        zoom = MIDDLE
    meshes = MeshSource(split, open_meshes, np.random.default_rng([seed, SPLIT_SALT[split], 83]))
    placed = _place_objects(rng, meshes, room, zoom, wanted, between(rng, 0.004, 0.05), first)
    camera = draw_camera(rng, kind, zoom, placed)
    return SceneSpec(
        seed,
        split,
        kind,
        tuple(placed),
        room.fixtures,
        draw_lights(rng),
        camera,
        draw_look(rng),
        ambient=between(rng, 0.22, 0.42),
    )


def draw_category(rng: Rng, kind: str, zoom: Zoom) -> str:
    """A category that suits the room and the zoom; the room's usual categories are three times as likely."""
    extents = largest_extent_m()
    fitting = [name for name in CATEGORIES if zoom.smallest_m <= extents[name] <= zoom.largest_m]
    # Large objects fit less often, so they are drawn more often: each category appears about as often.
    weights = np.array(
        [
            (3.0 if ontology().entries[name].home == HOMES[kind] else 1.0) * (1 + (extents[name] / 0.24) ** 2)
            for name in fitting
        ]
    )
    return fitting[int(rng.choice(len(fitting), p=weights / weights.sum()))]


@dataclass(frozen=True, slots=True)
class MeshSource:
    """Where a scene's meshes come from: see `draw_scene`."""

    split: str
    fraction: float
    rng: Rng  # separate, so that a fraction of 0 leaves the scene unchanged

    def draw(self, rng: Rng, category: str) -> ObjectSpec:
        """An object of this category, not yet placed."""
        item = draw_object(rng, self.split, category)
        return varied(item, self.split, self.fraction, self.rng) if self.fraction else item


def _place_objects(
    rng: Rng, meshes: MeshSource, room: Room, zoom: Zoom, wanted: int, gap: float, first: str | None = None
) -> list[ObjectSpec]:
    placed: list[ObjectSpec] = []
    taken: list[tuple[_Footprint, str]] = []
    special = {area.fixture: area for area in room.areas[1:]}
    drawn = [
        meshes.draw(rng, first if first and number == 0 else draw_category(rng, room.kind, zoom))
        for number in range(wanted)
    ]
    sizes = [resting_size(item) for item in drawn]
    for number in sorted(range(wanted), key=lambda number: -float(sizes[number][0] * sizes[number][1])):
        item, size = drawn[number], sizes[number]
        for _ in range(25):
            area = _draw_area(rng, room, item)
            x_low, x_high = max(area.x_min, -zoom.reach_x_m), min(area.x_max, zoom.reach_x_m)
            y_low, y_high = max(area.y_min, -zoom.reach_y_m), min(area.y_max, zoom.reach_y_m)
            if area.fixture in ("shelf", "stove") and area is not room.areas[0]:
                x_low, x_high, y_low, y_high = area.x_min, area.x_max, area.y_min, area.y_max
            spot = (between(rng, x_low, x_high), between(rng, y_low, y_high), area.z)
            candidate = replace(item, position=spot, place=area.fixture)
            mark, height = footprint(candidate, size)
            level = f"{area.z:.2f}" if area.fixture == "shelf" else "main"
            if height > area.headroom_m - 0.02 or not _inside(mark, area, special):
                continue
            if any(mark.overlaps(other, gap) for other, other_level in taken if other_level == level):
                continue
            placed.append(candidate)
            taken.append((mark, level))
            break
    return placed or _place_objects(rng, meshes, room, MIDDLE, wanted, gap)


def _draw_area(rng: Rng, room: Room, item: ObjectSpec) -> Area:
    usable = [area for area in room.areas[1:] if area.z > -5]
    if item.category in ("kettle", "pot", "frying_pan"):
        stoves = [area for area in usable if area.fixture == "stove"]
        if stoves and chance(rng, 0.75):
            return stoves[0]
    usable = [area for area in usable if area.fixture != "stove"]
    if usable and chance(rng, 0.3):
        return usable[int(rng.integers(len(usable)))]
    return room.areas[0]


def _inside(mark: _Footprint, area: Area, special: dict[str, Area]) -> bool:
    """True if the object stands well on the area and does not reach over the stove, sink or placemat."""
    reach = np.abs(mark.axes.T) @ mark.half * (0.75 if area.fixture in ("placemat",) else 0.95)
    low, high = mark.centre - reach, mark.centre + reach
    if (
        low[0] < area.x_min - 0.04
        or high[0] > area.x_max + 0.04
        or low[1] < area.y_min - 0.03
        or high[1] > area.y_max + 0.03
    ):
        return False
    full = np.abs(mark.axes.T) @ mark.half
    low, high = mark.centre - full, mark.centre + full
    for name in ("stove", "sink", "placemat"):
        other = special.get(name)
        if other is None or name == area.fixture or area.fixture == "shelf":
            continue
        if low[0] < other.x_max and high[0] > other.x_min and low[1] < other.y_max and high[1] > other.y_min:
            return False
    return True


def draw_camera(rng: Rng, kind: str, zoom: Zoom, placed: list[ObjectSpec]) -> CameraSpec:
    """A view of the objects as from a robot's head or wrist."""
    centre = np.mean([item.position for item in placed], axis=0)
    target = centre * 0.8 + rng.uniform(-0.04, 0.04, 3) + np.array([0, 0, 0.05])
    fov = between(rng, 45, 75)
    spread = max(float(np.linalg.norm(np.asarray(item.position) - centre)) for item in placed)
    distance = max(between(rng, zoom.near_m, zoom.far_m), spread * 1.6 + 0.12) * (60 / fov) ** 0.7
    azimuth = np.radians(between(rng, -38, 38) if kind != "shelf" else between(rng, -22, 22))
    elevation = np.radians(between(rng, 16, 58) if kind != "shelf" else between(rng, -2, 18))
    offset = distance * np.array(
        [np.sin(azimuth) * np.cos(elevation), -np.cos(azimuth) * np.cos(elevation), np.sin(elevation)]
    )
    x, y, z = (float(value) for value in target + offset)
    tx, ty, tz = (float(value) for value in target)
    return CameraSpec((x, y, z), (tx, ty, tz), between(rng, -4, 4), fov)


def draw_lights(rng: Rng) -> tuple[LightSpec, ...]:
    """A main lamp that casts shadows, sometimes a second lamp; warm to cold."""
    warm = between(rng, -0.08, 0.08)
    strength = between(rng, 0.4, 0.68)
    main = (between(rng, -0.7, 0.7), between(rng, -0.3, 0.7), -1.0)
    x, y, z = (float(value) for value in -2.0 * np.asarray(main) / np.linalg.norm(main))
    # The shadow map is centred on the lamp's axis; unless it passes through the objects, shadows break up.
    lights = [LightSpec((x, y, z), main, (strength + warm, strength, strength - warm), True)]
    if chance(rng, 0.7):
        side = (between(rng, -1, 1), between(rng, -0.2, 1.0), -0.8)
        level = between(rng, 0.1, 0.3)
        lights.append(LightSpec((0.0, 0.0, 2.0), side, (level, level, level * 1.05), False))
    return tuple(lights)


def draw_look(rng: Rng) -> LookSpec:
    """Exposure, gamma, white balance, noise and blur of a camera."""
    balance = (between(rng, 0.94, 1.06), 1.0, between(rng, 0.94, 1.06))
    blur = between(rng, 0.3, 0.8) if chance(rng, 0.35) else 0.0
    return LookSpec(between(rng, 0.88, 1.15), between(rng, 0.85, 1.12), balance, between(rng, 0.5, 4.0), blur)
