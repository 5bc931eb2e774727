"""Every format is read as samples of one kind, one line at a time, and a bad line is named."""

from __future__ import annotations

import json
import pickle
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pam_ros.datasets.coloured_shapes import ShapesSource
from pam_ros.datasets.json_lines import JsonLines
from pam_ros.datasets.loading import load_masks, load_owners, load_pixels
from pam_ros.datasets.pam_jsonl import PamJsonlSource
from pam_ros.datasets.registry import SelectedSource, open_sources, process_shard
from pam_ros.datasets.rle import RleMask
from pam_ros.datasets.schema import (
    Clip,
    FramePrompt,
    Kind,
    LoadedPicture,
    Provenance,
    Sample,
    SampleRegion,
)
from pam_ros.datasets.shards import FAST, SMALL, ShardSource, ShardWriter
from pam_ros.errors import DatasetError
from pam_ros.geometry import Mask, crop_mask
from pam_ros.model.text.prompts import TASK_TEXT
from pam_ros.records import Language, Task
from pam_ros.simulator.render import PARTS
from pam_ros.simulator.tools.from_id_pictures import convert

EN, ZH = Language.EN, Language.ZH
HEIGHT, WIDTH = 12, 16
NAN, INFINITY = float("nan"), float("inf")


def square(y: int, x: int, side: int = 4, size: tuple[int, int] = (HEIGHT, WIDTH)) -> Mask:
    mask = np.zeros(size, np.bool_)
    mask[y : y + side, x : x + side] = True
    return mask


# ---- masks


@pytest.mark.parametrize("seed", range(20))
def test_run_lengths_give_the_mask_its_area_and_its_box_back(seed: int) -> None:
    random = np.random.default_rng(seed)
    mask = random.random((31, 200)) < (0.0, 0.02, 0.5, 1.0)[seed % 4]
    mask[random.integers(31) :, random.integers(200) :] ^= seed % 3 == 0
    rle = RleMask.of(mask)
    assert np.array_equal(rle.decode(), mask)
    assert rle.area == mask.sum()
    assert rle.box_xyxy == tuple(crop_mask(mask)[0].tolist())


def test_damaged_run_lengths_are_refused() -> None:
    rle = RleMask.of(square(2, 3))
    for counts in ("", rle.counts[:-1], rle.counts + rle.counts):
        with pytest.raises(ValueError, match="the run lengths cover"):
            replace(rle, counts=counts).decode()


# ---- shards


def full_sample() -> Sample:
    """A video of three frames that fills every field."""
    frames = tuple(LoadedPicture(np.full((HEIGHT, WIDTH, 3), 40 * i, np.uint8)) for i in range(3))
    region = SampleRegion(
        name="region 1",
        kind=Kind.PART,
        object_id=2,
        part="handle",
        masks=(RleMask.of(square(2, 3)), None, RleMask.of(square(3, 3))),
        prompts={1: FramePrompt((1.0, 2.0, 3.0, 4.5), ((1.0, 2.5, 1), (9.0, 3.0, 0)))},
        texts={(Task.LABEL, EN): ("cup", "mug"), (Task.BRIEF, ZH): ("一个杯子。",)},
        clips=((Clip(0, 2, {EN: ("It falls.",)}, ("falls", "still"), {EN: "It stood."}), Clip(2, 3, {})),)
        + ((Clip(1, 3, {ZH: ("倒了。",)}, backward=True),),),
        segments=((0, 1, "falls"), (1, 3, "still")),
        backward_segments=((0, 2, "still"),),
        path_m=((0.0, 0.0, 0.0), (0.1, -0.002, 0.0), (0.2, 0.0, 1.5)),
        category="cup", function="drink", colour="red", material="clay", mesh_id="cup/shop/cup",
        provenance=Provenance("set", "somebody", 0.75),
        extra={"size": "large"},
    )  # fmt: skip
    other = SampleRegion(name="region 2", prompts={0: FramePrompt((0.0, 0.0, 2.0, 2.0))})
    masks = ((RleMask.of(square(7, 9)), None, None),)
    return Sample("video 5", frames, (region, other), True, (HEIGHT, WIDTH), 8.0, masks, 2, {"seed": 5})


