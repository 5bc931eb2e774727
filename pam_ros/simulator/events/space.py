"""Where an actor can move: free paths, the edge of the surface, the edge of the image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pam_ros.simulator.events.stage import Stage, Vector
from pam_ros.simulator.spec import SceneSpec


@dataclass(frozen=True, slots=True)
class Props:
    """Indices of the objects that a video adds to the scene; invisible until they are used."""

    cover: int
    gripper: int
    occluder: int

    @property
    def all(self) -> tuple[int, ...]:
        """All three indices."""
        return (self.cover, self.gripper, self.occluder)


class Space:
    """The space around the actor of a stage."""

    def __init__(self, scene: SceneSpec, stage: Stage, actor: int, props: Props) -> None:
        self.scene, self.stage, self.actor, self.props = scene, stage, actor, props

    def ignored(self, *more: int) -> tuple[int, ...]:
        """Objects that never block a path: the props, and `more`."""
        return (*self.props.all, *more)

    def headroom(self) -> float:
        """Free height above the surface, metres."""
        boards = any(fixture.category == "shelf" for fixture in self.scene.fixtures)
        return 0.3 if self.scene.kind == "shelf" else 0.44 if boards else 2.0

    def on_surface(self, position: Vector) -> bool:
        """True if the point is on the main surface and not over the stove or the sink."""
        top = self.scene.fixtures[0].boxes
        low = (
            min(centre[0] - size[0] / 2 for size, centre in top[:4]),
            min(centre[1] - size[1] / 2 for size, centre in top[:4]),
        )
        high = (
            max(centre[0] + size[0] / 2 for size, centre in top[:4]),
            max(centre[1] + size[1] / 2 for size, centre in top[:4]),
        )
        return (
            low[0] + 0.03 < position[0] < high[0] - 0.03
            and low[1] + 0.03 < position[1] < high[1] - 0.03
            and not self.over_sink(position)
        )

    def over_sink(self, position: Vector) -> bool:
        """True if the point is over a sink or a stove."""
        for fixture in self.scene.fixtures:
            if fixture.category in ("sink", "stove"):
                size, centre = fixture.boxes[0]
                if (
                    abs(position[0] - centre[0]) < size[0] / 2 + 0.05
                    and abs(position[1] - centre[1]) < size[1] / 2 + 0.05
                ):
                    return True
        return False

    def path_is_free(
        self,
        index: int,
        direction: Vector,
        distance: float,
        ignore: tuple[int, ...] = (),
        keep_on: bool = True,
    ) -> bool:
        """True if an object's straight path is free; with `keep_on` it must also stay on the surface."""
        stage = self.stage
        start, radius = stage.now[index].position, stage.radius(index) * 0.75
        for step in np.linspace(0.15, 1.0, 8):
            spot = start + direction * distance * step
            if not stage.free(spot, radius, self.ignored(index, *ignore)):
                return False
            edge = spot + direction * radius * 0.8
            if (keep_on or step < 0.6) and not self.on_surface(edge):
                return False
        return True

    def pixel(self, position: Vector) -> tuple[float, float]:
        """(x, y) of a point in a 4:3 image, each -1..1 inside it."""
        camera = self.scene.camera
        pose = camera.pose()
        x, y, z = pose[:3, :3].T @ (position - pose[:3, 3])
        half = np.tan(np.radians(camera.fov_deg) / 2)
        return (float(x / (z * half)), float(y / (z * half * 0.75))) if z > 0.1 else (9.0, 9.0)

    def stays_in_view(self, offset: Vector) -> bool:
        """True if the actor, moved by `offset`, is still well inside the image."""
        x, y = self.pixel(
            self.stage.now[self.actor].position + offset + np.array([0, 0, self.stage.height(self.actor) / 2])
        )
        return abs(x) < 0.82 and abs(y) < 0.82

    def out_of_view(self, direction: Vector) -> float | None:
        """Metres until the whole actor is outside the image, or None if that is too far."""
        stage = self.stage
        reach = max(stage.radius(self.actor), stage.height(self.actor))
        for distance in np.arange(0.2, 1.3, 0.05):
            near = stage.now[self.actor].position + direction * (distance - reach)
            if max(abs(value) for value in self.pixel(near)) > 1.15:
                return float(distance)
        return None
