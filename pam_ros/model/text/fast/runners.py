"""Runs prefill passes and decoding steps: with kernels and graphs on a CUDA device, else in plain torch.

Letters: T tokens of a pass, B batch slots, H model width.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pam_ros.model.graphs import capture_graph
from pam_ros.model.text.fast.board import FIELDS, RING, Board, Field
from pam_ros.model.text.fast.decoder_ops import (
    PassPlan,
    Segment,
    make_plan,
    next_logits,
    plan_block,
    plan_numbers,
    plan_size,
    run_layers,
    view_plan,
)
from pam_ros.model.text.fast.decoder_weights import DecoderWeights

try:
    from pam_ros.model.text.fast.decode_step import MAX_BATCH, DecodeStep, Launcher, TokenSelection
except ImportError:  # no Triton: a CPU-only build of torch
    MAX_BATCH = 0

LOGGER = logging.getLogger(__name__)
BATCHES = (1, 2, 4, 8, 16)  # captured; a batch between two runs as the larger one
PASS_TOKENS = (32, 64, 128, 288, 576, 1088)  # captured; a pass runs as the next larger one
SPARE_BLOCKS = 20  # blocks of queries of a captured pass, beyond those that its tokens fill


class Runner(Protocol):
    """Runs passes and steps on the board."""

    max_batch: int

    def prefill(
        self, segments: Sequence[Segment], parts: Sequence[Tensor], last: Sequence[int], slots: Sequence[int]
    ) -> None:
        """Embeddings `parts` into the cache; tokens `last` of the pass give `slots` their next tokens."""

    def decode(self, batch: int, steps: int) -> None:
        """Steps the first `batch` slots."""

    def first_runs(self, chunk_tokens: int) -> list[Callable[[], None]]:
        """What launches the kernels that every text needs, so that they compile."""

    def preparations(self, chunk_tokens: int) -> list[Callable[[], None]]:
        """What compiles and captures, the most useful first; each runs between two steps."""


def make_runner(
    weights: DecoderWeights,
    cache: Tensor,
    board: Board,
    stop_ids: Sequence[int],
    window: int | None,
    *,
    fast: bool,
) -> Runner:
    """The fastest runner that the device supports."""
    if fast and MAX_BATCH and weights.norm.is_cuda and weights.head_width in (32, 64, 128):
        return KernelRunner(weights, cache, board, stop_ids, window)
    return TorchRunner(weights, cache, board, stop_ids, window)


class TorchRunner:
    """Plain torch, on any device; the board is kept on the host."""

    max_batch = 2**16

    def __init__(
        self,
        weights: DecoderWeights,
        cache: Tensor,
        board: Board,
        stop_ids: Sequence[int],
        window: int | None,
    ) -> None:
        self._weights, self._cache, self._board, self._window = weights, cache, board, window
        self._stop_ids = frozenset(stop_ids)

    def prefill(
        self, segments: Sequence[Segment], parts: Sequence[Tensor], last: Sequence[int], slots: Sequence[int]
    ) -> None:
        """See `Runner`."""
        hidden = self._forward(torch.cat(list(parts)), segments)
        if slots:
            self._select(hidden[torch.tensor(last, device=hidden.device)], slots)

    def decode(self, batch: int, steps: int) -> None:
        """See `Runner`."""
        board = self._board.device
        for _ in range(steps):
            host = board[:FIELDS, :batch].cpu().numpy()
            segments = [
                Segment(
                    1,
                    *(
                        int(host[f, s])
                        for f in (Field.POSITION, Field.PREFIX_START, Field.PREFIX_LENGTH, Field.OWN_START)
                    ),
                )
                for s in range(batch)
            ]
            ids = board[Field.TOKEN, :batch].long()
            hidden = self._forward(self._weights.embeddings[ids], segments)
            board[Field.POSITION, :batch] += (board[Field.REMAINING, :batch] > 0).int()
            self._select(hidden, range(batch))

    def first_runs(self, chunk_tokens: int) -> list[Callable[[], None]]:
        """Nothing to do."""
        return []

    def preparations(self, chunk_tokens: int) -> list[Callable[[], None]]:
        """Nothing to do."""
        return []

    def _forward(self, x: Tensor, segments: Sequence[Segment]) -> Tensor:
        return run_layers(self._weights, self._cache, x, make_plan(segments, x.device), self._window)

    def _select(self, hidden: Tensor, slots: Sequence[int]) -> None:
        """Next tokens of `slots` from hidden states (B, H); writes the board."""
        logits = next_logits(self._weights, hidden)
        odds = logits.log_softmax(-1)
        board = self._board.device
        host = board.cpu().numpy()
        for b, slot in enumerate(slots):
            if host[Field.REMAINING, slot] == 0:
                continue
            temperature = float(host[Field.TEMPERATURE, slot : slot + 1].view(np.float32)[0])
            token = (
                self._sampled(logits[b], temperature, host[:, slot])
                if temperature > 0
                else int(logits[b].argmax())
            )
            if token in self._stop_ids:
                host[Field.REMAINING, slot] = 0
                continue
            place = FIELDS + int(host[Field.EMITTED, slot]) % RING
            host[place, slot] = token
            host[place + RING, slot] = np.float32(odds[b, token].item()).view(np.int32)
            host[Field.EMITTED, slot] += 1
            host[Field.TOKEN, slot] = token
            host[Field.REMAINING, slot] -= 1
        board.copy_(torch.from_numpy(host))

    def _sampled(self, logits: Tensor, temperature: float, column: NDArray[np.int32]) -> int:
        """A sample of the softmax of logits (V) / temperature."""
        seed = int(column[Field.SEED]) * 1_000_003 + int(column[Field.POSITION])
        generator = torch.Generator().manual_seed(seed)
        return int(torch.multinomial((logits / temperature).softmax(-1).cpu(), 1, generator=generator))


class KernelRunner:
    """Triton kernels; after `warm_up`, CUDA graphs. Shapes that were not captured run eagerly."""

    max_batch = MAX_BATCH

    def __init__(
        self,
        weights: DecoderWeights,
        cache: Tensor,
        board: Board,
        stop_ids: Sequence[int],
        window: int | None,
    ) -> None:
        device = weights.norm.device
        self._weights, self._cache, self._board, self._window = weights, cache, board, window
        self._launch = Launcher(device)
        self._stop_ids = torch.tensor(list(stop_ids) or [-1], dtype=torch.int32, device=device)
        self._steps: dict[int, DecodeStep] = {}
        self._passes: dict[int, CapturedPass] = {}
        self._selection = TokenSelection(weights, self._stop_ids, batch=MAX_BATCH, launch=self._launch)
        self._pool: Any = None
        self._eager = False  # a capture has failed

    def prefill(
        self, segments: Sequence[Segment], parts: Sequence[Tensor], last: Sequence[int], slots: Sequence[int]
    ) -> None:
        """See `Runner`."""
        tokens = sum(each.count for each in segments)
        captured = next((self._passes[t] for t in sorted(self._passes) if t >= tokens), None)
        device = self._weights.norm.device
        if captured is not None and captured.fits(segments):
            hidden = captured.run(segments, parts)
        else:
            x = torch.cat(list(parts))
            hidden = run_layers(self._weights, self._cache, x, make_plan(segments, device), self._window)
        if slots:
            batch = next(b for b in BATCHES if b >= len(slots))
            padding = batch - len(slots)
            numbers = torch.tensor([*last, *[last[0]] * padding, *slots, *[-1] * padding], dtype=torch.int32)
            numbers = numbers.pin_memory().to(device, non_blocking=True)
            chosen = hidden.index_select(0, numbers[:batch])
            self._selection.run(chosen, numbers[batch:], self._board.device, advance=False)

    def decode(self, batch: int, steps: int) -> None:
        """See `Runner`."""
        step = self._step(next(b for b in BATCHES if b >= batch))
        for _ in range(steps):
            if step.graph is not None:
                step.graph.replay()
            else:
                step.run(self._board.device)

    def first_runs(self, chunk_tokens: int) -> list[Callable[[], None]]:
        """See `Runner`: a step of one text on an idle board, a short and a long pass of padding."""
        one = replace(self._weights, layers=self._weights.layers[:1])
        return [
            *self._step(1).first_runs(torch.zeros_like(self._board.device)),
            partial(self._first_tokens, 1),
            *(
                partial(BlankPass(one, tokens).run, self._cache, self._window)
                for tokens in (32, chunk_tokens)
            ),
        ]

    def preparations(self, chunk_tokens: int) -> list[Callable[[], None]]:
        """Captures every batch size and pass length up to the chunk's; what fails stays eager."""
        passes = [*(t for t in PASS_TOKENS if t < chunk_tokens), chunk_tokens]
        batches = [batch for batch in BATCHES if batch <= self._board.slots]
        pieces: list[Callable[[], None]] = [partial(self._capture_pass, tokens) for tokens in passes[::-1]]
        pieces[1:1] = [partial(self._capture_step, batch) for batch in batches[:2]]
        firsts = (partial(self._first_tokens, batch) for batch in batches)
        return [*pieces, *(partial(self._capture_step, batch) for batch in batches[2:]), *firsts]

    def _first_tokens(self, batch: int) -> None:
        """Compiles what chooses the first tokens of so many texts: it runs eagerly, after a prefill pass."""
        board = torch.zeros_like(self._board.device)
        # As `prefill` lays them out: whether a tensor is aligned decides which kernel is compiled.
        numbers = torch.full((2 * batch,), -1, dtype=torch.int32, device=board.device)
        hidden = self._weights.embeddings[:batch].clone()
        self._selection.run(hidden, numbers[batch:], board, advance=False)

    def _capture_step(self, batch: int) -> None:
        self._attempt(lambda: self._step(batch).capture(self._board.device, self._pool))

    def _capture_pass(self, tokens: int) -> None:
        def capture() -> None:
            self._passes[tokens] = CapturedPass(self._weights, self._cache, self._window, tokens, self._pool)

        self._attempt(capture)

    def _attempt(self, capture: Callable[[], None]) -> None:
        if self._eager:
            return
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        try:
            capture()
        except Exception as error:  # Triton's are no RuntimeError
            self._eager = True
            LOGGER.warning("CUDA graphs were not captured, text generation runs eagerly: %s", error)

    def _step(self, batch: int) -> DecodeStep:
        if batch not in self._steps:
            self._steps[batch] = DecodeStep(
                self._weights,
                self._cache,
                self._stop_ids,
                batch=batch,
                window=self._window,
                launch=self._launch,
            )
        return self._steps[batch]


