"""Parity: the golden folder passes; a miniature folder passes, and any change to it fails."""

from __future__ import annotations

import json
import shutil
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tiny_models import LANGUAGE, picture, sam2_tiny, tiny_pam

from pam_ros.errors import InputError
from pam_ros.evaluation.bench_paths import EngineKind
from pam_ros.evaluation.parity import CaseResult, rule_tensor, run_parity
from pam_ros.model.interface import FIRST_FRAME_STRIDE, LATER_FRAME_STRIDE
from pam_ros.model.loading.weights import SAM2_PREFIX, official_name
from pam_ros.records import Prompt

GOLDEN = Path(__file__).parent / "data" / "golden"
PREFIX = "mini."
IDS = [1, 17, 33, -200, 45, 200, 301]
CASES = {
    "image": {"kind": "image", "frame": 1, "points_xy": [[30, 30], [70, 20]], "labels": [1, 0]},
    "video": {"kind": "video", "frames": 18, "box_xyxy": [15, 14, 44, 44]},
}
WINDOW = 60  # tokens; shorter than both prompts, so that it has an effect


@pytest.mark.timeout(1800)  # 1024-pixel inputs on a CPU
@pytest.mark.parametrize(
    ("engine", "device"),
    [
        (EngineKind.PLAIN, "cpu"),
        pytest.param(
            EngineKind.FAST, "cuda",
            marks=[
                pytest.mark.cuda,
                pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
            ],
        ),
    ],
)  # fmt: skip
def test_the_reference_is_reproduced(engine: EngineKind, device: str) -> None:
    results = run_parity(GOLDEN, engine=engine, device=device)
    assert [(result.name, result.tokens) for result in results] == [
        ("image_box", 24), ("image_click", 24), ("image_points", 24),
        ("video_box", 24), ("video_click", 24), ("video_points", 24),
    ]  # fmt: skip
    assert [result for result in results if not result.passed] == []


# ---- a miniature folder; its expected outputs are computed here, without the parity module


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("miniature")
    config = LANGUAGE | {"sliding_window": WINDOW}
    pam = tiny_pam(PREFIX, sliding_window=WINDOW)
    shapes: dict[str, dict[str, list[int]]] = {"pam": {}, "sam2": {}}
    for name, tensor in pam.state_dict().items():
        part = "sam2" if name.startswith(SAM2_PREFIX) else "pam"
        bare = name.removeprefix(SAM2_PREFIX) if part == "sam2" else official_name(name)
        shapes[part][bare] = list(tensor.shape)
    golden = {
        "weight_name_prefix": PREFIX,
        "config": config,
        "input_ids": IDS,
        "image_placeholder_id": -200,
        "cases": CASES,
        "tensors": shapes,
    }
    (folder / "golden.json").write_text(json.dumps(golden), encoding="utf-8")
    (folder / "any_name.yaml").write_text(yaml.safe_dump({"model": sam2_tiny()}), encoding="utf-8")
    (folder / "frames").mkdir()
    frames = [picture(step) for step in range(18)]
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / "frames" / f"{i:03d}.png")

    expected: dict[str, Any] = {}
    memory = pam.new_memory()
    prompt = Prompt.from_clicks(CASES["image"]["points_xy"], CASES["image"]["labels"])
    (seen,) = pam.segment(pam.encode(frames[1]), [prompt], [memory])
    record(expected, "image", pam, pam.embeddings([seen], stride=FIRST_FRAME_STRIDE)[0].tensor, every=1)
    expected["image.mask_logits_sub4"] = seen.mask_logits_at_frame_size()[::4, ::4].numpy()
    expected["image.score"] = seen.presence_logit.numpy()

    memory = pam.new_memory()
    prompt = Prompt.from_clicks(box_xyxy=CASES["video"]["box_xyxy"])
    found = pam.segment(pam.encode(frames[0]), [prompt], [memory])
    found += [pam.track(pam.encode(frame), [memory])[0] for frame in frames[1:]]
    kept = [
        found[i] for i in (1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 17)
    ]  # linspace(1, 17, 15), integers
    parts = [
        pam.embeddings(found[:1], stride=FIRST_FRAME_STRIDE)[0].tensor,
        *(pam.embeddings([o], stride=LATER_FRAME_STRIDE)[0].tensor for o in kept),
    ]
    newline = pam.projector.frame_newline[None]
    record(expected, "video", pam, torch.cat([each for part in parts for each in (part, newline)]), every=7)
    masks = np.stack([observation.mask for observation in found])
    expected["video.masks_packed"] = np.packbits(masks, axis=-1)
    expected["video.masks_shape"] = np.array(masks.shape)
    expected["video.scores"] = np.array([float(observation.presence_logit) for observation in found])
    np.savez(folder / "expected.npz", **expected)
    return folder


