"""Directs a video: chooses and plays events that suit the actor's condition and the space around it."""

from __future__ import annotations

from dataclasses import replace
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from pam_ros.simulator.assets.parts import between, chance
from pam_ros.simulator.events.occlusion import LONGEST_OCCLUSION_S, pass_in_front
from pam_ros.simulator.events.space import Props, Space
from pam_ros.simulator.events.stage import Stage

Rng = np.random.Generator


class Condition(Enum):
    """The actor's state, which decides the events that can follow."""

    GROUNDED = "grounded"  # on its surface, in view
    LIFTED = "lifted"  # in the air
    COVERED = "covered"  # under a box
    AWAY = "away"  # outside the image
    OPEN = "open"  # its door, drawer or lid is open


LONGEST_ACT_S = 2.5  # of one event; none starts later than this before the end, so none is cut
# Relative rate at which each event is drawn as a video's target, so that all events are about equally
# frequent: low for the two that end a lift, high for those that are rarely feasible.
TARGET_EVENTS = {
    "slides_left": 1.1,
    "slides_right": 1.0,
    "slides_closer": 1.4,
    "slides_away": 1.0,
    "put_down": 0.9,
    "falls": 1.1,
    "tips_over": 1.1,
    "pushed": 1.6,
    "covered": 1.6,
    "leaves": 1.2,
    "opens": 1.9,
    "closes": 0.9,
    "hidden": 1.4,
}
# The event of an actor that rests in this condition; "still" in the others.
RESTING = {Condition.LIFTED: "held", Condition.COVERED: "stays_covered", Condition.AWAY: "stays_away"}
RESTS_S = ((0.6, 1.6), (1.0, 2.6))  # shortest and longest rest; the second pair in the conditions of RESTING
REST_PROBABILITY = {Condition.GROUNDED: 0.3, Condition.OPEN: 0.5}  # between two events; 0.7 in the others

# Events of two acts: lifted and put down, covered and uncovered, ...
TWO_ACTS = ("put_down", "falls", "covered", "leaves", "opens", "closes")
TWO_ACTS_S = 2 * LONGEST_ACT_S


