"""Samples with exact ground truth: `image_sample(seed, split)` and `video_sample(seed, split)`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pam_ros.geometry import crop_mask
from pam_ros.records import IMAGE_TASKS, Language, Task
from pam_ros.simulator.events.director import TARGET_EVENTS
from pam_ros.simulator.events.events import Play, play_video
from pam_ros.simulator.events.occlusion import with_hidden
from pam_ros.simulator.events.stage import RESTS, Segment
from pam_ros.simulator.ontology import ontology
from pam_ros.simulator.render import PARTS, SceneRenderer, first_states
from pam_ros.simulator.scene.scenes import OPENABLE, TALL, draw_scene
from pam_ros.simulator.spec import SceneSpec
from pam_ros.simulator.texts.captions import clip_caption, describe
from pam_ros.simulator.texts.facts import Facts, object_facts, part_facts, region_facts

WIDTH, HEIGHT = 512, 384
# Fractions of the image's area. Smaller objects, parts and background regions are left out.
SMALLEST_OBJECT = 0.0015
SMALLEST_BACKGROUND = 0.02
# Fraction of its object's visible pixels. A larger part is left out: a box or click could mean either.
LARGEST_PART = 0.85
SCENES_DRAWN = 6  # at most, until the target event is feasible in one
ATTEMPTS = 8  # at most, until the actor is well in view


@dataclass(frozen=True, slots=True)
class RegionTruth:
    """One region of an image with its truth.

    Attributes:
        instance: id in `ImageSample.instances`.
        part: name of the part, "" for a whole object or a background region.
        facts: the source of the texts; facts.category is the label's id.
        function: id of its function.
        box_xyxy: (x1, y1, x2, y2) pixels of the image, x2 and y2 exclusive.
        pixels: number of visible pixels.
        texts: one wording for each (task, language).
        mesh_id: mesh of its object, "" for a background region.
    """

    instance: int
    part: str
    facts: Facts
    function: str
    box_xyxy: tuple[int, int, int, int]
    pixels: int
    texts: dict[tuple[Task, Language], str]
    mesh_id: str = ""


@dataclass(frozen=True, slots=True)
class ImageSample:
    """A rendered image with its truth; `render.Rendered` describes the arrays."""

    seed: int
    split: str
    scene: SceneSpec
    rgb: NDArray[np.uint8]
    instances: NDArray[np.uint16]
    parts: NDArray[np.uint8]
    depth_m: NDArray[np.float32]
    intrinsics: NDArray[np.float64]
    pose: NDArray[np.float64]
    regions: tuple[RegionTruth, ...]

    def mask(self, region: RegionTruth) -> NDArray[np.bool_]:
        """(H, W) bool: the region's visible pixels."""
        return region_mask(self.instances, self.parts, region.instance, region.part)


@dataclass(frozen=True, slots=True)
class Clip:
    """Frames start..end of a video (end exclusive), their events, and a caption in each language."""

    start: int
    end: int
    events: tuple[str, ...]
    captions: dict[Language, str]


@dataclass(frozen=True, slots=True)
class VideoObject:
    """One object of a video.

    Attributes:
        instance: id in `VideoSample.instances`.
        facts: of the object in the first frame.
        function: id of its function.
        segments: its events over the whole video, without gaps.
        pixels: (T,) number of visible pixels in each frame; 0 = outside the image or fully hidden.
        path_m: (T, 3) displacement since the first frame along the first camera's right, away and up.
        clips: one for each segment, each caption continuing the one before.
        mesh_id: its mesh.
    """

    instance: int
    facts: Facts
    function: str
    segments: tuple[Segment, ...]
    pixels: NDArray[np.int64]
    path_m: NDArray[np.float64]
    clips: tuple[Clip, ...]
    mesh_id: str = ""


