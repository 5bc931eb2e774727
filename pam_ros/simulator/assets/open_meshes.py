"""Open meshes, modelled by third parties: the table of meshes, and the objects made from them.

A model that is trained on procedural meshes alone learns their rules rather than the objects. Scenes can
therefore use open meshes for a fraction of their objects; then every object, procedural ones included, is
stretched and bent a little and sometimes loses its print. A fraction of 0 changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pam_ros.simulator.assets.catalogue import LYING, draw_yaw, named_rgb, size_of, usual_extent_m
from pam_ros.simulator.assets.materials import FINISHES
from pam_ros.simulator.assets.mesh_store import stored
from pam_ros.simulator.assets.meshes import Mesh, cylinder, lathe
from pam_ros.simulator.assets.parts import Joint, Piece, Shape, between, chance
from pam_ros.simulator.ontology import ontology
from pam_ros.simulator.spec import ObjectSpec

Rng = np.random.Generator
Vector = tuple[float, float, float]
STRETCH = 0.09  # standard deviation of the log scale
BEND = 0.018  # largest shift, fraction of the extent
TAPER = 0.12  # largest change of the width from the middle to an end
PLAIN = 0.35  # probability that a printed object loses its print

OBJECTS = "myosuite/simhive/object_sim"
FURNITURE = "myosuite/simhive/furniture_sim"
YCB = "myosuite/simhive/YCB_sim"
METAWORLD = "metaworld/assets/objects/meshes"
ROBOSUITE = "robosuite/models/assets/objects/meshes"


@dataclass(frozen=True, slots=True)
class File:
    """One file of a mesh: slot, part, position (in the file's units) and rotation (degrees)."""

    path: str
    slot: str = "body"
    part: str = ""
    at: Vector = (0.0, 0.0, 0.0)
    turn: Vector = (0.0, 0.0, 0.0)
    joint: int = -1


@dataclass(frozen=True, slots=True)
class Cut:
    """Gives a slot and part to the faces whose centre lies between `low` and `high`.

    The corners are fractions of the object's bounding box, 0..1 along x, y and z after `OpenMesh.turn`.
    """

    slot: str
    part: str = ""
    low: Vector = (-1.0, -1.0, -1.0)
    high: Vector = (2.0, 2.0, 2.0)


@dataclass(frozen=True, slots=True)
class OpenMesh:
    """One object with an open mesh.

    Attributes:
        category: id in the ontology.
        files: the files that form it.
        split: the split whose scenes may use it.
        turn: degrees about x, then y, then z, from the files' axes to z up and front towards -y.
        cuts: faces with another slot or part; later cuts win.
        wrapped: True if the print wraps around z; otherwise it is projected from the sides.
        colour, accent: names, if the texture or the object fixes them; "" = any in the ontology.
        rests, joints, faces_camera: see `parts.Shape`; joints are in the files' units, after `turn`.
        extra: pieces that the package builds from primitives, in the files' units and axes.
    """

    category: str
    files: tuple[File, ...]
    split: str = "train"
    turn: Vector = (0.0, 0.0, 0.0)
    cuts: tuple[Cut, ...] = ()
    wrapped: bool = False
    colour: str = ""
    accent: str = ""
    rests: tuple[Vector, ...] = ((0.0, 0.0, 0.0),)
    joints: tuple[Joint, ...] = ()
    faces_camera: bool = False
    extra: tuple[Piece, ...] = ()

    @property
    def name(self) -> str:
        """Package and file, e.g. "myosuite/hammer"."""
        path = self.files[0].path.partition("|")[0]
        return f"{path.partition('/')[0]}/{path.rpartition('/')[2].partition('.')[0]}"


def _stl(category: str, name: str = "", slot: str = "body", part: str = "", **more: object) -> OpenMesh:
    name = name or category
    file = File(f"{OBJECTS}/{name}/{name}.stl", slot, part)
    return OpenMesh(category, (file,), **more)  # type: ignore[arg-type]


def _scan(category: str, name: str, **more: object) -> OpenMesh:
    file = File(f"{YCB}/meshes/{name}.msh|{YCB}/textures/{name}.png", "picture")
    return OpenMesh(category, (file,), **more)  # type: ignore[arg-type]


def _plain(category: str, name: str, slot: str = "body", **more: object) -> OpenMesh:
    return OpenMesh(category, (File(f"{ROBOSUITE}/{name}.stl", slot),), **more)  # type: ignore[arg-type]


SIDE = (90.0, 0.0, 0.0)
UPRIGHT_OR_SIDE = ((0.0, 0.0, 0.0), SIDE)
KETTLE, MICROWAVE = f"{FURNITURE}/kettle/meshes", f"{FURNITURE}/microwave/meshes"
COFFEE, LAPTOP, DRAWER = f"{METAWORLD}/coffeemachine", f"{METAWORLD}/laptop/laptop", f"{METAWORLD}/drawer"
DIAL = lathe([(0, 0), (0.037, 0), (0.037, 0.0012), (0.026, 0.0012), (0.014, 0.0012), (0, 0.0012)])
TABLE: tuple[OpenMesh, ...] = (
    _stl(
        "alarm_clock",
        "alarmclock",
        faces_camera=True,
        extra=(Piece(DIAL.turned(x=90).moved(y=-0.0158, z=-0.009), "white"),),
    ),
    _stl("apple", cuts=(Cut("bark", low=(0, 0, 0.86)),)),
    _stl("banana", split="val", cuts=(Cut("bark", low=(0.95, 0, 0)),)),
    _stl("bowl"),
    _stl("mug", cuts=(Cut("body", "handle", (0.725, 0, 0)),)),
    _stl("flashlight", split="test", turn=(0, 90, 0), cuts=(Cut("lamp", high=(0.004, 1, 1)),)),
    _stl("frying_pan", "fryingpan", cuts=(Cut("black", "handle", (0.645, 0, 0)),)),
    _stl("hammer", part="handle", cuts=(Cut("steel", high=(0.125, 1, 1)),)),
    _stl("headphones"),
    _stl("knife", part="handle", cuts=(Cut("steel", "blade", (0, 0.42, 0)),)),
    _stl("light_bulb", "lightbulb", "bulb", cuts=(Cut("steel", high=(0.26, 1, 1)),)),
    _stl("computer_mouse", "mouse"),
    _stl("scissors", part="handle", split="test", cuts=(Cut("steel", "blade", high=(1, 0.53, 1)),)),
    _stl(
        "teapot",
        cuts=(
            Cut("body", "spout", (0.8, 0, 0)),
            Cut("body", "handle", high=(0.17, 1, 1)),
            Cut("body", "lid", (0.2, 0, 0.73), (0.8, 1, 1)),
        ),
    ),
    _stl(
        "bottle",
        "waterbottle",
        wrapped=True,
        rests=UPRIGHT_OR_SIDE,
        cuts=(Cut("print", "", (0, 0, 0.22), (1, 1, 0.68)), Cut("accent", "cap", (0, 0, 0.89))),
    ),
    _stl("wine_glass", "wineglass", split="test"),
    OpenMesh(
        "kettle",
        (File(f"{KETTLE}/kettle.stl"), File(f"{KETTLE}/kettlehandle.stl", "black", "handle")),
        cuts=(
            Cut("body", "spout", high=(0.16, 1, 0.6)),
            Cut("black", "lid", (0.4, 0.3, 0.425), (0.75, 0.7, 0.56)),
        ),
        extra=tuple(
            Piece(cylinder(0.018, 0.14).moved(x=side * 0.092, z=0.116), "black", "handle") for side in (1, -1)
        ),
    ),
    OpenMesh(
        "microwave",
        (
            File(f"{MICROWAVE}/micro.stl"),
            File(f"{MICROWAVE}/microbutton.stl", "grey", "knob"),
            File(f"{MICROWAVE}/microfeet.stl", "black"),
            File(f"{MICROWAVE}/microdoor.stl", "body", "door", joint=0),
            File(f"{MICROWAVE}/microwindow.stl", "darkglass", "door", joint=0),
            File(f"{MICROWAVE}/microhandle.stl", "steel", "handle", joint=0),
        ),
        joints=(Joint("door", False, (0, 0, -1), (-0.345, -0.176, 0.192), 1.7),),
        faces_camera=True,
    ),
    OpenMesh("lamp", (File(f"{FURNITURE}/misc/wall_lamp.stl"),)),
    _scan("drill", "035_power_drill", colour="orange", accent="black"),
    _scan("bottle", "006_mustard_bottle", colour="yellow", rests=UPRIGHT_OR_SIDE),
    _scan("can", "002_master_chef_can", colour="blue", rests=UPRIGHT_OR_SIDE),
    _scan("can", "005_tomato_soup_can", colour="red", rests=UPRIGHT_OR_SIDE),
    _scan("can", "007_tuna_fish_can", colour="blue", split="test"),
    _scan("can", "010_potted_meat_can", colour="blue", split="val"),
    _plain(
        "bottle",
        "bottle",
        split="test",
        rests=UPRIGHT_OR_SIDE,
        cuts=(Cut("accent", "cap", (0, 0, 0.88)),),
    ),
    _plain("bread", "bread", cuts=(Cut("crumb", high=(1, 0.02, 1)), Cut("crumb", low=(0, 0.98, 0)))),
    _plain(
        "can",
        "can",
        "steel",
        split="test",
        wrapped=True,
        cuts=(Cut("print", "", (0, 0, 0.06), (1, 1, 0.94)),),
        rests=UPRIGHT_OR_SIDE,
    ),
    _plain("cereal_box", "cereal", "print", faces_camera=True),
    _plain("lemon", "lemon", split="test"),
    _plain("carton", "milk", cuts=(Cut("print", high=(1, 1, 0.78)),)),
    OpenMesh(
        "laptop",
        (
            File(f"{LAPTOP}_base.stl", at=(0, 0, 0.015)),
            File(f"{LAPTOP}_keys.stl", "black", at=(0, 0, 0.015)),
            File(f"{LAPTOP}_hinge.stl", at=(0, 0.151, 0.031), turn=(0, 90, 0)),
            File(f"{LAPTOP}_top.stl", "body", "lid", (0, 0.161, 0.181), joint=0),
            File(f"{LAPTOP}_screen.stl", "print", "lid", (0, 0.161, 0.181), joint=0),
        ),
        joints=(Joint("lid", False, (1, 0, 0), (0, 0.151, 0.031), 1.5),),
        faces_camera=True,
    ),
    OpenMesh(
        "coffee_machine",
        (
            File(f"{COFFEE}/body1.stl", at=(0, 0, 0.115)),
            File(f"{COFFEE}/body2.stl", at=(0, -0.042, 0.3)),
            File(f"{COFFEE}/bodypiece1.stl", "black", at=(0, 0, 0.115)),
            File(f"{COFFEE}/spout.stl", "black", at=(0, -0.141, 0.155)),
            File(f"{COFFEE}/buttonring.stl", "black", at=(0, -0.183, 0.3), turn=(90, 0, 0)),
        ),
        extra=(
            Piece(cylinder(0.009, 0.036).turned(x=90).moved(y=-0.091, z=0.135), "black"),
            Piece(cylinder(0.032, 0.03).turned(x=90).moved(y=-0.175, z=0.3), "grey", "knob"),
        ),
        faces_camera=True,
    ),
    OpenMesh(
        "drawer_unit",
        (
            File(f"{DRAWER}/drawercase.stl"),
            File(f"{DRAWER}/drawer.stl", "body", "drawer", (0, -0.01, 0.006), joint=0),
            File(f"{DRAWER}/drawerhandle.stl", "steel", "handle", (0, -0.124, 0.006), joint=0),
        ),
        joints=(Joint("drawer", True, (0, -1, 0), (0, 0, 0), 0.13),),
        faces_camera=True,
    ),
    OpenMesh(
        "ball",
        (
            File(f"{METAWORLD}/basketball/basketballouter.stl"),
            File(f"{METAWORLD}/basketball/basketballinner.stl", "black"),
        ),
        colour="orange",
        accent="black",
    ),
    OpenMesh(
        "ball",
        (
            File(f"{METAWORLD}/soccer/soccer_white.stl"),
            File(f"{METAWORLD}/soccer/soccer_black.stl", "black"),
        ),
        split="test",
        colour="white",
        accent="black",
    ),
)
BY_NAME = {mesh.name: mesh for mesh in TABLE}


def files() -> list[str]:
    """Every file in the table, for `mesh_store.fetch`."""
    return [file.path for mesh in TABLE for file in mesh.files]


def choices(category: str, split: str) -> list[OpenMesh]:
    """The open meshes of a category that scenes of this split may use."""
    return [mesh for mesh in TABLE if mesh.category == category and mesh.split == split]


@lru_cache(maxsize=len(TABLE))
def open_shape(name: str) -> Shape:
    """The shape of an open mesh in its category's usual size. Raises MeshStoreError before `fetch`."""
    made = BY_NAME[name]
    pieces = [
        Piece(_turned(stored(file.path).mesh, file.turn).moved(*file.at), file.slot, file.part, file.joint)
        for file in made.files
    ]
    pieces = [replace(piece, mesh=_turned(piece.mesh, made.turn)) for piece in (*pieces, *made.extra)]
    low, high = Shape(tuple(pieces)).bounds()
    foot = np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]])
    scale = usual_extent_m(made.category) / float(np.linalg.norm(high - low))

    def finished(piece: Piece) -> Piece:
        mesh = Mesh((piece.mesh.vertices - foot) * scale, piece.mesh.faces, piece.mesh.uv)
        return replace(piece, mesh=_with_uv(mesh, made.wrapped) if piece.slot == "print" else mesh)

    cut = tuple(finished(part) for piece in pieces for part in _cut(piece, made.cuts, low, high))
    joints = tuple(_scaled(joint, foot, np.full(3, scale)) for joint in made.joints)
    return Shape(cut, joints, made.rests, made.faces_camera)


