"""Parity: compares recorded outputs of the reference with this implementation, through the official loader.

A parity folder holds `golden.json` (architecture, cases, tensor names and shapes),
`sam2_nano.yaml` (any *.yaml: SAM 2's architecture), `frames/*.png` and `expected.npz`.
Weights are not stored: a rule draws each tensor from its name.
"""

from __future__ import annotations

import json
import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import save_file
from torch import Tensor

from pam_ros.errors import InputError
from pam_ros.evaluation.bench_paths import EngineKind
from pam_ros.evaluation.parity_paths import FastParity, ParityPath, PlainParity, observe
from pam_ros.geometry import mask_iou
from pam_ros.model.interface import FIRST_FRAME_STRIDE, LATER_FRAME_STRIDE
from pam_ros.model.loading.checkpoint import load_official
from pam_ros.model.loading.device import parse_device, parse_dtype
from pam_ros.model.pam import Pam
from pam_ros.records import Prompt

RELATIVE_ERROR = 1e-4  # of embeds and logits, float32
MASK_IOU = 0.999
CLIP_FRAMES = 16


@dataclass(frozen=True, slots=True)
class CaseResult:
    """One row of the table; errors are ‖out − reference‖ / ‖reference‖."""

    name: str
    embeds_error: float
    logits_error: float
    score_error: float
    mask_iou: float  # of the worst frame
    tokens_equal: int  # leading tokens that agree
    tokens: int

    @property
    def passed(self) -> bool:
        """Whether every error is within its tolerance."""
        errors = (self.embeds_error, self.logits_error, self.score_error)
        close = all(error <= RELATIVE_ERROR for error in errors) and self.mask_iou >= MASK_IOU
        return close and self.tokens_equal == self.tokens


def run_parity(
    folder: Path,
    progress: Callable[[str], None] = lambda line: None,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    engine: EngineKind = EngineKind.PLAIN,
) -> list[CaseResult]:
    """Builds the weights, loads them as an official checkpoint, and runs every case.

    Raises InputError if the folder lacks a file, DeviceError for a device that is not available.
    """
    for name in ("golden.json", "expected.npz", "frames/*.png", "*.yaml"):
        if not any(folder.glob(name)):
            raise InputError(f"{folder} is not a parity folder: it has no {name}")
    golden = json.loads((folder / "golden.json").read_text(encoding="utf-8"))
    expected = np.load(folder / "expected.npz")
    sam2_yaml = sorted(folder.glob("*.yaml"))[0]
    frames = [np.array(Image.open(path).convert("RGB")) for path in sorted((folder / "frames").glob("*.png"))]
    with tempfile.TemporaryDirectory() as scratch:
        progress("writing weights in the official layout")
        sam2_weights = write_checkpoint(golden, Path(scratch))
        progress("loading them through the official loader")
        model = load_official(
            Path(scratch),
            sam2_weights=sam2_weights,
            sam2_architecture=sam2_yaml,
            progress=progress,
        )
    target = parse_device(device)
    model.place(target, parse_dtype(dtype, target))
    path: ParityPath = PlainParity(model) if engine is EngineKind.PLAIN else FastParity(model)
    features = []
    for i, frame in enumerate(frames):
        progress(f"encoding frame {i + 1} of {len(frames)}")
        features.append(path.vision.encode(frame))
    results = []
    for name, case in golden["cases"].items():
        progress(f"running {name}")
        recorded = [key for key in expected.files if key.startswith(f"{name}.")]
        reference = {key.removeprefix(f"{name}."): expected[key] for key in recorded}
        results.append(_run_case(name, case, model, path, features, golden, reference))
    return results


# ---- weights by rule


def write_checkpoint(golden: Mapping[str, Any], folder: Path) -> Path:
    """Writes config.json, model.safetensors and a SAM 2 file with the rule's weights; returns the latter."""
    prefix = golden["weight_name_prefix"]
    tensors = {
        part: {name: rule_tensor(prefix, part, name, shape) for name, shape in shapes.items()}
        for part, shapes in golden["tensors"].items()
    }
    (folder / "config.json").write_text(json.dumps(golden["config"]), encoding="utf-8")
    save_file(tensors["pam"], folder / "model.safetensors", metadata={"format": "pt"})
    sam2_weights = folder / "sam2_rule.pt"
    torch.save({"model": {name: torch.from_numpy(x) for name, x in tensors["sam2"].items()}}, sam2_weights)
    return sam2_weights