def written(folder: Path, *samples: Sample) -> ShardSource:
    writer = ShardWriter(folder)
    for number, sample in enumerate(samples):
        writer.add(f"{number}", sample)
    writer.close()
    return ShardSource(folder)


def test_a_shard_gives_back_all_that_was_written(tmp_path: Path) -> None:
    sample = full_sample()
    unset = [each.name for each in fields(Sample) if not getattr(sample, each.name)]
    unset += [each.name for each in fields(SampleRegion) if not getattr(sample.regions[0], each.name)]
    assert unset == [], "the sample must fill every field, else a lost one is not noticed"
    picture = replace(sample, name="image 6", frames=sample.frames[:1], is_video=False, fps=0.0,
                      regions=(SampleRegion("region 1", masks=(RleMask.of(square(1, 1)),)),),
                      other_masks=((RleMask.of(square(5, 5)),),))  # fmt: skip
    source = written(tmp_path, sample, picture)
    for before, after in zip((sample, picture), source, strict=True):
        assert replace(after, frames=before.frames) == before
        assert [each.read().shape for each in after.frames] == [(HEIGHT, WIDTH, 3)] * len(before.frames)
    assert pickle.loads(pickle.dumps(source))[1].name == "image 6"  # loader processes get a copy


def test_a_set_that_ships_leaves_other_objects_out(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, SMALL)
    writer.add("0", full_sample())
    writer.close()
    assert ShardSource(tmp_path)[0].other_masks == ()
    assert FAST.other_masks


def test_an_index_does_not_describe_pictures_that_are_being_replaced(tmp_path: Path) -> None:
    written(tmp_path, full_sample(), full_sample())
    writer = ShardWriter(tmp_path)
    writer.add("0", full_sample())  # and the process ends here
    with pytest.raises(DatasetError, match=r"has no index\.jsonl"):
        ShardSource(tmp_path)


def test_only_the_line_that_is_asked_for_is_parsed(tmp_path: Path) -> None:
    written(tmp_path, *(replace(full_sample(), name=f"video {i}") for i in range(3)))
    index = tmp_path / "index.jsonl"
    lines = index.read_text().splitlines(keepends=True)
    index.write_text(lines[0] + "\n" + "no JSON\n" + lines[2])
    source = ShardSource(tmp_path)
    assert (len(source), source[2].name) == (3, "video 2")
    with pytest.raises(DatasetError, match=r"index\.jsonl, line 3 is not JSON"):
        source[1]


