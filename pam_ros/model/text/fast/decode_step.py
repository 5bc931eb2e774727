"""One decoding step of a batch: newest tokens in, next tokens out, on the device, as one CUDA graph.

Letters: B batch slots, H model width, Q heads, G key-value heads, D head width, F MLP width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypedDict

import torch
import triton
from torch import Tensor

from pam_ros.model.cuda_device import shared_bytes
from pam_ros.model.graphs import capture_graph
from pam_ros.model.text.fast.board import RING
from pam_ros.model.text.fast.decoder_ops import silu_multiply
from pam_ros.model.text.fast.decoder_weights import DecoderWeights
from pam_ros.model.text.fast.kernels import decode as kernels
from pam_ros.model.text.fast.kernels import int4 as int4_kernels
from pam_ros.model.text.fast.kernels import linear as linear_kernels
from pam_ros.model.text.quantized import Int4Matrix, Int8Matrix, Matrix

MAX_BATCH = 16  # slots; the bound of the skinny matrix products
VECTOR_BATCH = 2  # up to this many slots, a product without the tensor cores is faster, and overlap pays
VOCABULARY_BLOCK = 2048
ATTENTION_BLOCK = 32  # cached tokens that a program of the attention kernel takes at once
_DEEP_BYTES = 163_840  # of shared memory for a product in five stages


@dataclass(frozen=True, slots=True)
class Tile:
    """How a skinny matrix product is divided among programs."""

    outputs: int
    inputs: int
    warps: int
    stages: int


def tile_for(outputs: int, inputs: int, *, gated: bool, batch: int, bytes_each: int, shared: int) -> Tile:
    """Measured on an H200, see docs/bench.

    `bytes_each`: of a weight, 4 take twice the shared memory; `shared`: bytes of it that a program may have.
    """
    if bytes_each == 1 and batch <= VECTOR_BATCH:
        return Tile(1, 2048, 8, 1) if inputs > 4096 else Tile(4 if gated else 2, 2048, 4, 1)
    if batch == 1:
        if gated:
            return Tile(2, 2048, 8, 1) if inputs % 2048 == 0 else Tile(1, 512, 4, 1)
        if inputs > 4096:
            return Tile(4, 2048, 8 if inputs <= 10240 else 4, 3)
        return Tile(4, 2048, 4, 1)
    wide = gated or outputs > 16384  # the head
    if batch <= VECTOR_BATCH:
        if wide:
            return Tile(4 if gated else 8, 256, 2, 4)
        return Tile(4, 1024, 4, 3) if inputs > 4096 else Tile(4, 2048, 8, 1)
    if bytes_each == 4:
        return Tile(16, 128, 4, 3)
    return Tile(64, 128, 4, 3) if wide else Tile(64, 256, 4, 5 if shared >= _DEEP_BYTES else 3)


def int4_tile(*, gated: bool) -> Tile:
    """Of int4 weights with one or two rows; their layout fixes the 8 outputs."""
    return Tile(8, 1024, 2, 1) if gated else Tile(8, 2048, 4, 1)


class Norm(TypedDict):
    """An RMS norm before a linear layer."""

    gain: Tensor  # (K)
    epsilon: float


class Launcher:
    """Launches the kernels of a step on one device."""

    def __init__(self, device: torch.device, *, overlap: bool = True) -> None:
        """`overlap`: programmatic dependent launch, if the card has it."""
        self._device = device
        self._pdl = overlap and torch.cuda.get_device_capability(device) >= (9, 0)
        self._shared = shared_bytes(device)
        self._options = {"launch_pdl": True} if self._pdl else {}

    def without_overlap(self) -> Launcher:
        """The same without programmatic dependent launch."""
        return Launcher(self._device, overlap=False)

    def __call__(self, kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
        """Launches `kernel`; its PDL argument is filled in."""
        kernel[grid](*arguments, PDL=self._pdl, **self._options, **options)

    def linear(
        self,
        x: Tensor,  # (B, K)
        weight: Matrix,  # (N, K), gated (2N, K)
        out: Tensor,  # (B, N)
        *,
        gain: Tensor | None = None,  # (K): x is RMS-normalised with it
        epsilon: float = 0.0,
        bias: Tensor | None = None,  # (N)
        residual: Tensor | None = None,  # (B, N), may be `out`
        gated: bool = False,  # the weight's halves are gate and up
    ) -> None:
        """out = epilogue(weight · prologue(x)), every weight read once."""
        batch, inputs = x.shape
        outputs = weight.shape[0] // 2 if gated else weight.shape[0]
        if batch > VECTOR_BATCH and gain is not None:
            x = self.norm(x, gain, epsilon)
        if batch > VECTOR_BATCH and isinstance(weight, Int4Matrix):
            _finish(weight.linear(x), out, bias, residual, gated=gated)
            return
        flags: dict[str, Any] = {
            "B": batch,
            "K": inputs,
            "BIAS": bias is not None,
            "RESIDUAL": residual is not None,
            "GATED": gated,
        }
        biases, gains, residuals = (x if each is None else each for each in (bias, gain, residual))
        if isinstance(weight, Int4Matrix):
            flags |= {"NORM": gain is not None, "TILES": weight.words.shape[1], "GROUP": weight.group}
            tile = int4_tile(gated=gated)
            flags |= {"BLOCK_W": tile.inputs // 8, "STAGES": tile.stages, "num_warps": tile.warps}
            pairs = weight.scales.view(torch.int32)
            tensors = [x, weight.words, pairs, biases, gains, residuals, out]
            self(int4_kernels.vector_int4, (outputs // 8,), *tensors, outputs, epsilon, **flags)
            return
        values, scales = (weight.values, weight.scales) if isinstance(weight, Int8Matrix) else (weight, x)
        # A tile of int8 is widened to the dtype of `x` for the tensor cores.
        each = values.element_size() if batch <= VECTOR_BATCH else x.element_size()
        tile = tile_for(outputs, inputs, gated=gated, batch=batch, bytes_each=each, shared=self._shared)
        flags |= {
            "SCALED": isinstance(weight, Int8Matrix),
            "ALIGNED": outputs % tile.outputs == 0 and inputs % tile.inputs == 0,
            "BLOCK_N": tile.outputs,
            "BLOCK_K": tile.inputs,
            "STAGES": tile.stages,
            "num_warps": tile.warps,
        }
        grid = (triton.cdiv(outputs, tile.outputs),)
        if batch <= VECTOR_BATCH:
            tensors = [x, values, biases, gains, residuals, scales, out]
            flags["NORM"] = gain is not None
            self(linear_kernels.vector_linear, grid, *tensors, outputs, epsilon, **flags)
        else:
            self(
                linear_kernels.batch_linear, grid, x, values, biases, residuals, scales, out, outputs, **flags
            )

    def norm(self, x: Tensor, gain: Tensor, epsilon: float) -> Tensor:
        """RMS norm of x (B, H)."""
        out = torch.empty_like(x)
        block = triton.next_power_of_2(x.shape[1])
        self(
            linear_kernels.rms_norm, (len(x),), x, gain, out, epsilon, H=x.shape[1], BLOCK=block, num_warps=8
        )
        return out


def _finish(
    product: Tensor, out: Tensor, bias: Tensor | None, residual: Tensor | None, *, gated: bool
) -> None:
    """out = product (B, N) + bias + residual; gated: product (B, 2N) → silu(gate) · up."""
    if gated:
        out.copy_(silu_multiply(product))
        return
    for term in (bias, residual):
        product = product if term is None else product + term
    out.copy_(product)


class DecodeStep:
    """The step for one batch size. Its buffers are its own; board and cache are shared."""

    def __init__(
        self,
        weights: DecoderWeights,
        cache: Tensor,  # (layers, 2, tokens, G, D)
        stop_ids: Tensor,  # (n) int32
        *,
        batch: int,
        window: int | None,
        launch: Launcher,
    ) -> None:
        self.batch = batch
        self._weights, self._cache, self._stop_ids = weights, cache, stop_ids
        self._window = window or 0
        self._launch = launch = launch if batch <= VECTOR_BATCH else launch.without_overlap()
        device, dtype = weights.norm.device, weights.norm.dtype
        heads, kv_heads, width = weights.heads, weights.kv_heads, weights.head_width
        # About one program of the attention kernel a multiprocessor.
        processors = torch.cuda.get_device_properties(device).multi_processor_count
        self._splits = max(8, triton.next_power_of_2(processors // (batch * kv_heads)))

        def buffer(*shape: int, kind: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(shape, dtype=kind, device=device)

        self._x = buffer(batch, weights.width, kind=dtype)
        self._qkv = buffer(batch, (heads + 2 * kv_heads) * width, kind=dtype)
        self._attended = buffer(batch, heads * width, kind=dtype)
        self._gated = buffer(batch, weights.layers[0].down.shape[1], kind=dtype)
        self._partial = buffer(batch, heads, self._splits, width)
        self._peaks, self._sums = buffer(batch, heads, self._splits), buffer(batch, heads, self._splits)
        self.selection = TokenSelection(weights, stop_ids, batch=batch, launch=launch)
        self._order = torch.arange(batch, dtype=torch.int32, device=device)
        self.graph: torch.cuda.CUDAGraph | None = None

    def run(self, board: Tensor) -> None:
        """Feeds every slot's newest token (board (fields, slots) int32) and takes the next one."""
        for launch in self._launches(board):
            launch()

    def first_runs(self, board: Tensor) -> list[Callable[[], None]]:
        """What launches every kernel once, so that it compiles."""
        launches = list(self._launches(board))
        return [*launches[:6], launches[-1]]  # the first layer's, and the selection

    def _launches(self, board: Tensor) -> Iterator[Callable[[], None]]:
        weights, linear, x = self._weights, self._launch.linear, self._x
        width = weights.width
        grid = (self.batch, triton.cdiv(width, 1024))
        gather = kernels.gather_embeddings
        yield partial(self._launch, gather, grid, board, weights.embeddings, x, H=width, BLOCK=1024)
        for index, layer in enumerate(weights.layers):
            norm: Norm = {"gain": layer.input_norm, "epsilon": weights.epsilon}
            yield partial(linear, x, layer.qkv, self._qkv, bias=layer.qkv_bias, **norm)
            yield partial(self._attend, board, self._cache[index])
            yield partial(linear, self._attended, layer.out, x, residual=x)
            norm = {"gain": layer.mlp_norm, "epsilon": weights.epsilon}
            yield partial(linear, x, layer.gate_up, self._gated, gated=True, **norm)
            yield partial(linear, self._gated, layer.down, x, residual=x)
        yield partial(self.selection.run, x, self._order, board, advance=True)

    def _attend(self, board: Tensor, layer_cache: Tensor) -> None:
        weights = self._weights
        heads, kv_heads, width = weights.heads, weights.kv_heads, weights.head_width
        group = heads // kv_heads
        assert group <= 16
        self._launch(
            kernels.decode_attention,
            (self.batch, kv_heads, self._splits),
            self._qkv,
            layer_cache[0],
            layer_cache[1],
            weights.cosines,
            weights.sines,
            board,
            self._partial,
            self._peaks,
            self._sums,
            board.shape[1],
            width**-0.5,
            Q=heads,
            G=kv_heads,
            D=width,
            GROUP=group,
            SPLITS=self._splits,
            BLOCK=ATTENTION_BLOCK,
            WINDOW=self._window,
            num_warps=4,
        )
        self._launch(
            kernels.merge_splits,
            (self.batch * heads,),
            self._partial,
            self._peaks,
            self._sums,
            self._attended,
            D=width,
            SPLITS=self._splits,
            num_warps=4,
        )

    def capture(self, board: Tensor, pool: Any) -> None:
        """Captures the step on `board`. Kernels compile on an idle board first."""
        self.run(torch.zeros_like(board))
        self.graph = capture_graph(lambda: self.run(board), pool=pool)