def rule_tensor(prefix: str, part: str, name: str, shape: Sequence[int]) -> NDArray[np.float32]:
    """The tensor that a name and a shape stand for (the fixture's weight rule)."""
    full = f"{part}.{name}"
    state = np.random.RandomState(zlib.crc32((prefix + full).encode()) & 0x7FFFFFFF)
    x = state.standard_normal(tuple(shape) or (1,)).astype(np.float32).reshape(tuple(shape))
    fan_in = float(np.sqrt(np.prod(shape[1:]))) if len(shape) >= 2 else 1.0
    if full.endswith("positional_encoding_gaussian_matrix"):
        return x
    if full.endswith("pred_obj_score_head.layers.2.bias"):
        return 0 * x + 6
    if full.endswith("embed_tokens.weight"):
        return x
    if full.startswith("pam.model.layers") and len(shape) >= 2:
        return (1.6 * x / fan_in).astype(np.float32)
    if len(shape) >= 2:
        return (x / fan_in).astype(np.float32)
    if full.endswith("weight"):
        return (1 + 0.05 * x).astype(np.float32)
    return (0.05 * x).astype(np.float32)


# ---- cases


def _run_case(
    name: str,
    case: Mapping[str, Any],
    model: Pam,
    path: ParityPath,
    features: Sequence[Any],
    golden: Mapping[str, Any],
    reference: Mapping[str, NDArray[Any]],
) -> CaseResult:
    prompt = Prompt.from_clicks(case.get("points_xy", ()), case.get("labels"), case.get("box_xyxy"))
    video = case["kind"] == "video"
    used = features[: case["frames"]] if video else [features[case["frame"]]]
    observations = observe(path.vision, used, prompt)
    visual = _image_embeddings(model, path, observations, video=video)
    ids = golden["input_ids"]
    at = ids.index(golden["image_placeholder_id"])
    with torch.inference_mode():
        prefix = torch.cat([model.language.embed(ids[:at]), visual])
        embeds = torch.cat([prefix, model.language.embed(ids[at + 1 :])])
        logits = path.logits(embeds.clone())
    tokens = path.greedy_tokens(prefix, ids[at + 1 :], count=len(reference["tokens"]))
    every = 7 if video else 1  # a video's embeddings are recorded at every 7th position
    shape_agrees = tuple(reference["embeds_shape"]) == (1, *embeds.shape)
    scores = torch.tensor([path.presence_logit(observation) for observation in observations])
    theirs = reference["tokens"].tolist()
    return CaseResult(
        name=name,
        embeds_error=_error(embeds[::every], reference["embeds"]) if shape_agrees else float("inf"),
        logits_error=_error(logits, reference["last_logits"]),
        score_error=_error(scores, reference["scores" if video else "score"].ravel()),
        mask_iou=_worst_iou(observations, reference, video=video),
        tokens_equal=_leading_equal(tokens, theirs),
        tokens=len(theirs),
    )


def _image_embeddings(model: Pam, path: ParityPath, observations: Sequence[Any], *, video: bool) -> Tensor:
    first = path.embeddings(observations[0], FIRST_FRAME_STRIDE)
    if not video:
        return first
    others = np.linspace(1, len(observations) - 1, CLIP_FRAMES - 1, dtype=int)
    later = [path.embeddings(observations[i], LATER_FRAME_STRIDE) for i in others]
    return model.projector.prompt_embeddings([first, *later], clip=True)


def _error(out: Tensor, reference: NDArray[Any]) -> float:
    if out.numel() != reference.size:
        return float("inf")
    ours = out.detach().double().cpu().numpy().reshape(reference.shape)
    return float(np.linalg.norm(ours - reference) / np.linalg.norm(reference))


def _worst_iou(observations: Sequence[Any], reference: Mapping[str, NDArray[Any]], *, video: bool) -> float:
    if video:
        width = int(reference["masks_shape"][-1])
        packed = reference["masks_packed"]  # (frames, height, ceil(width / 8)) uint8
        theirs = [np.unpackbits(mask, axis=-1)[:, :width].astype(bool) for mask in packed]
        ours = [observation.mask for observation in observations]
    else:
        theirs = [reference["mask_logits_sub4"].reshape(reference["mask_logits_sub4"].shape[-2:]) > 0]
        ours = [observations[0].mask[::4, ::4]]
    return min(mask_iou(a, b) for a, b in zip(ours, theirs, strict=True))


def _leading_equal(ours: Sequence[int], theirs: Sequence[int]) -> int:
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if a != b:
            return i
    return len(theirs)
