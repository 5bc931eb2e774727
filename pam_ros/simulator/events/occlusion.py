"""Occlusion: moves an object in front of the actor; finds in the visible pixels when an object was hidden."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pam_ros.simulator.assets.parts import between, chance
from pam_ros.simulator.events.space import Props
from pam_ros.simulator.events.stage import Segment, Stage, Vector

LONGEST_OCCLUSION_S = 3.6
HIDDEN, WHOLE = 0.3, 0.85  # fraction of the usual visible pixels: hidden below 0.3, in full view above 0.85
SMALLEST_PIXELS = 40
SHORTEST_FRAMES = 3


def pass_in_front(stage: Stage, actor: int, props: Props, rng: np.random.Generator) -> bool:
    """Moves the gripper, usually with an object in it, between camera and actor, and away again.

    Returns False if every such path leads through other objects.
    """
    camera = stage.scene.camera
    eye = np.asarray(camera.position)
    middle = stage.now[actor].position + np.array([0.0, 0.0, stage.height(actor) / 2])
    alone = chance(rng, 0.2)
    tall, wide = (0.2, 0.12) if alone else (stage.height(props.occluder), 2 * stage.radius(props.occluder))
    # Fraction of the way to the actor at which the occluder looks 0.9 to 1.7 times as wide.
    wanted = wide / max(1.7 * stage.radius(actor), 0.04) / between(rng, 0.9, 1.7)
    sign = 1.0 if chance(rng, 0.5) else -1.0
    across = float(np.linalg.norm(middle - eye)) * np.tan(np.radians(camera.fov_deg) / 2)  # half the image
    nearest = max(0.3, wide / (1.1 * across))  # any nearer, it would fill the image
    for nearness in np.arange(min(max(wanted, nearest + 0.1), 0.8), nearest, -0.08):
        stop = eye + (middle - eye) * nearness - np.array([0.0, 0.0, tall / 2])
        stop[2] = max(stop[2], stage.now[actor].position[2] + 0.004)
        out = stage.right * sign * (nearness * across * 1.15 + wide)
        if _free(stage, actor, props, stop, out, wide / 2):
            break
    else:
        return False
    moved = (props.gripper,) if alone else (props.occluder, props.gripper)
    stage.place(moved[0], stop - out)
    if not alone:
        stage.place(props.gripper, stop - out + np.array([0.0, 0.0, max(tall - 0.05, 0.0)]))
    stage.carry(moved[0], out, stage.seconds(between(rng, 0.7, 1.1)), {}, moved[1:])
    if chance(rng, 0.7):
        stage.still(stage.seconds(between(rng, 0.4, 1.3)))
    on = out if chance(rng, 0.7) else -out
    stage.carry(moved[0], on, stage.seconds(between(rng, 0.7, 1.1)), {}, moved[1:])
    for one in moved:
        stage.place(one, stage.now[one].position, visible=False)
    return True


def _free(stage: Stage, actor: int, props: Props, stop: Vector, out: Vector, radius: float) -> bool:
    """True if no object on the path reaches up to the lower end of the occluder."""
    for other, state in enumerate(stage.now):
        if other in props.all or not state.visible or state.position[2] + stage.height(other) < stop[2]:
            continue
        reach = (radius + stage.radius(other)) * (1.0 if other == actor else 0.9)
        for way in np.linspace(-1.0, 1.0, 9):
            if np.linalg.norm((stop + out * way - state.position)[:2]) < reach:
                return False
    return True


def with_hidden(segments: Sequence[Segment], pixels: NDArray[np.int64]) -> tuple[Segment, ...]:
    """The segments, with a `hidden` segment wherever an object at rest is out of sight for some frames.

    Args:
        segments: without gaps.
        pixels: (T,) number of visible pixels in each frame.
    """
    found: list[Segment] = []
    for part in segments:
        found += _split(part, pixels) if part.event == "still" else [part]
    return tuple(found)


def _split(part: Segment, pixels: NDArray[np.int64]) -> list[Segment]:
    """Splits a resting segment where the object vanishes and where it reappears."""
    seen = pixels[part.start : part.end]
    usual = float(np.percentile(seen, 80))
    if usual < SMALLEST_PIXELS:
        return [part]
    cut: list[Segment] = []
    begin = part.start
    gone = seen < HIDDEN * usual
    dim = seen < WHOLE * usual
    frame = 0
    while frame < len(seen):
        if not gone[frame]:
            frame += 1
            continue
        first, last = frame, frame
        while first > 0 and dim[first - 1]:
            first -= 1
        while last < len(seen) and dim[last]:
            last += 1
        frame = last
        # A gap at either end of the segment has no return; a short one is only a blink.
        if first == 0 or last == len(seen) or last - first < SHORTEST_FRAMES:
            continue
        if part.start + first > begin:
            cut.append(Segment(begin, part.start + first, "still"))
        begin = part.start + last
        cut.append(Segment(part.start + first, begin, "hidden"))
    return [*cut, Segment(begin, part.end, "still")]