def test_overlapping_masks_and_hundreds_of_objects_fit(tmp_path: Path) -> None:
    size = (20, 400)
    masks = [square(3, x, 6, size) for x in range(380)]
    regions = tuple(
        SampleRegion(f"region {i}", Kind.OBJECT, i, masks=(RleMask.of(mask),))
        for i, mask in enumerate(masks, 1)
    )
    frames = (LoadedPicture(np.zeros((*size, 3), np.uint8)),)
    (sample,) = written(tmp_path, Sample("image 1", frames, regions, size=size))
    assert len(sample.regions) == 380
    for place in (0, 1, 300, 379):
        assert np.array_equal(sample.regions[place].mask(), masks[place])
    big = SampleRegion("big", Kind.OBJECT, 1000, masks=(RleMask.of(np.ones(size, np.bool_)),))
    part = SampleRegion("part", Kind.PART, 7, masks=(RleMask.of(square(0, 0, 2, size)),))
    few = replace(sample, regions=(regions[0], part, big))
    owners = load_owners(few, 0, 400)
    assert set(np.unique(owners).tolist()) == {1, 1000}  # the smaller one in front; parts own nothing
    assert (owners == 1).sum() == masks[0].sum() * 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": 3}, r"image is 3; it must be a string"),
        ({"image": None}, r"image is None; it must be a string"),
        ({"regions": None}, r"regions is None; it must be a list"),
        ({"regions": [7]}, r"regions\[0\] is 7; it must be an object"),
        ({"size": [12]}, r"size is \[12\]; it must be a list of 2 finite numbers"),
        ({"size": None, "regions": [{"mask": "x"}]}, r"size is missing; masks need it"),
        ({"regions": [{"mask": ["x"]}]}, r"regions\[0\]\.mask is \['x'\]; a mask is a string"),
        ({"regions": [{"kind": "thing"}]}, r"regions\[0\]\.kind is 'thing'; allowed: object, part"),
        ({"regions": [{"texts": {"label/fr": []}}]}, r"regions\[0\]\.texts\.label/fr unknown language 'fr'"),
        ({"regions": [{"texts": {"label/en": "cup"}}]}, r"texts\.label/en is 'cup'; it must be a list"),
        ({"regions": [{"prompts": {"1": {}}}]}, r"prompts\.1 is not a frame; allowed: 0\.\.0"),
        ({"regions": [{"prompts": {"0": {"box": [1, 1, NAN, 3]}}}]}, r"prompts\.0\.box is \[1, 1, nan, 3\]"),
        ({"regions": [{"prompts": {"0": {"box": [5, 1, 2, 3]}}}]}, r"box is .* allowed: \[x1, y1, x2, y2\]"),
        ({"regions": [{"prompts": {"0": {"clicks": [[1, 2, 3]]}}}]}, r"its label must be 1 .* or 0"),
        ({"frames": ["0.jpg"], "fps": NAN}, r"fps is nan; it must be a finite number"),
        ({"frames": ["0.jpg"], "fps": 10**400}, r"fps is 1000.*; it must be a finite number"),
        ({"regions": [{"clips": [[{"start": 0, "end": 9}]]}]}, r"clips\[0\]\[0\]\.end frames 0\.\.9"),
        ({"regions": [{"segments": [[1]]}]}, r"segments is \[\[1\]\]; a segment is"),
        ({"ids": "0.png"}, r"ids is of an older format; `python -m pam_ros\.simulator\.tools"),
    ],
)
def test_a_bad_line_of_a_shard_is_named_by_file_line_and_key(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    line = {"image": "0.jpg", "size": [12, 16], "regions": []}
    path = tmp_path / "index.jsonl"
    path.write_text(json.dumps(line) + "\n" + json.dumps(line | change) + "\n")
    with pytest.raises(DatasetError, match=rf"index\.jsonl, line 2, .*{message}"):
        list(ShardSource(tmp_path))


# ---- PAM's jsonl


def turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]


def question(task: Task, language: Language = EN, previous: str = "None") -> str:
    return TASK_TEXT[task, language].replace("{previous}", previous)


IMAGE: dict[str, Any] = {"type": "image", "image": "a.jpg", "bbox": [10, 5, 20, 10]}
VIDEO: dict[str, Any] = {
    "type": "video",
    "image_root": "v",
    "frames": [f"{i}.jpg" for i in range(6)],
    "masked_frames": [0, 3, "5.jpg"],
    "bbox": [[10, 5, 20, 10], None, [12, 5, 20, 10]],
    "points": [[[15, 8], [1, 1]], [[16, 8]], []],
    "labels": [[1, 0], [1], []],
}
LABEL = {"conversations": turns(question(Task.LABEL), "cup")}
FALLS = {"conversations": turns(question(Task.CLIP, previous="It stood."), "It falls.")}


def pam_file(tmp_path: Path, *lines: dict[str, Any]) -> PamJsonlSource:
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return PamJsonlSource(path)


