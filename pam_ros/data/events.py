"""Plays a video on a scene: one actor lives through feasible events, the others stand by, push or cover."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

import numpy as np

from pam_ros.data.catalogue import cover_for, gripper_for
from pam_ros.data.parts import between, chance
from pam_ros.data.spec import CameraSpec, SceneSpec
from pam_ros.data.stage import Segment, Stage, Vector

Rng = np.random.Generator


class Condition(Enum):
    """What state the actor is in; it decides which events can come next."""

    GROUNDED = "grounded"  # stands on its surface, in view
    LIFTED = "lifted"  # in the air
    COVERED = "covered"  # under a box
    AWAY = "away"  # outside the picture
    OPEN = "open"  # its door, drawer or lid is open
    TIPPED = "tipped"  # lies on its side


RESTING = {Condition.LIFTED: "held", Condition.COVERED: "stays_covered", Condition.AWAY: "stays_away"}  # else "still"


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


class _Director:
    """Chooses and plays events that fit the actor's condition and the space around it."""

    def __init__(self, scene: SceneSpec, stage: Stage, actor: int, cover: int, gripper: int, rng: Rng) -> None:
        self.scene, self.stage, self.actor, self.cover, self.gripper, self.rng = scene, stage, actor, cover, gripper, rng
        self.condition = Condition.GROUNDED
        self.ground = stage.now[actor].position.copy()
        self.joint = 0
        self.done: list[str] = []
        self.way_back = np.zeros(3)

    def rest(self) -> None:
        """Nothing happens for a while, said in the way of the actor's condition."""
        frames = self.stage.seconds(between(self.rng, 1.0, 2.6))
        self.stage.still(frames)
        track = self.stage.tracks[self.actor]
        track[-1] = replace(track[-1], event=RESTING.get(self.condition, "still"))

    def act(self) -> bool:
        """Plays one feasible event; False where none is."""
        options = {
            Condition.GROUNDED: [
                *[self.slide] * 9, *[self.open] * 5, *[self.pushed] * 5, *[self.cover_up] * 8, *[self.tip] * 3, *[self.lift] * 3, *[self.leave] * 2,
            ],
            Condition.LIFTED: [self.put_down, self.fall],
            Condition.COVERED: [self.uncover],
            Condition.AWAY: [self.come_back],
            Condition.OPEN: [self.close],
            Condition.TIPPED: [self.slide, self.cover_up, self.lift, self.leave],
        }[self.condition]
        order = self.rng.permutation(len(options))
        return any(options[int(index)]() for index in order)

    # -- grounded ------------------------------------------------------------------------

    def slide(self) -> bool:
        """Left, right, closer or away, as far as there is room."""
        stage, actor = self.stage, self.actor
        ways = {"slides_left": -stage.right, "slides_right": stage.right, "slides_closer": -stage.away, "slides_away": stage.away}
        names = list(ways)
        for index in self.rng.permutation(4):
            name = names[int(index)]
            for distance in np.arange(0.34, 0.1, -0.04) * (1.0 if "left" in name or "right" in name else 0.8):
                if distance > 0.12 and self._way_is_free(actor, ways[name], float(distance)) and self._stays_in_view(ways[name] * distance):
                    far = between(self.rng, max(0.12, 0.6 * distance), distance)
                    stage.slide(actor, ways[name], far, stage.seconds(between(self.rng, 1.1, 2.0)), name)
                    return True
        return False

    def pushed(self) -> bool:
        """A neighbour slides over and pushes the actor on."""
        stage, actor = self.stage, self.actor
        for pusher in self.rng.permutation(len(self.scene.objects)):
            pusher = int(pusher)
            if pusher in (actor, self.cover, self.gripper) or abs(stage.now[pusher].position[2] - self.ground[2]) > 0.02:
                continue
            between_them = stage.now[actor].position - stage.now[pusher].position
            apart = float(np.linalg.norm(between_them))
            gap = apart - 0.85 * (stage.radius(actor) + stage.radius(pusher))
            direction = between_them / max(apart, 1e-6)
            distance = between(self.rng, 0.1, 0.18)
            if not 0.02 < gap < 0.4 or stage.height(pusher) < 0.03 or not self._stays_in_view(direction * distance):
                continue
            if self._way_is_free(pusher, direction, gap + distance, ignore=(actor,)) and self._way_is_free(actor, direction, distance, ignore=(pusher,)):
                stage.push(pusher, actor, direction, gap, distance, stage.seconds(between(self.rng, 1.4, 2.2)))
                return True
        return False

    def tip(self) -> bool:
        """Tips over to a free side; only things taller than wide."""
        stage, actor = self.stage, self.actor
        height = stage.height(actor)
        if self.condition is not Condition.GROUNDED or height < 0.09 or height < 1.1 * stage.radius(actor) or stage.scene.objects[actor].shape.joints:
            return False
        for angle in self.rng.uniform(0, 2 * np.pi, 6):
            direction = np.array([np.cos(angle), np.sin(angle), 0.0])
            if stage.free(stage.now[actor].position + direction * height * 0.6, height * 0.5, self._ignored(actor)) and self._on_surface(stage.now[actor].position + direction * height):
                stage.tip(actor, direction, stage.seconds(between(self.rng, 0.9, 1.4)))
                self.condition = Condition.TIPPED
                return True
        return False

    def open(self) -> bool:
        """Opens one of its joints."""
        shape = self.scene.objects[self.actor].shape
        if not shape.joints or self.condition is not Condition.GROUNDED:
            return False
        self.joint = int(self.rng.integers(len(shape.joints)))
        # a laptop is met open: its joint closes it, so that "opening" runs backwards
        self.stage.hinge(self.actor, self.joint, 0.0 if self._starts_open() else between(self.rng, 0.75, 1.0), self.stage.seconds(between(self.rng, 1.2, 2.0)), "opens")
        self.condition = Condition.OPEN
        return True

    def close(self) -> bool:
        """Closes what is open."""
        self.stage.hinge(self.actor, self.joint, 1.0 if self._starts_open() else 0.0, self.stage.seconds(between(self.rng, 1.2, 2.0)), "closes")
        self.condition = Condition.GROUNDED
        return True

    def _starts_open(self) -> bool:
        return self.scene.objects[self.actor].category == "laptop"

    # -- in the air ----------------------------------------------------------------------

    def lift(self) -> bool:
        """Straight up, mostly by the gripper."""
        stage, actor = self.stage, self.actor
        up = between(self.rng, 0.09, 0.2)
        self.ground = stage.now[actor].position.copy()
        if self.ground[2] > 0.2 or self._headroom() < up + stage.height(actor) + 0.02:
            return False
        while up > 0.06 and not self._stays_in_view(np.array([0, 0, up])):
            up -= 0.02
        if up <= 0.06:
            return False
        helpers = self._bring_gripper() if chance(self.rng, 0.7) and self.condition is Condition.GROUNDED else ()
        stage.rise(actor, up, stage.seconds(between(self.rng, 1.0, 1.7)), "lifted", helpers)
        self.condition = Condition.LIFTED
        return True

    def put_down(self) -> bool:
        """Gently back."""
        stage = self.stage
        helpers = (self.gripper,) if stage.now[self.gripper].visible else ()
        down = self.ground[2] - stage.now[self.actor].position[2]
        stage.rise(self.actor, float(down), stage.seconds(between(self.rng, 1.0, 1.7)), "put_down", helpers)
        self._send_gripper_away()
        self.condition = Condition.GROUNDED
        return True

    def fall(self) -> bool:
        """Let go."""
        stage = self.stage
        if stage.now[self.gripper].visible:
            stage.place(self.gripper, stage.now[self.gripper].position + np.array([0, 0, 0.03]))
        stage.drop(self.actor, float(self.ground[2]), stage.seconds(between(self.rng, 0.8, 1.2)))
        self._send_gripper_away()
        self.condition = Condition.GROUNDED
        return True

    def _bring_gripper(self) -> tuple[int, ...]:
        stage = self.stage
        position = stage.now[self.actor].position + np.array([0, 0, max(stage.height(self.actor) - 0.05, 0.0) + 0.3])
        stage.place(self.gripper, position)
        frames = stage.seconds(0.7)
        stage.carry(self.gripper, np.array([0, 0, -0.3]), frames, {self.gripper: "slides_closer"})
        return (self.gripper,)

    def _send_gripper_away(self) -> None:
        stage = self.stage
        if stage.now[self.gripper].visible:
            stage.carry(self.gripper, np.array([0, 0, 0.45]), stage.seconds(0.7), {self.gripper: "lifted"})
            stage.place(self.gripper, stage.now[self.gripper].position, visible=False)

    # -- out of sight --------------------------------------------------------------------

    def cover_up(self) -> bool:
        """A box comes down over it; needs room around and above."""
        stage, actor = self.stage, self.actor
        self.ground = stage.now[actor].position.copy()
        if stage.radius(self.cover) < stage.radius(actor) or stage.height(self.cover) < stage.height(actor):
            return False
        side = stage.radius(self.cover) * 0.9
        if self.ground[2] > 0.2 or self._headroom() < 0.5 or not stage.free(self.ground, side, self._ignored(actor)):
            return False
        stage.place(self.cover, self.ground + np.array([0, 0, 0.6]))
        stage.carry(self.cover, np.array([0, 0, -0.6]), stage.seconds(between(self.rng, 1.1, 1.7)), {actor: "covered", self.cover: "put_down"})
        self.condition = Condition.COVERED
        return True

    def uncover(self) -> bool:
        """The box is lifted off and goes."""
        stage = self.stage
        stage.carry(self.cover, np.array([0, 0, 0.6]), stage.seconds(between(self.rng, 1.1, 1.7)), {self.actor: "uncovered", self.cover: "lifted"})
        stage.place(self.cover, stage.now[self.cover].position, visible=False)
        self.condition = Condition.GROUNDED
        return True

    def leave(self) -> bool:
        """Slides out of the picture, to a free side; or is carried up and out."""
        stage, actor = self.stage, self.actor
        start = stage.now[actor].position.copy()
        for sign in (1.0, -1.0) if chance(self.rng, 0.5) else (-1.0, 1.0):
            direction = stage.right * sign
            far = self._out_of_view(direction)
            if far is not None and self._way_is_free(actor, direction, far, keep_on=False):
                self.way_back = -direction * far
                stage.slide(actor, direction, far, stage.seconds(between(self.rng, 1.4, 2.2)), "leaves")
                self.condition = Condition.AWAY
                return True
        up = self._out_of_view(np.array([0, 0, 1.0]))
        if up is None or self._headroom() < 0.5:
            return False
        self.ground = start
        self.way_back = np.array([0, 0, -up])
        stage.carry(actor, np.array([0, 0, up]), stage.seconds(between(self.rng, 1.6, 2.4)), {actor: "leaves"})
        self.condition = Condition.AWAY
        return True

    def come_back(self) -> bool:
        """The way it went."""
        self.stage.carry(self.actor, self.way_back, self.stage.seconds(between(self.rng, 1.4, 2.2)), {self.actor: "returns"})
        self.condition = Condition.GROUNDED
        return True

    # -- space ---------------------------------------------------------------------------

    def _ignored(self, *more: int) -> tuple[int, ...]:
        return (self.cover, self.gripper, *more)

    def _headroom(self) -> float:
        boards = any(fixture.category == "shelf" for fixture in self.scene.fixtures)
        return 0.3 if self.scene.kind == "shelf" else 0.44 if boards else 2.0

    def _on_surface(self, position: Vector) -> bool:
        top = self.scene.fixtures[0].boxes
        low = min(centre[0] - size[0] / 2 for size, centre in top[:4]), min(centre[1] - size[1] / 2 for size, centre in top[:4])
        high = max(centre[0] + size[0] / 2 for size, centre in top[:4]), max(centre[1] + size[1] / 2 for size, centre in top[:4])
        return low[0] + 0.03 < position[0] < high[0] - 0.03 and low[1] + 0.03 < position[1] < high[1] - 0.03 and not self._over_sink(position)

    def _over_sink(self, position: Vector) -> bool:
        for fixture in self.scene.fixtures:
            if fixture.category in ("sink", "stove"):
                size, centre = fixture.boxes[0]
                if abs(position[0] - centre[0]) < size[0] / 2 + 0.05 and abs(position[1] - centre[1]) < size[1] / 2 + 0.05:
                    return True
        return False

    def _way_is_free(self, index: int, direction: Vector, distance: float, ignore: tuple[int, ...] = (), keep_on: bool = True) -> bool:
        stage = self.stage
        start, radius = stage.now[index].position, stage.radius(index) * 0.75
        for step in np.linspace(0.15, 1.0, 8):
            spot = start + direction * distance * step
            if not stage.free(spot, radius, self._ignored(index, *ignore)):
                return False
            edge = spot + direction * radius * 0.8
            if (keep_on or step < 0.6) and not self._on_surface(edge):
                return False
        return True

    def _pixel(self, position: Vector) -> tuple[float, float]:
        """(x, y) in units of the half width and half height of a 4:3 picture; inside is -1..1."""
        camera = self.scene.camera
        pose = camera.pose()
        x, y, z = pose[:3, :3].T @ (position - pose[:3, 3])
        half = np.tan(np.radians(camera.fov_deg) / 2)
        return (float(x / (z * half)), float(y / (z * half * 0.75))) if z > 0.1 else (9.0, 9.0)

    def _stays_in_view(self, offset: Vector) -> bool:
        x, y = self._pixel(self.stage.now[self.actor].position + offset + np.array([0, 0, self.stage.height(self.actor) / 2]))
        return abs(x) < 0.82 and abs(y) < 0.82

    def _out_of_view(self, direction: Vector) -> float | None:
        """Metres until the whole object is out of the picture, or None where that is too far."""
        stage = self.stage
        reach = max(stage.radius(self.actor), stage.height(self.actor))
        for distance in np.arange(0.2, 1.3, 0.05):
            near = stage.now[self.actor].position + direction * (distance - reach)
            if max(abs(value) for value in self._pixel(near)) > 1.15:
                return float(distance)
        return None


