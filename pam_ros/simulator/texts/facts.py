"""Facts about a region in a frame, read from the scene: texts are written from them and judged by them."""

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
    """An object that another one's text mentions: category and colour ("" if it has no named one)."""

    category: str
    colour: str


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts of one region.

    Attributes:
        category: id in the ontology.
        kind: "object", "region" or "part".
        colour, material: ids; "" if the texts name none.
        handle_colour: the named colour if only the handle has it, else "".
        surface: texture family of a background region, else "".
        place: category and texture family of the fixture below it; ("", "") for regions and parts.
        lies: True if it is much flatter than wide.
        neighbour: the nearest visible object on its level, if any.
        relation: "left", "right", "front" or "behind" of that neighbour, or "".
        parts: (part, colour) of each visible part.
        whole: for a part: the object it belongs to.
        carries: for a region: objects that stand on it.
        cut_off: True if the image's edge cuts it.
        size: "small" or "large" if its size is clearly unusual for its category, else "".
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


def named_colour(item: ObjectSpec) -> tuple[str, str]:
    """(colour of the object, colour of its handle alone); one of them is "", or both if no slot has it."""
    slots = [(piece.slot, piece.part) for piece in item.shape.pieces if piece.slot in ("body", "print")]
    if item.category == "cardboard_box":
        return "brown", ""
    if item.category in ("laptop", "light_bulb", "paper_roll", "egg_carton"):
        return item.colour, ""
    if not slots:
        return "", ""
    if all(part == "handle" for _, part in slots):
        return "", item.colour
    return item.colour, ""


def mention(item: ObjectSpec) -> Mention:
    """The object as other texts mention it."""
    return Mention(item.category, named_colour(item)[0])


def part_colour(item: ObjectSpec, part: str) -> str:
    """Colour of a part's largest piece, "" if it has no plain colour."""
    counts: Counter[str] = Counter()
    for piece in item.shape.pieces:
        if piece.part == part:
            counts[piece.slot] += max(
                1, int(1e4 * float(np.prod(np.ptp(piece.mesh.vertices, axis=0) + 1e-3)))
            )
    if not counts:
        return ""
    slot = counts.most_common(1)[0][0]
    return {"body": item.colour, "accent": item.accent}.get(slot, SLOT_COLOURS.get(slot, ""))


def object_facts(scene: SceneSpec, states: list[ObjectState], frame: Rendered, index: int) -> Facts:
    """Facts of object `index` in this frame."""
    item = scene.objects[index]
    colour, handle_colour = named_colour(item)
    mask = frame.instances == index + 1
    surface = next((_family(fixture) for fixture in scene.fixtures if fixture.category == item.place), "")
    neighbour, relation = _neighbour(scene, states, frame, index)
    mark, height = footprint(item)
    pixels = np.bincount(frame.parts[mask], minlength=len(PARTS))  # of each part
    shown = [part for part in range(1, len(PARTS)) if pixels[part] > 25]
    return Facts(
        category=item.category,
        kind="object",
        colour=colour,
        material=item.material if colour else "",
        handle_colour=handle_colour,
        place=(item.place, surface),
        lies=height < 0.6 * 2 * float(mark.half.max()),
        neighbour=neighbour,
        relation=relation,
        parts=tuple((PARTS[part], part_colour(item, PARTS[part])) for part in shown),
        cut_off=_touches_edge(mask),
        size="" if item.size == "medium" else item.size,
    )


def part_facts(scene: SceneSpec, index: int, part: str) -> Facts:
    """Facts of a part of object `index`."""
    item = scene.objects[index]
    return Facts(category=part, kind="part", colour=part_colour(item, part), whole=mention(item))


def region_facts(scene: SceneSpec, frame: Rendered, index: int) -> Facts:
    """Facts of fixture `index`."""
    fixture = scene.fixtures[index]
    on_it = [
        mention(item)
        for number, item in enumerate(scene.objects)
        if item.place == fixture.category and np.count_nonzero(frame.instances == number + 1) > 150
    ]
    return Facts(
        category=fixture.category,
        kind="region",
        colour=fixture.colour,
        surface=_family(fixture),
        carries=tuple(on_it[:3]),
    )


def _family(fixture: FixtureSpec) -> str:
    """Texture family as texts name it; "" for a placemat, which is always cloth."""
    return fixture.texture[0] if fixture.texture and fixture.category != "placemat" else ""


def _touches_edge(mask: NDArray[np.bool_]) -> bool:
    return bool(mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())


def _neighbour(
    scene: SceneSpec, states: list[ObjectState], frame: Rendered, index: int
) -> tuple[Mention | None, str]:
    """The nearest visible object on the same level, and the direction from it to this object."""
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
