"""What an object is made of: pieces of mesh with a material slot and a part name, and joints that open it.

Material slots every object may use: `body` (its named colour), `accent` (a second colour), `print`
(a printed picture: labels, covers), and the fixed ones of `materials.py` (`steel`, `black`, `wood`, ...).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pam_ros.simulator.assets.meshes import Mesh


@dataclass(frozen=True, slots=True)
class Piece:
    """One mesh of an object.

    Attributes:
        mesh: in the object's frame: z up, standing on z = 0.
        slot: material slot.
        part: the part it belongs to ("handle", "lid", ...), or "" for the object's main body.
        joint: index of the joint that moves it, or -1.
    """

    mesh: Mesh
    slot: str = "body"
    part: str = ""
    joint: int = -1


@dataclass(frozen=True, slots=True)
class Joint:
    """How a part opens.

    Attributes:
        part: the part that opens ("door", "drawer", "lid").
        sliding: True for a drawer (metres), False for a hinge (radians).
        axis: (x, y, z) direction; opening is positive.
        anchor: (x, y, z) metres, a point of the hinge.
        fully_open: radians or metres.
    """

    part: str
    sliding: bool
    axis: tuple[float, float, float]
    anchor: tuple[float, float, float]
    fully_open: float


@dataclass(frozen=True, slots=True)
class Shape:
    """An object before it gets its materials.

    Attributes:
        pieces: its meshes.
        joints: what opens.
        rests: stable poses as (x, y, z) rotations in degrees; the first is the usual one.
        faces_camera: True where the front (-y) should look towards the camera (a microwave, a clock).
    """

    pieces: tuple[Piece, ...]
    joints: tuple[Joint, ...] = ()
    rests: tuple[tuple[float, float, float], ...] = ((0.0, 0.0, 0.0),)
    faces_camera: bool = False

    def bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(low, high), each (3,) metres, of the closed object in its own frame."""
        low = np.min([piece.mesh.vertices.min(0) for piece in self.pieces], axis=0)
        high = np.max([piece.mesh.vertices.max(0) for piece in self.pieces], axis=0)
        return low, high


Builder = Callable[[np.random.Generator], Shape]


def between(rng: np.random.Generator, low: float, high: float) -> float:
    """A uniform number."""
    return float(rng.uniform(low, high))


def chance(rng: np.random.Generator, probability: float) -> bool:
    """True with the given probability."""
    return bool(rng.random() < probability)
