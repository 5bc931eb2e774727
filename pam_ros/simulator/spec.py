"""A scene as plain values: objects, fixtures, lights, camera; all that a renderer needs, decided by a seed.

World: metres, z up, x right and y away as the robot stands before it; the main work surface is z = 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pam_ros.simulator.assets.materials import Finish, Rgb
from pam_ros.simulator.assets.parts import Shape


@dataclass(frozen=True, slots=True)
class ObjectSpec:
    """One object.

    Attributes:
        category: id in the ontology, e.g. "kettle".
        mesh_id: "category/number"; no mesh of one split appears in another.
        shape: its pieces and joints.
        colour: name of its main colour; accent: of its second one.
        material: name of its main material.
        body_rgb, accent_rgb: 0..1, the named colours a little varied.
        finish: of the body.
        print_seed: of the printed picture.
        size: "small", "medium" or "large": its extent beside the usual one of its kind.
        scale: factor on the mesh.
        rest_deg: (x, y, z) rotation of the pose it rests in.
        position: (x, y, z) metres of the lowest point below its centre.
        yaw_deg: rotation about z.
        place: id of the fixture it stands on.
        picture: file of the open meshes whose texture it wears in slot "picture", or "".
    """

    category: str
    mesh_id: str
    shape: Shape
    colour: str
    accent: str
    material: str
    body_rgb: Rgb
    accent_rgb: Rgb
    finish: Finish
    print_seed: int
    size: str
    scale: float
    rest_deg: tuple[float, float, float]
    position: tuple[float, float, float]
    yaw_deg: float
    place: str
    picture: str = ""


@dataclass(frozen=True, slots=True)
class FixtureSpec:
    """A background region: table, wall, floor, stove, ...

    Attributes:
        category: id in the ontology's regions.
        boxes: (size, centre) pairs in metres, each (x, y, z).
        texture: (family, seed) of `textures.surface`, or None for a plain colour.
        colour: name of its colour, "" where a texture decides.
        rgb: multiplies the texture.
        tile_m: metres one repeat of the texture covers.
        details: further pieces (burners, faucet, door fronts) as (pieces, position).
    """

    category: str
    boxes: tuple[tuple[tuple[float, float, float], tuple[float, float, float]], ...]
    texture: tuple[str, int] | None
    rgb: Rgb = (1.0, 1.0, 1.0)
    colour: str = ""
    tile_m: float = 0.6
    finish: Finish = field(default_factory=Finish)
    details: tuple[tuple[Shape, tuple[float, float, float]], ...] = ()


@dataclass(frozen=True, slots=True)
class LightSpec:
    """A lamp: position and direction in metres, diffuse colour 0..1."""

    position: tuple[float, float, float]
    direction: tuple[float, float, float]
    diffuse: Rgb
    casts_shadow: bool


@dataclass(frozen=True, slots=True)
class CameraSpec:
    """Where the robot's camera is and what it sees.

    Attributes:
        position, target: (x, y, z) metres.
        roll_deg: about the optical axis.
        fov_deg: horizontal field of view, 45..75.
    """

    position: tuple[float, float, float]
    target: tuple[float, float, float]
    roll_deg: float
    fov_deg: float

    def pose(self) -> NDArray[np.float64]:
        """(4, 4) camera-to-world of the REP 103 optical frame: x right, y down, z forward."""
        eye, target = np.asarray(self.position), np.asarray(self.target)
        forward = (target - eye) / np.linalg.norm(target - eye)
        right = np.cross(forward, [0.0, 0.0, 1.0])
        right /= np.linalg.norm(right)
        down = np.cross(forward, right)
        roll = np.radians(self.roll_deg)
        pose = np.eye(4)
        pose[:3, 0] = np.cos(roll) * right + np.sin(roll) * down
        pose[:3, 1] = -np.sin(roll) * right + np.cos(roll) * down
        pose[:3, 2], pose[:3, 3] = forward, eye
        return pose

    def intrinsics(self, width: int, height: int) -> NDArray[np.float64]:
        """(3, 3) pinhole matrix in pixels, square pixels, the centre in the middle."""
        focal = width / 2 / np.tan(np.radians(self.fov_deg) / 2)
        return np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1.0]])


@dataclass(frozen=True, slots=True)
class LookSpec:
    """The camera's electronics: exposure, gamma, white balance (r, g, b), noise (of 255), blur (pixels)."""

    exposure: float = 1.0
    gamma: float = 1.0
    balance: Rgb = (1.0, 1.0, 1.0)
    noise: float = 2.0
    blur: float = 0.0


@dataclass(frozen=True, slots=True)
class SceneSpec:
    """All of a scene. Instance ids: objects 1..len(objects), then fixtures."""

    seed: int
    split: str
    kind: str
    objects: tuple[ObjectSpec, ...]
    fixtures: tuple[FixtureSpec, ...]
    lights: tuple[LightSpec, ...]
    camera: CameraSpec
    look: LookSpec
    ambient: float = 0.35

    def fixture_id(self, index: int) -> int:
        """Instance id of fixture `index`."""
        return len(self.objects) + 1 + index