@dataclass(frozen=True, slots=True)
class VideoSample:
    """A rendered video with its truth.

    Attributes:
        objects: the scene's own objects that are visible in the first frame.
        actor: instance id of the object that most events happen to.
        times_s: (T,) time since the first frame.
        frames: (T, H, W, 3) uint8 RGB.
        instances: (T, H, W) instance ids, 0 = nothing.
        intrinsics: (3, 3) pinhole matrix, pixels.
        poses: (T, 4, 4) camera-to-world transforms of the optical frame.
    """

    seed: int
    split: str
    scene: SceneSpec
    objects: tuple[VideoObject, ...]
    actor: int
    times_s: NDArray[np.float64]
    frames: NDArray[np.uint8]
    instances: NDArray[np.uint16]
    intrinsics: NDArray[np.float64]
    poses: NDArray[np.float64]

    def mask(self, instance: int, frame: int) -> NDArray[np.bool_]:
        """(H, W) bool: the object's visible pixels in a frame; all False while it is hidden."""
        return np.asarray(self.instances[frame] == instance)


def region_mask(
    instances: NDArray[np.uint16], parts: NDArray[np.uint8], instance: int, part: str = ""
) -> NDArray[np.bool_]:
    """(H, W) bool mask of an instance, or of one of its parts."""
    whole = instances == instance
    return np.asarray(whole & (parts == PARTS.index(part)) if part else whole)