class TokenSelection:
    """Hidden states → next tokens: last norm, head, greedy or sampled choice, stop tokens, board."""

    def __init__(self, weights: DecoderWeights, stop_ids: Tensor, *, batch: int, launch: Launcher) -> None:
        self._weights, self._stop_ids = weights, stop_ids
        self._launch, self._launch_many = launch, launch.without_overlap()
        self._vocabulary = len(weights.head)
        self._blocks = triton.cdiv(self._vocabulary, VOCABULARY_BLOCK)
        device = weights.norm.device
        self._logits = torch.empty(batch, self._vocabulary, device=device)
        self._parts = [
            torch.empty(
                batch, self._blocks, dtype=torch.int32 if name == "best_id" else torch.float32, device=device
            )
            for name in ("best", "best_id", "best_logit", "peaks", "sums")
        ]

    def run(self, hidden: Tensor, order: Tensor, board: Tensor, *, advance: bool) -> None:
        """Hidden states (B, H) of the slots `order` (B; -1 = none) → the board moves on.

        `advance`: the newest token of each slot has entered the cache.
        """
        batch, slots = len(hidden), board.shape[1]
        launch = self._launch if batch <= VECTOR_BATCH else self._launch_many  # as in `DecodeStep`
        logits = self._logits[:batch]
        norm: Norm = {"gain": self._weights.norm, "epsilon": self._weights.epsilon}
        launch.linear(hidden, self._weights.head, logits, **norm)
        launch(
            kernels.select_partial,
            (batch, self._blocks),
            logits,
            order,
            board,
            *self._parts,
            slots,
            self._vocabulary,
            BLOCK=VOCABULARY_BLOCK,
            num_warps=8,
        )
        launch(
            kernels.select_final,
            (batch,),
            order,
            board,
            *self._parts,
            self._stop_ids,
            slots,
            self._blocks,
            RING=RING,
            STOPS=len(self._stop_ids),
            BLOCKS=triton.next_power_of_2(self._blocks),
            ADVANCE=advance,
            num_warps=4,
        )
