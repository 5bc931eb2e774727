"""A scene as plain values: objects, fixtures, lights and camera, everything that a renderer needs.

World frame: metres, z up, x to the robot's right, y away from it; the main work surface is z = 0.
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
        mesh_id: "category/number", or "category/package/file" of an open mesh; splits share none.
        shape: pieces and joints.
        colour, accent: names of the main and the second colour.
        material: name of the main material.
        body_rgb, accent_rgb: the named colours with a small variation, 0..1.
        finish: of the body.
        print_seed: seed of the printed picture.
        size: "small", "medium" or "large" compared with the usual extent of its category.
        scale: factor on the mesh.
        rest_deg: (x, y, z) rotation of the pose in which it rests, degrees.
        position: (x, y, z) of the lowest point below its centre, metres.
        yaw_deg: rotation about z.
        place: category of the fixture it stands on.
        picture: file of the open mesh whose texture fills slot "picture", or "".
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
        boxes: (size, centre) pairs, each (x, y, z) in metres.
        texture: (family, seed) of `textures.surface`, or None for a plain colour.
        colour: name of its colour, "" if it has a texture.
        rgb: multiplies the texture.
        tile_m: side of one repeat of the texture, metres.
        details: further shapes (burners, faucet, door fronts), each with its position.
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
    """The pose and field of view of the robot's camera.

    Attributes:
        position, target: (x, y, z) metres.
        roll_deg: rotation about the optical axis.
        fov_deg: horizontal field of view, 45..75.
    """

    position: tuple[float, float, float]
    target: tuple[float, float, float]
    roll_deg: float
    fov_deg: float

    def pose(self) -> NDArray[np.float64]:
        """(4, 4) camera-to-world transform of the REP 103 optical frame: x right, y down, z forward."""
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
        """(3, 3) pinhole matrix in pixels: square pixels, the principal point in the centre."""
        focal = width / 2 / np.tan(np.radians(self.fov_deg) / 2)
        return np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1.0]])


@dataclass(frozen=True, slots=True)
class LookSpec:
    """A camera's exposure, gamma, white balance (r, g, b), noise (of 255) and blur (pixels)."""

    exposure: float = 1.0
    gamma: float = 1.0
    balance: Rgb = (1.0, 1.0, 1.0)
    noise: float = 2.0
    blur: float = 0.0


@dataclass(frozen=True, slots=True)
class SceneSpec:
    """A complete scene. Instance ids: objects are 1..len(objects), fixtures follow."""

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
