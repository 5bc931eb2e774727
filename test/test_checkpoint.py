"""Checkpoints that load: every official layout, devices, memory limits, dtypes, round trips, pam-tiny."""

from __future__ import annotations

import gc
import json
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from text_runs import TextRun, Wanted
from tiny_models import (
    LANGUAGE,
    click,
    official_tensors,
    picture,
    tiny_pam,
    tiny_tokenizer,
    write_official,
)
from torch import Tensor

import pam_ros.model.loading.checkpoint as checkpoint
from pam_ros.errors import CheckpointError, DeviceError, MemoryLimitError, ModelNotFoundError, PamError
from pam_ros.model.interface import FIRST_FRAME_STRIDE
from pam_ros.model.loading.checkpoint import load_model, load_official, save_model
from pam_ros.model.loading.device import needed_gib, parse_dtype
from pam_ros.model.loading.files import find_files
from pam_ros.model.loading.options import LoadOptions
from pam_ros.model.pam import Pam
from pam_ros.model.text.confidence import ConfidenceModel, Curve, Familiarity
from pam_ros.records import IMAGE_TASKS, Language, Task

TOWER = "model.vision_tower.sam2_model_predictor."
EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return official_tensors(tiny_pam("files."))


def assert_loaded(pam: Pam, tensors: dict[str, Tensor]) -> None:
    found = official_tensors(pam)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


# ---- layouts


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("place", ["top", "subfolder"])
@pytest.mark.parametrize("sam2", ["file", "tower", "both"])
def test_every_layout_loads(
    tmp_path: Path, tensors: dict[str, Tensor], shards: int, place: str, sam2: str
) -> None:
    stored = dict(tensors)
    folder = tmp_path if place == "top" else tmp_path / "PAM-tiny"
    write_official(folder, stored, shards=shards, sam2_file=sam2 != "tower", tower=sam2 != "file")
    if sam2 == "both":  # the file wins over the tower's weights
        for path in folder.glob("*.safetensors"):
            content = load_file(path)
            save_file({n: t + 1 if n.startswith(TOWER) else t for n, t in content.items()}, path)
    pam = load_model(LoadOptions(str(tmp_path)))
    assert_loaded(pam, tensors)
    assert pam.info.name == folder.name
    assert pam.info.dtype == "float32"
    assert not any(parameter.requires_grad for parameter in pam.parameters())


