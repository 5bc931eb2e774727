"""Weights of Qwen2's layers, fused for few large reads: QKV as one matrix, gate and up as one.

Letters: H model width, Q heads, G key-value heads, D head width, F width of the MLP, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from pam_ros.model.text.quantized import Int4Matrix, Int8Matrix, Matrix, QuantizedLinear


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One decoder layer."""

    input_norm: Tensor  # (H)
    qkv: Matrix  # ((Q + 2G)·D, H)
    qkv_bias: Tensor  # ((Q + 2G)·D)
    out: Matrix  # (H, Q·D)
    mlp_norm: Tensor  # (H)
    gate_up: Matrix  # (2F, H)
    down: Matrix  # (H, F)


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """All weights, and the numbers that shapes do not tell."""

    layers: tuple[LayerWeights, ...]
    embeddings: Tensor  # (V, H)
    norm: Tensor  # (H)
    head: Tensor  # (V', H): without rows that have no token
    heads: int
    kv_heads: int
    head_width: int
    epsilon: float
    cosines: Tensor  # (positions, D/2) float32
    sines: Tensor  # (positions, D/2) float32

    @property
    def width(self) -> int:
        """H."""
        return self.norm.shape[0]

    @property
    def bytes_per_token(self) -> int:
        """Bytes that decoding one token reads: every weight once, of the embeddings one row."""
        layers = (
            matrix for layer in self.layers for matrix in (layer.qkv, layer.out, layer.gate_up, layer.down)
        )
        return sum(matrix.nbytes for matrix in (*layers, self.head))


def fuse(transformer: Qwen2ForCausalLM, *, vocabulary: int | None = None, positions: int) -> DecoderWeights:
    """Fuses the weights of `transformer`, whose own parameters become views of them: no memory is used twice.

    `vocabulary`: tokens that may be generated, None = all; `positions`: the longest text, tokens.
    Raises ValueError for a rotary code other than Qwen2.5's, or matrices that cannot be joined.
    """
    config: Qwen2Config = transformer.config
    rotary = transformer.model.rotary_emb
    if rotary.rope_type != "default":
        raise ValueError(f"rotary code {rotary.rope_type!r} is not supported, only 'default'")
    layers = []
    for layer in transformer.model.layers:
        layers.append(_fuse_layer(layer))
        if transformer.device.type == "cuda":
            torch.cuda.empty_cache()  # its old matrices are too small for the next layer's joined ones
    angles = torch.outer(
        torch.arange(positions, device=rotary.inv_freq.device).float(), rotary.inv_freq.float()
    )
    head = transformer.lm_head.weight.data
    return DecoderWeights(
        layers=tuple(layers),
        embeddings=transformer.model.embed_tokens.weight.data,
        norm=transformer.model.norm.weight.data,
        head=head if vocabulary is None else head[:vocabulary],
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_width=layers[0].out.shape[1] // config.num_attention_heads,
        epsilon=config.rms_norm_eps,
        cosines=angles.cos(),
        sines=angles.sin(),
    )


def _fuse_layer(layer: Any) -> LayerWeights:
    attention, mlp = layer.self_attn, layer.mlp
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    return LayerWeights(
        input_norm=layer.input_layernorm.weight.data,
        qkv=_joined_layers(projections),
        qkv_bias=_joined([each.bias for each in projections]),
        out=_matrix(attention.o_proj),
        mlp_norm=layer.post_attention_layernorm.weight.data,
        gate_up=_joined_layers([mlp.gate_proj, mlp.up_proj]),
        down=_matrix(mlp.down_proj),
    )


def _matrix(layer: nn.Linear | QuantizedLinear) -> Matrix:
    if isinstance(layer, nn.Linear):
        return layer.weight.data
    if isinstance(layer.matrix, (Int8Matrix, Int4Matrix)):
        return layer.matrix
    raise ValueError(f"the fast engines do not read {type(layer.matrix).__name__}")


def _joined_layers(layers: Sequence[nn.Linear | QuantizedLinear]) -> Matrix:
    """One matrix of all; the layers' own become views of it."""
    dense = [each.weight for each in layers if isinstance(each, nn.Linear)]
    if len(dense) == len(layers):
        return _joined(dense)
    matrices = [_matrix(each) for each in layers]
    int8 = [each for each in matrices if isinstance(each, Int8Matrix)]
    int4 = [each for each in matrices if isinstance(each, Int4Matrix)]
    if len(layers) not in (len(int8), len(int4)):
        raise ValueError("quantised and other matrices of a layer cannot be joined")
    whole = Int8Matrix.joined(int8) if int8 else Int4Matrix.joined(int4)
    start = 0
    for layer, matrix in zip(layers, matrices, strict=True):
        layer.matrix = whole.part(start, matrix.shape[0])
        start += matrix.shape[0]
    return whole


def _joined(parameters: Sequence[Tensor]) -> Tensor:
    """One tensor of all; the parameters become views of it."""
    whole = torch.cat([each.data for each in parameters])
    for parameter, part in zip(
        parameters, torch.split(whole, [len(each) for each in parameters]), strict=True
    ):
        parameter.data = part
    return whole
