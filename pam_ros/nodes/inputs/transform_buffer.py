"""Transforms between coordinate frames over time, looked up as tf2 does; for routes without tf2_ros."""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from pam_ros.errors import TransformError
from pam_ros.geometry import rotation_matrix

CACHE_S = 10.0  # how far back transforms are kept, as in tf2
MOST_FRAMES = 4096
MOST_SAMPLES = 10_000  # of one frame: 10 s at 1 kHz
_LONGEST_NAME = 256  # characters


class TransformProblem(Enum):
    """Why a transform is not known; values are what to do."""

    UNKNOWN = "check that its publisher on /tf or /tf_static is running"
    UNCONNECTED = "publish a transform that connects the two trees"
    WRONG_TIME = "check that its publisher is running, and that all machines use one clock (use_sim_time)"


@dataclass(frozen=True, slots=True)
class Transform:
    """Maps points of one frame into another: `rotation @ point + translation_m`."""

    rotation: NDArray[np.float64]  # (3, 3)
    translation_m: NDArray[np.float64]  # (3,)


def transform_error(target: str, source: str, problem: TransformProblem, details: str) -> TransformError:
    """One sentence: which transform is missing, why, and what to do."""
    return TransformError(f"no transform from {source!r} to {target!r}: {details}; {problem.value}")


@dataclass(slots=True)
class _Edge:
    """A frame's pose in its parent over time: quaternion x, y, z, w and translation. Stamps rise."""

    parent: str
    static: bool
    stamps_ns: list[int] = field(default_factory=list)
    poses: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = field(default_factory=list)