def box_of(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """(x1, y1, x2, y2) pixels of a mask that is not empty; x2 and y2 exclusive."""
    x1, y1, x2, y2 = (int(side) for side in crop_mask(mask)[0])
    return x1, y1, x2, y2


def events_between(segments: Sequence[Segment], start: int, end: int) -> tuple[str, ...]:
    """Events of a clip of frames start..end: at most two, or one of RESTS if nothing happens.

    An event counts if at least half of it lies in the clip, or if it fills two thirds of the clip.
    """
    inside = [(max(part.start, start), min(part.end, end), part) for part in segments]
    found = [
        part.event
        for low, high, part in inside
        if part.event not in RESTS
        and high > low
        and (high - low >= 0.5 * (part.end - part.start) or high - low >= 0.66 * (end - start))
    ]
    if found:
        return tuple(found[:2])
    resting = [(high - low, part.event) for low, high, part in inside if high > low and part.event in RESTS]
    return (max(resting)[1],) if resting else ("still",)


def caption_windows(
    facts: Facts, segments: Sequence[Segment], windows: Sequence[tuple[int, int]], rng: np.random.Generator
) -> tuple[Clip, ...]:
    """Captions for (start, end) windows, each continuing the one before, e.g. for a fixed caption period."""
    clips: list[Clip] = []
    for start, end in windows:
        events = events_between(segments, start, end)
        previous = clips[-1].events if clips else ()
        captions = {language: clip_caption(facts, events, previous, language, rng) for language in Language}
        clips.append(Clip(start, end, events, captions))
    return tuple(clips)


def image_sample(
    seed: int, split: str, width: int = WIDTH, height: int = HEIGHT, open_meshes: float = 0.0
) -> ImageSample:
    """The image of a seed. Raises ValueError for an unknown split; for `open_meshes` see `draw_scene`."""
    scene = draw_scene(seed, split, open_meshes=open_meshes)
    states = first_states(scene)
    rng = np.random.default_rng([seed, 31])
    for item, state in zip(scene.objects, states, strict=True):  # some doors, drawers and lids are open
        for joint in range(len(item.shape.joints)):
            if item.category != "laptop" and rng.random() < 0.2:
                state.opening[joint] = rng.uniform(0.3, 1.0)
    with SceneRenderer(scene, width, height) as renderer:
        frame = renderer.render(states)
    area = width * height
    found: list[tuple[int, str, Facts]] = []
    for index, item in enumerate(scene.objects):
        found.append((index + 1, "", object_facts(scene, states, frame, index)))
        for part in sorted({piece.part for piece in item.shape.pieces if piece.part}):
            found.append((index + 1, part, part_facts(scene, index, part)))
    found += [
        (scene.fixture_id(index), "", region_facts(scene, frame, index))
        for index in range(len(scene.fixtures))
    ]
    regions = []
    for instance, part, facts in found:
        mask = region_mask(frame.instances, frame.parts, instance, part)
        pixels = np.count_nonzero(mask)
        if pixels < area * (SMALLEST_BACKGROUND if facts.kind == "region" else SMALLEST_OBJECT):
            continue
        if part and pixels > LARGEST_PART * np.count_nonzero(frame.instances == instance):
            continue
        texts = {
            (task, language): describe(facts, task, language, rng)
            for task in IMAGE_TASKS
            for language in Language
        }
        function = ontology().entries[facts.category].function
        mesh_id = scene.objects[instance - 1].mesh_id if instance <= len(scene.objects) else ""
        regions.append(RegionTruth(instance, part, facts, function, box_of(mask), pixels, texts, mesh_id))
    return ImageSample(
        seed,
        split,
        scene,
        frame.rgb,
        frame.instances,
        frame.parts,
        frame.depth_m,
        frame.intrinsics,
        frame.pose,
        tuple(regions),
    )


def video_play(
    seed: int, split: str, frames: int = 48, fps: float = 8.0, attempt: int = 0, open_meshes: float = 0.0
) -> Play:
    """The scene of a seed and its motion, not rendered; another `attempt` draws other scenes.

    The target event is drawn first, then scenes until one allows it: events are about equally frequent.
    Raises ValueError unless `frames` >= 2 and `fps` > 0.
    """
    if frames < 2 or fps <= 0:
        raise ValueError(
            f"a video needs at least 2 frames and a positive rate, not {frames} frames at {fps} per second"
        )
    rates = np.fromiter(TARGET_EVENTS.values(), float)
    chosen = np.random.default_rng([seed, 53, 0]).choice(len(rates), p=rates / rates.sum())
    target_event = list(TARGET_EVENTS)[int(chosen)]
    categories = {"opens": OPENABLE, "closes": OPENABLE, "tips_over": TALL}.get(target_event, ())
    for draw in range(SCENES_DRAWN * attempt, SCENES_DRAWN * (attempt + 1)):
        scene = draw_scene(
            seed + 1_000_000_007 * (draw + 1),
            split,
            objects=(2, 5),
            categories=categories,
            open_meshes=open_meshes,
        )
        play = play_video(scene, np.random.default_rng([seed, 53, draw]), frames, fps, target_event)
        if play.target_event_reached:
            break
    return play


def video_sample(
    seed: int,
    split: str,
    frames: int = 48,
    fps: float = 8.0,
    width: int = WIDTH,
    height: int = HEIGHT,
    open_meshes: float = 0.0,
) -> VideoSample:
    """The video of a seed. Raises ValueError for an unknown split, frames < 2 or fps <= 0."""
    for attempt in range(ATTEMPTS):
        play = video_play(seed, split, frames, fps, attempt, open_meshes)
        scene, states = play.scene, play.stage.frames
        with SceneRenderer(scene, width, height) as renderer:
            first = renderer.render(states[0], play.cameras[0], 0)
            seen = np.count_nonzero(first.instances == play.actor + 1)
            if seen < 2 * SMALLEST_OBJECT * width * height and attempt < ATTEMPTS - 1:
                continue  # the actor is hidden behind something
            rgb = np.empty((frames, height, width, 3), np.uint8)
            instances = np.empty((frames, height, width), np.uint16)
            poses = np.empty((frames, 4, 4))
            for index in range(frames):
                frame = renderer.render(states[index], play.cameras[index], index) if index else first
                rgb[index], instances[index], poses[index] = frame.rgb, frame.instances, frame.pose
            break
    rng = np.random.default_rng([seed, 59])
    objects = []
    axes = np.stack([play.stage.right, play.stage.away, np.array([0.0, 0.0, 1.0])])
    for index in range(play.own):
        pixels = np.array([np.count_nonzero(ids == index + 1) for ids in instances])
        if pixels[0] < width * height * SMALLEST_OBJECT:
            continue
        facts = object_facts(scene, states[0], first, index)
        segments = with_hidden(play.events(index), pixels)
        clips = caption_windows(facts, segments, [(part.start, part.end) for part in segments], rng)
        path = np.array([states[frame][index].position for frame in range(frames)]) @ axes.T
        function = ontology().entries[facts.category].function
        mesh_id = scene.objects[index].mesh_id
        objects.append(
            VideoObject(index + 1, facts, function, segments, pixels, path - path[0], clips, mesh_id)
        )
    return VideoSample(
        seed=seed,
        split=split,
        scene=scene,
        objects=tuple(objects),
        actor=play.actor + 1,
        times_s=np.arange(frames) / fps,
        frames=rgb,
        instances=instances,
        intrinsics=first.intrinsics,
        poses=poses,
    )
