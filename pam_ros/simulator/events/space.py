"""Where an actor can go: free ways, the edge of the surface, the edge of the picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pam_ros.simulator.events.stage import Stage, Vector
from pam_ros.simulator.spec import SceneSpec


@dataclass(frozen=True, slots=True)
class Props:
    """Indices of the objects a video may need besides the scene's own; invisible until they are."""

    cover: int
    gripper: int
    passer: int

    @property
    def all(self) -> tuple[int, ...]:
        """All of them."""
        return (self.cover, self.gripper, self.passer)


class Space:
    """The space around the actor of a stage."""

    def __init__(self, scene: SceneSpec, stage: Stage, actor: int, props: Props) -> None:
        self.scene, self.stage, self.actor, self.props = scene, stage, actor, props

    def ignored(self, *more: int) -> tuple[int, ...]:
        """Objects that never stand in the way: the props, and `more`."""
        return (*self.props.all, *more)

    def headroom(self) -> float:
        """Free metres above the surface."""
        boards = any(fixture.category == "shelf" for fixture in self.scene.fixtures)
        return 0.3 if self.scene.kind == "shelf" else 0.44 if boards else 2.0

    def on_surface(self, position: Vector) -> bool:
        """True where the main surface carries this point, off stove and sink."""
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
        """True over a sink or a stove."""
        for fixture in self.scene.fixtures:
            if fixture.category in ("sink", "stove"):
                size, centre = fixture.boxes[0]
                if (
                    abs(position[0] - centre[0]) < size[0] / 2 + 0.05
                    and abs(position[1] - centre[1]) < size[1] / 2 + 0.05
                ):
                    return True
        return False

    def way_is_free(
        self,
        index: int,
        direction: Vector,
        distance: float,
        ignore: tuple[int, ...] = (),
        keep_on: bool = True,
    ) -> bool:
        """True where an object meets nothing on a straight way; with `keep_on` it stays on the surface."""
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
        """(x, y) in units of the half width and half height of a 4:3 picture; inside is -1..1."""
        camera = self.scene.camera
        pose = camera.pose()
        x, y, z = pose[:3, :3].T @ (position - pose[:3, 3])
        half = np.tan(np.radians(camera.fov_deg) / 2)
        return (float(x / (z * half)), float(y / (z * half * 0.75))) if z > 0.1 else (9.0, 9.0)

    def stays_in_view(self, offset: Vector) -> bool:
        """True where the actor, moved by this, is still well in the picture."""
        x, y = self.pixel(
            self.stage.now[self.actor].position + offset + np.array([0, 0, self.stage.height(self.actor) / 2])
        )
        return abs(x) < 0.82 and abs(y) < 0.82

    def out_of_view(self, direction: Vector) -> float | None:
        """Metres until the whole object is out of the picture, or None where that is too far."""
        stage = self.stage
        reach = max(stage.radius(self.actor), stage.height(self.actor))
        for distance in np.arange(0.2, 1.3, 0.05):
            near = stage.now[self.actor].position + direction * (distance - reach)
            if max(abs(value) for value in self.pixel(near)) > 1.15:
                return float(distance)
        return None
