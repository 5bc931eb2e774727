"""Plays a video on a scene: one actor lives through feasible events, the others stand by, push or cover."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pam_ros.simulator.assets.catalogue import cover_for, gripper_for, passer_for
from pam_ros.simulator.assets.parts import between
from pam_ros.simulator.events.director import LONGEST_ACT_S, Director
from pam_ros.simulator.events.space import Props
from pam_ros.simulator.events.stage import Segment, Stage, Vector
from pam_ros.simulator.spec import CameraSpec, SceneSpec

Rng = np.random.Generator


@dataclass(frozen=True, slots=True)
class Play:
    """A played video.

    Attributes:
        scene: with the props (cover, gripper, passing object) that the events needed behind its own objects.
        stage: its states by frame and the events of every object.
        actor: index of the object most events happen to.
        own: number of the scene's own objects; those from this index on are props.
        cameras: one per frame.
        fps: frames per second.
        granted: False where the target_event was not feasible here and something else happens.
    """

    scene: SceneSpec
    stage: Stage
    actor: int
    own: int
    cameras: tuple[CameraSpec, ...]
    fps: float
    granted: bool

    def events(self, index: int) -> tuple[Segment, ...]:
        """The events of an object, one after the other without gaps."""
        return tuple(self.stage.tracks[index])


def play_video(scene: SceneSpec, rng: Rng, frames: int, fps: float, target_event: str = "") -> Play:
    """Plays 16..96 (or more) frames on a scene; the actor is one that is well in view.

    With a `target_event` (a key of `director.TARGET_EVENTS`) this happens first, to an object that it fits.
    """
    order = _actors(scene, rng)
    for actor in order:
        director = _prepared(scene, actor, rng, frames, fps)
        granted = director.begin(target_event)
        if granted:
            break
    else:
        director = _prepared(scene, order[0], rng, frames, fps)
        director.rest()
    stage = director.stage
    while director.time_for(LONGEST_ACT_S):
        director.go_on()
    if len(stage.frames) < frames:
        director.rest(frames - len(stage.frames))
    stage.finish(frames)
    stage.leave_out(
        [index for index in director.props.all if not any(states[index].visible for states in stage.frames)]
    )
    cameras = tuple(camera_path(scene.camera, rng, frames, fps))
    return Play(stage.scene, stage, director.actor, len(scene.objects), cameras, fps, granted)


def _prepared(scene: SceneSpec, actor: int, rng: Rng, frames: int, fps: float) -> Director:
    """The scene with its props on a stage, before anything happens."""
    plain = Stage(scene, fps)
    wide, deep, high = (float(size) + 0.03 for size in plain.extent(actor))
    gap = min(max(plain.radius(actor) * 1.3, 0.03), 0.14)
    extras = (cover_for(rng, wide, deep, high), gripper_for(rng, gap), passer_for(rng, scene.split))
    stage = Stage(replace(scene, objects=(*scene.objects, *extras)), fps)
    first = len(scene.objects)
    props = Props(first, first + 1, first + 2)
    for index in props.all:
        stage.now[index].visible = stage.frames[0][index].visible = False
    if scene.objects[actor].category == "laptop":  # met closed where it can open
        for state in (stage.now[actor], stage.frames[0][actor]):
            state.opening[0] = 1.0
    return Director(stage, actor, props, frames, rng)


def _actors(scene: SceneSpec, rng: Rng) -> list[int]:
    """Objects in the order they are tried as actor: near the middle of the view first, mostly."""
    pose = scene.camera.pose()
    scores = []
    for thing in scene.objects:
        x, y, z = pose[:3, :3].T @ (np.asarray(thing.position) - pose[:3, 3])
        half = np.tan(np.radians(scene.camera.fov_deg) / 2)
        centred = max(abs(x / (z * half)), abs(y / (z * half * 0.75))) if z > 0.1 else 9.0
        low, high = thing.shape.bounds()
        apparent = (
            float(np.prod(np.sort(high - low)[1:])) * thing.scale**2 / max(4 * 0.75 * (z * half) ** 2, 1e-6)
        )  # share of the picture
        scores.append(
            float(np.clip(1.1 - centred, 0.01, 1)) ** 2
            * (0.05 if thing.position[2] > 0.2 else 1.0)
            * min(apparent / 0.02, 1.0)
        )
    weights = np.asarray(scores)
    seen = np.flatnonzero(weights > 1e-3 * weights.max())
    order = rng.choice(seen, len(seen), replace=False, p=weights[seen] / weights[seen].sum())
    return [int(index) for index in order]


def camera_path(camera: CameraSpec, rng: Rng, frames: int, fps: float) -> list[CameraSpec]:
    """Stands, sways as on a walking robot, drifts around its target, or looks around it and comes back."""
    style = int(rng.choice(4, p=[0.3, 0.35, 0.2, 0.15]))
    sway = between(rng, 0.004, 0.012) if style == 1 else 0.0
    turn = np.radians(between(rng, -7, 7)) if style == 2 else 0.0
    swing = np.radians(between(rng, 12, 24)) * rng.choice((-1, 1)) if style == 3 else 0.0
    phase, speed = rng.uniform(0, 2 * np.pi, 6), rng.uniform(0.4, 1.1, 6)
    eye, target = np.asarray(camera.position), np.asarray(camera.target)
    path = []
    for frame in range(frames):
        t = frame / fps
        shake = sway * np.sin(speed * t * 2 + phase)
        share = frame / max(frames - 1, 1)
        angle = turn * share + swing * np.sin(np.pi * share) ** 2
        spin = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
        moved, aim = target + spin @ (eye - target) + shake[:3], target + 0.5 * shake[3:]
        path.append(
            replace(
                camera,
                position=_triple(moved),
                target=_triple(aim),
                roll_deg=camera.roll_deg + 40 * float(shake[5]),
            )
        )
    return path


def _triple(vector: Vector) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in vector)
    return x, y, z
