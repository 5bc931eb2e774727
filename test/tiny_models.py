"""Tiny PAM architectures with fixed weights, and images for them.

The smallest sizes with every component: 128-pixel input, an 8 x 8 grid, width 32, two language layers.
Weights follow from each tensor's name, so they are the same on every machine.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pam_ros.evaluation.parity import rule_tensor
from pam_ros.model.loading.checkpoint import architecture_of, load_model, read_tokenizer
from pam_ros.model.loading.options import LoadOptions
from pam_ros.model.loading.weights import SAM2_PREFIX, official_name
from pam_ros.model.pam import Pam
from pam_ros.model.vision.segmenter import FrameFeatures, Observation
from pam_ros.records import Prompt
from pam_ros.share import share_folder

SMALL_SET = Path(__file__).parent / "data" / "scenes"  # the small test set

WIDTH = 32  # of SAM 2 and the Perceiver
MEMORY_WIDTH = 8
GRID = 8
HIDDEN = 32  # of the language model
SIZE = (72, 96)  # of the images: height, width
LANGUAGE: dict[str, Any] = {
    "model_type": "llava_qwen",
    "vocab_size": 4096,
    "hidden_size": HIDDEN,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "sliding_window": None,
    "mm_hidden_size": WIDTH,
    "mm_perceiver": {"semantic_tokens": 4, "depth": 2, "heads": 4, "hidden": 48},
}


def sam2_tiny() -> dict[str, Any]:
    """The `model` node of a SAM 2 configuration; the flags are those of sam2.1_hiera_l."""
    attention = {
        "_target_": "sam2.modeling.sam.transformer.RoPEAttention",
        "rope_theta": 10000.0,
        "feat_sizes": [GRID, GRID],
        "embedding_dim": WIDTH,
        "num_heads": 1,
        "downsample_rate": 1,
        "dropout": 0.1,
    }
    sine = {
        "_target_": "sam2.modeling.position_encoding.PositionEmbeddingSine",
        "normalize": True,
        "scale": None,
        "temperature": 10000,
    }
    return {
        "_target_": "sam2.modeling.sam2_base.SAM2Base",
        "image_size": 16 * GRID,
        "image_encoder": {
            "_target_": "sam2.modeling.backbones.image_encoder.ImageEncoder",
            "scalp": 1,
            "trunk": {
                "_target_": "sam2.modeling.backbones.hieradet.Hiera",
                "embed_dim": 8,
                "num_heads": 1,
                "stages": [1, 1, 2, 1],
                "global_att_blocks": [3],
                "window_spec": [8, 4, 4, 4],
                "window_pos_embed_bkg_spatial_size": [4, 4],
            },
            "neck": {
                "_target_": "sam2.modeling.backbones.image_encoder.FpnNeck",
                "position_encoding": sine | {"num_pos_feats": WIDTH},
                "d_model": WIDTH,
                "backbone_channel_list": [64, 32, 16, 8],
                "fpn_top_down_levels": [2, 3],
                "fpn_interp_model": "nearest",
            },
        },
        "memory_attention": {
            "_target_": "sam2.modeling.memory_attention.MemoryAttention",
            "d_model": WIDTH,
            "pos_enc_at_input": True,
            "num_layers": 2,
            "layer": {
                "_target_": "sam2.modeling.memory_attention.MemoryAttentionLayer",
                "activation": "relu",
                "dim_feedforward": 48,
                "dropout": 0.1,
                "pos_enc_at_attn": False,
                "d_model": WIDTH,
                "pos_enc_at_cross_attn_keys": True,
                "pos_enc_at_cross_attn_queries": False,
                "self_attention": attention,
                "cross_attention": attention | {"rope_k_repeat": True, "kv_in_dim": MEMORY_WIDTH},
            },
        },
        "memory_encoder": {
            "_target_": "sam2.modeling.memory_encoder.MemoryEncoder",
            "in_dim": WIDTH,
            "out_dim": MEMORY_WIDTH,
            "position_encoding": sine | {"num_pos_feats": MEMORY_WIDTH},
            "mask_downsampler": {
                "_target_": "sam2.modeling.memory_encoder.MaskDownSampler",
                "embed_dim": WIDTH,
                "kernel_size": 3,
                "stride": 2,
                "padding": 1,
            },
            "fuser": {
                "_target_": "sam2.modeling.memory_encoder.Fuser",
                "num_layers": 2,
                "layer": {
                    "_target_": "sam2.modeling.memory_encoder.CXBlock",
                    "dim": WIDTH,
                    "kernel_size": 7,
                    "padding": 3,
                    "layer_scale_init_value": 1e-6,
                    "use_dwconv": True,
                },
            },
        },
        "num_maskmem": 7,
        "sigmoid_scale_for_mem_enc": 20.0,
        "sigmoid_bias_for_mem_enc": -10.0,
        "use_mask_input_as_output_without_sam": True,
        "directly_add_no_mem_embed": True,
        "no_obj_embed_spatial": True,
        "use_high_res_features_in_sam": True,
        "multimask_output_in_sam": False,
        "iou_prediction_use_sigmoid": True,
        "use_obj_ptrs_in_encoder": True,
        "add_tpos_enc_to_obj_ptrs": True,
        "proj_tpos_enc_in_obj_ptrs": True,
        "use_signed_tpos_enc_to_obj_ptrs": True,
        "only_obj_ptrs_in_the_past_for_eval": True,
        "pred_obj_scores": True,
        "pred_obj_scores_mlp": True,
        "fixed_no_obj_ptr": True,
        "multimask_output_for_tracking": True,
        "use_multimask_token_for_obj_ptr": True,
        "multimask_min_pt_num": 0,
        "multimask_max_pt_num": 1,
        "use_mlp_for_obj_ptr_proj": True,
    }


@cache
def tiny_tokenizer() -> PreTrainedTokenizerBase:
    """pam-tiny's: English and Chinese, every byte covered."""
    tokenizer = read_tokenizer(share_folder("models", "*.yaml") / "pam-tiny")
    assert tokenizer is not None
    return tokenizer