def play_video(scene: SceneSpec, rng: Rng, frames: int, fps: float) -> Play:
    """Plays 16..96 (or more) frames on a scene; the actor is one that is well in view."""
    actor = _choose_actor(scene, rng)
    plain = Stage(scene, fps)
    wide, high = 2.1 * plain.radius(actor) + 0.03, plain.height(actor) + 0.03
    gap = min(max(plain.radius(actor) * 1.3, 0.03), 0.14)
    extended = replace(scene, objects=(*scene.objects, cover_for(rng, wide, wide, high), gripper_for(rng, gap)))
    stage = Stage(extended, fps)
    cover, gripper = len(scene.objects), len(scene.objects) + 1
    for state in (stage.now[cover], stage.now[gripper], stage.frames[0][cover], stage.frames[0][gripper]):
        state.visible = False
    if scene.objects[actor].category == "laptop" and chance(rng, 0.5):
        for state in (stage.now[actor], stage.frames[0][actor]):
            state.opening[0] = 1.0
    director = _Director(extended, stage, actor, cover, gripper, rng)
    if chance(rng, 0.8):
        director.rest()
    while len(stage.frames) < frames:
        if chance(rng, 0.12) or not director.act() or chance(rng, 0.6):
            director.rest()
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
        scores.append((6.0 if thing.shape.joints else 1.0) * float(np.clip(1.1 - centred, 0.01, 1)) ** 2 * (0.1 if thing.position[2] > 0.2 else 1.0))
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
        path.append(replace(camera, position=_triple(moved), target=_triple(aim), roll_deg=camera.roll_deg + 40 * float(shake[5])))
    return path


def _triple(vector: Vector) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in vector)
    return x, y, z