def _turned(mesh: Mesh, turn: Vector) -> Mesh:
    return mesh.turned(x=turn[0], y=turn[1], z=turn[2])


def _scaled(joint: Joint, foot: NDArray[np.float64], scale: NDArray[np.float64]) -> Joint:
    x, y, z = (float(value) for value in (np.asarray(joint.anchor) - foot) * scale)
    along = float(np.abs(joint.axis) @ scale)
    return replace(joint, anchor=(x, y, z), fully_open=joint.fully_open * (along if joint.sliding else 1.0))


def _cut(
    piece: Piece, cuts: Sequence[Cut], low: NDArray[np.float64], high: NDArray[np.float64]
) -> list[Piece]:
    middles = (piece.mesh.vertices[piece.mesh.faces].mean(1) - low) / (high - low)
    owner = np.full(len(middles), -1)
    for index, cut in enumerate(cuts):
        owner[((middles >= cut.low) & (middles <= cut.high)).all(1)] = index
    found = []
    for index in np.unique(owner):
        mesh = Mesh(piece.mesh.vertices, piece.mesh.faces[owner == index], piece.mesh.uv)
        slot, part = (piece.slot, piece.part) if index < 0 else (cuts[index].slot, cuts[index].part)
        found.append(Piece(_used(mesh), slot, part, piece.joint))
    return found


