"""What is true of a region in a frame, read off the scene: the source of every text and of its check."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pam_ros.simulator.events.stage import ground_axes
from pam_ros.simulator.render import PARTS, ObjectState, Rendered
from pam_ros.simulator.scene.scenes import footprint
from pam_ros.simulator.spec import FixtureSpec, ObjectSpec, SceneSpec

SLOT_COLOURS = {
    "black": "black",
    "white": "white",
    "grey": "grey",
    "steel": "silver",
    "wood": "brown",
    "leaf": "green",
    "red": "red",
    "darkglass": "black",
}
NEIGHBOUR_M = 0.45


@dataclass(frozen=True, slots=True)
class Mention:
    """An object as another one's text speaks of it: category and colour ("" where it has none)."""

    category: str
    colour: str


@dataclass(frozen=True, slots=True)
class Facts:
    """What is true of one region.

    Attributes:
        category: ontology id; kind: "object", "region" or "part".
        colour, material: ids, "" where nothing is said of them.
        handle_colour: colour of the handle where only the handle has the named colour, else "".
        surface: texture family of a background region, else "".
        place: category and texture family of what it stands on, ("", "") for regions and parts.
        lies: True where it is flatter than wide.
        size: "small" or "large" where it clearly differs from the usual size of its kind, else "".
        neighbour: what is beside it; relation: "left", "right", "front", "behind" of that neighbour, or "".
        parts: (part, colour) it shows.
        whole: for a part: what it belongs to.
        carries: for a region: what stands on it.
        cut_off: the picture's edge cuts it.
    """

    category: str
    kind: str
    colour: str = ""
    material: str = ""
    handle_colour: str = ""
    surface: str = ""
    place: tuple[str, str] = ("", "")
    lies: bool = False
    neighbour: Mention | None = None
    relation: str = ""
    parts: tuple[tuple[str, str], ...] = ()
    whole: Mention | None = None
    carries: tuple[Mention, ...] = ()
    cut_off: bool = False
    size: str = ""


def named_colour(thing: ObjectSpec) -> tuple[str, str]:
    """(colour of the whole, colour of only the handle); both "" where its colour slot is not used."""
    slots = [(piece.slot, piece.part) for piece in thing.shape.pieces if piece.slot in ("body", "print")]
    if thing.category == "cardboard_box":
        return "brown", ""
    if thing.category in ("laptop", "light_bulb", "paper_roll", "egg_carton"):
        return thing.colour, ""
    if not slots:
        return "", ""
    if all(part == "handle" for _, part in slots):
        return "", thing.colour
    return thing.colour, ""


def mention(thing: ObjectSpec) -> Mention:
    """How other texts speak of it."""
    return Mention(thing.category, named_colour(thing)[0])


def part_colour(thing: ObjectSpec, part: str) -> str:
    """Colour of a part by its largest piece, "" where it has no plain one."""
    counts: Counter[str] = Counter()
    for piece in thing.shape.pieces:
        if piece.part == part:
            counts[piece.slot] += max(
                1, int(1e4 * float(np.prod(np.ptp(piece.mesh.vertices, axis=0) + 1e-3)))
            )
    if not counts:
        return ""
    slot = counts.most_common(1)[0][0]
    return {"body": thing.colour, "accent": thing.accent}.get(slot, SLOT_COLOURS.get(slot, ""))


def object_facts(scene: SceneSpec, states: list[ObjectState], frame: Rendered, index: int) -> Facts:
    """Facts of object `index` as it is in this frame."""
    thing = scene.objects[index]
    colour, handle_colour = named_colour(thing)
    mask = frame.instances == index + 1
    surface = next((_family(fixture) for fixture in scene.fixtures if fixture.category == thing.place), "")
    neighbour, relation = _neighbour(scene, states, frame, index)
    mark, height = footprint(thing)
    pixels = np.bincount(frame.parts[mask], minlength=len(PARTS))  # of each part
    shown = [part for part in range(1, len(PARTS)) if pixels[part] > 25]
    return Facts(
        category=thing.category,
        kind="object",
        colour=colour,
        material=thing.material if colour else "",
        handle_colour=handle_colour,
        place=(thing.place, surface),
        lies=height < 0.6 * 2 * float(mark.half.max()),
        neighbour=neighbour,
        relation=relation,
        parts=tuple((PARTS[part], part_colour(thing, PARTS[part])) for part in shown),
        cut_off=_touches_edge(mask),
        size="" if thing.size == "medium" else thing.size,
    )


def part_facts(scene: SceneSpec, index: int, part: str) -> Facts:
    """Facts of a part of object `index`."""
    thing = scene.objects[index]
    return Facts(category=part, kind="part", colour=part_colour(thing, part), whole=mention(thing))


def region_facts(scene: SceneSpec, frame: Rendered, index: int) -> Facts:
    """Facts of fixture `index`."""
    fixture = scene.fixtures[index]
    on_it = [
        mention(thing)
        for number, thing in enumerate(scene.objects)
        if thing.place == fixture.category and np.count_nonzero(frame.instances == number + 1) > 150
    ]
    return Facts(
        category=fixture.category,
        kind="region",
        colour=fixture.colour,
        surface=_family(fixture),
        carries=tuple(on_it[:3]),
    )


def _family(fixture: FixtureSpec) -> str:
    """Texture family as it is spoken of; a placemat is cloth in any case."""
    return fixture.texture[0] if fixture.texture and fixture.category != "placemat" else ""


def _touches_edge(mask: NDArray[np.bool_]) -> bool:
    return bool(mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())


def _neighbour(
    scene: SceneSpec, states: list[ObjectState], frame: Rendered, index: int
) -> tuple[Mention | None, str]:
    """The nearest visible object on the same level, and where this one is seen from it."""
    here = states[index].position
    right, away = ground_axes(scene.camera)
    nearest: tuple[float, int] | None = None
    for other, state in enumerate(states):
        if other == index or not state.visible or abs(state.position[2] - here[2]) > 0.12:
            continue
        distance = float(np.linalg.norm(state.position - here))
        if (
            distance < NEIGHBOUR_M
            and (nearest is None or distance < nearest[0])
            and np.count_nonzero(frame.instances == other + 1) > 300
        ):
            nearest = (distance, other)
    if nearest is None:
        return None, ""
    offset = here - states[nearest[1]].position
    across, along = float(offset @ right), float(offset @ away)
    if abs(across) >= abs(along):
        relation = "right" if across > 0 else "left"
    else:
        relation = "behind" if along > 0 else "front"
    return mention(scene.objects[nearest[1]]), relation
