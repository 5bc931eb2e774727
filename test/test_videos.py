"""Rendered videos: every event occurs, about equally often, is complete, and agrees with the pixels.

They render with MuJoCo, which headless needs Debian's libegl1 and libgl1-mesa-dri (MUJOCO_GL=egl).
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from pam_ros.datasets.schema import Clip, Sample
from pam_ros.datasets.shards import ShardSource
from pam_ros.records import Language
from pam_ros.simulator.events.occlusion import with_hidden
from pam_ros.simulator.events.stage import RESTS, Segment, Stage
from pam_ros.simulator.export import LATER_CLOCKS, backward_segments, exported_video, video_region
from pam_ros.simulator.ontology import ontology
from pam_ros.simulator.samples import VideoObject, VideoSample, events_between, video_play, video_sample
from pam_ros.simulator.scene.scenes import draw_scene
from pam_ros.simulator.texts.facts import Facts
from pam_ros.simulator.texts.judge import judge
from pam_ros.simulator.tools import small_set
from pam_ros.simulator.tools.demo_clip import demo_stage
from pam_ros.training.config import StageConfig, StageKind
from pam_ros.training.heads.event_head import Events, moved
from pam_ros.training.qa_examples import clip_questions


@pytest.fixture(scope="module")
def video() -> VideoSample:
    return video_sample(1, "train", 24, 6.0, 192, 144)


def test_frames_events_and_captions_agree(video: VideoSample) -> None:
    assert video.frames.shape == (24, 144, 192, 3) and video.instances.shape == (24, 144, 192)
    assert video.objects and any(item.instance == video.actor for item in video.objects)
    for item in video.objects:
        assert item.segments[0].start == 0 and item.segments[-1].end == 24
        assert all(
            before.end == after.start for before, after in zip(item.segments, item.segments[1:], strict=False)
        )
        assert [(clip.start, clip.end) for clip in item.clips] == [
            (part.start, part.end) for part in item.segments
        ]
        for clip, part in zip(item.clips, item.segments, strict=True):
            assert clip.events == (part.event,)
            for language in Language:
                verdict = judge(clip.captions[language], language)
                assert verdict.events == (part.event,) and verdict.category == item.facts.category
        assert item.pixels.tolist() == [int(video.mask(item.instance, frame).sum()) for frame in range(24)]


def test_every_event_occurs_and_is_complete() -> None:
    wanted = set(ontology().events) - {"hidden"}  # hidden follows from the pixels
    seen: set[str] = set()
    for seed in range(200):
        play = video_play(seed, "train", 64, 6.0)
        seen |= {part.event for index in range(play.own) for part in play.events(index)}
        assert all(part.end - part.start >= 2 for part in play.events(play.actor)[:-1])
        if seen >= wanted:
            return
    raise AssertionError(f"never seen: {wanted - seen}")


def test_every_event_is_about_equally_frequent() -> None:
    videos = 100
    counts: Counter[str] = Counter()
    for seed in range(videos):
        play = video_play(seed, "train", 48, 5.0)
        counts.update({part.event for part in play.events(play.actor)})
    rests = {"still", "held", "stays_covered", "stays_away"}
    active = set(ontology().events) - rests - {"hidden", "pushes"}
    assert {event for event in active if counts[event] < 0.06 * videos} == set()
    assert {event for event in active if counts[event] > 0.55 * videos} == set()


def test_hidden_follows_from_the_visible_pixels() -> None:
    pixels = np.full(40, 200)
    pixels[10:16] = [150, 40, 0, 0, 50, 160]
    pixels[30:] = 0
    slides = Segment(20, 28, "slides_left")
    track = (Segment(0, 20, "still"), slides, Segment(28, 40, "still"))
    assert with_hidden(track, pixels) == (
        Segment(0, 10, "still"),
        Segment(10, 16, "hidden"),
        Segment(16, 20, "still"),
        slides,
        Segment(28, 40, "still"),  # it does not reappear
    )
    assert with_hidden((Segment(0, 40, "covered"),), pixels) == (Segment(0, 40, "covered"),)
    assert with_hidden(track, np.full(40, 12)) == track  # too small to tell


def test_an_occluder_hides_an_object_that_reappears() -> None:
    for seed in range(60):
        play = video_play(seed, "test", 40, 5.0)
        if play.scene.objects[-1].mesh_id.endswith("/prop") or len(play.scene.objects) == play.own:
            continue  # no object passed in front
        sample = video_sample(seed, "test", 40, 5.0, 160, 120)
        for item in sample.objects:
            for part in item.segments:
                if part.event == "hidden":
                    seen = item.pixels[part.start : part.end]
                    assert seen.min() < 0.3 * item.pixels[part.start - 1]
                    assert item.pixels[part.end] > 2 * seen.min()
                    return
    pytest.fail("no object was ever hidden")


def test_objects_have_caption_windows_of_several_clocks() -> None:
    video = video_sample(4, "train", 32, 5.0, 96, 72)
    assert video.objects
    for region, item in zip(exported_video(video).regions, video.objects, strict=True):
        own = tuple((part.start, part.end, part.event) for part in item.segments)
        assert region.segments == own
        by_events, windows, *others = region.clips
        later = [clips for clips in others if not clips[0].backward]
        assert [(clip.start, clip.end) for clip in by_events] == [each[:2] for each in own]
        assert windows[0].start == 0
        assert len(later) == LATER_CLOCKS
        for clips in (windows, *later):
            assert all(following.start == clip.end for clip, following in pairwise(clips))
            assert clips[-1].end <= 32
            assert all(clip.events == events_of(item, clip) for clip in clips)


def test_reversible_events_are_also_asked_about_backwards() -> None:
    parts = [
        (0, 10, "still"),
        (10, 26, "slides_right"),
        (26, 30, "still"),
        (30, 36, "falls"),
        (36, 60, "still"),
    ]
    segments = tuple(Segment(*part) for part in parts)
    turned = backward_segments(segments, 60)
    assert [(part.start, part.end, part.event) for part in turned] == [
        (0, 25, "still"), (25, 31, ""), (31, 35, "still"), (35, 51, "slides_left"), (51, 60, "still"),
    ]  # fmt: skip
    path = np.zeros((60, 3))
    path[:, 0] = np.clip(np.arange(60) - 9, 0, 16) * 0.01  # it has moved in the event's first frame
    pixels = np.full(60, 500)
    item = VideoObject(
        1, Facts("mug", "object", colour="red", place=("table", "")), "drink", segments, pixels, path, ()
    )
    rng = np.random.default_rng(0)
    config = StageConfig(
        StageKind.CAPTION, model="", data=(), out="", train=("language",), steps=1, carry_over=0.5
    )
    reversed_events = set()
    for _ in range(20):
        region = video_region(item, 60, 8.0, rng)
        events = Events([Sample("video 1", (), (region,), is_video=True)])
        for number, clips in enumerate(region.clips):
            for place, clip in enumerate(clips):
                if not clip.backward:
                    continue
                reversed_events.add(clip.events)
                assert clip.end < 60 and not (clip.start < 35 and clip.end > 29)  # not while it falls
                assert place == 0 or clip.end == clips[place - 1].start
                shown = clip_questions(rng, region, (number, place), config, 4)[0].frames
                assert list(shown) == sorted(shown, reverse=True)
                far = moved(region, shown)[-1][0]
                happens = {events.names[number] for number in events.numbers(region, shown)}
                assert happens in ({"still"}, {"slides_left"}, {"still", "slides_left"})
                assert far <= 0 and (clip.events != ("slides_left",) or far < -0.5)
    assert reversed_events == {("still",), ("slides_left",)}


def events_of(item: VideoObject, clip: Clip) -> tuple[str, ...]:
    """The events of a clip."""
    return events_between(item.segments, clip.start, clip.end)


def _video_with(event: str, resting: str) -> VideoSample:
    for seed in range(100):
        play = video_play(seed, "test", 48, 5.0)
        names = [part.event for part in play.events(play.actor)]
        if event in names and resting in names and names[0] == "still":
            sample = video_sample(seed, "test", 48, 5.0, 128, 96)
            if sample.scene.seed == play.scene.seed:  # the first attempt was accepted
                return sample
    pytest.fail(f"no video with {event} and {resting}")


@pytest.mark.parametrize(("event", "resting"), [("uncovered", "stays_covered"), ("returns", "stays_away")])
def test_a_covered_or_absent_object_has_no_pixels_and_reappears(event: str, resting: str) -> None:
    sample = _video_with(event, resting)
    actor = next(item for item in sample.objects if item.instance == sample.actor)
    hidden = next(part for part in actor.segments if part.event == resting)
    back = next(part for part in actor.segments if part.event == event and part.start >= hidden.end)
    assert not actor.pixels[hidden.start : hidden.end].any()
    assert actor.pixels[back.end - 1] > 0.4 * actor.pixels[0] > 0


def test_slides_go_in_the_named_direction() -> None:
    scene = draw_scene(3, "train", "table")
    stage = Stage(scene, 10.0)
    start = stage.now[0].position.copy()
    stage.slide(0, -stage.right, 0.2, 10, "slides_left")
    moved = stage.now[0].position - start
    assert float(moved @ stage.right) == pytest.approx(-0.2) and moved[2] == 0
    assert stage.tracks[0] == [Segment(0, 11, "slides_left")]
    assert len(stage.tracks) > 1
    assert all(track == [Segment(0, 11, "still")] for track in stage.tracks[1:])


def test_events_of_a_window() -> None:
    track = [
        Segment(0, 10, "still"),
        Segment(10, 20, "lifted"),
        Segment(20, 30, "held"),
        Segment(30, 40, "put_down"),
    ]
    assert events_between(track, 0, 9) == ("still",)
    assert events_between(track, 0, 20) == ("lifted",)
    assert events_between(track, 0, 13) == ("still",)  # less than half of the lift
    assert events_between(track, 20, 30) == ("held",)
    assert events_between(track, 5, 40) == ("lifted", "put_down")


def test_the_small_set_contains_every_event(tmp_path: Path) -> None:
    folder = Path(__file__).parent / "data" / "scenes"
    samples = list(ShardSource(folder))
    videos = [sample for sample in samples if sample.is_video]
    assert len(videos) == 8 and len(samples) == 40
    assert {sample.extra["split"] for sample in samples} == {"test"}
    tracks = [region.segments for video in videos for region in video.regions]
    assert {event for track in tracks for *_, event in track} == set(ontology().events)
    back = {"hidden", "uncovered", "returns"}
    assert sum(any(event in back for *_, event in track) for track in tracks) >= 3
    files = {frame.path for sample in samples for frame in sample.frames}
    assert files | {folder / "index.jsonl"} == {path for path in folder.rglob("*.*") if path.is_file()}
    assert sum(path.stat().st_size for path in files) + (folder / "index.jsonl").stat().st_size < 5_000_000
    small_set.build(tmp_path, images=1, videos=())
    (again,) = ShardSource(tmp_path)
    first = samples[0]
    assert (again.name, again.extra, len(again.regions)) == (first.name, first.extra, len(first.regions))
    # Not the pixels: another GL may move an edge by one.
    assert [region.texts for region in again.regions] == [region.texts for region in first.regions]


def test_the_demo_clip_has_its_events() -> None:
    stage = demo_stage()
    assert len(stage.frames) == 120
    events = [part.event for part in stage.tracks[0] if part.event not in RESTS]
    assert events == ["lifted", "put_down", "covered", "uncovered", "slides_right"]
    assert {part.event for part in stage.tracks[1]} == {"still"}
