"""Semantic Perceiver, projectors and prompts: shapes, values, order."""

from __future__ import annotations

import pytest
import torch
from tiny_models import GRID, HIDDEN, WIDTH, box, encoded, tiny_pam
from torch import Tensor

from pam_ros.model.interface import FIRST_FRAME_STRIDE, LATER_FRAME_STRIDE
from pam_ros.model.perceiver import Attention, SemanticPerceiver, TwoWayAttentionBlock, pixel_shuffle
from pam_ros.model.projector import Projector
from pam_ros.model.text.prompts import TEXT_BEFORE_IMAGE, text_after_image
from pam_ros.records import Language, Task


def naive_attention(layer: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The textbook formula, one head at a time."""
    q, k, v = layer.q_proj(q), layer.k_proj(k), layer.v_proj(v)
    size = q.shape[-1] // layer.num_heads
    heads = []
    for i in range(layer.num_heads):
        own = slice(i * size, (i + 1) * size)
        weights = torch.einsum("btc,bsc->bts", q[..., own], k[..., own]).div(size**0.5).softmax(-1)
        heads.append(torch.einsum("bts,bsc->btc", weights, v[..., own]))
    return layer.out_proj(torch.cat(heads, -1))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(1)


@pytest.mark.parametrize("shrink", [1, 2])
def test_attention_is_the_textbook_formula(shrink: int) -> None:
    layer = Attention(16, 4, downsample_rate=shrink)
    q, k, v = torch.randn(2, 3, 16), torch.randn(2, 7, 16), torch.randn(2, 7, 16)
    assert layer.q_proj.weight.shape == (16 // shrink, 16)
    torch.testing.assert_close(layer(q, k, v), naive_attention(layer, q, k, v))


@pytest.mark.parametrize("first", [True, False])
def test_two_way_block_step_by_step(first: bool) -> None:
    block = TwoWayAttentionBlock(16, 4, 24, skip_first_layer_pe=first)
    queries, keys = torch.randn(2, 5, 16), torch.randn(2, 9, 16)
    query_code, key_code = torch.randn(2, 5, 16), torch.randn(1, 9, 16)

    # 1. The queries attend to each other; the first block replaces them and adds no position code.
    if first:
        x = naive_attention(block.self_attn, queries, queries, queries)
    else:
        coded = queries + query_code
        x = queries + naive_attention(block.self_attn, coded, coded, queries)
    x = block.norm1(x)
    # 2. They attend to the image, 3. and pass through the MLP.
    look = naive_attention(block.cross_attn_token_to_image, x + query_code, keys + key_code, keys)
    x = block.norm2(x + look)
    up = (x @ block.mlp.layers[0].weight.T + block.mlp.layers[0].bias).clamp(min=0)
    x = block.norm3(x + up @ block.mlp.layers[1].weight.T + block.mlp.layers[1].bias)
    # 4. The image attends to the updated queries.
    back = naive_attention(block.cross_attn_image_to_token, keys + key_code, x + query_code, x)

    out_queries, out_keys = block(queries, keys, query_code, key_code)
    torch.testing.assert_close(out_queries, x)
    torch.testing.assert_close(out_keys, block.norm4(keys + back))


def test_perceiver_by_hand() -> None:
    perceiver = SemanticPerceiver(width=16, semantic_tokens=3, depth=1, heads=4, hidden=8)
    image, mask_tokens = torch.randn(2, 16, 4, 4), torch.randn(2, 2, 16)
    semantic, refined = perceiver(image, mask_tokens)
    assert semantic.shape == (2, 3, 16)
    assert refined.shape == (2, 4, 4, 16)

    # The position code: sines and cosines of a random projection of the pixel centres in -1..1
    y, x = torch.meshgrid((torch.arange(4) + 0.5) / 4, (torch.arange(4) + 0.5) / 4, indexing="ij")
    centres = 2 * torch.stack([x, y], -1) - 1
    phases = 2 * torch.pi * centres @ perceiver.pe_layer.positional_encoding_gaussian_matrix
    code = torch.cat([phases.sin(), phases.cos()], -1).view(1, 16, 16)

    start = torch.cat([mask_tokens, perceiver.sem_tokens.weight.expand(2, -1, -1)], 1)
    queries, keys = perceiver.layers[0](start, image.flatten(2).transpose(1, 2), start, code)
    look = naive_attention(perceiver.final_attn_token_to_image, queries + start, keys + code, keys)
    torch.testing.assert_close(semantic, perceiver.norm_final_attn(queries + look)[:, 2:])
    torch.testing.assert_close(refined.flatten(1, 2), keys)


@pytest.mark.parametrize("stride", [2, 4])
def test_pixel_shuffle_order(stride: int) -> None:
    """Token i is row i % (h/s), column i // (h/s); channel blocks run (0, 0), (0, 1), …"""
    height = width = 8
    image = torch.arange(2 * height * width * 3).view(2, height, width, 3)
    out = pixel_shuffle(image, stride)
    side = height // stride
    assert out.shape == (2, side * side, stride * stride * 3)
    for token in range(side * side):
        row, column = token % side, token // side
        for block in range(stride * stride):
            inside_row, inside_column = divmod(block, stride)
            expected = image[:, row * stride + inside_row, column * stride + inside_column]
            assert torch.equal(out[:, token, block * 3 : block * 3 + 3], expected)


def test_pixel_shuffle_of_both_strides() -> None:
    perceiver = SemanticPerceiver(width=16, semantic_tokens=3, depth=1, heads=4, hidden=8)
    image = torch.randn(2, 8, 8, 16)
    stride_2, stride_4 = (
        perceiver.shuffle(image, stride=FIRST_FRAME_STRIDE),
        perceiver.shuffle(image, stride=LATER_FRAME_STRIDE),
    )
    assert torch.equal(stride_2, pixel_shuffle(image, 2))
    torch.testing.assert_close(stride_4, perceiver.proj(pixel_shuffle(image, 4)))
    assert stride_2.shape == (2, 16, 64)
    assert stride_4.shape == (2, 4, 64)


def test_embeddings_are_in_order() -> None:
    projector = Projector(width=8, language_width=6)
    visual, semantic = torch.randn(2, 5, 32), torch.randn(2, 3, 8)
    embeddings = projector(visual, semantic)
    assert embeddings.shape == (2, 5 + 1 + 3 + 1, 6)

    def mlp(layers: torch.nn.Sequential, x: Tensor) -> Tensor:
        hidden = x @ layers[0].weight.T + layers[0].bias
        gelu = 0.5 * hidden * (1 + torch.erf(hidden / 2**0.5))
        return gelu @ layers[2].weight.T + layers[2].bias

    torch.testing.assert_close(embeddings[:, :5], mlp(projector.visual, visual))
    torch.testing.assert_close(embeddings[:, 5], projector.image_newline.expand(2, -1))
    torch.testing.assert_close(embeddings[:, 6:9], mlp(projector.semantic, semantic))
    torch.testing.assert_close(embeddings[:, 9], projector.semantic_newline.expand(2, -1))


def test_a_newline_follows_every_frame_of_a_clip() -> None:
    projector = Projector(width=8, language_width=6)
    first, second = torch.randn(7, 6), torch.randn(3, 6)
    embeddings = projector.prompt_embeddings([first, second], clip=True)
    newline = projector.frame_newline[None]
    assert torch.equal(embeddings, torch.cat([first, newline, second, newline]))


def test_embeddings_of_a_batch_equal_one_by_one() -> None:
    pam = tiny_pam()
    (features,) = encoded(pam, 1)
    prompts = [box(), box(40, 10, 90, 60), box(0, 0, 20, 70)]
    observations = pam.segment(features, prompts, [pam.new_memory() for _ in prompts])
    for stride, count in ((2, (GRID // 2) ** 2), (4, (GRID // 4) ** 2)):
        batch = pam.embeddings(observations, stride=stride)
        assert [len(embeddings) for embeddings in batch] == [count + 1 + 4 + 1] * 3
        for embeddings, observation in zip(batch, observations, strict=True):
            (alone,) = pam.embeddings([observation], stride=stride)
            torch.testing.assert_close(embeddings.tensor, alone.tensor)
            assert embeddings.tensor.shape == (len(embeddings), HIDDEN)
    assert pam.embeddings([], stride=FIRST_FRAME_STRIDE) == []
    assert observations[0].decoder_features.tokens.shape == (1, 2, WIDTH)


# ---- prompts: exactly those of training

HEAD = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
TAIL = "<|im_end|>\n<|im_start|>assistant\n"
TEXTS = {
    (Task.LABEL, Language.EN): "Classify this subject and provide its label.",
    (Task.LABEL, Language.ZH): "对该目标对象进行分类并提供标签",
    (Task.EXPLAIN, Language.EN): "Classify this subject and provide the label and its definition.",
    (Task.EXPLAIN, Language.ZH): "对该目标对象进行分类并提供标签和名词功能解释",
    (Task.BRIEF, Language.EN): "Provide a concise caption for this subject.",
    (Task.BRIEF, Language.ZH): "对该目标对象提供一个概括的描述",
    (Task.DETAIL, Language.EN): "Provide a comprehensive and detailed description for this subject.",
    (Task.DETAIL, Language.ZH): "对该目标对象提供一个全面且详细的描述",
    (Task.CLIP, Language.EN): "Provide a caption for this subject in this video.\nPrevious caption: None",
    (Task.CLIP, Language.ZH): "对该视频中的目标对象提供一个描述。\n历史描述：无",
}


def test_prompts_are_exactly_those_of_training() -> None:
    assert TEXT_BEFORE_IMAGE == HEAD
    for task in Task:
        for language in Language:
            assert text_after_image(task, language) == f"\n{TEXTS[task, language]}{TAIL}"


def test_only_clip_prompts_contain_the_previous_caption() -> None:
    caption = "A {previous} cup."  # braces in a caption stay
    expected = f"\nProvide a caption for this subject in this video.\nPrevious caption: {caption}{TAIL}"
    assert text_after_image(Task.CLIP, Language.EN, caption) == expected
    assert text_after_image(Task.CLIP, Language.ZH, caption).startswith(
        "\n对该视频中的目标对象提供一个描述。\n历史描述：A"
    )
    assert caption not in text_after_image(Task.BRIEF, Language.EN, caption)
    assert text_after_image(Task.CLIP, Language.EN, "") == f"\n{TEXTS[Task.CLIP, Language.EN]}{TAIL}"