class Director:
    """Plays events of one actor on a stage, one after the other."""

    def __init__(self, stage: Stage, actor: int, props: Props, frames: int, rng: Rng) -> None:
        self.scene, self.stage, self.actor, self.frames, self.rng = stage.scene, stage, actor, frames, rng
        self.props, self.cover, self.gripper = props, props.cover, props.gripper
        self.space = Space(stage.scene, stage, actor, props)
        self.condition = Condition.GROUNDED
        self.ground = stage.now[actor].position.copy()
        self.joint = 0
        self.target_event = ""
        self.way_back: NDArray[np.float64] = np.zeros(3)
        self.tipped = False

    def start_open(self) -> bool:
        """Opens one of the actor's joints in the first frame; False if it has none."""
        shape = self.scene.objects[self.actor].shape
        if not shape.joints:
            return False
        self.joint = int(self.rng.integers(len(shape.joints)))
        for state in (self.stage.now[self.actor], self.stage.frames[0][self.actor]):
            state.opening[self.joint] = 0.0 if self._starts_open() else between(self.rng, 0.75, 1.0)
        self.condition = Condition.OPEN
        return True

    def rest(self, frames: int = 0, leaving_s: float = 0.0) -> None:
        """Lets the actor rest for a random time, or for `frames`.

        The rest is shortened or skipped to leave `leaving_s` seconds of the video.
        """
        frames = frames or self.stage.seconds(between(self.rng, *RESTS_S[self.condition in RESTING]))
        later = self.stage.seconds(leaving_s) if leaving_s else 0
        frames = min(frames, self.frames - len(self.stage.frames) - later)
        if frames < 1:
            return
        self.stage.still(frames)
        track = self.stage.tracks[self.actor]
        track[-1] = replace(track[-1], event=RESTING.get(self.condition, "still"))

    def go_on(self) -> None:
        """Plays the next event, usually after a rest that leaves time for the second act."""
        if chance(self.rng, REST_PROBABILITY.get(self.condition, 0.7)):
            self.rest(leaving_s=0.0 if self.condition is Condition.GROUNDED else LONGEST_ACT_S)
        if not self.time_for(LONGEST_ACT_S) or not self.act():
            self.rest()

    def begin(self, target_event: str = "") -> bool:
        """Plays the first event, usually after a rest; False if the target event does not suit the actor."""
        if target_event == "closes" and not self.start_open():
            return False
        needed_s = (
            LONGEST_OCCLUSION_S
            if target_event == "hidden"
            else TWO_ACTS_S
            if target_event in TWO_ACTS
            else LONGEST_ACT_S
        )
        if chance(self.rng, 0.6):
            self.rest(leaving_s=needed_s)
        return self.time_for(LONGEST_ACT_S) and self.act(target_event)

    def time_for(self, seconds: float) -> bool:
        """True if this many seconds of the video are left."""
        return self.frames - len(self.stage.frames) >= self.stage.seconds(seconds)

    def act(self, target_event: str = "") -> bool:
        """Plays the second act if one is due; otherwise begins the target event, or any feasible one.

        Returns False if none is feasible.
        """
        ends = {
            Condition.LIFTED: self.fall if self.target_event == "falls" else self.put_down,
            Condition.COVERED: self.uncover,
            Condition.AWAY: self.come_back,
            Condition.OPEN: self.close,
        }
        if self.condition in ends:
            return ends[self.condition]()
        names, rates = list(TARGET_EVENTS), np.fromiter(TARGET_EVENTS.values(), float)
        order = self.rng.choice(len(names), len(names), replace=False, p=rates / rates.sum())
        drawn = [names[int(index)] for index in order]
        if not self.time_for(TWO_ACTS_S):  # the second act would not fit
            drawn = [name for name in drawn if name not in TWO_ACTS]
        self.target_event = next(
            (name for name in ([target_event] if target_event else drawn) if self._begin(name)), ""
        )
        return bool(self.target_event)

    def _begin(self, target_event: str) -> bool:
        if target_event.startswith("slides"):
            return self.slide(target_event)
        if target_event == "hidden":
            return self.time_for(LONGEST_OCCLUSION_S) and pass_in_front(
                self.stage, self.actor, self.props, self.rng
            )
        begins = {
            "put_down": self.lift,
            "falls": self.lift,
            "tips_over": self.tip,
            "pushed": self.pushed,
            "covered": self.cover_up,
            "leaves": self.leave,
            "opens": self.open,
            "closes": self.open,
        }
        return begins[target_event]()

    # -- grounded ------------------------------------------------------------------------

    def slide(self, name: str) -> bool:
        """`slides_left`, `_right`, `_closer` or `_away`, as far as there is room."""
        stage, actor = self.stage, self.actor
        way = {
            "slides_left": -stage.right,
            "slides_right": stage.right,
            "slides_closer": -stage.away,
            "slides_away": stage.away,
        }[name]
        shorter = 0.8 if name in ("slides_closer", "slides_away") else 1.0
        for distance in np.arange(0.34, 0.1, -0.04) * shorter:
            if (
                distance > 0.12
                and self.space.path_is_free(actor, way, float(distance))
                and self.space.stays_in_view(way * distance)
            ):
                far = between(self.rng, max(0.12, 0.6 * distance), distance)
                stage.slide(actor, way, far, stage.seconds(between(self.rng, 1.1, 2.0)), name)
                return True
        return False

    def pushed(self) -> bool:
        """A neighbour slides over and pushes the actor."""
        stage, actor = self.stage, self.actor
        for pusher in self.rng.permutation(len(self.scene.objects)):
            pusher = int(pusher)
            if (
                pusher in (actor, *self.props.all)
                or abs(stage.now[pusher].position[2] - self.ground[2]) > 0.02
            ):
                continue
            between_them = stage.now[actor].position - stage.now[pusher].position
            apart = float(np.linalg.norm(between_them))
            gap = apart - 0.85 * (stage.radius(actor) + stage.radius(pusher))
            direction = between_them / max(apart, 1e-6)
            distance = between(self.rng, 0.1, 0.18)
            if (
                not 0.02 < gap < 0.4
                or stage.height(pusher) < 0.03
                or not self.space.stays_in_view(direction * distance)
            ):
                continue
            if self.space.path_is_free(
                pusher, direction, gap + distance, ignore=(actor,)
            ) and self.space.path_is_free(actor, direction, distance, ignore=(pusher,)):
                stage.push(
                    pusher, actor, direction, gap, distance, stage.seconds(between(self.rng, 1.4, 2.2))
                )
                return True
        return False

    def tip(self) -> bool:
        """Tips the actor over to a free side; only objects that are taller than wide tip over."""
        stage, actor = self.stage, self.actor
        height = stage.height(actor)
        if (
            self.tipped
            or height < 0.09
            or height < 1.1 * stage.radius(actor)
            or stage.scene.objects[actor].shape.joints
        ):
            return False
        for angle in self.rng.uniform(0, 2 * np.pi, 6):
            direction = np.array([np.cos(angle), np.sin(angle), 0.0])
            if stage.free(
                stage.now[actor].position + direction * height * 0.6, height * 0.5, self.space.ignored(actor)
            ) and self.space.on_surface(stage.now[actor].position + direction * height):
                stage.tip(actor, direction, stage.seconds(between(self.rng, 0.9, 1.4)))
                self.tipped = True
                return True
        return False

    def open(self) -> bool:
        """Opens one of the actor's joints."""
        shape = self.scene.objects[self.actor].shape
        if not shape.joints or self.tipped:
            return False
        self.joint = int(self.rng.integers(len(shape.joints)))
        self.stage.hinge(
            self.actor,
            self.joint,
            0.0 if self._starts_open() else between(self.rng, 0.75, 1.0),
            self.stage.seconds(between(self.rng, 1.2, 2.0)),
            "opens",
        )
        self.condition = Condition.OPEN
        return True

    def close(self) -> bool:
        """Closes the open joint."""
        self.stage.hinge(
            self.actor,
            self.joint,
            1.0 if self._starts_open() else 0.0,
            self.stage.seconds(between(self.rng, 1.2, 2.0)),
            "closes",
        )
        self.condition = Condition.GROUNDED
        return True

    def _starts_open(self) -> bool:
        """A laptop's rest pose is open and its joint closes it, so its opening runs backwards."""
        return self.scene.objects[self.actor].category == "laptop"

    # -- in the air ----------------------------------------------------------------------

    def lift(self) -> bool:
        """Lifts the actor straight up, usually with the gripper."""
        stage, actor = self.stage, self.actor
        up = between(self.rng, 0.09, 0.2)
        self.ground = stage.now[actor].position.copy()
        if self.ground[2] > 0.2 or self.space.headroom() < up + stage.height(actor) + 0.02:
            return False
        while up > 0.06 and not self.space.stays_in_view(np.array([0, 0, up])):
            up -= 0.02
        if up <= 0.06:
            return False
        helpers = self._bring_gripper() if chance(self.rng, 0.7) and not self.tipped else ()
        stage.rise(actor, up, stage.seconds(between(self.rng, 1.0, 1.7)), "lifted", helpers)
        self.condition = Condition.LIFTED
        return True

    def put_down(self) -> bool:
        """Lowers the lifted actor gently."""
        stage = self.stage
        helpers = (self.gripper,) if stage.now[self.gripper].visible else ()
        down = self.ground[2] - stage.now[self.actor].position[2]
        stage.rise(self.actor, float(down), stage.seconds(between(self.rng, 1.0, 1.7)), "put_down", helpers)
        self._send_gripper_away()
        self.condition = Condition.GROUNDED
        return True

    def fall(self) -> bool:
        """Drops the lifted actor."""
        stage = self.stage
        if stage.now[self.gripper].visible:
            stage.place(self.gripper, stage.now[self.gripper].position + np.array([0, 0, 0.03]))
        stage.drop(self.actor, float(self.ground[2]), stage.seconds(between(self.rng, 0.8, 1.2)))
        self._send_gripper_away()
        self.condition = Condition.GROUNDED
        return True

    def _bring_gripper(self) -> tuple[int, ...]:
        stage = self.stage
        position = stage.now[self.actor].position + np.array(
            [0, 0, max(stage.height(self.actor) - 0.05, 0.0) + 0.3]
        )
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
        """Lowers a box over the actor, if there is room around and above it."""
        stage, actor = self.stage, self.actor
        self.ground = stage.now[actor].position.copy()
        if self.tipped or (stage.extent(self.cover) < stage.extent(actor)).any():
            return False
        side = stage.radius(self.cover) * 0.8
        if (
            self.ground[2] > 0.2
            or self.space.headroom() < 0.42
            or not stage.free(self.ground, side, self.space.ignored(actor))
        ):
            return False
        stage.place(self.cover, self.ground + np.array([0, 0, 0.6]))
        stage.carry(
            self.cover,
            np.array([0, 0, -0.6]),
            stage.seconds(between(self.rng, 1.1, 1.7)),
            {actor: "covered", self.cover: "put_down"},
        )
        self.condition = Condition.COVERED
        return True

    def uncover(self) -> bool:
        """Lifts the box off the actor and out of the scene."""
        stage = self.stage
        stage.carry(
            self.cover,
            np.array([0, 0, 0.6]),
            stage.seconds(between(self.rng, 1.1, 1.7)),
            {self.actor: "uncovered", self.cover: "lifted"},
        )
        stage.place(self.cover, stage.now[self.cover].position, visible=False)
        self.condition = Condition.GROUNDED
        return True

    def leave(self) -> bool:
        """Moves the actor out of the image: it slides to a free side, or rises."""
        stage, actor = self.stage, self.actor
        start = stage.now[actor].position.copy()
        for sign in (1.0, -1.0) if chance(self.rng, 0.5) else (-1.0, 1.0):
            direction = stage.right * sign
            far = self.space.out_of_view(direction)
            if far is not None and self.space.path_is_free(actor, direction, far, keep_on=False):
                self.way_back = -direction * far
                stage.slide(actor, direction, far, stage.seconds(between(self.rng, 1.4, 2.2)), "leaves")
                self.condition = Condition.AWAY
                return True
        up = self.space.out_of_view(np.array([0, 0, 1.0]))
        if up is None or self.space.headroom() < 0.5:
            return False
        self.ground = start
        self.way_back = np.array([0, 0, -up])
        stage.carry(
            actor, np.array([0, 0, up]), stage.seconds(between(self.rng, 1.6, 2.4)), {actor: "leaves"}
        )
        self.condition = Condition.AWAY
        return True

    def come_back(self) -> bool:
        """Brings the actor back the way it left."""
        self.stage.carry(
            self.actor,
            self.way_back,
            self.stage.seconds(between(self.rng, 1.4, 2.2)),
            {self.actor: "returns"},
        )
        self.condition = Condition.GROUNDED
        return True
