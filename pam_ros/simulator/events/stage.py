"""Moves objects frame by frame: slides, lifts, falls, tips, covers, opens; one method for each event.

Motion is kinematic on purpose: positions are exact and stable, and a seed gives the same motion everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pam_ros.simulator.render import ObjectState, first_states, rest_rotation
from pam_ros.simulator.spec import CameraSpec, SceneSpec

Vector = NDArray[np.float64]
CLEARANCE_M = 0.02
RESTS = ("still", "held", "stays_covered", "stays_away")  # events in which nothing moves


@dataclass(frozen=True, slots=True)
class Segment:
    """One event of one object: frames start..end (end exclusive)."""

    start: int
    end: int
    event: str


def ease(frames: int) -> Vector:
    """(frames,) progress in 0..1 that starts and stops gently and ends at 1."""
    t = np.arange(1, frames + 1) / frames
    return t * t * (3 - 2 * t)


def _axis_turn(axis: Vector, angle: float) -> Vector:
    x, y, z = axis
    skew = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.asarray(np.eye(3) + np.sin(angle) * skew + (1 - np.cos(angle)) * skew @ skew)


class Stage:
    """A scene in motion: `frames` holds the states of every frame so far, `tracks` each object's events."""

    def __init__(self, scene: SceneSpec, fps: float) -> None:
        self.scene, self.fps = scene, fps
        self.now = first_states(scene)
        self.frames: list[list[ObjectState]] = [_copied(self.now)]
        self.tracks: list[list[Segment]] = [[] for _ in scene.objects]
        self._clouds = [_cloud(scene, index) for index in range(len(scene.objects))]
        self.right, self.away = ground_axes(scene.camera)

    def radius(self, index: int) -> float:
        """Footprint radius of an object, metres."""
        cloud = self._clouds[index] @ self.now[index].rotation.T
        return float(np.linalg.norm(cloud[:, :2], axis=1).max())

    def height(self, index: int) -> float:
        """Current height of an object, metres."""
        return float(np.ptp((self._clouds[index] @ self.now[index].rotation.T)[:, 2]))

    def extent(self, index: int) -> Vector:
        """(3,) current size along x, y, z, metres."""
        return np.asarray(np.ptp(self._clouds[index] @ self.now[index].rotation.T, axis=0))

    def seconds(self, duration_s: float) -> int:
        """Number of frames in a duration, at least 2."""
        return max(2, round(duration_s * self.fps))

    def still(self, frames: int) -> None:
        """Nothing moves."""
        self._play([], frames, {})

    def slide(self, index: int, direction: Vector, distance: float, frames: int, event: str) -> None:
        """Slides an object over its surface; `direction` is a level (3,) unit vector."""
        start = self.now[index].position.copy()
        path = [start + direction * distance * t for t in ease(frames)]
        self._play([(index, path, None)], frames, {index: event})

    def push(
        self, pusher: int, index: int, direction: Vector, gap: float, distance: float, frames: int
    ) -> None:
        """`pusher` slides `gap` metres, touches object `index` and pushes it by `distance` metres."""
        first, second = self.now[pusher].position.copy(), self.now[index].position.copy()
        travel = ease(frames) * (gap + distance)
        moved = np.maximum(travel - gap, 0)
        paths = [
            (pusher, [first + direction * way for way in travel], None),
            (index, [second + direction * way for way in moved], None),
        ]
        self._play(paths, frames, {pusher: "pushes", index: "pushed"})

    def rise(self, index: int, height: float, frames: int, event: str, others: tuple[int, ...] = ()) -> None:
        """Moves an object straight up, or down if `height` < 0; `others` move with it."""
        paths: list[tuple[int, list[Vector], None]] = []
        for one in (index, *others):
            start = self.now[one].position.copy()
            paths.append((one, [start + np.array([0, 0, height * t]) for t in ease(frames)], None))
        self._play(paths, frames, {index: event})

    def carry(
        self, index: int, offset: Vector, frames: int, events: dict[int, str], others: tuple[int, ...] = ()
    ) -> None:
        """Moves an object along a straight line; `events` maps an object to its event."""
        paths: list[tuple[int, list[Vector], None]] = []
        for one in (index, *others):
            start = self.now[one].position.copy()
            paths.append((one, [start + offset * t for t in ease(frames)], None))
        self._play(paths, frames, events)

    def drop(self, index: int, ground_z: float, frames: int) -> None:
        """Lets an object fall under gravity, with one small bounce."""
        start = self.now[index].position.copy()
        drop = start[2] - ground_z
        flight = float(np.sqrt(2 * drop / 9.81))
        heights = []
        for frame in range(1, frames + 1):
            t = frame / self.fps
            if t < flight:
                heights.append(start[2] - 0.5 * 9.81 * t * t)
                continue
            later, bounce = t - flight, 0.25 * flight
            heights.append(
                ground_z + max(0.0, 0.5 * 9.81 * later * (2 * bounce - later))
                if later < 2 * bounce
                else ground_z
            )
        path = [np.array([start[0], start[1], z]) for z in heights]
        self._play([(index, path, None)], frames, {index: "falls"})

    def tip(self, index: int, direction: Vector, frames: int) -> None:
        """Tips an object over its edge towards `direction`."""
        state = self.now[index]
        start, turn = state.position.copy(), state.rotation.copy()
        cloud = self._clouds[index] @ turn.T
        reach = float((cloud[cloud[:, 2] < cloud[:, 2].min() + 0.015] @ direction).max())
        pivot = direction * reach
        axis = np.array([-direction[1], direction[0], 0.0])
        path, turns = [], []
        for frame in range(1, frames + 1):
            part = min(1.0, frame / (0.7 * frames))
            spin = _axis_turn(axis, np.pi / 2 * part**2)
            base = pivot + spin @ (-pivot)
            turned = cloud @ spin.T + base
            path.append(start + base - np.array([0, 0, turned[:, 2].min()]))
            turns.append(spin @ turn)
        self._play([(index, path, turns)], frames, {index: "tips_over"})

    def hinge(self, index: int, joint: int, opening: float, frames: int, event: str) -> None:
        """Moves a joint to `opening`: 0 = closed, 1 = fully open."""
        start = float(self.now[index].opening[joint])
        self._play(
            [], frames, {index: event}, lambda t: self._open(index, joint, start + (opening - start) * t)
        )

    def place(self, index: int, position: Vector, visible: bool = True) -> None:
        """Puts an object at a position from the next frame on, e.g. a prop outside the image."""
        self.now[index].position = np.asarray(position, float).copy()
        self.now[index].visible = visible

    def free(self, position: Vector, radius: float, ignore: tuple[int, ...]) -> bool:
        """True if a disc of this radius touches no other object near its height."""
        for other, state in enumerate(self.now):
            if other in ignore or not state.visible or state.position[2] > position[2] + 0.3:
                continue
            if np.linalg.norm(state.position[:2] - position[:2]) < radius + self.radius(other) + CLEARANCE_M:
                return False
        return True

    def remove(self, unused: Sequence[int]) -> None:
        """Removes objects from the scene at the end of a video, so that unused props are not rendered."""
        kept = [index for index in range(len(self.scene.objects)) if index not in unused]
        self.scene = replace(self.scene, objects=tuple(self.scene.objects[index] for index in kept))
        self.frames = [[states[index] for index in kept] for states in self.frames]
        self.now = [self.now[index] for index in kept]
        self.tracks = [self.tracks[index] for index in kept]
        self._clouds = [self._clouds[index] for index in kept]

    def finish(self, frames: int) -> None:
        """Cuts or extends the video to this many frames."""
        if len(self.frames) < frames:
            self.still(frames - len(self.frames))
        self.frames = self.frames[:frames]
        for track in self.tracks:
            kept = [
                Segment(part.start, min(part.end, frames), part.event)
                for part in track
                if part.start < frames
            ]
            track[:] = _joined(kept)

    def _open(self, index: int, joint: int, opening: float) -> None:
        self.now[index].opening[joint] = opening

    def _play(
        self,
        paths: Sequence[tuple[int, Sequence[Vector], Sequence[Vector] | None]],
        frames: int,
        events: dict[int, str],
        each: Callable[[float], None] | None = None,
    ) -> None:
        start = len(self.frames) if self.frames and any(self.tracks) else 0
        begin = len(self.frames)
        progress = ease(frames)
        for frame in range(frames):
            for index, path, turns in paths:
                self.now[index].position = path[frame].copy()
                if turns is not None:
                    self.now[index].rotation = turns[frame].copy()
            if each is not None:
                each(float(progress[frame]))
            self.frames.append(_copied(self.now))
        for index, track in enumerate(self.tracks):
            track.append(Segment(min(start, begin), len(self.frames), events.get(index, "still")))


