"""Shapes: pieces of mesh, each with a material slot and a part name, and joints that open.

Material slots: `body` (the named colour), `accent` (a second colour), `print` (a printed picture such as a
label), `picture` (a scanned texture), and the fixed ones of `materials.py` (`steel`, `black`, `wood`, ...).
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
        part: its part ("handle", "lid", ...), or "" for the main body.
        joint: index of the joint that moves it, or -1.
    """

    mesh: Mesh
    slot: str = "body"
    part: str = ""
    joint: int = -1


@dataclass(frozen=True, slots=True)
class Joint:
    """A joint that opens a part.

    Attributes:
        part: the part that opens ("door", "drawer", "lid").
        sliding: True for a drawer (metres), False for a hinge (radians).
        axis: (x, y, z) direction of the hinge or slide.
        anchor: (x, y, z) of a point on the hinge, metres.
        fully_open: position when open, radians or metres; closed is 0.
    """

    part: str
    sliding: bool
    axis: tuple[float, float, float]
    anchor: tuple[float, float, float]
    fully_open: float


@dataclass(frozen=True, slots=True)
class Shape:
    """An object without its materials.

    Attributes:
        pieces: its meshes.
        joints: its doors, drawers and lids.
        rests: stable poses as (x, y, z) rotations in degrees, the usual one first.
        faces_camera: True if the front (-y) should face the camera, e.g. of a microwave or a clock.
    """

    pieces: tuple[Piece, ...]
    joints: tuple[Joint, ...] = ()
    rests: tuple[tuple[float, float, float], ...] = ((0.0, 0.0, 0.0),)
    faces_camera: bool = False

    def bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(low, high) corners of the closed object in its own frame, each (3,) metres."""
        low = np.min([piece.mesh.vertices.min(0) for piece in self.pieces], axis=0)
        high = np.max([piece.mesh.vertices.max(0) for piece in self.pieces], axis=0)
        return low, high


Builder = Callable[[np.random.Generator], Shape]


def between(rng: np.random.Generator, low: float, high: float) -> float:
    """A uniform random number."""
    return float(rng.uniform(low, high))


def chance(rng: np.random.Generator, probability: float) -> bool:
    """True with the given probability."""
    return bool(rng.random() < probability)