class BlankPass:
    """The tensors of a prefill pass of a fixed number of tokens; at first each token is padding."""

    def __init__(self, weights: DecoderWeights, tokens: int) -> None:
        device = weights.norm.device
        self.tokens, self.block = tokens, plan_block(tokens)
        self.blocks = -(-tokens // self.block) + SPARE_BLOCKS
        self.numbers = torch.zeros(2 * tokens + 6 * self.blocks, dtype=torch.int32, device=device)
        self.x = torch.zeros(tokens, weights.width, dtype=weights.norm.dtype, device=device)
        self._weights = weights

    def run(self, cache: Tensor, window: int | None) -> None:
        """Embeddings in `x` → hidden states there."""
        plan: PassPlan = view_plan(self.numbers, [], self.tokens, self.block)
        run_layers(self._weights, cache, self.x, plan, window)


class CapturedPass:
    """A prefill pass of a fixed number of tokens as a CUDA graph; shorter ones are padded."""

    def __init__(
        self, weights: DecoderWeights, cache: Tensor, window: int | None, tokens: int, pool: Any
    ) -> None:
        self._pass = BlankPass(weights, tokens)
        self._pinned = torch.zeros(self._pass.numbers.shape, dtype=torch.int32, pin_memory=True)
        self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._pass.run(cache, window)  # compiles
        self._graph = capture_graph(lambda: self._pass.run(cache, window), pool=pool)

    def fits(self, segments: Sequence[Segment]) -> bool:
        """Whether the segments' blocks of queries fit."""
        return plan_size(segments, self._pass.block) <= self._pass.blocks

    def run(self, segments: Sequence[Segment], parts: Sequence[Tensor]) -> Tensor:
        """Embeddings of the segments → hidden states (T, H); valid until the next pass."""
        tokens, into = sum(each.count for each in segments), self._pass
        self._copied.synchronize()  # the pinned numbers of the pass before have been read
        numbers = plan_numbers(segments, into.tokens, block=into.block, blocks=into.blocks)
        self._pinned.numpy()[:] = numbers
        into.numbers.copy_(self._pinned, non_blocking=True)
        self._copied.record()
        torch.cat(list(parts), out=into.x[:tokens])
        into.x[tokens:].zero_()
        self._graph.replay()
        return into.x
