"""int8 and int4 weights: layouts, kernels, loading; texts equal those of the dense weights that they mean."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_text_engine import DEVICE, POSITIONS, WIDTH, cuda_only, greedy, run, tiny_model
from tiny_models import official_tensors, tiny_pam, write_official
from torch import Tensor, nn

from pam_ros.errors import CheckpointError, DeviceError, StateError
from pam_ros.model.loading.checkpoint import load_model, save_model
from pam_ros.model.loading.device import needed_gib
from pam_ros.model.loading.files import find_files
from pam_ros.model.loading.options import LoadOptions, Quantization
from pam_ros.model.loading.quantization import Quantizer, linear_layers, parse_quantization
from pam_ros.model.loading.weights import is_finite
from pam_ros.model.pam import Pam
from pam_ros.model.text import quantized
from pam_ros.model.text.fast.decoder_weights import fuse
from pam_ros.model.text.fast.text_engine import TextEngine
from pam_ros.model.text.quantized import Int4Matrix, Int8Matrix, QuantizedLinear, linear

pytestmark = pytest.mark.cuda
CPU = torch.device("cpu")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
needs_triton = pytest.mark.skipif(
    DEVICE.type != "cuda" and not INTERPRETED, reason="needs a CUDA device, or TRITON_INTERPRET=1"
)
# Inputs of the eight numbers of a word, as PyTorch's kernels have them.
ORDER = (0, 8, 16, 24, 1, 9, 17, 25)


def rounded(weight: Tensor, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (N, K) → their four bits (N, K), scales and zeros (N, K / group)."""
    parts = weight.unflatten(1, (-1, group))
    low, high = parts.amin(-1), parts.amax(-1)
    scale = ((high - low) / 15).bfloat16().float()
    zero = (low + 8 * scale).bfloat16().float()
    bits = ((parts - zero[..., None]) / scale[..., None] + 8).round().clamp(0, 15)
    return bits.flatten(1).int(), scale, zero


