"""Quantises the language model's linear layers by torchao, weight by weight as they are read.

int8: one scale for each output. int4: a scale and a zero point for each group of weights, chosen by HQQ
(half-quadratic quantisation: no calibration data, and a quarter less error in pam-tiny's logits). torchao's
layouts are `tile_packed_to_4d` on CUDA devices and `Int4OpaqueTensor` on CPUs, whose kernels come with torch.
The embedding table, which is also the head, keeps its dtype, as do vision, Perceiver and projectors.
"""

from __future__ import annotations

import importlib
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType

import torch
from torch import Tensor, nn

from pam_ros.errors import DeviceError
from pam_ros.model.loading.options import Quantization
from pam_ros.model.text.language_model import LanguageModel
from pam_ros.model.text.quantized import (
    TILE_INPUTS,
    TILE_OUTPUTS,
    Int4CpuMatrix,
    Int4Matrix,
    Int8Matrix,
    Quantized,
    QuantizedLinear,
)

LOGGER = logging.getLogger(__name__)
GROUPS = (128, 64, 32)  # weights that share a scale, in int4; the first that divides the inputs
MIN_CAPABILITY = (8, 0)  # of a card for int4
INSTALL = "in the sources run: pip install --no-deps -r .setup/quantization.txt"


def parse_quantization(name: str, device: torch.device) -> Quantization:
    """Raises DeviceError for an unknown name, a device that cannot do it, or if torchao is not installed."""
    try:
        kind = Quantization(name)
    except ValueError:
        allowed = ", ".join(each.value for each in Quantization)
        raise DeviceError(f"unknown quantization {name!r}; allowed: {allowed}") from None
    if kind is Quantization.NONE:
        return kind
    _torchao("quantization", name)
    if kind is Quantization.INT4 and device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability < MIN_CAPABILITY:
            have, need = (".".join(map(str, each)) for each in (capability, MIN_CAPABILITY))
            raise DeviceError(
                f"quantization int4 needs a card of compute capability {need} or newer, this one has {have}; "
                "use int8"
            )
    return kind


def _torchao(module: str, name: str) -> ModuleType:
    """A module of torchao."""
    try:
        return importlib.import_module(f"torchao.{module}")
    except ImportError as error:
        raise DeviceError(f"quantization {name} needs torchao ({error}); {INSTALL}") from None


def linear_layers(language: LanguageModel) -> Iterator[tuple[str, nn.Linear]]:
    """Name (under the language model) and module of every linear layer of the decoder's blocks."""
    prefix = "transformer.model.layers."
    for name, module in language.named_modules():
        if name.startswith(prefix) and isinstance(module, nn.Linear):
            yield name, module


@dataclass(slots=True)
class Quantizer:
    """Quantises weights one at a time, so that the dense ones are never in memory together."""

    kind: Quantization
    device: torch.device
    kept: set[str] = field(default_factory=set)  # layers whose shape does not fit

    def hold_back(self, language: LanguageModel) -> dict[str, Callable[[Tensor], None]]:
        """Takes the linear layers' weights out of memory.

        Returns what puts in a weight (N, K) of any dtype and device, quantised, by its name in `language`.
        """
        waiting: dict[str, Callable[[Tensor], None]] = {}
        for name, layer in list(linear_layers(language)):
            if self._fits(layer):
                layer.weight = nn.Parameter(torch.empty_like(layer.weight, device="meta"), False)
                waiting[f"{name}.weight"] = self._filler(language, name)
            else:
                self.kept.add(name)
        if self.kept:
            names = sorted({name.rpartition(".")[2] for name in self.kept})
            LOGGER.warning(
                "%d layers are not quantised to %s, because their shapes do not fit: %s",
                len(self.kept), self.kind.value, ", ".join(names),
            )  # fmt: skip
        return waiting

    def quantise(self, language: LanguageModel) -> None:
        """Quantises a model that is filled already, layer by layer."""
        weights = {f"{name}.weight": layer.weight.data for name, layer in linear_layers(language)}
        for name, put in self.hold_back(language).items():
            put(weights.pop(name))

    def matrix(self, weight: Tensor) -> Quantized:
        """weight (N, K) → its quantised form on `device`."""
        if self.kind is Quantization.INT8:
            return self._int8(weight.to(self.device, torch.float32))
        group = _group_of(weight.shape[1])
        if self.device.type == "cpu":
            return self._int4_cpu(weight.to(self.device, torch.bfloat16), group)
        return self._int4(weight.to(self.device, torch.bfloat16), group)

    def _int8(self, weight: Tensor) -> Int8Matrix:
        api = _torchao("quantization", "int8")
        tensor = api.Int8Tensor.from_hp(weight, api.PerRow())
        return Int8Matrix(tensor.qdata, tensor.scale.flatten())

    def _int4(self, weight: Tensor, group: int) -> Int4Matrix:
        api = _torchao("quantization", "int4")
        with torch.cuda.device(self.device):
            tensor = api.Int4TilePackedTo4dTensor.from_hp(weight, [1, group], _hqq())
        tiles = math.ceil(weight.shape[1] / TILE_INPUTS)  # it pads to 1024 inputs
        words = tensor.qdata[: weight.shape[0] // TILE_OUTPUTS, :tiles].contiguous()
        scales = tensor.scale_and_zero[: tiles * TILE_INPUTS // group, : weight.shape[0]].contiguous()
        return Int4Matrix(words, scales, weight.shape[1], group)

    def _int4_cpu(self, weight: Tensor, group: int) -> Int4CpuMatrix:
        api = _torchao("prototype.quantization.int4", "int4")
        tensor = api.Int4OpaqueTensor.from_hp(weight, [1, group], _hqq())
        return Int4CpuMatrix(tensor.qdata, tensor.scale_and_zero, group)

    def _fits(self, layer: nn.Linear) -> bool:
        outputs, inputs = layer.weight.shape
        if self.kind is Quantization.INT8:
            return True
        least = TILE_OUTPUTS if self.device.type == "cuda" else 16
        return outputs % least == 0 and any(inputs % group == 0 for group in GROUPS)

    def _filler(self, language: LanguageModel, name: str) -> Callable[[Tensor], None]:
        parent, _, attribute = name.rpartition(".")

        def put(weight: Tensor) -> None:
            owner = language.get_submodule(parent)
            bias = getattr(owner, attribute).bias
            setattr(owner, attribute, QuantizedLinear(self.matrix(weight), bias))

        return put


def _hqq() -> object:
    return _torchao("quantization.quantize_.workflows", "int4").Int4ChooseQParamsAlgorithm.HQQ


def _group_of(inputs: int) -> int:
    return next(group for group in GROUPS if inputs % group == 0)
