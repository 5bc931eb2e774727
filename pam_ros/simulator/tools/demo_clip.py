"""`python -m pam_ros.simulator.tools.demo_clip --out config/demo`: renders the bundled demo clip.

A gripper lifts a kettle and puts it down, a box covers it, and it slides away. Writes clip.mp4 (H.264) and
its ground truth, clip.json.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pam_ros.simulator.assets.catalogue import build_shape, cover_for, draw_object, gripper_for
from pam_ros.simulator.assets.materials import COLOURS, FINISHES, Finish
from pam_ros.simulator.events.stage import Stage
from pam_ros.simulator.render import Rendered, SceneRenderer
from pam_ros.simulator.samples import box_of
from pam_ros.simulator.spec import CameraSpec, FixtureSpec, LightSpec, LookSpec, ObjectSpec, SceneSpec

SEED, SPLIT = 7, "test"
WIDTH, HEIGHT, FPS, SECONDS = 640, 480, 10, 12
KETTLE, MUG, TOASTER, COVER, GRIPPER = range(5)


def _object(
    category: str,
    number: int,
    colour: str,
    material: str,
    position: tuple[float, float, float],
    yaw_deg: float,
) -> ObjectSpec:
    drawn = draw_object(np.random.default_rng(SEED), SPLIT, category, lying=0.0)
    return replace(
        drawn,
        mesh_id=f"{category}/{number}",
        shape=build_shape(category, number),
        colour=colour,
        body_rgb=COLOURS[colour],
        material=material,
        finish=FINISHES[material],
        scale=1.0,
        rest_deg=(0.0, 0.0, 0.0),
        position=position,
        yaw_deg=yaw_deg,
        place="counter",
    )


def demo_scene() -> SceneSpec:
    """A kettle, a mug and a toaster on a kitchen counter; cover and gripper wait above."""
    objects = (
        _object("kettle", 39, "red", "enamel", (0.13, 0.02, 0.0), 205),
        _object("mug", 89, "blue", "ceramic", (-0.36, -0.07, 0.0), -40),
        _object("toaster", 29, "silver", "metal", (0.44, 0.17, 0.0), 12),
        cover_for(np.random.default_rng(SEED), 0.31, 0.28, 0.27),
        gripper_for(np.random.default_rng(SEED), 0.1),
    )
    fixtures = (
        FixtureSpec(
            "counter",
            (((3.0, 0.85, 0.04), (0.0, 0.1, -0.02)),),
            ("wood", 39),
            tile_m=0.9,
            finish=Finish(0.2, 0.4),
        ),
        FixtureSpec(
            "wall", (((4.0, 0.05, 2.4), (0.0, 0.55, 0.6)),), ("tiles", 9), tile_m=0.5, finish=Finish(0.2, 0.4)
        ),
        FixtureSpec("floor", (((6.0, 6.0, 0.05), (0.0, 0.0, -0.95)),), ("planks", 9), tile_m=1.2),
    )
    lights = (
        LightSpec((-0.6, -0.8, 1.75), (0.35, 0.45, -1.0), (0.55, 0.53, 0.5), True),
        LightSpec((0.0, 0.0, 2.0), (-0.5, 0.2, -1.0), (0.2, 0.2, 0.22), False),
    )
    return SceneSpec(SEED, SPLIT, "kitchen", objects, fixtures, lights, _camera(0.0), LookSpec(noise=1.0))


def _camera(time_s: float) -> CameraSpec:
    """The camera of a robot that sways a little."""
    sway = np.sin(np.array([0.7, 0.9, 1.1, 0.8, 0.5]) * time_s + np.array([0, 1, 0, 0, 0]))
    eye = (0.02 + 0.012 * sway[0], -0.86 + 0.006 * sway[1], 0.5 + 0.005 * sway[2])
    return CameraSpec(
        (float(eye[0]), float(eye[1]), float(eye[2])),
        (float(0.004 * sway[3]), 0.04, 0.09),
        float(0.5 + 0.3 * sway[4]),
        62.0,
    )


def demo_stage() -> Stage:
    """The clip's motion: the kettle is lifted, put down, covered, uncovered, and slides right."""
    stage = Stage(demo_scene(), FPS)
    for waiting in (COVER, GRIPPER):
        stage.now[waiting].visible = stage.frames[0][waiting].visible = False
    up, lift = np.array([0.0, 0.0, 0.62]), 0.13
    stage.still(stage.seconds(0.6))
    above = stage.now[KETTLE].position + np.array([0.0, 0.0, stage.height(KETTLE) + 0.25])
    stage.place(GRIPPER, above)
    stage.carry(GRIPPER, np.array([0.0, 0.0, -0.3]), stage.seconds(0.7), {GRIPPER: "slides_closer"})
    stage.rise(KETTLE, lift, stage.seconds(1.4), "lifted", (GRIPPER,))
    _rest(stage, 1.2, "held")
    stage.rise(KETTLE, -lift, stage.seconds(1.4), "put_down", (GRIPPER,))
    stage.carry(GRIPPER, np.array([0.0, 0.0, 0.45]), stage.seconds(0.7), {GRIPPER: "lifted"})
    stage.place(GRIPPER, stage.now[GRIPPER].position, visible=False)
    stage.place(COVER, stage.now[KETTLE].position + up)
    stage.carry(COVER, -up, stage.seconds(1.4), {KETTLE: "covered", COVER: "put_down"})
    _rest(stage, 1.0, "stays_covered")
    stage.carry(COVER, up, stage.seconds(1.4), {KETTLE: "uncovered", COVER: "lifted"})
    stage.place(COVER, stage.now[COVER].position, visible=False)
    stage.still(stage.seconds(0.6))
    stage.slide(KETTLE, stage.right, 0.2, stage.seconds(1.7), "slides_right")
    stage.finish(FPS * SECONDS)
    return stage


