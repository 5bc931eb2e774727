"""`pam` as its user runs it, with the real pam-tiny."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest
from fakes import FakeModel
from PIL import Image

from pam_ros import media, videos
from pam_ros.cli import evaluate, licences, output, perceive
from pam_ros.cli.main import EXIT_CODES, main
from pam_ros.errors import OutputError
from pam_ros.evaluation.bench_curves import write_curves
from pam_ros.model.loading.files import find_files
from pam_ros.share import version


def pam(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pam_ros.cli.main", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    y, x = np.mgrid[0:120, 0:160]
    image = np.stack([x, y, np.full_like(x, 90)], axis=2).astype(np.uint8)
    image[40:80, 50:110] = (200, 30, 30)
    media.write_image(tmp_path / "picture.png", image)
    return tmp_path / "picture.png"


def test_perceive_writes_masks_overlay_and_json(picture: Path, tmp_path: Path):
    result = pam(
        "perceive", str(picture), "--box", "50,40,110,80", "--box", "5,5,40,30", "--task", "label",
        "--task", "brief", "--language", "en", "--language", "zh", "--out", "out", cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / "out/result.json").read_text())
    assert [region["id"] for region in record["regions"]] == [1, 2]
    for region in record["regions"]:
        assert [text["language"] for text in region["texts"]] == ["en", "zh"]
        assert all(text["label"] and text["brief_caption"] for text in region["texts"])
        mask = media.read_mask(tmp_path / f"out/mask_{region['id']}.png")
        assert mask.shape == (120, 160)
        assert int(mask.sum()) == region["area_px"]
    assert media.read_image(tmp_path / "out/overlay.png").shape == (120, 160, 3)


def test_the_language_model_is_exported_with_the_command_that_serves_it(tmp_path: Path):
    result = pam("export-language", "pam-tiny", "language", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    words = result.stdout.split()
    assert words[:4] == ["vllm", "serve", "language", "--served-model-name"]
    assert words[4].startswith("pam-tiny-") and words[5:] == ["--enable-prompt-embeds"]
    assert json.loads((tmp_path / "language/config.json").read_text())["architectures"] == [
        "Qwen2ForCausalLM"
    ]
    result = pam("text-server", "http://127.0.0.1:9", "--model", "pam-tiny", cwd=tmp_path)
    assert result.returncode == 2
    assert "the text server http://127.0.0.1:9 cannot be used" in " ".join(result.stderr.split())


def test_a_mask_prompt_is_taken_as_it_is(picture: Path, tmp_path: Path):
    mask = np.zeros((120, 160), np.bool_)
    mask[40:80, 50:110] = True
    media.write_mask(tmp_path / "mask.png", mask)
    result = pam("perceive", str(picture), "--mask", "mask.png", "--out", "out", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    found = media.read_mask(tmp_path / "out/mask_1.png")
    assert np.logical_and(found, mask).sum() / np.logical_or(found, mask).sum() > 0.9


@pytest.fixture
def clip(picture: Path, tmp_path: Path) -> Path:
    """Two seconds at 5 frames a second."""
    image = media.read_image(picture)
    with media.VideoWriter(tmp_path / "clip.mp4") as film:
        for i in range(10):
            film.write(np.roll(image, 2 * i, axis=1), round(i / 5 * 1e9))
    return tmp_path / "clip.mp4"


@pytest.mark.usefixtures("clip")
def test_captions_end_at_the_named_times(tmp_path: Path):
    result = pam("caption", "clip.mp4", "--click", "80,60", "--at", "0.6,1.8", "--out", "o", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    captions = [json.loads(line) for line in (tmp_path / "o/captions.jsonl").read_text().splitlines()]
    assert [(c["clip_start_ns"], c["clip_end_ns"]) for c in captions] == [
        (0, 600_000_000),
        (600_000_000, 1_800_000_000),
    ]


@pytest.mark.usefixtures("clip")
def test_caption_writes_a_film_and_captions(tmp_path: Path):
    result = pam(
        "caption", "clip.mp4", "--click", "80,60", "--not", "5,5", "--every", "1", "--out", "o", cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    captions = [json.loads(line) for line in (tmp_path / "o/captions.jsonl").read_text().splitlines()]
    assert [(c["sequence"], c["frame_count"], c["region_id"], c["language"]) for c in captions] == [
        (0, 6, 1, "en"),  # from 0.0 to 1.0 s, both included
        (1, 5, 1, "en"),  # one carried over
    ]
    assert len((tmp_path / "o/regions.jsonl").read_text().splitlines()) == 10
    assert len(list(videos.read_video(tmp_path / "o/overlay.mp4"))) == 10


@pytest.fixture(scope="module")
def huge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("huge") / "huge.png"
    Image.new("1", (20000, 20000)).save(path)
    return path


@pytest.fixture
def broken(picture: Path, huge: Path, tmp_path: Path) -> None:
    """Picture files that cannot be used."""
    (tmp_path / "huge.png").symlink_to(huge)
    data = picture.read_bytes()
    (tmp_path / "half.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "empty.png").write_bytes(b"")


KETTLE = ("--box", "329,193,452,313")  # on the demo clip's first frame
KETTLE_PX = 8630
DEMO_CLIP = Path(__file__).resolve().parents[1] / "config" / "demo" / "clip.mp4"


def test_boxes_are_about_the_picture_as_viewers_show_it(tmp_path: Path):
    upright = Image.fromarray(next(videos.read_video(DEMO_CLIP)).image)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying: viewers turn it clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "phone.jpg", quality=95, exif=exif)
    result = pam("perceive", "phone.jpg", *KETTLE, "--out", "out", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (region,) = json.loads((tmp_path / "out/result.json").read_text())["regions"]
    assert region["area_px"] == pytest.approx(KETTLE_PX, rel=0.03)
    assert "kettle" in result.stdout
    assert media.read_image(tmp_path / "out/overlay.png").shape == (480, 640, 3)


def test_a_turned_video_is_captioned_to_its_end(tmp_path: Path):
    """As a phone writes it: stored lying, with a display matrix."""
    with av.open(str(tmp_path / "phone.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"bf": "0"})
        stream.height, stream.width, stream.pix_fmt = 640, 480, "yuv420p"
        stream.set_display_rotation(-90)
        for frame, _ in zip(videos.read_video(DEMO_CLIP), range(4), strict=False):
            lying = np.ascontiguousarray(np.rot90(frame.image))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(lying, format="rgb24")))
        container.mux(stream.encode())
    result = pam("caption", "phone.mp4", *KETTLE, "--out", "out", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    regions = [json.loads(line) for line in (tmp_path / "out/regions.jsonl").read_text().splitlines()]
    assert [round(line["stamp_ns"] / 1e8) for line in regions] == [0, 1, 2, 3]
    assert regions[0]["regions"][0]["area_px"] == pytest.approx(KETTLE_PX, rel=0.03)
    (caption,) = (json.loads(line) for line in (tmp_path / "out/captions.jsonl").read_text().splitlines())
    assert caption["clip_end_ns"] == regions[-1]["stamp_ns"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["perceive", "picture.png"], "--mask FILE, or --all"),
        (["perceive", "picture.png", "--not", "3,4"], "--not needs a --click, --box or --mask on the object"),
        (["perceive", "huge.png", "--click", "3,4"], "20000x20000 = 400 megapixels; at most 100 megapixels"),
        (["perceive", "half.png", "--click", "3,4"], "cannot read image half.png: image file is truncated"),
        (["perceive", "empty.png", "--click", "3,4"], "the file is empty"),
        (["perceive", "clip.mp4", "--click", "3,4"], "for a video use `pam caption`"),
        (["perceive", "picture.png", "--mask", "picture.png"], "looks like a photo"),
        (["caption", "empty.png", "--click", "3,4"], "the file is empty"),
        (["demo", "--clip", "nothing.mp4", "--click", "3,4"], "no video file at nothing.mp4"),
        (["caption", "rtsp://camera/1", "--click", "3,4"], "rtsp://camera/1 is a URL"),
        (["caption", "/dev/video97", "--click", "3,4"], "`pam view /dev/video97` shows a webcam"),
        (["perceive", "nothing.png", "--click", "3,4"], "no image file at nothing.png"),
        (["perceive", "picture.png", "--click", "3"], "--click takes 2 comma-separated numbers"),
        (["perceive", "picture.png", "--click", "nan,4"], "must be finite"),
        (["perceive", "picture.png", "--click", "1e300,4"], "must be finite"),
        (["perceive", "picture.png", "--click", "160,4"], "outside the 160x120 image"),
        (["perceive", "picture.png", "--box", "50,40,20,80"], "x1 < x2"),
        (
            ["perceive", "picture.png", "--box", "1,1,2,2", "--box", "3,3,4,4", "--click", "1,1"],
            "combined with one box",
        ),
        (["perceive", "picture.png", "--click", "3,4", "--task", "sing"], "label, explain, brief, detail"),
        (["perceive", "picture.png", "--click", "3,4", "--task", "clip"], "for clips, not for images"),
        (["perceive", "picture.png", "--click", "3,4", "--language", "fr"], "allowed: en, zh"),
        (["perceive", "picture.png", "--click", "3,4", "--model", "pam-huge"], "unknown model 'pam-huge'"),
        (["perceive", "picture.png", "--click", "3,4", "--model", "pam-3b"], "fetch pam-3b --accept-licence"),
        (["perceive", "picture.png", "--click", "3,4", "--device", "abacus"], "unknown device 'abacus'"),
        (["perceive", "picture.png", "--click", "3,4", "--sam2", "/nope"], "no SAM 2 weights at /nope"),
        (
            ["perceive", "picture.png", "--click", "3,4", "--sam2", "picture.png"],
            "includes its SAM 2 weights",
        ),
        (["perceive", "picture.png", "--click", "3,4", "--model", "a/b"], "a/b is neither a folder"),
        (["caption", "picture.txt", "--click", "3,4"], "no video file at picture.txt"),
        (
            ["caption", "clip.mp4", "--click", "3,4", "--at", "1,x"],
            "as in 3,7.5,12, not '1,x'",
        ),
        (["caption", "clip.mp4", "--click", "3,4", "--at", "9"], "above 0 s and at most"),
        (["caption", "clip.mp4", "--click", "3,4", "--at", "1e-9"], "must last more than 0.02 s"),
        (
            ["caption", "clip.mp4", "--click", "3,4", "--at", "0.7,0.3"],
            "order: 0.3 comes after 0.7",
        ),
        (["perceive", "picture.png", "--all", "--box", "9,9,1,1", "--model", "/nope"], "box"),
        (["find", "picture.png", "it", "--box", "9000,9,9001,11", "--model", "/nope"], "outside the"),
        (["find", "picture.png", "x" * 600, "--model", "/nope"], "the request has 600 characters"),
        (["evaluate", "--data", "/nope"], "no data at '/nope'"),
        (["perceive", "picture.png", "--all", "--max-regions", "0"], "'--max-regions': 0; allowed: 1 to 256"),
        (["perceive", "picture.png", "--click", "39_0,1"], "--click takes 2 comma-separated numbers"),
        (
            ["perceive", "picture.png", "--click", "3,4", "--out", "x" * 300],
            "File name too long; choose a shorter",
        ),
        (["caption", "clip.mp4", "--click", "3,4", "--out", "x" * 300], "File name too long; choose another"),
        (
            ["perceive", "picture.png", "--click", "3,4", "--out", ""],
            "'--out': the name is empty; give a folder",
        ),
        (["evaluate", "--page", ""], "'--page': the name is empty; give a folder, or . for the current one"),
        (["perceive", "picture.png", "--mask", ""], ". (or an empty name) is a folder"),
        (["perceive", "picture.png", *["--box", "1,1,9,9"] * 257], "257 regions are given; at most 256"),
        (["caption", "clip.mp4", "--click", "3,4", "--at", "1", "--every", "1"], "not both"),
        (
            ["caption", "clip.mp4", "--click", "3,4", "--every", "0"],
            "--every must be 0.1 to 3600 seconds, not 0",
        ),
        (["parity", "."], "not a parity folder"),
        (["evaluate", "--model", "pam-huge"], "unknown model 'pam-huge'"),
        (["bench", "--model", "pam-huge"], "unknown model 'pam-huge'"),
        (["demo", "--model", "pam-huge"], "unknown model 'pam-huge'"),
        (["soak", "--model", "pam-huge"], "unknown model 'pam-huge'"),
        (["bag", "drive", "--model", "pam-huge"], "unknown model 'pam-huge'"),
        (["fetch", "pam-huge"], "available: "),
        (["soak", "--minutes", "-1"], "Invalid value for '--minutes': -1; allowed: 0.1 to 100000"),
        (["soak", "--hostile", "--simulated-hours", "1"], "cannot be combined"),
        (["soak", "--simulated-hours", "0"], "'--simulated-hours': 0; allowed: 0.02 to 1000"),
        (["soak", "--minutes", "nan"], "nan; allowed: 0.1 to 100000"),
        (["soak", "--limit", "-3"], "Invalid value for '--limit': -3; allowed: 0 to 1000"),
        (["demo", "--period", "-1"], "Invalid value for '--period': -1; allowed: 0.1 to 3600"),
        (["demo", "--period", "inf"], "inf; allowed: 0.1 to 3600"),
        (["demo", "--clip", "nope.mp4"], "no video file at nope.mp4"),
        (["demo", "--click", "9999,5"], "outside the 640x480 image"),
        (["bench-node", "--size", "nan,480"], "'nan,480'; allowed: whole pixels, at least 16,16"),
        (["bench-node", "--rate", "nan"], "nan; allowed: 0.1 to 240"),
        (["perceive", "picture.png", "--all", "--budget", "nan"], "nan; allowed: 0.001 to 60"),
        (["find", "picture.png", "a cup", "--min-score", "nan"], "nan; allowed: 0 to 1"),
        (["caption", "clip.mp4", "--click", "3,4", "--every", "inf"], "0.1 to 3600 seconds, not inf"),
        (["scenes", "show", "--open-meshes", "7"], "7; allowed: 0 to 1"),
        (
            ["scenes", "show", "--count", "-1"],
            "Invalid value for '--count': -1; allowed: 0 or more",
        ),
        (["view", "--port", "0"], "Invalid value for '--port': 0; allowed: 1 to 65535"),
        (["perceive", "[bold]gone[/].png", "--click", "3,4"], "no image file at [bold]gone[/].png"),
        (["-q", "-v", "models"], "--quiet and --verbose cannot be combined"),
    ],
)
@pytest.mark.usefixtures("picture", "clip", "broken")
def test_bad_input_gets_one_clear_line(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["pam", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert words in said.splitlines()[-1]  # the sentence is not broken, as nobody sees a terminal
    assert "Traceback" not in said


@pytest.mark.parametrize(
    "arguments",
    [
        ["perceive", "picture.png", "--click", "3,4", "--out", "{place}"],
        ["caption", "clip.mp4", "--click", "3,4", "--out", "{place}"],
        ["evaluate", "--count", "1", "--json", "{place}/out.json"],
        ["evaluate", "--count", "1", "--page", "{place}"],
        ["evaluate", "--count", "1", "--cache", "{place}"],
        ["demo", "--out", "{place}"],
        ["soak", "--out", "{place}"],
        ["scenes", "render", "--count", "1", "--out", "{place}"],
        ["scenes", "show", "--count", "1", "--out", "{place}/sheet.png"],
    ],
    ids=lambda arguments: " ".join(arguments[:-1]),
)
@pytest.mark.parametrize("place", ["/proc/pam", "picture.png"])
def test_an_unwritable_output_is_refused_before_anything_is_loaded(
    arguments: list[str],
    place: str,
    picture: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    with media.VideoWriter(tmp_path / "clip.mp4") as film:
        film.write(media.read_image(picture), 0)
    monkeypatch.chdir(tmp_path)
    for module in (evaluate, perceive):
        monkeypatch.setattr(module, "load", lambda *options: pytest.fail("it was loaded"))
    monkeypatch.setattr(sys, "argv", ["pam", *(argument.format(place=place) for argument in arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert f"cannot write to folder {place}" in said


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        (["perceive", "overlay.png", "--click", "3,4", "--out", "."], "overlay.png"),
        (["perceive", "picture.png", "--mask", "mask_5.png", "--out", "."], "mask_5.png"),
        (["find", "overlay.png", "a cup", "--out", "."], "overlay.png"),
        (["caption", "overlay.mp4", "--click", "3,4", "--out", "."], "overlay.mp4"),
        (["caption", "link.mp4", "--click", "3,4", "--out", "."], "overlay.mp4"),
        (["demo", "--clip", "overlay.mp4", "--click", "3,4", "--out", "."], "overlay.mp4"),
        (["evaluate", "--data", "data", "--json", "data/index.jsonl"], "data/index.jsonl"),
        (["evaluate", "--data", "data", "--page", "data/page"], "data/page"),
        (["bench-curves", "curves.csv", "--plot", "curves.csv"], "curves.csv"),
        (["export-language", "model", "model"], "model/config.json"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_an_output_that_is_an_input_is_refused_before_anything_is_loaded(
    arguments: list[str],
    output: str,
    picture: Path,
    clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    picture.with_name("overlay.png").write_bytes(picture.read_bytes())
    clip.rename(tmp_path / "overlay.mp4")
    (tmp_path / "link.mp4").symlink_to("overlay.mp4")
    mask = np.zeros((120, 160), np.bool_)
    mask[40:80, 50:110] = True
    media.write_mask(tmp_path / "mask_5.png", mask)
    write_curves({"segment": {1: 2.0}}, tmp_path / "curves.csv")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/index.jsonl").write_text("{}\n")
    (tmp_path / "model").symlink_to(find_files("pam-tiny", None).folder)
    monkeypatch.chdir(tmp_path)
    for module in (evaluate, perceive):
        monkeypatch.setattr(module, "load", lambda *options: pytest.fail("it was loaded"))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr(sys, "argv", ["pam", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert output in said and "choose another" in said and ("input" in said or "data" in said)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def with_fake(
    arguments: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch, model: FakeModel | None = None
) -> int:
    """Runs `pam` in this process and in the folder, with a model that computes nothing; its exit code."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(perceive, "load", lambda options: model or FakeModel(max_regions=options.regions))
    monkeypatch.setattr(sys, "argv", ["pam", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


@pytest.mark.usefixtures("clip")
def test_no_summary_of_an_earlier_run_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    command = ["caption", "clip.mp4", "--box", "5,5,60,60", "--out", "out"]
    assert with_fake([*command, "--summary"], tmp_path, monkeypatch) == 0
    assert (tmp_path / "out/summary.jsonl").read_text()
    assert with_fake(command, tmp_path, monkeypatch) == 0
    assert sorted(os.listdir(tmp_path / "out")) == ["captions.jsonl", "overlay.mp4", "regions.jsonl"]


def test_a_failed_write_leaves_no_result_of_an_earlier_run(
    picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    command = ["perceive", str(picture), "--out", "out", "--box", "5,5,60,60"]
    assert with_fake([*command, "--box", "5,5,30,30"], tmp_path, monkeypatch) == 0
    write_mask, out = media.write_mask, tmp_path / "out"

    def fail(path: Path, mask: object) -> None:
        raise OutputError(f"cannot write {path}: the disk is full")

    monkeypatch.setattr(media, "write_mask", fail)
    assert with_fake(command, tmp_path, monkeypatch) == 2
    assert sorted(os.listdir(out)) == ["mask_1.png", "mask_2.png", "overlay.png"]
    monkeypatch.setattr(media, "write_mask", write_mask)
    assert with_fake(command, tmp_path, monkeypatch) == 0
    assert sorted(os.listdir(out)) == ["mask_1.png", "overlay.png", "result.json"]


@pytest.mark.usefixtures("clip")
def test_a_model_is_loaded_for_all_regions_of_a_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    boxes = [part for x in range(40) for part in ("--box", f"{x},5,{x + 9},60")]
    assert with_fake(["caption", "clip.mp4", *boxes, "--out", "out"], tmp_path, monkeypatch) == 0
    captions = (tmp_path / "out/captions.jsonl").read_text().splitlines()
    assert [json.loads(line)["region_id"] for line in captions] == list(range(1, 41))


def test_regions_that_are_left_out_are_noted(
    picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    boxes = [part for x in range(0, 150, 5) for part in ("--box", f"{x},5,{x + 4},60")]
    assert with_fake(["perceive", str(picture), "--all", *boxes], tmp_path, monkeypatch) == 0
    assert "30 regions were found, at most 24 are listed; those with the lowest" in capsys.readouterr().err


@pytest.mark.usefixtures("clip")
def test_a_video_that_shrinks_while_it_is_read_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    whole = videos.read_video
    monkeypatch.setattr(videos, "read_video", lambda *given: islice(whole(*given), 4))
    command = ["caption", "clip.mp4", "--box", "5,5,60,60", "--out", "out"]
    assert with_fake(command, tmp_path, monkeypatch) == 0
    assert "warning: the video ended after 4 of 10 frames" in capsys.readouterr().err


def test_a_score_of_0_fits_everything_and_every_region_keeps_its_id(
    picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    boxes = [(5, 5, 40, 30), (50, 40, 110, 80), (60, 90, 100, 110)]
    options = [part for box in boxes for part in ("--box", ",".join(map(str, box)))]
    command = ["find", str(picture), "something else", *options, "--out", "out"]
    assert with_fake([*command, "--min-score", "0"], tmp_path, monkeypatch) == 0
    lines = capsys.readouterr().out.splitlines()
    found = [re.match(r"fits: region \d, score 0\.\d\d, box (\d+,\d+,\d+,\d+): .", line) for line in lines]
    assert sorted(each[1] for each in found if each) == sorted(options[1::2])
    record = json.loads((tmp_path / "out/result.json").read_text())
    assert [region["id"] for region in record["regions"]] == [1, 2, 3]
    assert sorted(path.name for path in (tmp_path / "out").glob("mask_*")) == [
        "mask_1.png", "mask_2.png", "mask_3.png",
    ]  # fmt: skip
    assert with_fake(command, tmp_path, monkeypatch) == 1  # the fake's scores are below the default


def test_a_picture_whose_name_is_no_utf8(
    picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    name = os.fsdecode(b"bad\xff.png")
    picture.rename(tmp_path / name)
    assert with_fake(["perceive", name, "--box", "5,5,60,60", "--out", "out"], tmp_path, monkeypatch) == 0
    assert json.loads((tmp_path / "out/result.json").read_bytes().decode())["image"] == name


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("fetch pam-huge 2>&-", ""),
        ("--help >/dev/full", "error: cannot write the results to stdout: No space left on device; redirect"),
        ("models >/dev/full", "error: cannot write the results to stdout: No space left on device; redirect"),
    ],
)
def test_an_error_has_its_exit_code_whatever_the_streams(command: str, error: str, tmp_path: Path):
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m pam_ros.cli.main {command}"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr[: len(error)]) == (2, "", error)
    assert "Traceback" not in done.stderr


def test_stderr_never_fails_and_stdout_does_once():
    with Path("/dev/full").open("w") as full:
        stderr, stdout = (output.guarded(full.fileno(), name, None) for name in ("stderr", "stdout"))
        for _ in range(2):
            print("lost", file=stderr, flush=True)
        print("lost", file=stdout)
        with pytest.raises(OutputError, match="cannot write the results to stdout: No space left on device"):
            stdout.flush()
        stdout.close()  # as at the end of the process, where nothing may fail again


def test_a_stream_shows_characters_that_it_lacks_as_escapes(tmp_path: Path):
    path = tmp_path / "said.txt"
    with path.open("w", encoding="ascii") as file:
        print("水壶", os.fsdecode(b"\xff"), file=output.guarded(file.fileno(), "stdout", file), flush=True)
    assert path.read_text() == "\\u6c34\\u58f6 \\udcff\n"


@pytest.mark.parametrize("command", ["perceive picture.png --click 3,4", "evaluate", "bench", "bag x"])
@pytest.mark.usefixtures("picture")
def test_a_wrong_model_is_refused_before_torch_is_imported(command: str, tmp_path: Path):
    script = (
        "import sys\n"
        "from pam_ros.cli.main import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    print('torch' in sys.modules)\n"
    )
    arguments = [*command.split(), "--model", "pam-huge"]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (2, "False")
    assert "unknown model 'pam-huge'" in done.stderr


def test_without_the_training_packages_scenes_name_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for module in [name for name in sys.modules if name.startswith("pam_ros.simulator.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "mujoco", None)
    monkeypatch.setattr(sys, "argv", ["pam", "scenes", "render", "--out", str(tmp_path / "scenes")])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert "pip install '.[training]'" in " ".join(capsys.readouterr().err.split())


def test_stale_masks_go_and_other_files_stay(picture: Path, tmp_path: Path):
    for name in ("mask_1.png", "mask_7.png", "mask_mine.png", "other.png"):
        (tmp_path / name).write_bytes(b"old")
    mask = np.zeros((120, 160), np.bool_)
    mask[40:80, 50:110] = True
    media.write_mask(tmp_path / "prompt.png", mask)
    result = pam("perceive", str(picture), "--mask", "prompt.png", "--out", ".", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert media.read_mask(tmp_path / "mask_1.png").any()
    assert sorted(path.name for path in tmp_path.glob("*.png")) == [
        "mask_1.png", "mask_mine.png", "other.png", "overlay.png", "picture.png", "prompt.png",
    ]  # fmt: skip


def test_models_are_listed_with_their_licences(tmp_path: Path):
    listed = " ".join(pam("models", cwd=tmp_path).stdout.split())
    assert all(name in listed for name in ("pam-tiny", "pam-1.5b", "pam-3b", "RESEARCH"))


# ---- what all commands have in common

ROOT = Path(__file__).resolve().parents[1]


def test_results_are_json_on_stdout_and_nothing_else(picture: Path, tmp_path: Path):
    result = pam("-q", "perceive", str(picture), "--box", "50,40,110,80", "--json", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    (region,) = (json.loads(line) for line in result.stdout.splitlines())
    assert region == json.loads((tmp_path / "out/perceive/result.json").read_text())["regions"][0]
    models = json.loads(pam("models", "--json", cwd=tmp_path).stdout)
    assert [(model["model"], model["installed"], model["fix"]) for model in models] == [
        ("pam-1.5b", False, "pam fetch pam-1.5b"),
        ("pam-3b", False, "pam fetch pam-3b --accept-licence"),
        ("pam-tiny", True, ""),
    ]


def test_help_shows_the_summary_of_every_command_in_full():
    listed = pam("--help", cwd=ROOT).stdout.partition("Commands:")[2].splitlines()[1:]
    assert len(listed) > 15
    assert [line for line in listed if not line.endswith(".") or line.endswith("...")] == []


def test_figures_go_to_a_file_or_to_stdout_with_the_table_elsewhere(tmp_path: Path):
    file = tmp_path / "new" / "figures.json"
    assert output.json_target(file) == file and file.parent.is_dir()
    assert output.table_console(file).file is sys.stdout
    target = output.json_target(Path("-"))
    assert target == Path("/dev/stdout")
    assert output.table_console(target) is output.console


def test_the_version_is_that_of_the_package(tmp_path: Path):
    assert pam("--version", cwd=tmp_path).stdout == f"pam_ros {version()}\n"
    assert f"<version>{version()}</version>" in (ROOT / "package.xml").read_text()


def test_a_verbose_error_comes_with_its_traceback(tmp_path: Path):
    quiet, plain, verbose = (
        pam(*options, "perceive", "gone.png", "--click", "1,1", cwd=tmp_path)
        for options in (["-q"], [], ["-v"])
    )
    assert quiet.stderr == plain.stderr == "error: no image file at gone.png\n"
    assert "Traceback" in verbose.stderr and verbose.stderr.endswith(plain.stderr)
    assert {quiet.returncode, plain.returncode, verbose.returncode} == {2}


def test_shells_can_complete_commands(tmp_path: Path):
    shown = subprocess.run(
        [sys.executable, "-c", "import sys; sys.argv = ['pam']; from pam_ros.cli.main import main; main()"],
        env={**os.environ, "_PAM_COMPLETE": "complete_bash", "COMP_WORDS": "pam perc", "COMP_CWORD": "1"},
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert shown.stdout.split() == ["perceive"]


def test_progress_is_a_line_every_few_seconds_without_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(output, "EVERY_S", 0.05)
    with output.progress_bar("frames", 9) as advance:
        advance()
        time.sleep(0.3)
    with output.working("loading [bold]x[/]") as report:
        time.sleep(0.3)
        report("reading [red]y[/]")
        time.sleep(0.3)
    said = capsys.readouterr().err
    for line in ("frames: 1 of 9 (0 s)", "loading [bold]x[/] (0 s)", "reading [red]y[/] (0 s)"):
        assert line in said.splitlines()


def test_the_licences_of_all_dependencies_are_listed(capsys: pytest.CaptureFixture[str]):
    licences.licences(as_json=True)
    found = {each["package"]: each["licence"] for each in json.loads(capsys.readouterr().out)}
    assert (found["psutil"], found["transformers"]) == ("BSD-3-Clause", "Apache 2.0 License")
    assert found["setuptools"] == "MIT", "by its text only"
    assert len(found) > 50
    assert sum(licence == licences.UNKNOWN for licence in found.values()) < 0.05 * len(found)
    assert [name for name, licence in found.items() if re.search(r"AGPL|Affero|^GPL", licence)] == []


def test_the_exit_codes_are_documented():
    page = (ROOT / "docs" / "command_line.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| (\d+) \| (.+) \|$", page, re.M)
    assert {int(code): meaning for code, meaning in listed} == EXIT_CODES