def test_every_masked_frame_has_its_box_and_clicks(tmp_path: Path) -> None:
    (video,) = pam_file(tmp_path, VIDEO | FALLS)
    (region,) = video.regions
    assert dict(region.prompts) == {
        0: FramePrompt((10, 5, 30, 15), ((15, 8, 1), (1, 1, 0))),
        3: FramePrompt(None, ((16, 8, 1),)),
        5: FramePrompt((12, 5, 32, 15)),
    }
    assert region.clips == ((Clip(0, 6, {EN: ("It falls.",)}, previous={EN: "It stood."}),),)
    assert region.provenance.source == "PAM"
    clicked = region.prompt(3)
    assert clicked.box is None and clicked.points.tolist() == [[16, 8]] and clicked.labels.tolist() == [1]
    assert not region.can_be_prompted(1)
    with pytest.raises(DatasetError, match="no box and no positive click in frame 1"):
        region.prompt(1)


def test_values_of_the_first_frame_may_stand_without_a_list(tmp_path: Path) -> None:
    flat = VIDEO | {"masked_frames": None, "bbox": [10, 5, 20, 10], "points": [[15, 8]], "labels": [1]}
    (video,) = pam_file(tmp_path, flat | FALLS)
    assert dict(video.regions[0].prompts) == {0: FramePrompt((10, 5, 30, 15), ((15, 8, 1),))}
    (image,) = pam_file(tmp_path, IMAGE | {"bbox": [[10, 5, 20, 10]], "points": [], "labels": []} | LABEL)
    assert dict(image.regions[0].prompts) == {0: FramePrompt((10, 5, 30, 15))}
    unmasked = VIDEO | {"masked_frames": None, "bbox": [[1, 1, 5, 5], [2, 1, 5, 5]]}
    unmasked |= {"points": None, "labels": None}
    (video,) = pam_file(tmp_path, unmasked | FALLS)
    assert list(video.regions[0].prompts) == [0, 1]


def test_lines_about_the_same_prompts_are_one_region(tmp_path: Path) -> None:
    brief = {"conversations": turns(question(Task.BRIEF), "A red cup.")}
    table = IMAGE | {"bbox": [0, 0, 50, 50]} | {"conversations": turns(question(Task.LABEL, ZH), "桌子")}
    lines = (IMAGE | LABEL, VIDEO | FALLS, IMAGE | brief, table, VIDEO | FALLS)
    image, video = pam_file(tmp_path, *lines)
    assert (image.name, video.name, len(video.regions)) == ("image 1", "video 1", 1)
    cup, table_region = image.regions
    assert cup.texts == {(Task.LABEL, EN): ("cup",), (Task.BRIEF, EN): ("A red cup.",)}
    assert table_region.texts == {(Task.LABEL, ZH): ("桌子",)}
    assert len(video.regions[0].clips) == 2


def test_streaming_lines_have_a_box_for_each_event(tmp_path: Path) -> None:
    events = [
        {"event_id": 1, "frames": ["0.jpg", "1.jpg"], "gt": " It stands.", "box": [[1, 2, 4, 4]]},
        {"event_id": 2, "frames": ["2.jpg"], "gt": "它倒下了。", "box": [[3, 2, 4, 4]]},
    ]
    (video,) = pam_file(tmp_path, {"type": "video", "image_root": "/films", "annotations": events})
    (region,) = video.regions
    assert video.frames[2].path == Path("/films/2.jpg")
    assert dict(region.prompts) == {0: FramePrompt((1, 2, 5, 6)), 2: FramePrompt((3, 2, 7, 6))}
    assert region.clips == ((Clip(0, 2, {EN: ("It stands.",)}), Clip(2, 3, {ZH: ("它倒下了。",)})),)