def _used(mesh: Mesh) -> Mesh:
    """The mesh without unused vertices."""
    kept, faces = np.unique(mesh.faces, return_inverse=True)
    uv = None if mesh.uv is None else mesh.uv[kept]
    return Mesh(mesh.vertices[kept], faces.reshape(-1, 3).astype(np.int32), uv)


def _with_uv(mesh: Mesh, wrapped: bool) -> Mesh:
    """The mesh with texture coordinates for a print: wrapped around z, or projected from front and sides."""
    corners = mesh.vertices[mesh.faces]  # (F, 3, 3)
    low, size = mesh.vertices.min(0), np.maximum(np.ptp(mesh.vertices, axis=0), 1e-9)
    relative = (corners - low) / size
    if wrapped:
        around = np.arctan2(corners[..., 1], corners[..., 0]) / (2 * np.pi)
        across = around - around[:, :1]
        u = around[:, :1] + across - np.round(across)
    else:
        normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        of_x_side = np.abs(normal[:, 0]) > np.abs(normal[:, 1])
        mirrored = np.where(of_x_side, normal[:, 0] < 0, normal[:, 1] > 0)
        u = np.where(of_x_side[:, None], relative[..., 1], relative[..., 0])
        u = np.where(mirrored[:, None], 1 - u, u)
    uv = np.stack([u, 1 - relative[..., 2]], -1).reshape(-1, 2)
    return Mesh(corners.reshape(-1, 3), np.arange(3 * len(corners), dtype=np.int32).reshape(-1, 3), uv)