def _rest(stage: Stage, duration_s: float, name: str) -> None:
    stage.still(stage.seconds(duration_s))
    stage.tracks[KETTLE][-1] = replace(stage.tracks[KETTLE][-1], event=name)


def render_demo() -> tuple[list[Rendered], Stage]:
    """All frames with their truth."""
    stage = demo_stage()
    with SceneRenderer(stage.scene, WIDTH, HEIGHT) as renderer:
        shown = [
            renderer.render(states, _camera(index / FPS), index) for index, states in enumerate(stage.frames)
        ]
    return shown, stage


def truth(shown: list[Rendered], stage: Stage) -> dict[str, Any]:
    """The clip's ground truth: boxes (x1, y1, x2, y2; far edges exclusive) at frame 0, events in seconds."""
    objects = []
    for index in (KETTLE, MUG, TOASTER):
        thing = stage.scene.objects[index]
        events = [
            {"start_s": part.start / FPS, "end_s": part.end / FPS, "event": part.event}
            for part in stage.tracks[index]
        ]
        objects.append(
            {
                "id": index + 1,
                "category": thing.category,
                "colour": thing.colour,
                "material": thing.material,
                "box": list(box_of(shown[0].instances == index + 1)),
                "events": events,
            }
        )
    return {
        "about": "A kettle on a kitchen counter, filmed by a slowly moving robot camera; "
        "rendered by this project: python -m pam_ros.simulator.tools.demo_clip",
        "licence": "Apache-2.0",
        "width": WIDTH,
        "height": HEIGHT,
        "fps": FPS,
        "frames": len(shown),
        "seed": SEED,
        "split": SPLIT,
        "prompt_box_xyxy": objects[0]["box"],
        "objects": objects,
    }


def main() -> None:
    """Command line."""
    import av  # only here: nothing else in the simulator writes videos

    parser = argparse.ArgumentParser(description="Render the demo clip.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write clip.mp4 and clip.json to")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    shown, stage = render_demo()
    with av.open(str(out / "clip.mp4"), "w") as container:
        stream: Any = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt, stream.options = (
            WIDTH,
            HEIGHT,
            "yuv420p",
            {"crf": "23", "preset": "slow"},
        )
        for frame in shown:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame.rgb, format="rgb24")))
        container.mux(stream.encode())
    (out / "clip.json").write_text(json.dumps(truth(shown, stage), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
