"""Rooms: table, kitchen, workbench or shelf, with stove, sink, window, cabinet and placemat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pam_ros.simulator.assets.catalogue import draw_texture
from pam_ros.simulator.assets.materials import COLOURS, FINISHES, Finish, Rgb
from pam_ros.simulator.assets.meshes import box, cylinder, lathe, merge, smooth, sweep
from pam_ros.simulator.assets.parts import Piece, Shape, between, chance
from pam_ros.simulator.spec import FixtureSpec

Rng = np.random.Generator
Vector = tuple[float, float, float]
KINDS = ("table", "kitchen", "workbench", "shelf")
WALLS = ("plaster", "plaster", "tiles", "brick", "wood")
FLOORS = ("planks", "tiles", "concrete", "stone", "terrazzo")


@dataclass(frozen=True, slots=True)
class Area:
    """A level rectangle on which objects can stand, metres; `headroom_m` above it are free."""

    fixture: str
    x_min: float
    x_max: float
    y_min: float
    y_max: float
    z: float
    headroom_m: float = 1.0


@dataclass(frozen=True, slots=True)
class Room:
    """Fixtures, and the areas on which objects can stand: the main one first, then stove, shelf, placemat."""

    kind: str
    fixtures: tuple[FixtureSpec, ...]
    areas: tuple[Area, ...]


def _wall(rng: Rng, split: str, y: float, families: tuple[str, ...] = WALLS) -> FixtureSpec:
    texture = draw_texture(rng, split, families)
    return FixtureSpec(
        "wall",
        (((7.0, 0.06, 3.4), (0.0, y + 0.03, 0.75)),),
        texture,
        tile_m=between(rng, 0.4, 1.1),
        finish=Finish(0.1, 0.2),
    )


def _floor(rng: Rng, split: str, z: float = -0.76) -> FixtureSpec:
    return FixtureSpec(
        "floor",
        (((8.0, 8.0, 0.06), (0.0, 0.0, z - 0.03)),),
        draw_texture(rng, split, FLOORS),
        tile_m=between(rng, 0.7, 1.4),
        finish=Finish(0.15, 0.3),
    )


def _window(rng: Rng, y: float) -> FixtureSpec:
    wide, high = between(rng, 0.6, 1.0), between(rng, 0.6, 0.9)
    x, z = between(rng, -0.7, 0.7), between(rng, 0.6, 0.8)
    bar = 0.035
    frame = merge(
        box(wide, 0.04, bar),
        box(wide, 0.04, bar).moved(z=high - bar),
        box(bar, 0.04, high).moved(x=-wide / 2),
        box(bar, 0.04, high).moved(x=wide / 2),
        box(bar * 0.6, 0.03, high),
        box(wide, 0.03, bar * 0.6).moved(z=high * 0.5),
    )
    pane = box(wide, 0.01, high)
    shape = Shape((Piece(frame, "white"), Piece(pane, "body")))
    sky: Rgb = (between(rng, 0.6, 0.8), between(rng, 0.75, 0.88), 0.95)
    return FixtureSpec(
        "window",
        (),
        None,
        sky,
        finish=Finish(0.9, 0.9, emission=0.5),
        details=((shape, (x, y - 0.02, z - high / 2)),),
    )


def _placemat(rng: Rng, split: str, area: Area) -> tuple[FixtureSpec, Area]:
    wide, deep = between(rng, 0.32, 0.42), between(rng, 0.24, 0.3)
    x, y = between(rng, -0.12, 0.12), between(rng, -0.05, 0.05)
    mat = FixtureSpec(
        "placemat",
        (((wide, deep, 0.004), (x, y, area.z + 0.002)),),
        draw_texture(rng, split, ("cloth",)),
        tile_m=between(rng, 0.2, 0.4),
        finish=FINISHES["paper"],
    )
    return mat, Area("placemat", x - wide / 2, x + wide / 2, y - deep / 2, y + deep / 2, area.z + 0.004)


def _on_legs(
    wide: float, deep: float, thick: float, *, leg_m: float, inset_m: float, height_m: float
) -> tuple[tuple[Vector, Vector], ...]:
    """(size, centre) boxes of a top whose upper side is z = 0, and of its four legs."""
    legs = [
        (
            (leg_m, leg_m, height_m),
            (x * (wide / 2 - inset_m), y * (deep / 2 - inset_m), -height_m / 2 - thick),
        )
        for x in (1, -1)
        for y in (1, -1)
    ]
    return (((wide, deep, thick), (0.0, 0.0, -thick / 2)), *legs)


def table(rng: Rng, split: str) -> Room:
    """A table in a room."""
    wide, deep, thick = between(rng, 1.1, 1.9), between(rng, 0.75, 1.0), 0.035
    texture = draw_texture(rng, split, ("wood", "planks", "stone", "cloth", "plaster", "terrazzo"))
    top = FixtureSpec(
        "table",
        _on_legs(wide, deep, thick, leg_m=0.06, inset_m=0.06, height_m=0.72),
        texture,
        tile_m=between(rng, 0.5, 1.0),
        finish=Finish(0.25, 0.4),
    )
    wall_y = deep / 2 + between(rng, 0.05, 0.9)
    fixtures = [top, _wall(rng, split, wall_y), _floor(rng, split)]
    area = Area(
        "table", -min(wide / 2, 0.6) + 0.05, min(wide / 2, 0.6) - 0.05, -deep / 2 + 0.08, deep / 2 - 0.08, 0.0
    )
    areas = [area]
    if chance(rng, 0.4):
        fixtures.append(_window(rng, wall_y))
    if chance(rng, 0.25):
        mat, place = _placemat(rng, split, area)
        fixtures.append(mat)
        areas.append(place)
    return Room("table", tuple(fixtures), tuple(areas))


def _stove(x: float) -> FixtureSpec:
    rings = []
    for dx, dy, radius in (
        (-0.13, -0.1, 0.085),
        (0.13, -0.1, 0.07),
        (-0.13, 0.11, 0.07),
        (0.13, 0.11, 0.085),
    ):
        rings.append(
            lathe([(radius, 0.0), (radius, 0.003), (radius * 0.86, 0.003), (radius * 0.86, 0.0)], 30).moved(
                dx, dy
            )
        )
        rings.append(
            lathe(
                [(radius * 0.5, 0.0), (radius * 0.5, 0.003), (radius * 0.4, 0.003), (radius * 0.4, 0.0)], 24
            ).moved(dx, dy)
        )
    knobs = [Piece(cylinder(0.016, 0.014).moved(-0.09 + 0.06 * i, -0.222), "steel", "knob") for i in range(4)]
    shape = Shape((Piece(merge(*rings), "grey"), *knobs))
    return FixtureSpec(
        "stove",
        (((0.56, 0.5, 0.008), (x, 0.0, 0.004)),),
        None,
        (0.05, 0.05, 0.055),
        "black",
        finish=Finish(0.9, 0.9),
        details=((shape, (x, 0.0, 0.008)),),
    )


def _sink(x: float) -> FixtureSpec:
    rim, wide, deep, low = 0.02, 0.46, 0.36, 0.16
    steel = ((0.62, 0.63, 0.65), "silver")
    boxes = (
        ((wide, deep, 0.008), (x, 0, -low)),
        ((wide, rim, low), (x, deep / 2, -low / 2 + 0.003)),
        ((wide, rim, low), (x, -deep / 2, -low / 2 + 0.003)),
        ((rim, deep + rim, low), (x + wide / 2, 0, -low / 2 + 0.003)),
        ((rim, deep + rim, low), (x - wide / 2, 0, -low / 2 + 0.003)),
    )
    tap = sweep(
        smooth([(0, 0.22, 0.0), (0, 0.22, 0.2), (0, 0.16, 0.27), (0, 0.08, 0.24), (0, 0.07, 0.2)], 18), 0.012
    )
    lever = merge(cylinder(0.02, 0.05).moved(y=0.22), box(0.012, 0.07, 0.01).moved(x=0.03, y=0.2, z=0.045))
    drain = cylinder(0.025, 0.003).moved(z=-low + 0.004)
    shape = Shape((Piece(merge(tap), "steel"), Piece(lever, "steel", "handle"), Piece(drain, "black")))
    return FixtureSpec(
        "sink", boxes, None, steel[0], steel[1], finish=Finish(0.9, 0.7), details=((shape, (x, 0, 0)),)
    )


def _cabinet(rng: Rng, y: float, z_top: float, wide: float) -> FixtureSpec:
    count = int(wide / 0.5)
    colour = ("white", "grey", "brown", "blue", "beige", "green")[int(rng.integers(6))]
    pieces = []
    for index in range(count):
        x = (index - (count - 1) / 2) * 0.5
        pieces.append(Piece(box(0.485, 0.02, 0.66).moved(x=x, y=-0.01), "body", "door"))
        grip = sweep(
            np.array(
                [
                    (x + 0.2, -0.02, 0.46),
                    (x + 0.2, -0.045, 0.48),
                    (x + 0.2, -0.045, 0.6),
                    (x + 0.2, -0.02, 0.62),
                ]
            ),
            0.006,
            segments=8,
        )
        pieces.append(Piece(grip, "steel", "handle"))
    return FixtureSpec(
        "cabinet",
        (((wide, 0.03, 0.7), (0, y + 0.015, z_top - 0.35)),),
        None,
        COLOURS[colour],
        colour,
        finish=Finish(0.3, 0.4),
        details=((Shape(tuple(pieces)), (0.0, y, z_top - 0.7)),),
    )


def _board(
    rng: Rng, split: str, z: float, y_back: float, wide: float = 1.6, deep: float = 0.24
) -> tuple[FixtureSpec, Area]:
    board = FixtureSpec(
        "shelf",
        (((wide, deep, 0.025), (0, y_back - deep / 2, z - 0.0125)),),
        draw_texture(rng, split, ("wood", "planks", "steel")),
        tile_m=0.6,
    )
    return board, Area("shelf", -0.5, 0.5, y_back - deep + 0.02, y_back - 0.02, z, 0.4)


def kitchen(rng: Rng, split: str) -> Room:
    """A kitchen counter against a wall, with a stove or a sink."""
    wide, front, back, thick = 3.2, -0.34, 0.36, 0.04
    texture = draw_texture(rng, split, ("stone", "wood", "planks", "steel", "terrazzo"))
    extra = ("stove", "sink", "none")[int(rng.choice(3, p=[0.42, 0.28, 0.3]))]
    x = between(rng, 0.22, 0.34) * (1 if chance(rng, 0.5) else -1)
    middle, deep = (front + back) / 2, back - front
    boxes: tuple[tuple[Vector, Vector], ...]
    if extra == "sink":  # the counter leaves a hole for the basin
        left, right = x - 0.23, x + 0.23
        boxes = (
            ((left + wide / 2, deep, thick), ((left - wide / 2) / 2, middle, -thick / 2)),
            ((wide / 2 - right, deep, thick), ((right + wide / 2) / 2, middle, -thick / 2)),
            ((0.46, -0.18 - front, thick), (x, (front - 0.18) / 2, -thick / 2)),
            ((0.46, back - 0.18, thick), (x, (back + 0.18) / 2, -thick / 2)),
        )
    else:
        boxes = (((wide, deep, thick), (0, middle, -thick / 2)),)
    fixtures = [
        FixtureSpec("counter", boxes, texture, tile_m=between(rng, 0.5, 1.0), finish=Finish(0.4, 0.6)),
        _wall(rng, split, back, ("tiles", "tiles", "plaster", "brick")),
        _floor(rng, split, -0.86),
        _cabinet(rng, front + 0.03, -thick, wide),
    ]
    areas = [Area("counter", -0.62, 0.62, front + 0.06, back - 0.08, 0.0, 0.46)]
    if extra == "stove":
        fixtures.append(_stove(x))
        areas.append(Area("stove", x - 0.26, x + 0.26, -0.2, 0.22, 0.011, 0.46))
    if extra == "sink":
        fixtures.append(_sink(x))
        # Far below, so that nothing stands in the sink; its rectangle stays free.
        areas.append(Area("sink", x - 0.26, x + 0.26, -0.22, 0.26, -9.0))
    if chance(rng, 0.35):
        board, place = _board(rng, split, 0.46, back)
        fixtures.append(board)
        areas.append(place)
    return Room("kitchen", tuple(fixtures), tuple(areas))


def workbench(rng: Rng, split: str) -> Room:
    """A workbench below a tool wall."""
    wide, deep, thick = between(rng, 1.5, 2.0), between(rng, 0.65, 0.8), 0.06
    texture = draw_texture(rng, split, ("planks", "wood", "steel"))
    bench = FixtureSpec(
        "workbench",
        _on_legs(wide, deep, thick, leg_m=0.09, inset_m=0.08, height_m=0.8),
        texture,
        tile_m=between(rng, 0.5, 0.9),
        finish=Finish(0.1, 0.2),
    )
    back = deep / 2 + 0.02
    fixtures = [
        bench,
        _wall(rng, split, back, ("pegboard", "concrete", "brick", "plaster", "planks")),
        _floor(rng, split, -0.9),
    ]
    areas = [Area("workbench", -0.6, 0.6, -deep / 2 + 0.06, deep / 2 - 0.06, 0.0, 0.46)]
    if chance(rng, 0.35):
        board, place = _board(rng, split, 0.46, back)
        fixtures.append(board)
        areas.append(place)
    return Room("workbench", tuple(fixtures), tuple(areas))


def shelf(rng: Rng, split: str) -> Room:
    """A shelf of several boards, seen from the front; the middle board is at z = 0."""
    wide, deep, gap, t = between(rng, 1.1, 1.5), between(rng, 0.3, 0.38), between(rng, 0.36, 0.42), 0.025
    texture = draw_texture(rng, split, ("wood", "planks", "steel", "plaster"))
    boards = tuple(((wide, deep, t), (0.0, 0.0, level * gap - t / 2)) for level in (-2, -1, 0, 1, 2))
    sides = tuple(((t, deep, 5 * gap), (sx * wide / 2, 0.0, 0.0)) for sx in (1, -1))
    unit = FixtureSpec(
        "shelf", (*boards, *sides), texture, tile_m=between(rng, 0.5, 0.9), finish=Finish(0.2, 0.3)
    )
    fixtures = (unit, _wall(rng, split, deep / 2 + 0.01), _floor(rng, split, -0.95))
    areas = tuple(
        Area(
            "shelf",
            -wide / 2 + 0.06,
            wide / 2 - 0.06,
            -deep / 2 + 0.03,
            deep / 2 - 0.03,
            level * gap,
            gap - t,
        )
        for level in (0, -1)
    )
    return Room("shelf", fixtures, areas)


def draw_room(rng: Rng, split: str, kind: str) -> Room:
    """A room of one of KINDS."""
    return {"table": table, "kitchen": kitchen, "workbench": workbench, "shelf": shelf}[kind](rng, split)