def varied(item: ObjectSpec, split: str, fraction: float, rng: Rng) -> ObjectSpec:
    """The object, deformed; with probability `fraction` it gets an open mesh of its category."""
    others = choices(item.category, split)
    if others and chance(rng, fraction):
        item = _with_mesh(others[int(rng.integers(len(others)))], item, rng)
    shape = item.shape
    if not item.picture and _has_slot(shape, "print") and chance(rng, PLAIN):
        shape = _repainted(shape, "print", "darkglass" if item.category == "laptop" else "body")
    if item.category != "ball":  # a ball must stay round
        shape = deformed(shape, rng)
    return replace(item, shape=shape, size=size_of(item.category, shape, item.scale))


def _has_slot(shape: Shape, slot: str) -> bool:
    return any(piece.slot == slot for piece in shape.pieces)


def _repainted(shape: Shape, slot: str, other: str) -> Shape:
    """The shape with material slot `other` in place of `slot`."""
    pieces = [replace(piece, slot=other) if piece.slot == slot else piece for piece in shape.pieces]
    return replace(shape, pieces=tuple(pieces))


def _with_mesh(made: OpenMesh, item: ObjectSpec, rng: Rng) -> ObjectSpec:
    shape = open_shape(made.name)
    pictured = _has_slot(shape, "picture")
    keeps_picture = pictured and chance(rng, 0.7)
    if not keeps_picture:
        shape = _repainted(shape, "picture", "body")
    if made.colour and (keeps_picture or not pictured):
        looks = ontology().entries[item.category].looks
        material = next(material for material, colours in looks if made.colour in colours)
        accent = made.accent or item.accent
        item = replace(
            item,
            colour=made.colour,
            accent=accent,
            material=material,
            body_rgb=named_rgb(rng, made.colour),
            accent_rgb=named_rgb(rng, accent),
            finish=FINISHES[material],
        )
    rest = int(rng.integers(len(shape.rests))) if chance(rng, LYING) else 0
    return replace(
        item,
        mesh_id=f"{item.category}/{made.name}",
        shape=shape,
        picture=made.files[0].path if keeps_picture else "",
        rest_deg=shape.rests[rest],
        yaw_deg=draw_yaw(rng, shape.faces_camera),
    )