@contextmanager
def shipped_model() -> Iterator[Pam]:
    """The shipped pam-tiny on one thread, so that its results are the same on every machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield load_model(LoadOptions("pam-tiny", device="cpu"))
    finally:
        torch.set_num_threads(threads)


def tiny_pam(prefix: str = "", **language: Any) -> Pam:
    """A Pam whose weights follow from `prefix` and their names; `language` changes its config.json."""
    model = Pam(architecture_of(LANGUAGE | language, sam2_tiny()), tiny_tokenizer())
    fill_by_rule(model, prefix)
    model.requires_grad_(False)
    return model


@torch.no_grad()
def fill_by_rule(model: Pam, prefix: str = "") -> None:
    """Fills an architecture by the weight rule of the parity folders."""
    for name, tensor in model.state_dict(keep_vars=True).items():
        part = "sam2" if name.startswith(SAM2_PREFIX) else "pam"
        official = name.removeprefix(SAM2_PREFIX) if part == "sam2" else official_name(name)
        tensor.copy_(torch.from_numpy(rule_tensor(prefix, part, official, tensor.shape)))


def picture(step: int = 0, size: tuple[int, int] = SIZE, seed: int = 0) -> NDArray[np.uint8]:
    """(H, W, 3) uint8: a bright disc on a fixed texture; in each step it moves 2 pixels right and 1 down."""
    height, width = size
    image = np.random.default_rng(seed).integers(0, 120, (height, width, 3)).astype(np.uint8)
    y, x = np.mgrid[:height, :width]
    disc = (x - width * 0.3 - 2 * step) ** 2 + (y - height * 0.4 - step) ** 2 < (height * 0.2) ** 2
    image[disc] = (230, 200, 40 + 5 * step)
    return image


def click(x: float = 30, y: float = 30) -> Prompt:
    """One positive click."""
    return Prompt.from_clicks([(x, y)])


def box(x1: float = 15, y1: float = 14, x2: float = 44, y2: float = 44) -> Prompt:
    """A box."""
    return Prompt.from_clicks(box_xyxy=(x1, y1, x2, y2))


def encoded(model: Pam, count: int, seed: int = 0) -> list[FrameFeatures]:
    """Features of the first `count` images."""
    return [model.encode(picture(step, seed=seed)) for step in range(count)]


def assert_same(ours: Sequence[Observation], theirs: Sequence[Observation], tolerance: float = 1e-4) -> None:
    """Asserts that two lists of observations have equal masks, scores and decoder features."""
    for a, b in zip(ours, theirs, strict=True):
        for left, right in (
            (a.mask_logits, b.mask_logits),
            (a.mask_iou, b.mask_iou),
            (a.presence_logit, b.presence_logit),
            (a.decoder_features.image, b.decoder_features.image),
            (a.decoder_features.tokens, b.decoder_features.tokens),
        ):
            torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)


# ---- files


def official_tensors(model: Pam) -> dict[str, Tensor]:
    """Every tensor of a model under its official name."""
    return {official_name(name): tensor.detach().clone() for name, tensor in model.state_dict().items()}


def write_official(
    folder: Path,
    tensors: Mapping[str, Tensor],
    *,
    config: Mapping[str, Any] = LANGUAGE,
    shards: int = 1,
    sam2_file: bool = True,
    tower: bool = False,
) -> Path:
    """Writes a folder in the official layout, and a `sam2.yaml` because SAM 2 is tiny here.

    `shards`: number of safetensors files; `sam2_file`: SAM 2 as a .pt; `tower`: as model.vision_tower keys.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tower_prefix = official_name(SAM2_PREFIX)
    sam2 = {name: tensor for name, tensor in tensors.items() if name.startswith(tower_prefix)}
    rest = dict(tensors) if tower else {name: t for name, t in tensors.items() if name not in sam2}
    (folder / "config.json").write_text(json.dumps(dict(config)), encoding="utf-8")
    (folder / "sam2.yaml").write_text(yaml.safe_dump({"model": sam2_tiny()}), encoding="utf-8")
    tiny_tokenizer().save_pretrained(str(folder))
    if sam2_file:
        bare = {name.removeprefix(tower_prefix): tensor for name, tensor in sam2.items()}
        torch.save({"model": bare}, folder / "sam2.1_tiny.pt")
    names = sorted(rest)
    if shards == 1:
        save_file(rest, folder / "model.safetensors")
        return folder
    index = {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: rest[name] for name in names[i::shards]}
        save_file(part, folder / file)
        index.update(dict.fromkeys(part, file))
    text = json.dumps({"metadata": {}, "weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    return folder