def packed(weight: Tensor, group: int) -> tuple[Int4Matrix, Tensor]:
    """Weights (N, K) → int4 in the layout of PyTorch's CUDA kernels, and the dense weights that it means."""
    bits, scale, zero = rounded(weight.cpu().float(), group)
    outputs, inputs = bits.shape
    tiles = -(-inputs // 128)
    padded = nn.functional.pad(bits, (0, 128 * tiles - inputs)).view(outputs // 8, 8, tiles, 128)
    words = torch.zeros(outputs // 8, tiles, 32, 4, dtype=torch.int64)
    for lane in range(32):
        for j in range(4):
            for i, offset in enumerate(ORDER):
                column = padded[:, lane // 4, :, 32 * j + 2 * (lane % 4) + offset]
                words[:, :, lane, j] |= column.long() << (4 * i)
    pairs = torch.stack([scale.T, zero.T], -1).bfloat16()
    pairs = nn.functional.pad(pairs, (0, 0, 0, 0, 0, 128 * tiles // group - len(pairs)))
    dense = (bits - 8) * scale.repeat_interleave(group, 1) + zero.repeat_interleave(group, 1)
    low = torch.where(words >= 2**31, words - 2**32, words).int()
    matrix = Int4Matrix(low.to(weight.device), pairs.contiguous().to(weight.device), inputs, group)
    return matrix, dense.to(weight.device)


def eighths(weight: Tensor) -> tuple[Int8Matrix, Tensor]:
    """Weights (N, K) → int8, and the dense weights that it means."""
    scale = weight.float().abs().amax(1) / 127
    values = (weight.float() / scale[:, None]).round().to(torch.int8)
    return Int8Matrix(values, scale), values * scale[:, None]


def made(kind: str, weight: Tensor) -> tuple[Int8Matrix | Int4Matrix, Tensor]:
    """The matrix of a kind, and the dense weights that it means."""
    group = next(group for group in (128, 64, 32) if weight.shape[1] % group == 0)
    return eighths(weight) if kind == "int8" else packed(weight, group)


# ---- layouts and kernels


@pytest.mark.parametrize(("outputs", "inputs"), [(16, 256), (40, 704), (8, 96)])
@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("rows", [1, 5, 100])
def test_products_are_those_of_the_dense_weights(kind: str, outputs: int, inputs: int, rows: int) -> None:
    torch.manual_seed(rows)
    matrix, dense = made(kind, torch.randn(outputs, inputs, device=DEVICE))
    assert tuple(matrix.shape) == (outputs, inputs)
    assert matrix.nbytes < 0.4 * 4 * dense.numel()
    x, bias = torch.randn(rows, inputs, device=DEVICE), torch.randn(outputs, device=DEVICE)
    found, expected = linear(x, matrix, bias), nn.functional.linear(x, dense, bias)
    assert (found - expected).norm() < 0.01 * expected.norm()
    part = matrix.part(8, outputs - 8) if outputs > 8 else matrix
    found = linear(x, part)
    assert (found - (expected - bias)[:, -found.shape[1] :]).norm() < 0.01 * expected.norm()
    whole = type(matrix).joined([matrix, matrix])  # type: ignore[arg-type]
    assert (linear(x, whole) - (expected - bias).repeat(1, 2)).norm() < 0.02 * expected.norm()


def test_int8_does_not_overflow_in_float16() -> None:
    matrix, dense = eighths(torch.rand(16, 256, device=DEVICE))
    x = torch.full((20, 256), 30.0, device=DEVICE)
    found = linear(x.half(), matrix).float()
    assert (found - x @ dense.T).norm() < 0.01 * (x @ dense.T).norm()


@needs_triton
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("batch", [1, 2, 3, 16])
@pytest.mark.parametrize("kind", ["int8", "int4", "dense"])
@pytest.mark.parametrize(("outputs", "inputs"), [(24, 704), (16, 256)])
def test_kernels_of_a_decoding_step(kind: str, batch: int, gated: bool, outputs: int, inputs: int) -> None:
    from pam_ros.model.text.fast.decode_step import Launcher

    torch.manual_seed(batch)
    weight = torch.randn(2 * outputs if gated else outputs, inputs, device=DEVICE)
    matrix, dense = (weight, weight) if kind == "dense" else made(kind, weight)
    x, gain = torch.randn(batch, inputs, device=DEVICE), torch.rand(inputs, device=DEVICE) + 0.5
    bias, residual = torch.randn(outputs, device=DEVICE), torch.randn(batch, outputs, device=DEVICE)
    normed = nn.functional.rms_norm(x, (inputs,), gain, 1e-6)
    out = torch.empty(batch, outputs, device=DEVICE)
    launch = Launcher(DEVICE, overlap=False)
    if gated:
        gate, up = (normed @ dense.T).chunk(2, 1)
        expected = nn.functional.silu(gate) * up
        launch.linear(x, matrix, out, gain=gain, epsilon=1e-6, gated=True)
    else:
        expected = normed @ dense.T + bias + residual
        launch.linear(x, matrix, out, gain=gain, epsilon=1e-6, bias=bias, residual=residual)
    tolerance = 0.02 if kind == "int4" and batch > 2 and DEVICE.type == "cuda" else 1e-4  # bfloat16 inside
    assert (out - expected).norm() < tolerance * expected.norm()


@needs_triton
@pytest.mark.parametrize(("inputs", "group"), [(256, 128), (704, 64), (96, 32)])
def test_unpacking_int4(inputs: int, group: int) -> None:
    matrix, dense = packed(torch.randn(16, inputs, device=DEVICE), group)
    torch.testing.assert_close(matrix.dense(torch.float32), dense)
    torch.testing.assert_close(matrix.part(8, 8).dense(torch.float32), dense[8:])
    torch.testing.assert_close(matrix._unpacked(torch.float32), dense)


# ---- torchao


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=cuda_only)])
@pytest.mark.parametrize(("kind", "error"), [(Quantization.INT8, 0.01), (Quantization.INT4, 0.15)])
@pytest.mark.parametrize(("outputs", "inputs"), [(64, 256), (128, 704)])
def test_torchao_quantises(kind: Quantization, error: float, device: str, outputs: int, inputs: int) -> None:
    torch.manual_seed(0)
    weight = torch.randn(outputs, inputs)
    matrix = Quantizer(kind, torch.device(device)).matrix(weight)
    x = torch.randn(3, inputs)
    found, expected = linear(x.to(device), matrix).cpu(), x @ weight.T
    assert 1e-4 < (found - expected).norm() / expected.norm() < error


@cuda_only
def test_int4_as_torchao_packs_it_is_unpacked_as_its_kernel_does() -> None:
    weight = torch.randn(64, 704, device=DEVICE)
    matrix = Quantizer(Quantization.INT4, DEVICE).matrix(weight)
    assert isinstance(matrix, Int4Matrix)
    x = torch.randn(16, 704, device=DEVICE, dtype=torch.bfloat16)
    few, many = matrix.linear(x).float(), nn.functional.linear(x.float(), matrix.dense(torch.float32))
    assert (few - many).norm() < 0.01 * many.norm()


# ---- texts


def quantised_model(kind: str) -> nn.Module:
    """`tiny_model` with quantised layers, made without torchao."""
    model = tiny_model()
    for layer in model.model.layers:
        for owner in (layer.self_attn, layer.mlp):
            for name, child in list(owner.named_children()):
                if isinstance(child, nn.Linear):
                    matrix, _ = made(kind, child.weight.data)
                    setattr(owner, name, QuantizedLinear(matrix, child.bias))
    return model


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("fast", [False, pytest.param(True, marks=cuda_only)])
def test_the_text_engine_generates_the_tokens_of_the_plain_path(
    kind: str, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantized, "INT4_ROWS", 0)  # all products in float32, not in bfloat16
    monkeypatch.setattr(quantized, "INT8_CPU_ROWS", 0)
    model = quantised_model(kind)
    prompts = [torch.randn(length, WIDTH, device=DEVICE) * 0.3 for length in (37, 5, 64)]
    requests = [(0, [1, 2, 3], 12), (1, [7], 9), (2, [11, 12], 14)]
    expected = [greedy(model, prompts[p], suffix, count) for p, suffix, count in requests]
    unquantised = greedy(tiny_model(), prompts[0], [1, 2, 3], 12)
    assert expected[0][1] != pytest.approx(unquantised[1], abs=1e-3), "the weights are not used"
    weights = fuse(model, positions=POSITIONS)
    engine = TextEngine(weights, stop_ids=[], cache_tokens=400, chunk_tokens=64, fast=fast)
    for together in (1, 3):  # products with one row, and with several
        for first in range(0, len(requests), together):
            texts = []
            for p, suffix, count in requests[first : first + together]:
                prompt = engine.open(80)
                engine.extend(prompt, prompts[p])
                texts.append(engine.generate(prompt, suffix, max_new_tokens=count))
                engine.release(prompt)
            run(engine)
            for text, (tokens, odds) in zip(texts, expected[first : first + together], strict=True):
                assert text.tokens == tokens
                assert text.log_probabilities == pytest.approx(odds, abs=1e-3)
    assert (
        engine.bytes_per_token
        == weights.bytes_per_token
        < 0.5 * fuse(tiny_model(), positions=9).bytes_per_token
    )
    again = greedy(model, prompts[0], [1, 2, 3], 12)  # the plain path reads views of the joined matrices
    assert again[0] == expected[0][0]


# ---- loading


def logits_of(model: Pam) -> Tensor:
    """Of the token after a short prompt."""
    with torch.inference_mode():
        return model.language.logits(model.language.embed(model.language.encode_text("what is this?")))


@pytest.mark.parametrize(("kind", "error", "size"), [("int8", 0.02, 0.26), ("int4", 0.2, 0.15)])
def test_pam_tiny_is_quantised_while_it_is_read(kind: str, error: float, size: float) -> None:
    plain, options = load_model(LoadOptions("pam-tiny", device="cpu")), LoadOptions("pam-tiny", device="cpu")
    small = load_model(replace(options, quantization=kind))
    assert small.info == replace(plain.info, quantization=kind)
    layers = [each for each in small.language.modules() if isinstance(each, QuantizedLinear)]
    assert len(layers) == len(list(linear_layers(plain.language))) == 42
    dense = sum(layer.weight.nbytes for _, layer in linear_layers(plain.language))
    assert sum(layer.matrix.nbytes for layer in layers) < size * dense
    assert not list(linear_layers(small.language))
    expected, found = logits_of(plain), logits_of(small)
    assert 1e-4 < (found - expected).norm() / expected.norm() < error
    files = find_files("pam-tiny", None)
    needed = [
        needed_gib(files, torch.float32, replace(options, quantization=name)) for name in ("none", kind)
    ]
    saved = dense - sum(layer.matrix.nbytes for layer in layers)
    assert needed[0] - needed[1] == pytest.approx(saved / 2**30, rel=0.05)
    with pytest.raises(StateError, match=f"quantised to {kind} is not saved"):
        save_model(small, Path("/nonexistent"))


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("kind", ["none", "int8", "int4"])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, kind: str, value: float) -> None:
    tensors, name = official_tensors(tiny_pam()), "model.layers.1.mlp.up_proj.weight"
    tensors[name][3, 5] = value
    write_official(tmp_path, tensors)
    with pytest.raises(CheckpointError, match=f"1 with values that are not finite: {name}"):
        load_model(LoadOptions(str(tmp_path), device="cpu", quantization=kind))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.float8_e4m3fn, torch.int8])