def deformed(shape: Shape, rng: Rng) -> Shape:
    """The shape, stretched along its axes; without joints it is also tapered and gently bent."""
    low, high = shape.bounds()
    size = np.maximum(high - low, 1e-6)
    wide, deep, high_by = np.clip(rng.normal(0, STRETCH, 3), -2 * STRETCH, 2 * STRETCH)
    stretch = np.exp([wide + deep / 3, wide - deep / 3, high_by])  # round shapes stay nearly round
    taper = between(rng, -TAPER, TAPER) * (not shape.joints)
    waves, phases = rng.uniform(-0.8, 0.8, (3, 3)), rng.uniform(0, 2 * np.pi, 3)
    reach = rng.uniform(-BEND, BEND, 3) * float(size.max()) * (not shape.joints)

    def moved(mesh: Mesh) -> Mesh:
        relative = (mesh.vertices - low) / size.max()
        points = mesh.vertices + reach * np.sin(2 * np.pi * relative @ waves + phases)
        slim = 1 + taper * (2 * (mesh.vertices[:, 2:] - low[2]) / size[2] - 1)
        points[:, :2] *= slim
        return Mesh(points * stretch, mesh.faces, mesh.uv)

    pieces = [replace(piece, mesh=moved(piece.mesh)) for piece in shape.pieces]
    joints = [_scaled(joint, np.zeros(3), stretch) for joint in shape.joints]
    return replace(shape, pieces=tuple(pieces), joints=tuple(joints))
