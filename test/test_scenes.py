"""Rendered scenes: the same for the same seed, with correct masks, boxes, depth and texts.

They render with MuJoCo, which headless needs Debian's libegl1 and libgl1-mesa-dri (MUJOCO_GL=egl).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from pam_ros.cli.scenes import scenes_app
from pam_ros.datasets.schema import Kind
from pam_ros.datasets.shards import ShardSource, ShardWriter
from pam_ros.records import Language
from pam_ros.simulator.assets.catalogue import (
    CATEGORIES,
    HELD_OUT_FAMILIES,
    build_shape,
    draw_object,
    split_of_number,
)
from pam_ros.simulator.export import exported_image, exported_video, with_depth
from pam_ros.simulator.render import PARTS, SceneRenderer, first_states
from pam_ros.simulator.samples import (
    LARGEST_PART,
    ImageSample,
    VideoSample,
    image_sample,
    video_play,
    video_sample,
)
from pam_ros.simulator.scene.rooms import KINDS
from pam_ros.simulator.scene.scenes import draw_scene, footprint
from pam_ros.simulator.spec import CameraSpec, SceneSpec
from pam_ros.simulator.texts.judge import judge

SMALL = (192, 144)


@pytest.fixture(scope="module")
def images() -> list[ImageSample]:
    return [image_sample(seed, "train", *SMALL) for seed in range(4)]


@pytest.fixture(scope="module")
def video() -> VideoSample:
    return video_sample(1, "train", 24, 6.0, *SMALL)


def test_the_same_seed_gives_the_same_bytes(images: list[ImageSample]) -> None:
    again = image_sample(2, "train", *SMALL)
    assert again.rgb.tobytes() == images[2].rgb.tobytes()
    assert again.instances.tobytes() == images[2].instances.tobytes()
    assert [region.texts for region in again.regions] == [region.texts for region in images[2].regions]
    assert images[1].rgb.tobytes() != images[2].rgb.tobytes()
    assert image_sample(2, "val", *SMALL).rgb.tobytes() != images[2].rgb.tobytes()


def test_masks_boxes_and_parts_agree(images: list[ImageSample]) -> None:
    for sample in images:
        assert sample.rgb.shape == (144, 192, 3) and sample.rgb.dtype == np.uint8 and sample.rgb.std() > 8
        assert sample.regions
        for region in sample.regions:
            mask = sample.mask(region)
            x1, y1, x2, y2 = region.box_xyxy
            assert mask.sum() == region.pixels > 0
            assert mask[y1:y2, x1:x2].sum() == mask.sum() and mask[y1].any() and mask[y2 - 1].any()
            assert mask.sum() < 0.95 * mask.size
            assert (
                judge(region.texts[next(iter(region.texts))], Language.EN).category == region.facts.category
            )
        assert sample.instances.max() <= len(sample.scene.objects) + len(sample.scene.fixtures)
        assert not (sample.parts[sample.instances == 0]).any()


def test_a_part_that_covers_its_object_is_left_out() -> None:
    image = image_sample(1_000_017, "test", *SMALL)
    (spatula,) = (each for each in image.regions if each.facts.category == "spatula")
    seen = image.parts[image.instances == spatula.instance]
    assert np.count_nonzero(seen == PARTS.index("handle")) > LARGEST_PART * len(seen)
    assert [each.part for each in image.regions if each.instance == spatula.instance] == [""]


def test_depth_and_camera_reproduce_the_scene() -> None:
    scene = replace(draw_scene(5, "train", "table"), objects=())
    with SceneRenderer(scene, *SMALL) as renderer:
        frame = renderer.render([])
    table = frame.instances == scene.fixture_id(0)
    rows, columns = np.nonzero(table)
    rays = np.linalg.inv(frame.intrinsics) @ np.stack([columns, rows, np.ones(len(rows))])
    points = frame.pose[:3, :3] @ (rays * frame.depth_m[table]) + frame.pose[:3, 3:]
    assert np.median(np.abs(points[2])) < 0.01  # the table's top is z = 0


def _alone(category: str) -> SceneSpec:
    """A scene with one object of the category on a table."""
    base = draw_scene(0, "train", "table")
    item = replace(draw_object(np.random.default_rng(7), "train", category), place="table")
    mark, height = footprint(item)
    reach = float(np.linalg.norm([*mark.half, height / 2]))
    eye = (0.4 * reach, -2.3 * reach, 1.9 * reach)
    return replace(base, objects=(item,), camera=CameraSpec(eye, (0.0, 0.0, height * 0.4), 0.0, 55.0))


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_category_renders(category: str) -> None:
    scene = _alone(category)
    assert sum(len(piece.mesh.faces) for piece in scene.objects[0].shape.pieces) < 6000
    with SceneRenderer(scene, 128, 96) as renderer:
        frame = renderer.render(first_states(scene))
    seen = frame.instances == 1
    assert seen.sum() > 150
    assert frame.rgb[seen].std() > 4  # shaded, not a flat patch


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_objects_do_not_overlap(kind: str, split: str) -> None:
    pairs = 0
    for seed in range(12):
        scene = draw_scene(seed, split, kind)
        assert scene.kind == kind and scene.objects
        pairs += len(scene.objects) - 1
        marks = [(footprint(item)[0], item.position[2]) for item in scene.objects]
        for index, (mark, level) in enumerate(marks):
            assert not any(
                mark.overlaps(other, 0.0) for other, where in marks[:index] if abs(where - level) < 0.1
            )
    assert pairs > 12


def test_splits_share_no_meshes_textures_or_backgrounds() -> None:
    seen: dict[str, set[str]] = {}
    for split in ("train", "val", "test"):
        items = seen.setdefault(split, set())
        for seed in range(20):
            scene = draw_scene(seed, split)
            items |= {item.mesh_id for item in scene.objects}
            items |= {f"print/{item.print_seed}" for item in scene.objects}
            items |= {
                f"{family}#{number}"
                for fixture in scene.fixtures
                if fixture.texture
                for family, number in [fixture.texture]
            }
    assert (
        not seen["train"] & seen["test"]
        and not seen["train"] & seen["val"]
        and not seen["val"] & seen["test"]
    )
    for family, owner in HELD_OUT_FAMILIES.items():
        assert not any(
            name.startswith(f"{family}#") for split, names in seen.items() if split != owner for name in names
        )
    assert {split_of_number(number) for number in range(10)} == {"train", "val", "test"}
    assert build_shape("mug", 0).bounds()[1].tolist() != build_shape("mug", 9).bounds()[1].tolist()


def test_sizes_vary_and_are_named() -> None:
    rng = np.random.default_rng(0)
    items = [draw_object(rng, "train", category) for category in ("mug", "can", "hammer") for _ in range(40)]
    assert {item.size for item in items} == {"small", "medium", "large"}
    small, large = (
        np.mean([item.scale for item in items if item.size == size]) for size in ("small", "large")
    )
    assert small < 0.85 < 1.15 < large


def test_errors_name_the_unknown_split_or_kind() -> None:
    with pytest.raises(ValueError, match="unknown split 'dev'; allowed: train, val, test"):
        image_sample(0, "dev")
    with pytest.raises(ValueError, match="unknown kind of scene 'moon'"):
        draw_scene(0, "train", "moon")
    with pytest.raises(ValueError, match="at least 2 frames"):
        video_play(0, "train", frames=1)


def test_shards_contain_the_rendered_samples(
    tmp_path: Path, images: list[ImageSample], video: VideoSample
) -> None:
    writer = ShardWriter(tmp_path)
    writer.add("0000", with_depth(exported_image(images[1]), images[1], tmp_path, "0000"))
    writer.add("v0", exported_video(video))
    writer.close()
    image, clip = ShardSource(tmp_path)
    for true, region in zip(images[1].regions, image.regions, strict=True):
        assert np.array_equal(region.mask(), images[1].mask(true))
        assert region.box_xyxy() == true.box_xyxy and region.object_id == true.instance
        assert (region.part, region.kind is Kind.PART) == (true.part, bool(true.part))
        assert all(texts and all(texts) for texts in region.texts.values()) and len(region.texts) == 8
        assert region.provenance.annotator == "simulator" and region.provenance.confidence == 1.0
    # Every pixel of an object belongs to a whole region or to one of the others.
    whole = [region.mask() for region in image.regions if region.kind is not Kind.PART]
    covered = sum(np.stack([*whole, *(masks[0].decode() for masks in image.other_masks)]).astype(int))
    assert np.array_equal(covered, images[1].instances > 0)
    assert len(clip) == 24 and clip.actor == video.actor and clip.is_video
    for item, region in zip(video.objects, clip.regions, strict=True):
        for frame in (0, 23):
            assert np.array_equal(region.mask(frame), video.mask(item.instance, frame))
        for part in (*region.clips[0], *region.clips[1]):
            assert part.end > part.start and part.captions[Language.EN] and part.captions[Language.ZH]
    depth = np.asarray(Image.open(tmp_path / image.extra["depth_mm"]))
    assert np.abs(depth / 1000 - images[1].depth_m)[images[1].depth_m < 60].max() < 0.0011


def test_the_commands(tmp_path: Path) -> None:
    runner = CliRunner()
    done = runner.invoke(
        scenes_app,
        ["render", "--out", str(tmp_path / "a"), "--count", "1", "--width", "96", "--height", "72"],
    )
    assert done.exit_code == 0 and (tmp_path / "a" / "index.jsonl").exists()
    done = runner.invoke(
        scenes_app, ["show", "--out", str(tmp_path / "sheet.png"), "--count", "2", "--videos", "0"]
    )
    assert done.exit_code == 0 and (tmp_path / "sheet.png").stat().st_size > 10_000
    done = runner.invoke(scenes_app, ["render", "--out", str(tmp_path), "--split", "dev"])
    assert done.exit_code == 2 and "dev" in done.output