def test_boxes_serve_as_masks_of_the_frames_near_them(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    for i in range(6):
        Image.fromarray(np.full((20, 40, 3), 20 * i, np.uint8)).save(tmp_path / f"v/{i}.jpg")
    (video,) = pam_file(tmp_path, VIDEO | FALLS)
    masks = load_masks(video, [0], range(6), 40)
    assert [int(mask.argmax(1).max()) for mask in masks[0]] == [10, 10, 10, 12, 12, 12]
    assert masks.sum((0, 2, 3)).tolist() == [20 * 20] * 6
    assert load_pixels(video, [0, 5], 8).mean((1, 2, 3)).round().tolist() == [0, 100]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense", "line 1 is not JSON"),
        ("[1]", "line 1 is a list; each line must be one JSON object"),
        ({"type": "image"}, "line 1, image is missing"),
        ({"image": "a"}, "line 1, type is missing"),
        ({"type": "video", "frames": []}, "line 1, frames names no frame"),
        (IMAGE | {"conversations": turns("Who?", "Me.")}, r"conversations\[0\]\.value 'Who\?' is not one"),
        (IMAGE | {"conversations": turns("Who?", "Me.")[:1]}, "line 1, conversations has 1 turns"),
        (IMAGE | LABEL | {"bbox": [1]}, r"line 1, bbox is \[1\]; it must be a list of 4 finite numbers"),
        (IMAGE | LABEL | {"bbox": [1, 1, NAN, 3]}, r"bbox is \[1, 1, nan, 3\]; it must be a list of 4"),
        (IMAGE | LABEL | {"points": [[1, INFINITY]], "labels": [1]}, r"points\[0\] is \[1, inf\]; it must"),
        (IMAGE | LABEL | {"bbox": [1, 1, 0, 3]}, r"line 1, bbox is .*, width and height above 0"),
        (IMAGE | LABEL | {"bbox": None}, "line 1, bbox is missing, and so are points"),
        (IMAGE | LABEL | {"points": [[1, 2]]}, r"line 1, points \[\[1, 2\]\] and labels \[\] differ"),
        (IMAGE | LABEL | {"points": [[1, 2]], "labels": [2]}, r"line 1, labels\[0\] is 2; allowed: 1"),
        (VIDEO | FALLS | {"masked_frames": [0, 3]}, "line 1, bbox has 3 entries for 2 masked frames"),
        (VIDEO | FALLS | {"masked_frames": [0, 3, 9]}, r"line 1, masked_frames\[2\] is 9; it must name"),
        (VIDEO | FALLS | {"labels": [[1, 0], [1], [0]]}, r"line 1, points\[2\] \[\] and labels \[0\] differ"),
        (
            {"image_root": "v", "annotations": [{"frames": ["0.jpg"], "gt": "x", "box": []}]},
            r"line 1, annotations\[0\]\.box is None",
        ),
    ],
)  # fmt: skip
def test_a_bad_line_of_pam_is_named(tmp_path: Path, line: object, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text((line if isinstance(line, str) else json.dumps(line)) + "\n", encoding="utf-8")
    with pytest.raises(DatasetError, match=rf"bad\.jsonl, .*{message}"):
        list(PamJsonlSource(path))


# ---- sources


def test_sources_are_joined_and_selected() -> None:
    joined = open_sources(["shapes:2", "shapes:3:4"])
    assert [len(sample) for sample in joined] == [1, 1, 4, 4, 4]
    assert joined[3].name == "shapes 1"
    with pytest.raises(IndexError):
        joined[5]
    last = SelectedSource(joined, [4], lambda sample: replace(sample, name="last"))
    assert [sample.name for sample in last] == ["last"]


def test_processes_divide_the_samples() -> None:
    source = open_sources(["shapes:5"])
    parts = [process_shard(source, rank, 2) for rank in (0, 1)]
    assert [[sample.name for sample in part] for part in parts] == [
        ["shapes 0", "shapes 2", "shapes 4"],
        ["shapes 1", "shapes 3"],
    ]
    with pytest.raises(DatasetError, match="5 samples are too few for 6 processes"):
        process_shard(source, 0, 6)


def test_unknown_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no data at 'nowhere'"):
        open_sources(["nowhere"])
    with pytest.raises(DatasetError, match=r"nowhere\.jsonl cannot be read"):
        open_sources([str(tmp_path / "nowhere.jsonl")])
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DatasetError, match="has no lines"):
        open_sources([str(tmp_path / "empty.jsonl")])


