"""The catalogue of objects: draws meshes, colours and textures; each belongs to one split only."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np

from pam_ros.simulator.assets import cooking, desk, hardware, household, pantry, tableware, tools
from pam_ros.simulator.assets.materials import COLOURS, FINISHES, Finish, Rgb
from pam_ros.simulator.assets.meshes import box, cylinder, merge, vessel
from pam_ros.simulator.assets.parts import Builder, Piece, Shape, between
from pam_ros.simulator.ontology import ontology
from pam_ros.simulator.spec import ObjectSpec

SPLITS = ("train", "val", "test")
# Category → function that builds its meshes. The order decides which category a seed draws.
BUILDERS: dict[str, Builder] = {
    build.__name__: build
    for build in (
        tableware.mug, tableware.bowl, tableware.plate, tableware.bottle, tableware.wine_glass,
        tableware.teapot, tableware.knife, tableware.fork, tableware.spoon, tableware.cutting_board,
        tableware.jar,
        cooking.kettle, cooking.frying_pan, cooking.pot, cooking.spatula, cooking.whisk,
        cooking.rolling_pin, cooking.funnel, cooking.toaster, cooking.microwave, cooking.coffee_machine,
        pantry.can, pantry.carton, pantry.cereal_box, pantry.apple, pantry.banana, pantry.lemon,
        pantry.carrot, pantry.bread, pantry.sponge, pantry.spray_bottle, pantry.paper_roll,
        pantry.egg_carton,
        tools.hammer, tools.screwdriver, tools.wrench, tools.pliers, tools.saw, tools.drill,
        tools.paintbrush, tools.clamp, tools.ruler, tools.flashlight,
        hardware.tape_roll, hardware.bolt, hardware.nut, hardware.toolbox, hardware.bucket, hardware.gear,
        hardware.paint_can,
        desk.book, desk.laptop, desk.lamp, desk.alarm_clock, desk.scissors, desk.pencil,
        desk.remote_control, desk.computer_mouse, desk.headphones, desk.light_bulb,
        household.cardboard_box, household.ball, household.candle, household.plant, household.basket,
        household.drawer_unit, household.watering_can, household.vase,
    )
}  # fmt: skip
CATEGORIES = tuple(BUILDERS)
MESHES_PER_CATEGORY = 400  # numbers 0..399; the last digit decides the split
TEXTURES_PER_FAMILY = 120
LYING = 0.12  # probability that an object which can lie does so
ODD_SIZES = 0.14  # probability that an object is clearly smaller than usual, and that it is larger
SMALL, LARGE = 0.82, 1.22  # fractions of the usual extent, beyond which texts mention the size
OCCLUDERS = ("cereal_box", "carton", "can", "paper_roll", "pot", "toolbox", "basket", "plant", "paint_can")
HELD_OUT_FAMILIES = {"terrazzo": "test", "brick": "val"}  # texture families that only one split uses


def split_of_number(number: int) -> str:
    """The split that owns mesh or texture `number`: last digit 8 is val, 9 is test, all others train."""
    return {8: "val", 9: "test"}.get(number % 10, "train")


def check_split(split: str) -> str:
    """Returns the split. Raises ValueError if it is unknown."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; allowed: {', '.join(SPLITS)}")
    return split