class TransformBuffer:
    """The tree of frames. Not thread-safe: one executor fills and asks it.

    As in tf2, between two samples the translation is interpolated linearly and the rotation along the
    shortest arc, outside them nothing is known, and static transforms hold at any time. Unlike tf2, a sample
    older than all that is kept means that time started over.
    """

    def __init__(self) -> None:
        self._edges: dict[str, _Edge] = {}  # by child

    def insert(
        self,
        *,
        parent: str,
        child: str,
        stamp_ns: int,
        quaternion_xyzw: tuple[float, float, float, float],
        translation_m: tuple[float, float, float],
        static: bool,
    ) -> None:
        """Adds a sample. Raises TransformError for one that describes no pose."""
        parent, child = parent.lstrip("/"), child.lstrip("/")
        turn, shift = np.array(quaternion_xyzw, np.float64), np.array(translation_m, np.float64)
        length = float(np.linalg.norm(turn))
        if not parent or not child or parent == child:
            raise TransformError(f"a transform from {child!r} to {parent!r} needs two different frames")
        if not np.isfinite(turn).all() or not np.isfinite(shift).all() or abs(length - 1) > 1e-2:
            raise TransformError(
                f"the transform from {child!r} to {parent!r} is not a pose: quaternion {quaternion_xyzw}, "
                f"translation {translation_m}; its publisher must send a quaternion of length 1"
            )
        if max(len(parent), len(child)) > _LONGEST_NAME:
            raise TransformError(f"a frame's name has more than {_LONGEST_NAME} characters")
        edge = self._edges.get(child)
        if edge is None and len(self._edges) >= MOST_FRAMES:
            raise TransformError(f"{child!r} is one frame too many; at most {MOST_FRAMES} are kept")
        if edge is None or static or edge.static:
            edge = self._edges[child] = _Edge(parent, static)
        oldest_kept_ns = edge.stamps_ns[-1] - CACHE_S * 1e9 if edge.stamps_ns else stamp_ns
        if stamp_ns < oldest_kept_ns:
            edge = self._edges[child] = _Edge(parent, static)
        edge.parent = parent
        place = bisect.bisect_left(edge.stamps_ns, stamp_ns)
        if edge.stamps_ns[place : place + 1] == [stamp_ns]:
            return
        edge.stamps_ns.insert(place, stamp_ns)
        edge.poses.insert(place, (turn / length, shift))
        stale = bisect.bisect_left(edge.stamps_ns, edge.stamps_ns[-1] - CACHE_S * 1e9)
        stale = max(stale, len(edge.stamps_ns) - MOST_SAMPLES)
        del edge.stamps_ns[:stale], edge.poses[:stale]

    def lookup(self, target: str, source: str, stamp_ns: int) -> Transform:
        """The transform that maps points of `source` into `target` at that time. Raises TransformError."""
        target, source = target.lstrip("/"), source.lstrip("/")
        if target == source:
            return Transform(np.eye(3), np.zeros(3))
        known = {*self._edges, *(edge.parent for edge in self._edges.values())}
        for frame in (target, source):
            if frame not in known:
                raise transform_error(
                    target, source, TransformProblem.UNKNOWN, f"frame {frame!r} has not been published"
                )
        up, down = self._ancestors(source), self._ancestors(target)
        below = set(down)
        shared = next((frame for frame in up if frame in below), None)
        if shared is None:
            raise transform_error(
                target, source, TransformProblem.UNCONNECTED, "the two frames are in different trees"
            )
        try:
            rotation, shift = self._into(shared, up, stamp_ns)
            back, back_shift = self._into(shared, down, stamp_ns)
        except _OutsideError as error:
            raise transform_error(target, source, TransformProblem.WRONG_TIME, str(error)) from None
        return Transform(back.T @ rotation, back.T @ (shift - back_shift))

    def _ancestors(self, frame: str) -> list[str]:
        """The frame, its parent, and so on to the root."""
        frames = {frame: None}  # in order
        while (edge := self._edges.get(frame)) is not None and edge.parent not in frames:
            frame = edge.parent
            frames[frame] = None
        return list(frames)

    def _into(
        self, ancestor: str, frames: list[str], stamp_ns: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Rotation and translation from the first of `frames` into its ancestor."""
        rotation: NDArray[np.float64] = np.eye(3)
        shift: NDArray[np.float64] = np.zeros(3)
        for frame in frames[: frames.index(ancestor)]:
            turn, step = _pose_at(frame, self._edges[frame], stamp_ns)
            matrix = rotation_matrix(turn)
            rotation, shift = matrix @ rotation, matrix @ shift + step
        return rotation, shift


class _OutsideError(Exception):
    """The time is outside what is known of a frame; the message says by how much."""


def _pose_at(frame: str, edge: _Edge, stamp_ns: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    stamps = edge.stamps_ns
    if edge.static:
        return edge.poses[0]
    newer_s, older_s = (stamp_ns - stamps[-1]) / 1e9, (stamps[0] - stamp_ns) / 1e9
    if newer_s > 0:
        raise _OutsideError(f"the image is {newer_s:.3f} s newer than the newest pose of {frame!r}")
    if older_s > 0:
        raise _OutsideError(
            f"the image is {older_s:.3f} s older than the oldest pose of {frame!r} that is known"
        )
    after = bisect.bisect_left(stamps, stamp_ns)
    if stamps[after] == stamp_ns:
        return edge.poses[after]
    part = (stamp_ns - stamps[after - 1]) / (stamps[after] - stamps[after - 1])
    (turn_a, shift_a), (turn_b, shift_b) = edge.poses[after - 1], edge.poses[after]
    return _slerp(turn_a, turn_b, part), shift_a + part * (shift_b - shift_a)


def _slerp(a: NDArray[np.float64], b: NDArray[np.float64], part: float) -> NDArray[np.float64]:
    """Between two unit quaternions along the shortest arc."""
    cosine = float(a @ b)
    if cosine < 0:
        b, cosine = -b, -cosine
    angle = np.arccos(min(cosine, 1.0))
    if angle < 1e-6:
        mixed = a + part * (b - a)
    else:
        mixed = (np.sin((1 - part) * angle) * a + np.sin(part * angle) * b) / np.sin(angle)
    return np.asarray(mixed / np.linalg.norm(mixed))