def test_coloured_shapes_are_drawn_under_their_masks() -> None:
    video = ShapesSource(3, 5)[2]
    masks = load_masks(video, [0, 1], [0, 4], 64)
    assert masks.shape == (2, 2, 64, 64) and masks.any((2, 3)).all() and not masks.all(0).any()
    pixels = load_pixels(video, [0, 4], 64)
    for place in range(2):
        inside = pixels[0][masks[place, 0]]
        assert np.abs(inside - np.median(inside, axis=0)).mean() < 12  # of one colour
    assert ShapesSource(3, 5)[2].regions == video.regions


def test_blank_lines_do_not_count_and_lines_keep_their_number(tmp_path: Path) -> None:
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    first.write_text('\n{"x": 1}\n\n{"x": 2}', encoding="utf-8")
    second.write_text('{"x": "é"}\n{"x": 4}\n', encoding="utf-8")
    lines = JsonLines([first, second])
    assert [line.values["x"] for line in lines] == [1, 2, "é", 4]
    assert "a.jsonl, line 4, x: no" in str(lines[1].error("x:", "no"))
    assert lines.path(2) == second


# ---- the older format


def test_id_pictures_become_masks(tmp_path: Path) -> None:
    ids = np.zeros((HEIGHT, WIDTH), np.uint16)
    ids[2:8, 4:12], ids[2:4, 4:12], ids[9:] = (
        1,
        1 + 256 * 4,
        7,
    )  # a cup, its lid, a table
    Image.fromarray(ids).save(tmp_path / "0.png")
    Image.fromarray(np.full((HEIGHT, WIDTH, 3), 90, np.uint8)).save(tmp_path / "0.jpg")
    cup = {
        "instance": 1, "part": 0, "category": "cup", "background": False, "box": [4, 2, 12, 8],
        "texts": {"label/en": ["cup"]}, "truth": {"function": "drink", "size": "small"},
        "events": [{"start": 0, "end": 1, "event": "still+falls", "texts": {"clip/zh": ["它在这里。"]}}],
        "segments": [[0, 1, "still"]],
        "backward": {"windows": [[{"start": 0, "end": 1, "texts": {}}]]}, "path_mm": [[0, 5, -2]],
    }  # fmt: skip
    line = {
        "image": "0.jpg",
        "ids": "0.png",
        "seed": 5,
        "scene": "table",
        "regions": [cup, cup | {"part": 4}],
    }
    (tmp_path / "index.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(DatasetError, match="older format"):
        ShardSource(tmp_path)[0]
    assert convert(tmp_path) == 1
    (sample,) = ShardSource(tmp_path)
    assert (sample.name, sample.size, sample.extra) == ("image 5", ids.shape, {"scene": "table", "seed": 5})
    whole, part = sample.regions
    assert np.array_equal(whole.mask(), ids % 256 == 1) and np.array_equal(part.mask(), ids == 1 + 256 * 4)
    assert (whole.kind, part.kind, part.part) == (Kind.OBJECT, Kind.PART, PARTS[4])
    assert [[mask.decode().sum() for mask in masks if mask] for masks in sample.other_masks] == [[3 * WIDTH]]
    events, backward = whole.clips
    assert events[0].events == ("still", "falls") and events[0].captions == {ZH: ("它在这里。",)}
    assert backward[0].backward and whole.path_m == ((0.0, 0.005, -0.002),)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.jpg", "index.jsonl"]
    assert convert(tmp_path) == 0  # nothing is left to convert
