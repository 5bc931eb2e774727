"""Plays a video on a scene: feasible events happen to one actor; other objects rest, push or cover it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pam_ros.simulator.assets.catalogue import cover_for, gripper_for, occluder_for
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
        scene: the scene; its own objects come first, then the props in use (cover, gripper, occluder).
        stage: the states of every frame and the events of every object.
        actor: index of the object that most events happen to.
        own: number of the scene's own objects; later indices are props.
        cameras: one for each frame.
        fps: frames per second.
        target_event_reached: False if the target event was not feasible and another event happens.
    """

    scene: SceneSpec
    stage: Stage
    actor: int
    own: int
    cameras: tuple[CameraSpec, ...]
    fps: float
    target_event_reached: bool

    def events(self, index: int) -> tuple[Segment, ...]:
        """The events of an object, in order and without gaps."""
        return tuple(self.stage.tracks[index])


def play_video(scene: SceneSpec, rng: Rng, frames: int, fps: float, target_event: str = "") -> Play:
    """Plays a video of `frames` frames on a scene; the actor is an object that is well in view.

    `target_event`, a key of `director.TARGET_EVENTS`, happens first, to an object that it suits; "" = any.
    """
    order = _actors(scene, rng)
    for actor in order:
        director = _prepared(scene, actor, rng, frames, fps)
        target_event_reached = director.begin(target_event)
        if target_event_reached:
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
    stage.remove(
        [index for index in director.props.all if not any(states[index].visible for states in stage.frames)]
    )
    cameras = tuple(camera_path(scene.camera, rng, frames, fps))
    return Play(stage.scene, stage, director.actor, len(scene.objects), cameras, fps, target_event_reached)


def _prepared(scene: SceneSpec, actor: int, rng: Rng, frames: int, fps: float) -> Director:
    """A director, and a stage with the scene and its props before the first event."""
    plain = Stage(scene, fps)
    wide, deep, high = (float(size) + 0.03 for size in plain.extent(actor))
    gap = min(max(plain.radius(actor) * 1.3, 0.03), 0.14)
    extras = (cover_for(rng, wide, deep, high), gripper_for(rng, gap), occluder_for(rng, scene.split))
    stage = Stage(replace(scene, objects=(*scene.objects, *extras)), fps)
    first = len(scene.objects)
    props = Props(first, first + 1, first + 2)
    for index in props.all:
        stage.now[index].visible = stage.frames[0][index].visible = False
    if scene.objects[actor].category == "laptop":  # closed at first, so that it can open
        for state in (stage.now[actor], stage.frames[0][actor]):
            state.opening[0] = 1.0
    return Director(stage, actor, props, frames, rng)


def _actors(scene: SceneSpec, rng: Rng) -> list[int]:
    """Indices of objects in the order in which they are tried as actor; central ones tend to come first."""
    pose = scene.camera.pose()
    scores = []
    for item in scene.objects:
        x, y, z = pose[:3, :3].T @ (np.asarray(item.position) - pose[:3, 3])
        half = np.tan(np.radians(scene.camera.fov_deg) / 2)
        centred = max(abs(x / (z * half)), abs(y / (z * half * 0.75))) if z > 0.1 else 9.0
        low, high = item.shape.bounds()
        area = float(np.prod(np.sort(high - low)[1:])) * item.scale**2
        apparent = area / max(4 * 0.75 * (z * half) ** 2, 1e-6)  # fraction of the image
        scores.append(
            float(np.clip(1.1 - centred, 0.01, 1)) ** 2
            * (0.05 if item.position[2] > 0.2 else 1.0)
            * min(apparent / 0.02, 1.0)
        )
    weights = np.asarray(scores)
    seen = np.flatnonzero(weights > 1e-3 * weights.max())
    order = rng.choice(seen, len(seen), replace=False, p=weights[seen] / weights[seen].sum())
    return [int(index) for index in order]


def camera_path(camera: CameraSpec, rng: Rng, frames: int, fps: float) -> list[CameraSpec]:
    """A camera that stands, sways as on a walking robot, drifts around its target, or swings and returns."""
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
        progress = frame / max(frames - 1, 1)
        angle = turn * progress + swing * np.sin(np.pi * progress) ** 2
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
