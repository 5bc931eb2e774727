"""Checkpoints: official variants are accepted, all else refused by name; devices, memory, round trips."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from tiny_models import (
    LANGUAGE,
    click,
    official_tensors,
    picture,
    sam2_tiny,
    tiny_pam,
    tiny_tokenizer,
    write_official,
)
from torch import Tensor

import pam_ros.model.checkpoint as checkpoint
from pam_ros.errors import CheckpointError, DeviceError, MemoryLimitError, ModelNotFoundError, PamError
from pam_ros.model.checkpoint import find_files, load_model, load_official, save_model
from pam_ros.model.config import sam2_config
from pam_ros.model.interface import DecodeRequest
from pam_ros.model.pam import Pam
from pam_ros.records import IMAGE_TASKS, Language

TOWER = "model.vision_tower.sam2_model_predictor."
EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return official_tensors(tiny_pam("files."))


def assert_loaded(pam: Pam, tensors: dict[str, Tensor]) -> None:
    found = official_tensors(pam)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


# ---- what is accepted


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("place", ["top", "subfolder"])
@pytest.mark.parametrize("sam2", ["file", "tower", "both"])
def test_variants(tmp_path: Path, tensors: dict[str, Tensor], shards: int, place: str, sam2: str) -> None:
    stored = dict(tensors)
    folder = tmp_path if place == "top" else tmp_path / "PAM-tiny"
    write_official(folder, stored, shards=shards, sam2_file=sam2 != "tower", tower=sam2 != "file")
    if sam2 == "both":  # the file decides, so what stands in the tower does not matter
        for path in folder.glob("*.safetensors"):
            content = load_file(path)
            save_file({n: t + 1 if n.startswith(TOWER) else t for n, t in content.items()}, path)
    pam = load_model(str(tmp_path))
    assert_loaded(pam, tensors)
    assert pam.info.trained
    assert pam.info.name == folder.name
    assert pam.info.dtype == "float32"
    assert not any(parameter.requires_grad for parameter in pam.parameters())


def test_sam2_file_given_or_beside_the_subfolder(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    write_official(tmp_path / "hub" / "PAM-tiny", tensors)
    file = tmp_path / "hub" / "PAM-tiny" / "sam2.1_tiny.pt"
    file.rename(tmp_path / "hub" / file.name)
    assert_loaded(load_model(str(tmp_path / "hub")), tensors)
    (tmp_path / "hub" / file.name).rename(tmp_path / "elsewhere.pt")
    assert_loaded(load_model(str(tmp_path / "hub"), sam2=tmp_path / "elsewhere.pt"), tensors)
    with pytest.raises(ModelNotFoundError, match="no SAM 2 weights at"):
        load_model(str(tmp_path / "hub"), sam2=tmp_path / "nowhere.pt")


def test_a_stray_file_above_the_folder_is_not_taken(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    write_official(tmp_path / "mine", tensors, sam2_file=False, tower=True)
    torch.save({"model": {"stray": torch.zeros(1)}}, tmp_path / "sam2.1_hiera_large.pt")
    assert_loaded(load_model(str(tmp_path / "mine")), tensors)


@pytest.mark.parametrize("head", ["absent", "present", "other"])
def test_tied_head(tmp_path: Path, tensors: dict[str, Tensor], head: str) -> None:
    stored = dict(tensors)
    if head == "absent":
        del stored["lm_head.weight"]
    elif head == "present":
        stored["lm_head.weight"] = stored[EMBEDDING].clone()
    write_official(tmp_path, stored, config=LANGUAGE | {"tie_word_embeddings": True})
    pam = load_model(str(tmp_path))
    assert pam.language.transformer.lm_head.weight is pam.language.transformer.model.embed_tokens.weight
    assert_loaded(pam, {**tensors, "lm_head.weight": tensors[EMBEDDING]})


@pytest.mark.parametrize("tied", [True, False])
def test_trimmed_vocabulary(tmp_path: Path, tensors: dict[str, Tensor], tied: bool) -> None:
    rows = len(tiny_tokenizer())
    assert rows < LANGUAGE["vocab_size"]
    stored = {n: t[:rows].clone() if n in (EMBEDDING, "lm_head.weight") else t for n, t in tensors.items()}
    write_official(tmp_path, stored, config=LANGUAGE | {"tie_word_embeddings": tied})
    pam = load_model(str(tmp_path))
    assert pam.language.transformer.model.embed_tokens.weight.shape[0] == rows
    assert torch.equal(pam.language.transformer.model.embed_tokens.weight, stored[EMBEDDING])


def test_without_a_tokenizer_ids_can_be_fed(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    write_official(tmp_path, tensors)
    for path in tmp_path.glob("tokenizer*"):
        path.unlink()
    sam2 = tmp_path / "sam2.1_tiny.pt"
    pam = load_official(tmp_path, sam2_weights=sam2, sam2_architecture=tmp_path / "sam2.yaml")
    assert pam.language.tokenizer is None
    assert pam.language.embed([1, 2]).shape == (2, 32)


@pytest.mark.parametrize("key", ["name", "hub id"])
def test_from_the_hubs_cache(
    tmp_path: Path, tensors: dict[str, Tensor], key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_official(tmp_path / "pam" / "PAM-3B", tensors)
    (tmp_path / "sam2").mkdir()
    (tmp_path / "pam" / "PAM-3B" / "sam2.1_tiny.pt").rename(tmp_path / "sam2" / "sam2.1_hiera_large.pt")
    cache = {"Perceive-Anything/PAM-3B": tmp_path / "pam", "facebook/sam2.1-hiera-large": tmp_path / "sam2"}

    def snapshot(hub_id: str, *, local_files_only: bool) -> str:
        assert local_files_only
        return str(cache[hub_id])

    monkeypatch.setattr(checkpoint, "snapshot_download", snapshot)
    # the description's working memory is meant for the real size
    monkeypatch.setattr(checkpoint, "check_memory", lambda *_: None)
    pam = load_model({"name": "pam-3b", "hub id": "Perceive-Anything/PAM-3B"}[key])
    assert_loaded(pam, tensors)
    assert pam.info.name == "pam-3b"
    assert "Qwen RESEARCH" in pam.info.licence


# ---- what is refused, and how


def refused(folder: Path, *words: str) -> str:
    """The error's text, after checking that it holds these words."""
    with pytest.raises(CheckpointError) as caught:
        load_model(str(folder))
    message = str(caught.value)
    for word in words:
        assert word in message
    return message