def record(expected: dict[str, Any], case: str, pam: Any, embeddings: torch.Tensor, *, every: int) -> None:
    """Records embeddings, last logits and greedy tokens of one case."""
    at = IDS.index(-200)
    with torch.inference_mode():
        embeds = torch.cat([pam.language.embed(IDS[:at]), embeddings, pam.language.embed(IDS[at + 1 :])])
        assert len(embeds) < WINDOW or case == "video"
        logits = pam.language.logits(embeds)
        expected[f"{case}.embeds"] = embeds[::every].numpy()
        expected[f"{case}.embeds_shape"] = np.array((1, *embeds.shape))
        expected[f"{case}.last_logits"] = logits.numpy()
        tokens: list[int] = []
        for _ in range(24):
            tokens.append(int(logits.argmax()))
            embeds = torch.cat([embeds, pam.language.embed(tokens[-1:])])
            logits = pam.language.logits(embeds)
    expected[f"{case}.tokens"] = np.array(tokens)


@pytest.mark.parametrize("engine", EngineKind)
def test_a_miniature_folder_passes(miniature: Path, engine: EngineKind) -> None:
    lines: list[str] = []
    results = run_parity(miniature, lines.append, engine=engine)
    assert [result.name for result in results] == ["image", "video"]
    assert all(result.passed for result in results), results
    assert all(result.tokens == 24 for result in results)
    assert "running video" in lines


QUANTITIES = {
    "image": ("embeds", "embeds_shape", "last_logits", "tokens", "mask_logits_sub4", "score"),
    "video": ("masks_packed", "scores"),
}


def change(quantity: str, value: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The smallest change that must be noticed."""
    if quantity == "mask_logits_sub4":
        return -value
    if quantity == "masks_packed":
        value = value.copy()
        value[7, 20:30] ^= 255  # ten rows of one frame
        return value
    if quantity in ("tokens", "embeds_shape"):
        return value + np.eye(1, len(value), 1, dtype=int)[0]
    return value * np.float32(1.001)


def test_a_changed_expectation_fails(miniature: Path, tmp_path: Path) -> None:
    """One case for each quantity, with that quantity changed; the unchanged cases still pass."""
    folder = Path(shutil.copytree(miniature, tmp_path / "changed"))
    golden = json.loads((folder / "golden.json").read_text(encoding="utf-8"))
    recorded = dict(np.load(miniature / "expected.npz"))
    expected = dict(recorded)
    for case, quantities in QUANTITIES.items():
        for quantity in quantities:
            golden["cases"][quantity] = CASES[case]
            for key, value in recorded.items():
                if key.startswith(f"{case}."):
                    name = key.removeprefix(f"{case}.")
                    expected[f"{quantity}.{name}"] = change(name, value) if name == quantity else value
    (folder / "golden.json").write_text(json.dumps(golden), encoding="utf-8")
    np.savez(folder / "expected.npz", **expected)
    results = run_parity(folder)
    assert [result.name for result in results if result.passed] == ["image", "video"]
    assert len(results) == 10


def test_other_weights_fail(miniature: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(miniature, tmp_path / "changed"))
    golden = json.loads((folder / "golden.json").read_text(encoding="utf-8"))
    golden["weight_name_prefix"] = "other."
    (folder / "golden.json").write_text(json.dumps(golden), encoding="utf-8")
    assert not any(result.passed for result in run_parity(folder))


def test_an_incomplete_folder_is_refused(miniature: Path, tmp_path: Path) -> None:
    for name in ("golden.json", "expected.npz", "frames", "any_name.yaml"):
        folder = Path(shutil.copytree(miniature, tmp_path / f"without_{name}"))
        (folder / name).rename(tmp_path / f"gone_{name}")
        with pytest.raises(InputError, match="is not a parity folder: it has no"):
            run_parity(folder)


# ---- the pieces


def test_the_weight_rule() -> None:
    def tensor(full: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        part, name = full.split(".", 1)
        return rule_tensor("p.", part, name, shape)

    def drawn(full: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        state = np.random.RandomState(zlib.crc32(f"p.{full}".encode()) & 0x7FFFFFFF)
        return state.standard_normal(shape or (1,)).astype(np.float32).reshape(shape)

    cases = {
        ("sam2.x.positional_encoding_gaussian_matrix", (2, 8)): lambda x: x,
        ("sam2.sam_mask_decoder.pred_obj_score_head.layers.2.bias", (1,)): lambda x: 0 * x + 6,
        ("pam.model.embed_tokens.weight", (9, 4)): lambda x: x,
        ("pam.model.layers.0.mlp.up_proj.weight", (6, 4)): lambda x: 1.6 * x / 2,
        ("pam.model.vision_resampler.layers.0.norm1.weight", (5,)): lambda x: 1 + 0.05 * x,
        ("sam2.conv.weight", (3, 2, 2, 1)): lambda x: x / 2,
        ("sam2.conv.bias", (3,)): lambda x: 0.05 * x,
        ("pam.model.image_newline", ()): lambda x: 0.05 * x,
    }
    for (full, shape), rule in cases.items():
        out = tensor(full, shape)
        assert out.dtype == np.float32
        assert out.shape == shape
        np.testing.assert_allclose(out, rule(drawn(full, shape)), rtol=1e-6)


def test_every_bar_counts() -> None:
    good = CaseResult("x", 9e-5, 9e-5, 9e-5, 0.9995, 24, 24)
    assert good.passed
    for change in (
        {"embeds_error": 2e-4},
        {"logits_error": float("nan")},
        {"score_error": 2e-4},
        {"mask_iou": 0.998},
        {"tokens_equal": 23},
    ):
        assert not replace(good, **change).passed