def test_what_is_finite(dtype: torch.dtype) -> None:
    assert is_finite(torch.ones(2, 3).to(dtype))
    assert is_finite(torch.ones(0).to(dtype))
    if dtype.is_floating_point:
        assert not is_finite(torch.tensor([1.0, float("nan")]).to(dtype))


def test_dense_weights_are_not_in_memory_before_they_are_read() -> None:
    language = tiny_pam().language
    layers = dict(linear_layers(language))
    names = set(Quantizer(Quantization.INT8, CPU).hold_back(language))
    assert names == {f"{name}.weight" for name in layers}
    assert all(layer.weight.is_meta for layer in layers.values())


def test_layers_that_do_not_fit_stay_as_they_are(caplog: pytest.LogCaptureFixture) -> None:
    language = tiny_pam(intermediate_size=72).language
    with caplog.at_level(logging.WARNING):
        Quantizer(Quantization.INT4, CPU).quantise(language)
    assert caplog.messages == [
        "6 layers are not quantised to int4, because their shapes do not fit: down_proj, gate_proj, up_proj"
    ]
    assert {name.rpartition(".")[2] for name, _ in linear_layers(language)} == {
        "down_proj", "gate_proj", "up_proj",
    }  # fmt: skip


def test_what_cannot_be_quantised_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceError, match="unknown quantization 'int2'; allowed: none, int8, int4"):
        load_model(LoadOptions("pam-tiny", device="cpu", quantization="int2"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(DeviceError, match=r"int4 needs a card of .* 8\.0 or newer, this one has 7\.5"):
        parse_quantization("int4", torch.device("cuda"))
    assert parse_quantization("int8", torch.device("cuda")) is Quantization.INT8
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(DeviceError, match=r"int8 needs torchao .*pip install .* .setup/quantization.txt"):
        load_model(LoadOptions("pam-tiny", device="cpu", quantization="int8"))


def test_with_a_text_server_there_is_nothing_to_quantise() -> None:
    lines: list[str] = []
    options = LoadOptions("pam-tiny", device="cpu", quantization="int8", text_server="http://127.0.0.1:1")
    assert load_model(options, progress=lines.append).info.quantization == "none"
    assert "quantization int8 has no effect: the text server has the decoder" in lines