def test_every_missing_unexpected_and_misshaped_name_is_listed(
    tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    stored = dict(tensors)
    del stored["model.image_newline"], stored["model.layers.1.mlp.up_proj.weight"]
    stored["model.layers.0.mlp.down_proj.weight"] = torch.zeros(3, 5)
    stored["model.surprise"] = torch.zeros(1)
    stored["model.vision_resampler.sem_tokens.weight"] = torch.zeros(5, 32)
    write_official(tmp_path, stored)
    message = refused(
        tmp_path,
        str(tmp_path),
        "2 missing: model.image_newline, model.layers.1.mlp.up_proj.weight",
        "1 unexpected: model.surprise",
        "model.layers.0.mlp.down_proj.weight is (3, 5), expected (32, 64)",
        "model.vision_resampler.sem_tokens.weight is (5, 32), expected (4, 32)",
    )
    assert "lm_head" not in message  # what fits is not told


def test_sam2_file_of_another_architecture(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    write_official(tmp_path, tensors)
    content = torch.load(tmp_path / "sam2.1_tiny.pt", weights_only=True)["model"]
    del content["no_mem_embed"]
    content["memory_attention.layers.7.norm1.weight"] = torch.zeros(32)
    torch.save({"model": content}, tmp_path / "sam2.1_tiny.pt")
    refused(tmp_path, f"missing: {TOWER}no_mem_embed", "unexpected: memory_attention.layers.7.norm1.weight")


def test_missing_head_is_missing_where_it_is_not_tied(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    write_official(tmp_path, {name: t for name, t in tensors.items() if name != "lm_head.weight"})
    refused(tmp_path, "1 missing: lm_head.weight")


def test_a_shard_that_is_not_there(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    write_official(tmp_path, tensors, shards=3)
    gone = tmp_path / "model-00002-of-00003.safetensors"
    names = sorted(load_file(gone))
    gone.unlink()
    refused(tmp_path, *names)


def test_another_vocabulary(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    stored = {n: t[:1000].clone() if n in (EMBEDDING, "lm_head.weight") else t for n, t in tensors.items()}
    write_official(tmp_path, stored)
    refused(tmp_path, f"{EMBEDDING} has 1000 rows", str(len(tiny_tokenizer())), "4096")


@pytest.mark.parametrize("keep", [0, 7, 1000, -1])
@pytest.mark.parametrize("name", ["model.safetensors", "sam2.1_tiny.pt"])
def test_truncated_files(tmp_path: Path, tensors: dict[str, Tensor], name: str, keep: int) -> None:
    write_official(tmp_path, tensors)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[:keep])
    refused(tmp_path, str(tmp_path / name), "truncated")


@pytest.mark.parametrize("content", [b"no pickle", {"weights": {}}, {"model": 3}, {"model": {"a": "b"}}, [1]])
def test_pt_files_that_are_something_else(tmp_path: Path, tensors: dict[str, Tensor], content: Any) -> None:
    write_official(tmp_path, tensors)
    file = tmp_path / "sam2.1_tiny.pt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    refused(tmp_path, str(file))


def test_code_in_a_pt_file_is_not_run(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    write_official(tmp_path, tensors)
    torch.save({"model": Trap(tmp_path / "sprung")}, tmp_path / "sam2.1_tiny.pt")
    refused(tmp_path, "sam2.1_tiny.pt")
    assert not (tmp_path / "sprung").exists()


class Trap:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "llava_llama"}, ["model_type 'llava_llama'", "llava_qwen"]),
        ({"model_type": None}, ["model_type None"]),
        ({"hidden_size": "wide"}, ["cannot be built"]),
        ({"num_attention_heads": 0}, ["cannot be built"]),
        ({"mm_perceiver": {"colour": 3}}, ["mm_perceiver", "colour"]),
        ({"mm_perceiver": {"heads": 5}}, ["cannot be built", "5 heads"]),
    ],
)
def test_config_of_something_else(
    tmp_path: Path, tensors: dict[str, Tensor], change: dict[str, Any], words: list[str]
) -> None:
    write_official(tmp_path, tensors, config=LANGUAGE | change)
    refused(tmp_path, *words)


@pytest.mark.parametrize("text", ["{", "[1]", "3", "\xff"])
def test_config_that_is_no_json_object(tmp_path: Path, tensors: dict[str, Tensor], text: str) -> None:
    write_official(tmp_path, tensors)
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    refused(tmp_path, "config.json")


def test_config_without_sizes(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    write_official(tmp_path, tensors, config={"model_type": "llava_qwen", "hidden_size": 32})
    refused(tmp_path, "config.json lacks vocab_size, num_hidden_layers")


def test_broken_tokenizer(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    write_official(tmp_path, tensors)
    (tmp_path / "tokenizer.json").write_text("{", encoding="utf-8")
    refused(tmp_path, "tokenizer", str(tmp_path))


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "torch.load",
        "sam2.modeling.sam2_utils.copy.deepcopy",  # what a module of sam2 imports
        "sam2.modeling.sam2_utils.get_1d_sine_pe",  # no class
        "sam2.utils.misc.AsyncVideoFrameLoader",  # no module of the network
        "sam2.modeling.nothing.Here",
    ],
)
def test_sam2_yaml_may_build_sam2_modules_only(
    tmp_path: Path, tensors: dict[str, Tensor], target: str
) -> None:
    write_official(tmp_path, tensors)
    for config in (
        {"_target_": target},
        sam2_tiny() | {"memory_encoder": {"_target_": target}},
        sam2_tiny() | {"memory_encoder": {"list": [{"_target_": target}]}},
    ):
        (tmp_path / "sam2.yaml").write_text(yaml.safe_dump({"model": config}), encoding="utf-8")
        refused(tmp_path, f"builds {target}", "only modules of package sam2")


@pytest.mark.parametrize("text", ["model: [", "[]", "model: 3", "other: {}", "model: {a: 1}", ""])
def test_sam2_yaml_that_is_none(tmp_path: Path, tensors: dict[str, Tensor], text: str) -> None:
    write_official(tmp_path, tensors)
    (tmp_path / "sam2.yaml").write_text(text, encoding="utf-8")
    refused(tmp_path, "sam2.yaml is no SAM 2 configuration")


def test_sam2_yaml_of_a_part_or_of_another_flow(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    write_official(tmp_path, tensors)
    for config, words in (
        (sam2_tiny()["memory_encoder"], "cannot be built"),
        (sam2_tiny() | {"image_size": "big"}, "cannot be built"),
        (sam2_tiny() | {"directly_add_no_mem_embed": False}, "directly_add_no_mem_embed must be True"),
    ):
        (tmp_path / "sam2.yaml").write_text(yaml.safe_dump({"model": config}), encoding="utf-8")
        refused(tmp_path, words)
    with pytest.raises(ModelNotFoundError, match="no SAM 2 configuration nowhere"):
        sam2_config("nowhere")


def test_what_is_not_there(
    tmp_path: Path, tensors: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelNotFoundError, match=r"no model 'pam-9b': not one of .*pam-3b.*pam-tiny"):
        load_model("pam-9b")
    with pytest.raises(ModelNotFoundError, match=r"no config\.json"):
        load_model(str(tmp_path))
    write_official(tmp_path, tensors)
    (tmp_path / "sam2.1_tiny.pt").unlink()
    with pytest.raises(ModelNotFoundError, match=r"no SAM 2 weights.*sam2\.1_hiera_large\.pt beside"):
        load_model(str(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelNotFoundError, match=r"no \*\.safetensors"):
        load_model(str(tmp_path))

    def offline(hub_id: str, *, local_files_only: bool) -> str:
        raise LocalEntryNotFoundError("not cached")

    monkeypatch.setattr(checkpoint, "snapshot_download", offline)
    with pytest.raises(ModelNotFoundError, match="PAM-3B is not on this disk; get it with: pam fetch"):
        load_model("pam-3b")


def test_device_and_dtype() -> None:
    for device in ("gpu", "cuda:99", "", "meta", "cpu:1"):
        with pytest.raises(DeviceError, match=r"unknown device .* this machine has: auto, cpu"):
            load_model("pam-tiny", device=device)
    with pytest.raises(DeviceError, match="unknown dtype 'int8'; allowed: auto, float32, bfloat16, float16"):
        load_model("pam-tiny", dtype="int8")


def test_too_little_memory(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    write_official(tmp_path, tensors, sam2_file=True, tower=True)
    with pytest.raises(
        MemoryLimitError, match=r"needs 0\.\d+ GiB on cpu, \d+\.\d+ GiB are free, of which 0\.10"
    ):
        load_model(str(tmp_path), memory_limit_gib=0.1)
    load_model(str(tmp_path), memory_limit_gib=0.3)


def test_needed_memory_follows_the_dtype_and_counts_sam2_once(
    tmp_path: Path, tensors: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_official(tmp_path, tensors, sam2_file=True, tower=True)
    files = find_files(str(tmp_path), None)
    numbers = sum(tensor.numel() for tensor in tensors.values())
    monkeypatch.setattr(checkpoint, "WORKING_MEMORY_GIB", 0.0)
    for dtype in (torch.float32, torch.bfloat16):
        needed = numbers * dtype.itemsize / 2**30
        checkpoint.check_memory(files, torch.device("cpu"), dtype, 1.2 * needed)
        with pytest.raises(MemoryLimitError):
            checkpoint.check_memory(files, torch.device("cpu"), dtype, 0.98 * needed)


def test_a_failing_load_leaves_nothing(
    tmp_path: Path, tensors: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while the caller holds on to the error."""
    born: list[weakref.ref[Pam]] = []

    def recording(*args: Any) -> Pam:
        pam = Pam(*args)
        born.append(weakref.ref(pam))
        return pam

    monkeypatch.setattr(checkpoint, "Pam", recording)
    write_official(tmp_path, {name: t for name, t in tensors.items() if name != "model.norm.weight"})
    held: PamError | None = None
    try:
        load_model(str(tmp_path))
    except CheckpointError as error:
        held = error
    assert "model.norm.weight" in str(held)
    gc.collect()
    assert [ref() for ref in born] == [None]


# ---- dtype, round trips, pam-tiny


def test_bfloat16_load_keeps_the_exact_numbers_where_they_count(
    tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    write_official(tmp_path, tensors)
    pam = load_model(str(tmp_path), dtype="bfloat16")
    assert pam.info.dtype == "bfloat16"
    for name, tensor in official_tensors(pam).items():
        exact = "sam_prompt_encoder" in name or "gaussian" in name
        assert torch.equal(tensor, tensors[name] if exact else tensors[name].bfloat16()), name


def answers(pam: Pam) -> list[str]:
    (observation,) = pam.segment(pam.encode(picture()), [click()], [pam.new_memory()])
    rows = tuple(pam.rows([observation], fine=True))
    decode = pam.decode([DecodeRequest(rows, task, Language.EN, max_new_tokens=6) for task in IMAGE_TASKS])
    texts = {delta.index: delta.text for _ in range(40) for delta in decode.step()}
    assert decode.done
    return [texts[i] for i in range(len(IMAGE_TASKS))]


@pytest.mark.parametrize("tied", [True, False])
def test_save_and_load(tmp_path: Path, tied: bool) -> None:
    pam = tiny_pam("saved.", tie_word_embeddings=tied, sliding_window=30)
    save_model(pam, tmp_path / "exact", dtype=torch.float32)
    again = load_model(str(tmp_path / "exact"))
    assert_loaded(again, official_tensors(pam))
    assert answers(again) == answers(pam)
    assert again.language.window == pam.language.window == 31
    assert again.architecture == pam.architecture
    assert ("lm_head.weight" in load_file(tmp_path / "exact" / "model.safetensors")) is not tied

    save_model(pam, tmp_path / "small")
    small, expected = official_tensors(load_model(str(tmp_path / "small"))), official_tensors(pam)
    for name, tensor in small.items():
        exact = "sam_prompt_encoder" in name or "gaussian" in name
        assert torch.equal(tensor, expected[name] if exact else expected[name].half().float()), name
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("small", "exact")]
    assert sizes[0] < 0.52 * sizes[1]


def test_a_saved_half_precision_model_loads(tmp_path: Path) -> None:
    pam = tiny_pam()
    pam.place(torch.device("cpu"), torch.bfloat16)
    save_model(pam, tmp_path, dtype=torch.bfloat16)
    assert_loaded(load_model(str(tmp_path), dtype="bfloat16"), official_tensors(pam))


def test_pam_tiny_is_the_same_at_every_load() -> None:
    said: list[str] = []
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = load_model("pam-tiny", progress=said.append)
    assert torch.equal(torch.get_rng_state(), before)  # and leaves others' dice alone
    torch.manual_seed(6)
    second = load_model("pam-tiny")
    assert_loaded(second, official_tensors(first))
    assert first.info == second.info
    assert first.info.name == "pam-tiny"
    assert ("untrained" in "\n".join(said)) is not first.info.trained
    (observation,) = first.segment(first.encode(picture()), [click()], [first.new_memory()])
    assert observation.presence_score > 0.5
    assert json.dumps(answers(first)) == json.dumps(answers(second))
