"""Plays a video on a scene: one actor lives through feasible events, the others stand by, push or cover."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pam_ros.data.catalogue import cover_for, gripper_for
from pam_ros.data.director import LONGEST_ACT_S, Director
from pam_ros.data.parts import between, chance
from pam_ros.data.spec import CameraSpec, SceneSpec
from pam_ros.data.stage import Segment, Stage, Vector

Rng = np.random.Generator


@dataclass(frozen=True, slots=True)
class Play:
    """A played video.

    Attributes:
        scene: with the cover and gripper the events need added behind the objects.
        stage: its states by frame and the events of every object.
        actor: index of the object most events happen to.
        cameras: one per frame.
        fps: frames per second.
    """

    scene: SceneSpec
    stage: Stage
    actor: int
    cameras: tuple[CameraSpec, ...]
    fps: float

    def events(self, index: int) -> tuple[Segment, ...]:
        """The events of an object, one after the other without gaps."""
        return tuple(self.stage.tracks[index])


def play_video(scene: SceneSpec, rng: Rng, frames: int, fps: float) -> Play:
    """Plays 16..96 (or more) frames on a scene; the actor is one that is well in view."""
    actor = _choose_actor(scene, rng)
    plain = Stage(scene, fps)
    wide, deep, high = (float(size) + 0.03 for size in plain.extent(actor))
    gap = min(max(plain.radius(actor) * 1.3, 0.03), 0.14)
    extended = replace(
        scene, objects=(*scene.objects, cover_for(rng, wide, deep, high), gripper_for(rng, gap))
    )
    stage = Stage(extended, fps)
    cover, gripper = len(scene.objects), len(scene.objects) + 1
    for state in (stage.now[cover], stage.now[gripper], stage.frames[0][cover], stage.frames[0][gripper]):
        state.visible = False
    if scene.objects[actor].category == "laptop" and chance(rng, 0.5):
        for state in (stage.now[actor], stage.frames[0][actor]):
            state.opening[0] = 1.0
    director = Director(extended, stage, actor, cover, gripper, rng)
    if chance(rng, 0.8):
        director.rest()
    while frames - len(stage.frames) > stage.seconds(LONGEST_ACT_S):
        if not director.act() or chance(rng, 0.6):
            director.rest()
    if len(stage.frames) < frames:
        director.rest(frames - len(stage.frames))
    stage.finish(frames)
    return Play(extended, stage, actor, tuple(camera_path(scene.camera, rng, frames, fps)), fps)


def _choose_actor(scene: SceneSpec, rng: Rng) -> int:
    """One near the middle of the view; things that open are preferred."""
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
            (6.0 if thing.shape.joints else 1.0)
            * float(np.clip(1.1 - centred, 0.01, 1)) ** 2
            * (0.05 if thing.position[2] > 0.2 else 1.0)
            * min(apparent / 0.02, 1.0)
        )
    weights = np.asarray(scores)
    return int(rng.choice(len(scores), p=weights / weights.sum()))


def camera_path(camera: CameraSpec, rng: Rng, frames: int, fps: float) -> list[CameraSpec]:
    """Stands, sways as on a walking robot, or drifts slowly around its target."""
    style = int(rng.choice(3, p=[0.35, 0.4, 0.25]))
    sway = between(rng, 0.004, 0.012) if style == 1 else 0.0
    turn = np.radians(between(rng, -7, 7)) if style == 2 else 0.0
    phase, speed = rng.uniform(0, 2 * np.pi, 6), rng.uniform(0.4, 1.1, 6)
    eye, target = np.asarray(camera.position), np.asarray(camera.target)
    path = []
    for frame in range(frames):
        t = frame / fps
        shake = sway * np.sin(speed * t * 2 + phase)
        angle = turn * frame / max(frames - 1, 1)
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
