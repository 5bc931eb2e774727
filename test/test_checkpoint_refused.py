"""Checkpoints that are refused because they are incomplete or not PAM's; the message names the fault."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from tiny_models import (
    LANGUAGE,
    official_tensors,
    sam2_tiny,
    tiny_pam,
    tiny_tokenizer,
    write_official,
)
from torch import Tensor

from pam_ros.errors import CheckpointError, ModelNotFoundError
from pam_ros.model.config import sam2_config
from pam_ros.model.loading.checkpoint import load_model
from pam_ros.model.loading.options import LoadOptions

TOWER = "model.vision_tower.sam2_model_predictor."
EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return official_tensors(tiny_pam("files."))


def refused(folder: Path, *words: str) -> str:
    """Loads the folder, which must fail with these words; returns the message."""
    with pytest.raises(CheckpointError) as caught:
        load_model(LoadOptions(str(folder)))
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
    assert "lm_head" not in message  # matching tensors are not listed


def test_a_sam2_file_of_another_architecture(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    write_official(tmp_path, tensors)
    content = torch.load(tmp_path / "sam2.1_tiny.pt", weights_only=True)["model"]
    del content["no_mem_embed"]
    content["memory_attention.layers.7.norm1.weight"] = torch.zeros(32)
    torch.save({"model": content}, tmp_path / "sam2.1_tiny.pt")
    refused(tmp_path, f"missing: {TOWER}no_mem_embed", "unexpected: memory_attention.layers.7.norm1.weight")


def test_an_untied_head_must_be_present(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    write_official(tmp_path, {name: t for name, t in tensors.items() if name != "lm_head.weight"})
    refused(tmp_path, "1 missing: lm_head.weight")


def test_a_missing_shard(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    write_official(tmp_path, tensors, shards=3)
    gone = tmp_path / "model-00002-of-00003.safetensors"
    names = sorted(load_file(gone))
    gone.unlink()
    refused(tmp_path, *names)


def test_weights_that_two_files_hold(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    write_official(tmp_path, tensors, shards=2)
    name = "model.layers.1.mlp.up_proj.weight"
    save_file({name: tensors[name] + 1}, tmp_path / "model-00003-of-00003.safetensors")
    refused(tmp_path, f"1 that two files hold: {name}")


def test_a_vocabulary_of_another_size(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
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
def test_pt_files_with_other_contents(tmp_path: Path, tensors: dict[str, Tensor], content: Any) -> None:
    write_official(tmp_path, tensors)
    file = tmp_path / "sam2.1_tiny.pt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    refused(tmp_path, str(file))


def test_code_in_a_pt_file_does_not_run(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
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
        ({"hidden_size": "wide"}, ["hidden_size is 'wide'; allowed: an integer from 1 to 32768"]),
        ({"num_attention_heads": 0}, ["num_attention_heads is 0; allowed"]),
        ({"mm_perceiver": {"colour": 3}}, ["mm_perceiver", "colour"]),
        ({"mm_perceiver": {"input": "beside"}}, ["mm_perceiver", "'beside'", "after, image_before, before"]),
        ({"mm_perceiver": [16]}, ["mm_perceiver"]),
        (
            {"mm_perceiver": {"crop_small_regions": "false"}},
            ["crop_small_regions is 'false'"],
        ),
        ({"mm_perceiver": {"semantic_tokens": -1}}, ["semantic_tokens is -1; allowed"]),
        ({"mm_perceiver": {"heads": 5}}, ["cannot build", "5 heads"]),
    ],
)
def test_a_config_of_another_model(
    tmp_path: Path, tensors: dict[str, Tensor], change: dict[str, Any], words: list[str]
) -> None:
    write_official(tmp_path, tensors, config=LANGUAGE | change)
    refused(tmp_path, *words)


@pytest.mark.parametrize("text", ["{", "[1]", "3", "\xff"])
def test_a_config_that_is_not_a_json_object(tmp_path: Path, tensors: dict[str, Tensor], text: str) -> None:
    write_official(tmp_path, tensors)
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    refused(tmp_path, "config.json")


def test_a_config_without_sizes(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    write_official(tmp_path, tensors, config={"model_type": "llava_qwen", "hidden_size": 32})
    refused(tmp_path, "config.json: missing keys vocab_size, num_hidden_layers")


def test_broken_tokenizer(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    write_official(tmp_path, tensors)
    (tmp_path / "tokenizer.json").write_text("{", encoding="utf-8")
    refused(tmp_path, "tokenizer", str(tmp_path))


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "torch.load",
        "sam2.modeling.sam2_utils.copy.deepcopy",  # imported by a module of sam2
        "sam2.modeling.sam2_utils.get_1d_sine_pe",  # not a class
        "sam2.utils.misc.AsyncVideoFrameLoader",  # not a network module
        "sam2.modeling.nothing.Here",
    ],
)
def test_a_sam2_yaml_builds_only_sam2_modules(
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
def test_a_sam2_yaml_that_is_not_a_configuration(
    tmp_path: Path, tensors: dict[str, Tensor], text: str
) -> None:
    write_official(tmp_path, tensors)
    (tmp_path / "sam2.yaml").write_text(text, encoding="utf-8")
    refused(tmp_path, "sam2.yaml is not a SAM 2 configuration")


def test_a_sam2_yaml_of_a_submodule_or_another_data_flow(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    write_official(tmp_path, tensors)
    for config, words in (
        (sam2_tiny()["memory_encoder"], "cannot build the model"),
        (sam2_tiny() | {"image_size": "big"}, "image_size is 'big'; allowed: an integer from 16 to 2048"),
        (sam2_tiny() | {"directly_add_no_mem_embed": False}, "directly_add_no_mem_embed must be True"),
    ):
        (tmp_path / "sam2.yaml").write_text(yaml.safe_dump({"model": config}), encoding="utf-8")
        refused(tmp_path, words)
    with pytest.raises(ModelNotFoundError, match="SAM 2 configuration nowhere not found"):
        sam2_config("nowhere")


def test_missing_models_and_files(
    tmp_path: Path, tensors: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        ModelNotFoundError, match=r"unknown model 'pam-9b'; give auto, one of .*pam-3b.*pam-tiny"
    ):
        load_model(LoadOptions("pam-9b"))
    with pytest.raises(
        ModelNotFoundError, match=r"Perceive-Anything/PAM-9B is neither a folder.*knows .*/PAM-3B"
    ):
        load_model(LoadOptions("Perceive-Anything/PAM-9B"))
    with pytest.raises(ModelNotFoundError, match=r"no config\.json"):
        load_model(LoadOptions(str(tmp_path)))
    write_official(tmp_path, tensors)
    (tmp_path / "sam2.1_tiny.pt").unlink()
    with pytest.raises(ModelNotFoundError, match=r"no SAM 2 weights.*sam2\.1_hiera_large\.pt beside"):
        load_model(LoadOptions(str(tmp_path)))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelNotFoundError, match=r"no \*\.safetensors"):
        load_model(LoadOptions(str(tmp_path)))

    def offline(hub_id: str, **options: Any) -> str:
        raise LocalEntryNotFoundError("not cached")

    monkeypatch.setenv("PAM_MODELS", str(tmp_path / "models"))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(
        ModelNotFoundError, match=r"PAM-3B is not on this disk .*; download it with: pam fetch"
    ):
        load_model(LoadOptions("pam-3b"))