def _copied(states: list[ObjectState]) -> list[ObjectState]:
    return [
        ObjectState(state.position.copy(), state.rotation.copy(), state.opening.copy(), state.visible)
        for state in states
    ]


def _joined(track: list[Segment]) -> list[Segment]:
    """Merges neighbouring segments with the same resting event."""
    joined: list[Segment] = []
    for part in track:
        if joined and part.event in RESTS and joined[-1].event == part.event:
            joined[-1] = Segment(joined[-1].start, part.end, part.event)
        else:
            joined.append(part)
    return joined


def _cloud(scene: SceneSpec, index: int) -> Vector:
    """(V, 3) vertices of the resting object relative to its base point, metres."""
    item = scene.objects[index]
    points = (
        np.concatenate([piece.mesh.vertices for piece in item.shape.pieces])
        * item.scale
        @ rest_rotation(item).T
    )
    low, high = points.min(0), points.max(0)
    return np.asarray(points - [(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]])


def ground_axes(camera: CameraSpec) -> tuple[Vector, Vector]:
    """(right, away): level unit vectors of the camera's left-to-right and near-to-far directions."""
    pose = camera.pose()
    right = np.array([pose[0, 0], pose[1, 0], 0.0])
    away = np.array([pose[0, 2], pose[1, 2], 0.0])
    return right / np.linalg.norm(right), away / np.linalg.norm(away)
