"""`pam bench`: figures, limits and reasons on both paths; comparison; bad input."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from tiny_models import click, picture, tiny_pam

from pam_ros.cli.main import main
from pam_ros.errors import ModelNotFoundError
from pam_ros.evaluation.bench import FIGURES, BenchPlan, bytes_per_token, run_bench
from pam_ros.evaluation.bench_curves import CURVES, measure_curves, read_curves, write_curves
from pam_ros.evaluation.bench_device import Times
from pam_ros.evaluation.bench_paths import (
    CLIP_FRAMES,
    BenchPath,
    FastPath,
    PlainPath,
    clip_tokens,
    noise_frames,
)
from pam_ros.model.engines import Engines
from pam_ros.model.loading.random_weights import find_everything, random_architecture

MEASURED_ON_A_CPU = {
    "preprocess_ms", "click_to_mask_ms", "click_to_first_token_ms", "four_tasks_ms", "decode_tok_s",
    "decode_share_of_limit", "eight_labels_ms", "track_fps_1", "track_fps_5", "clip_caption_64_ms",
    "configure_eager_s", "configure_first_s", "configure_again_s",
}  # fmt: skip


def pam(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    """Runs a command line in this process; its exit status."""
    monkeypatch.setattr("sys.argv", ["pam", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def test_every_figure_of_the_plain_path_has_a_value_or_a_reason() -> None:
    result = run_bench(tiny_pam, BenchPlan(repeats=1), device="cpu").as_json()
    assert list(result)[2:-1] == list(FIGURES)
    missing = {key for key in FIGURES if result[key] is None}
    assert set(FIGURES) - missing - {
        "click_to_mask_p95_ms", "decode_limit_tok_s", "track_p99_ms_1", "track_p99_ms_5",
    } == MEASURED_ON_A_CPU  # fmt: skip
    assert result["reasons"].keys() == missing
    assert all(result[key] > 0 for key in FIGURES if key not in missing)
    assert all(result["limits"][key] > 0 for key in ("copy_tb_s", "read_tb_s", "matmul_tflop_s"))
    assert result["decode_share_of_limit"] == pytest.approx(
        result["decode_tok_s"] / result["decode_limit_tok_s"]
    )
    assert result["about"]["engine"] == "plain"


def test_a_command_measures_pam_tiny_and_compares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "tiny.json"
    only = "preprocess_ms,click_to_mask_ms,peak_gib_image"
    arguments = ("--device", "cpu", "--repeats", "1", "--only", only, "--json", str(file))
    assert pam(monkeypatch, "bench", *arguments) == 0
    printed = capsys.readouterr().out
    assert re.search(r"no value \(no CUDA device\): .*\bpeak_gib_image\b", printed)
    assert "decode_tok_s" not in printed
    result = json.loads(file.read_text())
    assert result["click_to_mask_ms"] > result["preprocess_ms"] > 0
    assert result["decode_tok_s"] is None
    assert result["reasons"]["decode_tok_s"] == "not selected"
    assert result["about"]["model"] == "pam-tiny"
    other = tmp_path / "other.json"
    other.write_text(json.dumps(result | {"preprocess_ms": 3 * result["preprocess_ms"]}))
    assert pam(monkeypatch, "bench", "--compare", str(file), str(other)) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "preprocess_ms" in line]
    assert line.split("│")[-2].strip() == "3"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--engine", "slow"], "unknown engine 'slow'; allowed: plain, fast"),
        (["--engine", "fast", "--device", "cpu"], "--engine fast needs a CUDA device, not cpu"),
        (["--only", "warp_speed"], "unknown figures warp_speed; allowed: preprocess_ms"),
        (["--random-weights"], "no random weights for model 'auto'; give one of pam-3b, pam-1.5b"),
        (["--compare", "nothing.json", "nothing.json"], "cannot read nothing.json as JSON"),
    ],
)
def test_bad_input_gets_one_clear_line(
    arguments: list[str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert pam(monkeypatch, "bench", *arguments) == 2
    assert words in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("fast", [False, True])
def test_both_paths_run_every_step(fast: bool) -> None:
    model = tiny_pam()
    path: BenchPath = FastPath(Engines(model, cache_tokens=3000)) if fast else PlainPath(model)
    frames = noise_frames(2)
    path.preprocess(frames[0])
    regions = path.segment(frames[0], 2)
    path.fetch_masks(regions)
    path.generate(regions, (1, 3))
    path.decode(2)
    clip = path.open_clip()
    for index in range(CLIP_FRAMES):
        path.extend_clip(clip, frames[index % 2], regions, first=index == 0)
        path.settle()
    path.caption(clip, 3)
    path.release(regions)
    if isinstance(path, FastPath):
        text = path.engines.text
        assert text.idle
        assert clip.length == len(path.prefix) + clip_tokens(model)  # the capacity of its prompt is exact
        assert text.cache.free_tokens == 3000  # all texts and prompts have left
        for _ in range(16):  # all slots of regions are free again
            path.engines.vision.open()


def test_decoding_reads_every_matrix_once() -> None:
    model = tiny_pam()
    names = ("layers", "lm_head")
    expected = sum(
        parameter.numel() * 4
        for name, parameter in model.language.transformer.named_parameters()
        if parameter.dim() == 2 and any(each in name for each in names)
    )
    assert bytes_per_token(model) == expected - 4 * 32 * (4096 - model.language.tokens)


def test_percentiles_are_those_of_the_runs() -> None:
    times = Times([5.0, 1.0, 2.0, 3.0, 4.0])
    assert (times.median, times.percentile(100), times.percentile(50)) == (3.0, 5.0, 3.0)


def test_random_weights_have_the_official_shapes() -> None:
    language = random_architecture("pam-3b").language
    assert (language["hidden_size"], language["num_hidden_layers"]) == (2048, 36)
    with pytest.raises(ModelNotFoundError, match="pam-9b"):
        random_architecture("pam-9b")


@pytest.mark.parametrize("prefix", ["", "one", "two", "three"])
def test_random_weights_find_something_at_every_prompt(prefix: str) -> None:
    model = tiny_pam(prefix)
    find_everything(model)
    memory = model.vision.new_memory()
    found = model.vision.segment(model.vision.encode(picture()), [click()], [memory])[0]
    later = model.vision.track(model.vision.encode(picture(1)), [memory])[0]
    assert all(each.mask.any() and each.presence_score > 0.5 for each in (found, later))


def test_curves_are_measured_written_read_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = {name: replace(curve, xs=curve.xs[:2]) for name, curve in CURVES.items()}
    monkeypatch.setattr("pam_ros.evaluation.bench_curves.CURVES", few)
    points = measure_curves(PlainPath(tiny_pam()), repeats=1)
    assert {name: tuple(values) for name, values in points.items()} == {
        name: curve.xs for name, curve in few.items()
    }
    assert all(y > 0 for values in points.values() for y in values.values())
    assert points["caption"][32] > points["caption"][16]
    file, plot = tmp_path / "tiny.csv", tmp_path / "tiny.png"
    write_curves(points, file)
    assert read_curves(file)["track"][2] == pytest.approx(points["track"][2], abs=1e-3)
    assert pam(monkeypatch, "bench-curves", str(file), "--plot", str(plot)) == 0
    assert Image.open(plot).size == (1260, 576)
    plot.write_text("no curves")
    assert pam(monkeypatch, "bench-curves", str(plot), "--plot", str(file)) == 2
    assert "give a file" in " ".join(capsys.readouterr().err.split())