def draw_number(rng: np.random.Generator, split: str, count: int) -> int:
    """A mesh or texture number below `count` that this split owns."""
    tens = int(rng.integers(count // 10)) * 10
    digit = {"val": 8, "test": 9}.get(split)
    return tens + (int(rng.integers(8)) if digit is None else digit)


def draw_texture(rng: np.random.Generator, split: str, families: tuple[str, ...]) -> tuple[str, int]:
    """(family, number) of a surface texture that this split owns."""
    allowed = [family for family in families if HELD_OUT_FAMILIES.get(family, split) == split]
    family = allowed[int(rng.integers(len(allowed)))]
    return family, draw_number(rng, split, TEXTURES_PER_FAMILY)


@lru_cache(maxsize=512)
def build_shape(category: str, number: int) -> Shape:
    """Mesh `number` of a category; the same at every call."""
    return BUILDERS[category](np.random.default_rng([number, sum(category.encode()), 11]))


@lru_cache(maxsize=1)
def largest_extent_m() -> dict[str, float]:
    """Largest side of each category's first mesh, metres."""
    sizes = {}
    for category in CATEGORIES:
        low, high = build_shape(category, 0).bounds()
        sizes[category] = float((high - low).max())
    return sizes


@lru_cache(maxsize=len(CATEGORIES))
def usual_extent_m(category: str) -> float:
    """Median diagonal of a category's meshes at scale 1, metres."""
    bounds = [build_shape(category, number).bounds() for number in range(0, MESHES_PER_CATEGORY, 80)]
    return float(np.median([np.linalg.norm(high - low) for low, high in bounds]))


def draw_scale(rng: np.random.Generator, category: str) -> float:
    """Scale of a mesh: usually about 1, sometimes clearly smaller or, for small categories, larger."""
    kind, usual = rng.random(), between(rng, 0.92, 1.12)
    if kind < ODD_SIZES:
        return 0.72 * usual
    return 1.32 * usual if kind > 1 - ODD_SIZES and largest_extent_m()[category] < 0.36 else usual


def size_of(category: str, shape: Shape, scale: float) -> str:
    """ "small", "medium" or "large" for its category."""
    low, high = shape.bounds()
    ratio = float(np.linalg.norm(high - low)) * scale / usual_extent_m(category)
    return "small" if ratio < SMALL else "large" if ratio > LARGE else "medium"


def named_rgb(rng: np.random.Generator, colour: str) -> Rgb:
    """A named colour with a small variation, 0..1."""
    red, green, blue = np.clip(
        np.asarray(COLOURS[colour]) * rng.uniform(0.85, 1.12) + rng.uniform(-0.03, 0.03, 3), 0.01, 1
    )
    return float(red), float(green), float(blue)


def draw_yaw(rng: np.random.Generator, front: bool) -> float:
    """A yaw in degrees: any, or within 38 degrees of the camera for objects with a front (-y)."""
    return between(rng, -38, 38) if front else between(rng, -180, 180)


def draw_object(rng: np.random.Generator, split: str, category: str, lying: float = LYING) -> ObjectSpec:
    """An object of a category, not yet placed; its mesh and print belong to this split."""
    number = draw_number(rng, split, MESHES_PER_CATEGORY)
    shape = build_shape(category, number)
    looks = ontology().entries[category].looks
    material, colours = looks[int(rng.integers(len(looks)))]
    colour = colours[int(rng.integers(len(colours)))]
    others = [
        name
        for name in ("white", "black", "red", "blue", "green", "yellow", "silver", "orange", "grey")
        if name != colour
    ]
    accent = others[int(rng.integers(len(others)))]
    rest = int(rng.integers(len(shape.rests))) if rng.random() < lying or category == "book" else 0
    scale = draw_scale(rng, category)
    front = shape.faces_camera or (category == "book" and rest > 0)  # the back is plain
    return ObjectSpec(
        category=category,
        mesh_id=f"{category}/{number}",
        shape=shape,
        colour=colour,
        accent=accent,
        material=material,
        body_rgb=named_rgb(rng, colour),
        accent_rgb=named_rgb(rng, accent),
        finish=FINISHES[material],
        print_seed=draw_number(rng, split, 10_000),
        size=size_of(category, shape, scale),
        scale=scale,
        rest_deg=shape.rests[rest],
        position=(0.0, 0.0, 0.0),
        yaw_deg=draw_yaw(rng, front),
        place="",
    )


def cover_for(rng: np.random.Generator, width: float, depth: float, height: float) -> ObjectSpec:
    """An upside-down cardboard box that fits over an object of this size, metres."""
    shell = (
        vessel([(1, 0), (1, 1)], 0.04, 4)
        .turned(z=45, x=180)
        .moved(z=1)
        .scaled(width * 0.7071, depth * 0.7071, height)
    )
    strip = box(width * 1.004, 0.045, 0.0015).moved(z=height)
    return _prop(
        "cardboard_box", Shape((Piece(shell, "cardboard"), Piece(strip, "tape"))), "brown", "cardboard", rng
    )


def gripper_for(rng: np.random.Generator, gap: float) -> ObjectSpec:
    """A gripper with two fingers `gap` metres apart; the fingertips are at z = 0, the arm points up."""
    palm = box(gap + 0.09, 0.05, 0.05).moved(z=0.09)
    fingers = [box(0.016, 0.026, 0.095).moved(x=side * (gap / 2 + 0.008)) for side in (1, -1)]
    pads = [box(0.003, 0.028, 0.03).moved(x=side * (gap / 2 + 0.0005)) for side in (1, -1)]
    wrist = merge(cylinder(0.032, 0.05).moved(z=0.14), cylinder(0.045, 0.9).moved(z=0.19))
    shape = Shape(
        (Piece(palm), Piece(merge(*fingers), "steel"), Piece(merge(*pads), "black"), Piece(wrist, "body"))
    )
    colours = dict(ontology().entries["gripper"].looks)["metal"]
    return _prop("gripper", shape, colours[int(rng.integers(len(colours)))], "metal", rng)


def occluder_for(rng: np.random.Generator, split: str) -> ObjectSpec:
    """A broad, tall object of this split that hides another one by passing in front of it."""
    item = draw_object(rng, split, OCCLUDERS[int(rng.integers(len(OCCLUDERS)))], lying=0.0)
    return replace(item, rest_deg=item.shape.rests[0])


def _prop(category: str, shape: Shape, colour: str, material: str, rng: np.random.Generator) -> ObjectSpec:
    finish: Finish = FINISHES[material]
    return ObjectSpec(
        category,
        f"{category}/prop",
        shape,
        colour,
        "black",
        material,
        named_rgb(rng, colour),
        COLOURS["black"],
        finish,
        0,
        "medium",
        1.0,
        (0.0, 0.0, 0.0),
        (0.0, 0.0, 5.0),
        0.0,
        "",
    )