def test_the_sam2_file_is_given_or_found_beside_the_subfolder(
    tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    write_official(tmp_path / "hub" / "PAM-tiny", tensors)
    file = tmp_path / "hub" / "PAM-tiny" / "sam2.1_tiny.pt"
    file.rename(tmp_path / "hub" / file.name)
    assert_loaded(load_model(LoadOptions(str(tmp_path / "hub"))), tensors)
    (tmp_path / "hub" / file.name).rename(tmp_path / "elsewhere.pt")
    assert_loaded(load_model(LoadOptions(str(tmp_path / "hub"), sam2=tmp_path / "elsewhere.pt")), tensors)
    with pytest.raises(ModelNotFoundError, match="no SAM 2 weights at"):
        load_model(LoadOptions(str(tmp_path / "hub"), sam2=tmp_path / "nowhere.pt"))


def test_a_stray_file_above_the_folder_is_ignored(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    write_official(tmp_path / "mine", tensors, sam2_file=False, tower=True)
    torch.save({"model": {"stray": torch.zeros(1)}}, tmp_path / "sam2.1_hiera_large.pt")
    assert_loaded(load_model(LoadOptions(str(tmp_path / "mine"))), tensors)


@pytest.mark.parametrize("head", ["absent", "present", "other"])
def test_a_tied_head_shares_the_embedding(tmp_path: Path, tensors: dict[str, Tensor], head: str) -> None:
    stored = dict(tensors)
    if head == "absent":
        del stored["lm_head.weight"]
    elif head == "present":
        stored["lm_head.weight"] = stored[EMBEDDING].clone()
    write_official(tmp_path, stored, config=LANGUAGE | {"tie_word_embeddings": True})
    pam = load_model(LoadOptions(str(tmp_path)))
    assert pam.language.transformer.lm_head.weight is pam.language.transformer.model.embed_tokens.weight
    assert_loaded(pam, {**tensors, "lm_head.weight": tensors[EMBEDDING]})


@pytest.mark.parametrize("tied", [True, False])
def test_a_trimmed_vocabulary_loads(tmp_path: Path, tensors: dict[str, Tensor], tied: bool) -> None:
    rows = len(tiny_tokenizer())
    assert rows < LANGUAGE["vocab_size"]
    stored = {n: t[:rows].clone() if n in (EMBEDDING, "lm_head.weight") else t for n, t in tensors.items()}
    write_official(tmp_path, stored, config=LANGUAGE | {"tie_word_embeddings": tied})
    pam = load_model(LoadOptions(str(tmp_path)))
    assert pam.language.transformer.model.embed_tokens.weight.shape[0] == rows
    assert torch.equal(pam.language.transformer.model.embed_tokens.weight, stored[EMBEDDING])


def test_a_model_without_a_tokenizer_accepts_ids(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    write_official(tmp_path, tensors)
    for path in tmp_path.glob("tokenizer*"):
        path.unlink()
    sam2 = tmp_path / "sam2.1_tiny.pt"
    pam = load_official(tmp_path, sam2_weights=sam2, sam2_architecture=tmp_path / "sam2.yaml")
    assert pam.language.tokenizer is None
    assert pam.language.embed([1, 2]).shape == (2, 32)


@pytest.mark.parametrize("key", ["name", "hub id"])
def test_models_load_from_the_hub_cache(
    tmp_path: Path, tensors: dict[str, Tensor], key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_official(tmp_path / "pam" / "PAM-3B", tensors)
    (tmp_path / "sam2").mkdir()
    (tmp_path / "pam" / "PAM-3B" / "sam2.1_tiny.pt").rename(tmp_path / "sam2" / "sam2.1_hiera_large.pt")
    cache = {"Perceive-Anything/PAM-3B": tmp_path / "pam", "facebook/sam2.1-hiera-large": tmp_path / "sam2"}

    def snapshot(hub_id: str, *, revision: str, local_files_only: bool) -> str:
        assert (revision, local_files_only) == ("main", True)
        return str(cache[hub_id])

    monkeypatch.setenv("PAM_MODELS", str(tmp_path / "nothing fetched"))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    # the required working memory, and SAM 2's checksum, are those of the full-size model
    monkeypatch.setattr(checkpoint, "verify_files", lambda *_: None)
    monkeypatch.setattr(checkpoint, "check_memory", lambda *_: None)
    pam = load_model(LoadOptions({"name": "pam-3b", "hub id": "Perceive-Anything/PAM-3B"}[key]))
    assert_loaded(pam, tensors)
    assert pam.info.name == "pam-3b"
    assert "Qwen RESEARCH" in pam.info.licence


# ---- devices and memory


def test_unknown_devices_and_dtypes_are_refused() -> None:
    for device in ("gpu", "cuda:x", "", "meta", "cpu:1"):
        with pytest.raises(DeviceError, match=r"unknown device .* available: auto, cpu"):
            load_model(LoadOptions("pam-tiny", device=device))
    with pytest.raises(DeviceError, match="unknown dtype 'int8'; allowed: auto, float32, bfloat16, float16"):
        load_model(LoadOptions("pam-tiny", dtype="int8"))


@pytest.mark.parametrize(("native", "kind"), [(True, torch.bfloat16), (False, torch.float16)])
def test_a_card_without_bfloat16_computes_in_float16(
    native: bool, kind: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert parse_dtype("auto", torch.device("cuda")) is kind
    assert parse_dtype("auto", torch.device("cpu")) is torch.float32


@pytest.mark.parametrize("device", ["cuda", "cuda:99"])
@pytest.mark.parametrize(("built_for", "words"), [(None, "CPU-only build"), ("13.0", "nvidia-smi")])
def test_the_error_for_an_absent_gpu_says_what_to_check(
    device: str, built_for: str | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built_for)
    monkeypatch.setattr(torch.version, "hip", None)
    with pytest.raises(DeviceError, match=f"torch finds no CUDA GPU.*{words}.* use device cpu"):
        load_model(LoadOptions("pam-tiny", device=device))


def test_a_model_above_the_memory_limit_is_refused(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    write_official(tmp_path, tensors, sam2_file=True, tower=True)
    with pytest.raises(
        MemoryLimitError,
        match=r"needs 0\.\d+ GiB on cpu but only \d+\.\d+ GiB are free \(memory_limit_gib allows 0\.10",
    ):
        load_model(LoadOptions(str(tmp_path), memory_limit_gib=0.1))
    load_model(LoadOptions(str(tmp_path), memory_limit_gib=0.3))


def test_needed_memory_follows_the_dtype_and_counts_sam2_once(
    tmp_path: Path, tensors: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_official(tmp_path, tensors, sam2_file=True, tower=True)
    files = find_files(str(tmp_path), None)
    numbers = sum(tensor.numel() for tensor in tensors.values())
    monkeypatch.setattr("pam_ros.model.loading.device.WORKING_MEMORY_GIB", 0.0)
    for dtype in (torch.float32, torch.bfloat16):
        exact = numbers * dtype.itemsize / 2**30
        # The zip container of the .pt adds a little.
        assert exact <= needed_gib(files, dtype, LoadOptions()) < 1.1 * exact


def test_a_failed_load_frees_the_model(
    tmp_path: Path, tensors: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even while the caller holds the error."""
    created: list[weakref.ref[Pam]] = []

    def recording(*args: Any, **options: Any) -> Pam:
        pam = Pam(*args, **options)
        created.append(weakref.ref(pam))
        return pam

    monkeypatch.setattr(checkpoint, "Pam", recording)
    write_official(tmp_path, {name: t for name, t in tensors.items() if name != "model.norm.weight"})
    held: PamError | None = None
    try:
        load_model(LoadOptions(str(tmp_path)))
    except CheckpointError as error:
        held = error
    assert "model.norm.weight" in str(held)
    gc.collect()
    assert [ref() for ref in created] == [None]


# ---- dtype, round trips, pam-tiny


def test_bfloat16_keeps_positions_and_prompt_embeddings_exact(
    tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    write_official(tmp_path, tensors)
    pam = load_model(LoadOptions(str(tmp_path), dtype="bfloat16"))
    assert pam.info.dtype == "bfloat16"
    for name, tensor in official_tensors(pam).items():
        exact = "sam_prompt_encoder" in name or "gaussian" in name
        assert torch.equal(tensor, tensors[name] if exact else tensors[name].bfloat16()), name


def answers(pam: Pam) -> list[str]:
    (observation,) = pam.segment(pam.encode(picture()), [click()], [pam.new_memory()])
    embeddings = tuple(pam.embeddings([observation], stride=FIRST_FRAME_STRIDE))
    wanted = [Wanted(embeddings, task, Language.EN, max_new_tokens=6) for task in IMAGE_TASKS]
    texts = TextRun(pam, wanted).finish()
    return [texts[i][-1].text for i in range(len(IMAGE_TASKS))]


@pytest.mark.parametrize("marked", [True, False])
def test_what_was_trained_from_a_demonstration_model_stays_one(tmp_path: Path, marked: bool) -> None:
    pam = tiny_pam("marked.")
    pam.info = replace(pam.info, demonstration=marked)
    save_model(pam, tmp_path)
    again = load_model(LoadOptions(str(tmp_path)))
    assert (again.info.demonstration, bool(again.info.mark)) == (marked, marked)


@pytest.mark.parametrize("tied", [True, False])
def test_saved_models_load_unchanged(tmp_path: Path, tied: bool) -> None:
    pam = tiny_pam("saved.", tie_word_embeddings=tied, sliding_window=30)
    save_model(pam, tmp_path / "exact", dtype=torch.float32)
    again = load_model(LoadOptions(str(tmp_path / "exact")))
    assert_loaded(again, official_tensors(pam))
    assert answers(again) == answers(pam)
    assert again.language.window == pam.language.window == 31
    assert again.architecture == pam.architecture
    assert ("lm_head.weight" in load_file(tmp_path / "exact" / "model.safetensors")) is not tied

    save_model(pam, tmp_path / "small")
    small, expected = (
        official_tensors(load_model(LoadOptions(str(tmp_path / "small")))),
        official_tensors(pam),
    )
    for name, tensor in small.items():
        exact = "sam_prompt_encoder" in name or "gaussian" in name
        assert torch.equal(tensor, expected[name] if exact else expected[name].half().float()), name
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("small", "exact")]
    assert sizes[0] < 0.52 * sizes[1]


def test_a_calibration_of_the_weights_that_are_replaced_does_not_stay(tmp_path: Path) -> None:
    save_model(tiny_pam("first."), tmp_path)
    features, tokens = 2 * LANGUAGE["hidden_size"], LANGUAGE["mm_perceiver"]["semantic_tokens"]
    one = torch.ones(features)
    familiarity = Familiarity(one, one[None], torch.tensor(1.0), one, tokens)
    ConfidenceModel({Task.LABEL: Curve(0.0, 1.0)}, familiarity).write(tmp_path, {})
    assert load_model(LoadOptions(str(tmp_path))).info.calibrated
    save_model(tiny_pam("second."), tmp_path)
    assert not load_model(LoadOptions(str(tmp_path))).info.calibrated


def test_a_saved_half_precision_model_loads(tmp_path: Path) -> None:
    pam = tiny_pam()
    pam.place(torch.device("cpu"), torch.bfloat16)
    save_model(pam, tmp_path, dtype=torch.bfloat16)
    assert_loaded(load_model(LoadOptions(str(tmp_path), dtype="bfloat16")), official_tensors(pam))


def test_pam_tiny_is_the_same_at_every_load() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = load_model(LoadOptions("pam-tiny"))
    assert torch.equal(torch.get_rng_state(), before)  # loading leaves the global generator alone
    torch.manual_seed(6)
    second = load_model(LoadOptions("pam-tiny"))
    assert_loaded(second, official_tensors(first))
    assert first.info == second.info
    assert first.info.name == "pam-tiny"
    (observation,) = first.segment(first.encode(picture()), [click()], [first.new_memory()])
    assert observation.presence_score > 0.5
    assert json.dumps(answers(first)) == json.dumps(answers(second))


def test_models_may_be_loaded_by_several_threads_at_once() -> None:
    """Building replaces torch.nn.init for the whole process, and must put it back."""
    before = {name: getattr(torch.nn.init, name) for name in dir(torch.nn.init) if name.endswith("_")}
    with ThreadPoolExecutor(4) as pool:
        models = list(pool.map(lambda _: load_model(LoadOptions("pam-tiny")), range(4)))

    assert {name: getattr(torch.nn.init, name) for name in before} == before
    first, *others = (model.state_dict() for model in models)
    for other in others:
        assert all(torch.equal(first[name], other[name]) for name in first)
