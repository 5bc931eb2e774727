"""The assembled model: its protocol, dtypes, and the official sizes without their weights."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from functools import partial

import pytest
import torch
from text_runs import TextRun, Wanted
from tiny_models import box, click, encoded, picture, tiny_pam

from pam_ros import api
from pam_ros.errors import StateError
from pam_ros.model.config import sam2_config
from pam_ros.model.interface import (
    FIRST_FRAME_STRIDE,
    LATER_FRAME_STRIDE,
    FrameFeatures,
    Observation,
    PerceptionModel,
    RegionEmbeddings,
)
from pam_ros.model.loading.checkpoint import OFFICIAL_SAM2, architecture_of
from pam_ros.model.loading.weights import official_name, our_name
from pam_ros.model.pam import Pam
from pam_ros.records import Language, Task


def test_the_whole_flow_through_the_protocol() -> None:
    model: PerceptionModel = tiny_pam()
    features: FrameFeatures = model.vision.encode(picture())
    assert features.size == (72, 96)
    memory = model.vision.new_memory()
    seen: Observation = model.vision.segment(features, [click()], [memory])[0]
    found: Observation = model.vision.track(model.vision.encode(picture(1)), [memory])[0]
    first: RegionEmbeddings = model.vision.embeddings([seen], stride=FIRST_FRAME_STRIDE)[0]
    second: RegionEmbeddings = model.vision.embeddings([found], stride=LATER_FRAME_STRIDE)[0]
    assert (len(first), len(second)) == (22, 10)
    texts = TextRun(model, [Wanted((first, second), Task.CLIP, Language.EN, max_new_tokens=4)])
    deltas = [delta for _ in range(20) for delta in texts.step()]
    assert texts.done
    assert deltas[-1][1].final
    assert [place for place, _ in deltas] == [0] * 4
    model.close()


@pytest.mark.parametrize("prompted", [True, False])
def test_a_region_that_is_kept_keeps_nothing_of_the_others(prompted: bool) -> None:
    """A clip may wait long after the other regions of its frames are gone."""
    vision = tiny_pam().vision
    memories = [vision.new_memory() for _ in range(3)]
    seen = vision.segment(vision.encode(picture()), [click(), box(), click(70, 20)], memories)
    if not prompted:
        seen = vision.track(vision.encode(picture(1)), memories)
    kept = [each.tensor for each in vision.embeddings(seen, stride=FIRST_FRAME_STRIDE)]
    for observation in seen:
        features = observation.decoder_features
        kept += [features.image, features.tokens, observation.mask_logits]
    assert [tensor.untyped_storage().nbytes() for tensor in kept] == [tensor.nbytes for tensor in kept]
    assert len({tensor.untyped_storage().data_ptr() for tensor in kept}) == len(kept)


def test_closing_frees_the_weights() -> None:
    pam = tiny_pam()
    kept = [weakref.ref(part) for part in (pam.segmenter.sam2, pam.perceiver, pam.language.transformer)]
    pam.close()
    gc.collect()
    assert [part() for part in kept] == [None] * 3
    pam.close()
    with pytest.raises(StateError, match="the model is closed"):
        api.perceive(pam, picture(), clicks=[(3, 4)])


# ---- bfloat16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs_and_keeps_positions_exact(dtype: torch.dtype) -> None:
    pam, exact = tiny_pam(), tiny_pam()
    pam.place(torch.device("cpu"), dtype)
    kept = set(dict(pam.named_buffers())) | {
        name for name, _ in pam.named_parameters() if name.startswith("segmenter.sam2.sam_prompt_encoder.")
    }
    assert any(name.endswith("inv_freq") for name in kept)
    assert any(name.endswith("perceiver.pe_layer.positional_encoding_gaussian_matrix") for name in kept)
    reference = dict(exact.named_parameters()) | dict(exact.named_buffers())
    for name, tensor in [*pam.named_parameters(), *pam.named_buffers()]:
        assert tensor.dtype == (torch.float32 if name in kept else dtype), name
        if name in kept:
            assert torch.equal(tensor, reference[name]), name

    frames, exact_frames = encoded(pam, 3), encoded(exact, 3)
    prompts = [click(), box()]
    memories, exact_memories = [pam.new_memory(), pam.new_memory()], [exact.new_memory(), exact.new_memory()]
    seen = pam.segment(frames[0], prompts, memories)
    exact_seen = exact.segment(exact_frames[0], prompts, exact_memories)
    seen += pam.segment(frames[0], prompts, memories)  # refined
    exact_seen += exact.segment(exact_frames[0], prompts, exact_memories)
    for frame, exact_frame in zip(frames[1:], exact_frames[1:], strict=True):
        seen += pam.track(frame, memories)
        exact_seen += exact.track(exact_frame, exact_memories)
    for ours, theirs in zip(seen, exact_seen, strict=True):
        overlap = (ours.mask & theirs.mask).sum() / (ours.mask | theirs.mask).sum()
        assert overlap > 0.9
        assert abs(ours.presence_score - theirs.presence_score) < 0.02
    embeddings, exact_embeddings = (
        pam.embeddings(seen[:1], stride=FIRST_FRAME_STRIDE),
        exact.embeddings(exact_seen[:1], stride=FIRST_FRAME_STRIDE),
    )
    assert embeddings[0].tensor.dtype == dtype
    assert relative(embeddings[0].tensor, exact_embeddings[0].tensor) < 0.05
    texts = TextRun(
        pam, [Wanted(tuple(embeddings), task, Language.ZH, max_new_tokens=3) for task in list(Task)[:3]]
    )
    while not texts.done:
        texts.step()


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours.float() - theirs).norm() / theirs.norm())


def test_rotary_phases_hold_far_into_a_prompt() -> None:
    """Frequencies rounded to bfloat16 would be wrong by radians at token 1000."""
    pam, exact = tiny_pam(), tiny_pam()
    pam.place(torch.device("cpu"), torch.bfloat16)
    embeddings = torch.randn(1500, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.inference_mode():
        assert relative(pam.language.logits(embeddings), exact.language.logits(embeddings.float())) < 0.05


# ---- official sizes, no weights

SIZES = {
    "1.5B": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
    },
    "3B": {
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
    },
}
# As in LLaVA-style checkpoints; only some of the keys are used.
CONFIG = {
    "_name_or_path": "somewhere/Qwen2.5",
    "architectures": ["LlavaQwenForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "delay_load": True,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "image_aspect_ratio": "square",
    "initializer_range": 0.02,
    "max_position_embeddings": 32768,
    "max_window_layers": 70,
    "mm_hidden_size": 256,
    "mm_patch_merge_type": "flat",
    "mm_projector_lr": None,
    "mm_projector_type": "mlp2x_gelu",
    "mm_tunable_parts": "mm_language_model",
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False,
    "mm_vision_tower": "meta/sam2.1_hiera_large",
    "model_type": "llava_qwen",
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": True,
    "tokenizer_model_max_length": 12288,
    "tokenizer_padding_side": "right",
    "torch_dtype": "bfloat16",
    "transformers_version": "4.40.0",
    "use_cache": True,
    "use_mm_proj": True,
    "use_pos_skipping": False,
    "use_sliding_window": False,
    "vision_tower_pretrained": "",
    "vocab_size": 151936,
}


def expected_shapes(
    hidden_size: int, intermediate_size: int, layers: int, kv: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of an official checkpoint without SAM 2's, according to the model card."""

    def linear(name: str, outputs: int, inputs: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{name}.weight", (outputs, inputs)
        yield f"{name}.bias", (outputs,)

    def attention(name: str, inner: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        for part in ("q_proj", "k_proj", "v_proj"):
            yield from linear(f"{name}.{part}", inner, 256)
        yield from linear(f"{name}.out_proj", 256, inner)

    perceiver = "model.vision_resampler"
    yield f"{perceiver}.pe_layer.positional_encoding_gaussian_matrix", (2, 128)
    yield f"{perceiver}.sem_tokens.weight", (16, 256)
    for i in range(2):
        layer = f"{perceiver}.layers.{i}"
        yield from attention(f"{layer}.self_attn", 256)
        yield from attention(f"{layer}.cross_attn_token_to_image", 128)
        yield from attention(f"{layer}.cross_attn_image_to_token", 128)
        yield from linear(f"{layer}.mlp.layers.0", 2048, 256)
        yield from linear(f"{layer}.mlp.layers.1", 256, 2048)
        for k in range(1, 5):
            yield f"{layer}.norm{k}.weight", (256,)
            yield f"{layer}.norm{k}.bias", (256,)
    yield from attention(f"{perceiver}.final_attn_token_to_image", 128)
    yield f"{perceiver}.norm_final_attn.weight", (256,)
    yield f"{perceiver}.norm_final_attn.bias", (256,)
    yield from linear(f"{perceiver}.proj", 1024, 4096)
    yield from linear("model.mm_projector_img.0", hidden_size, 1024)
    yield from linear("model.mm_projector_img.2", hidden_size, hidden_size)
    yield from linear("model.mm_projector_semT.0", hidden_size, 256)
    yield from linear("model.mm_projector_semT.2", hidden_size, hidden_size)
    for name in ("image_newline", "semT_newline", "frame_newline"):
        yield f"model.{name}", (hidden_size,)
    yield "model.embed_tokens.weight", (151936, hidden_size)
    yield "lm_head.weight", (151936, hidden_size)
    yield "model.norm.weight", (hidden_size,)
    for i in range(layers):
        layer = f"model.layers.{i}"
        yield from linear(f"{layer}.self_attn.q_proj", hidden_size, hidden_size)
        yield from linear(f"{layer}.self_attn.k_proj", kv, hidden_size)
        yield from linear(f"{layer}.self_attn.v_proj", kv, hidden_size)
        yield f"{layer}.self_attn.o_proj.weight", (hidden_size, hidden_size)
        yield f"{layer}.mlp.gate_proj.weight", (intermediate_size, hidden_size)
        yield f"{layer}.mlp.up_proj.weight", (intermediate_size, hidden_size)
        yield f"{layer}.mlp.down_proj.weight", (hidden_size, intermediate_size)
        yield f"{layer}.input_layernorm.weight", (hidden_size,)
        yield f"{layer}.post_attention_layernorm.weight", (hidden_size,)


@pytest.mark.parametrize("size", SIZES)
def test_official_sizes_have_the_official_names_and_shapes(
    size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # While it builds, sam2 puts a table on the GPU, if any, and reads values of a linspace.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "linspace", partial(torch.linspace, device="cpu"))
    numbers = SIZES[size]
    with torch.device("meta"):
        pam = Pam(architecture_of(CONFIG | numbers, sam2_config(OFFICIAL_SAM2)))
    state = pam.state_dict()
    found = {official_name(name): tuple(tensor.shape) for name, tensor in state.items()}
    assert all(our_name(official_name(name)) == name for name in state)
    sam2 = {name: shape for name, shape in found.items() if name.startswith("model.vision_tower.")}
    head_width = numbers["hidden_size"] // numbers["num_attention_heads"]
    assert {name: shape for name, shape in found.items() if name not in sam2} == dict(
        expected_shapes(
            numbers["hidden_size"],
            numbers["intermediate_size"],
            numbers["num_hidden_layers"],
            head_width * numbers["num_key_value_heads"],
        )
    )
    # sam2.1_hiera_large.pt has 898,083,611 bytes: float32 numbers, names, and the zip around them
    assert all(name.startswith("model.vision_tower.sam2_model_predictor.") for name in sam2)
    payload = 4 * sum(state[our_name(name)].numel() for name in sam2)
    assert 0 < 898_083_611 - payload < 1_000_000
    assert pam.language.context_length == 12288
    assert pam.language.window == 131073
    assert pam.language.transformer.config.rope_parameters["rope_theta"] == 1e6

    # 1024 visual tokens, 16 semantic tokens and two separators: 1042; a clip of 16 frames: 5168.
    assert pam.segmenter.image_size == 1024
    assert pam.segmenter.grid_size == 64
    decoder_features = torch.empty(1, 256, 64, 64, device="meta"), torch.empty(1, 2, 256, device="meta")
    semantic, refined = pam.perceiver(*decoder_features)
    stride_2 = pam.projector(pam.perceiver.shuffle(refined, stride=FIRST_FRAME_STRIDE), semantic)
    stride_4 = pam.projector(pam.perceiver.shuffle(refined, stride=LATER_FRAME_STRIDE), semantic)
    assert stride_2.shape == (1, 1042, numbers["hidden_size"])
    clip = pam.projector.prompt_embeddings([stride_2[0], *[stride_4[0]] * 15], clip=True)
    assert clip.shape == (5168, numbers["hidden_size"])
