"""Which meshes, textures and backgrounds belong to which split, and the objects made from them."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np

from pam_ros.simulator.assets import cooking as objects_cooking
from pam_ros.simulator.assets import desk as objects_desk
from pam_ros.simulator.assets import hardware as objects_hardware
from pam_ros.simulator.assets import household as objects_household
from pam_ros.simulator.assets import pantry as objects_pantry
from pam_ros.simulator.assets import tableware as objects_tableware
from pam_ros.simulator.assets import tools as objects_tools
from pam_ros.simulator.assets.materials import COLOURS, FINISHES, Finish, Rgb
from pam_ros.simulator.assets.meshes import box, cylinder, merge, vessel
from pam_ros.simulator.assets.parts import Piece, Shape, between
from pam_ros.simulator.ontology import ontology
from pam_ros.simulator.spec import ObjectSpec

SPLITS = ("train", "val", "test")
BUILDERS = {
    **objects_tableware.BUILDERS,
    **objects_cooking.BUILDERS,
    **objects_pantry.BUILDERS,
    **objects_tools.BUILDERS,
    **objects_hardware.BUILDERS,
    **objects_desk.BUILDERS,
    **objects_household.BUILDERS,
}
CATEGORIES = tuple(BUILDERS)
MESHES_PER_CATEGORY = 400  # numbers 0..399; the last digit decides the split
TEXTURES_PER_FAMILY = 120
LYING = 0.12  # share of objects that lie, of those that can
ODD_SIZES = 0.14  # share of objects that are clearly smaller than usual, and as many larger
SMALL, LARGE = 0.82, 1.22  # of the usual extent: where texts begin to speak of size
PASSERS = ("cereal_box", "carton", "can", "paper_roll", "pot", "toolbox", "basket", "plant", "paint_can")
HELD_OUT_FAMILIES = {
    "terrazzo": "test",
    "brick": "val",
}  # whole families of backgrounds seen in one split only


def split_of_number(number: int) -> str:
    """Split that owns mesh or texture `number`: last digit 8 is val, 9 is test, the rest train."""
    return {8: "val", 9: "test"}.get(number % 10, "train")


def check_split(split: str) -> str:
    """The split itself; ValueError where it is unknown."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; allowed: {', '.join(SPLITS)}")
    return split


def draw_number(rng: np.random.Generator, split: str, count: int) -> int:
    """A mesh or texture number below `count` that this split owns."""
    tens = int(rng.integers(count // 10)) * 10
    digit = {"val": 8, "test": 9}.get(split)
    return tens + (int(rng.integers(8)) if digit is None else digit)


def draw_texture(rng: np.random.Generator, split: str, families: tuple[str, ...]) -> tuple[str, int]:
    """(family, number) of a surface this split owns."""
    allowed = [family for family in families if HELD_OUT_FAMILIES.get(family, split) == split]
    family = allowed[int(rng.integers(len(allowed)))]
    return family, draw_number(rng, split, TEXTURES_PER_FAMILY)


@lru_cache(maxsize=512)
def build_shape(category: str, number: int) -> Shape:
    """Mesh `number` of a category; always the same."""
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
    """Factor on a mesh: mostly about 1, sometimes clearly smaller or, of things that have room, larger."""
    kind, usual = rng.random(), between(rng, 0.92, 1.12)
    if kind < ODD_SIZES:
        return 0.72 * usual
    return 1.32 * usual if kind > 1 - ODD_SIZES and largest_extent_m()[category] < 0.36 else usual


def size_of(category: str, shape: Shape, scale: float) -> str:
    """ "small", "medium" or "large" for its category."""
    low, high = shape.bounds()
    share = float(np.linalg.norm(high - low)) * scale / usual_extent_m(category)
    return "small" if share < SMALL else "large" if share > LARGE else "medium"


def named_rgb(rng: np.random.Generator, colour: str) -> Rgb:
    """A named colour, a little varied; 0..1."""
    red, green, blue = np.clip(
        np.asarray(COLOURS[colour]) * rng.uniform(0.85, 1.12) + rng.uniform(-0.03, 0.03, 3), 0.01, 1
    )
    return float(red), float(green), float(blue)


def draw_yaw(rng: np.random.Generator, front: bool) -> float:
    """Degrees: any, or of what has a `front` (-y), so that the camera sees it."""
    return between(rng, -38, 38) if front else between(rng, -180, 180)


def draw_object(rng: np.random.Generator, split: str, category: str, lying: float = LYING) -> ObjectSpec:
    """An object of a category with mesh, colours and material of this split, not yet placed."""
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
    front = shape.faces_camera or (category == "book" and rest > 0)  # else only a plain back is seen
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
    """An upside-down cardboard box that fits over something of this size (metres)."""
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
    """A two-finger gripper, its fingers `gap` metres apart; its fingertips are at z = 0, the arm goes up."""
    palm = box(gap + 0.09, 0.05, 0.05).moved(z=0.09)
    fingers = [box(0.016, 0.026, 0.095).moved(x=side * (gap / 2 + 0.008)) for side in (1, -1)]
    pads = [box(0.003, 0.028, 0.03).moved(x=side * (gap / 2 + 0.0005)) for side in (1, -1)]
    wrist = merge(cylinder(0.032, 0.05).moved(z=0.14), cylinder(0.045, 0.9).moved(z=0.19))
    shape = Shape(
        (Piece(palm), Piece(merge(*fingers), "steel"), Piece(merge(*pads), "black"), Piece(wrist, "body"))
    )
    colours = dict(ontology().entries["gripper"].looks)["metal"]
    return _prop("gripper", shape, colours[int(rng.integers(len(colours)))], "metal", rng)


def passer_for(rng: np.random.Generator, split: str) -> ObjectSpec:
    """Something broad and tall of this split that can hide another thing when it passes in front of it."""
    thing = draw_object(rng, split, PASSERS[int(rng.integers(len(PASSERS)))], lying=0.0)
    return replace(thing, rest_deg=thing.shape.rests[0])


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
