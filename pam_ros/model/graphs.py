"""CUDA graphs by name: captures a function for its inputs' shapes, then replays it on new inputs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

LOGGER = logging.getLogger(__name__)
# One capture at a time in the process: starting one waits for the whole device, which no other may be
# capturing then.
CAPTURING = threading.Lock()
Function = Callable[..., tuple[Tensor, ...]]


@cache
def _capturing_stream(device: int) -> torch.cuda.Stream:
    """One for each device: cuBLAS keeps memory for every stream that it has worked on."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def capture_graph(
    run: Callable[[], object], *, pool: Any, stream: torch.cuda.Stream | None = None
) -> torch.cuda.CUDAGraph:
    """What `run` launches, as a graph; it has run once already, so that its kernels are compiled.

    On the current device: PyTorch's own stream for captures belongs to the device that captured first.
    """
    stream = stream or _capturing_stream(torch.cuda.current_device())
    torch.cuda.current_stream().synchronize()
    graph = torch.cuda.CUDAGraph()
    with CAPTURING:
        torch.cuda.empty_cache()  # what the first run took; the graph has memory of its own
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            run()
    return graph


@dataclass(frozen=True, slots=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


class GraphCache:
    """Captured functions of one thread. Outputs are overwritten by the next run of their kind."""

    def __init__(self, device: torch.device, *, enabled: bool, urgent: bool = False) -> None:
        """`urgent`: this work takes priority over that of other streams."""
        self.enabled = enabled
        self._stream: torch.cuda.Stream | None = None
        if enabled:
            self._stream = torch.cuda.Stream(device, priority=-1 if urgent else 0)  # type: ignore[no-untyped-call]
        self._captured: dict[str, _Captured] = {}
        self._failed: set[str] = set()
        # Where graphs of one kind leave their outputs; smaller batches use a part.
        self._outputs: dict[str, tuple[Tensor, ...]] = {}
        # One pool: the graphs never run at the same time.
        self._pool = torch.cuda.graph_pool_handle() if enabled else None

    def run(self, name: str, function: Function, *inputs: Tensor) -> tuple[Tensor, ...]:
        """`function(*inputs)`; eagerly if it was not captured."""
        captured = self._captured.get(name)
        if captured is None:
            return function(*inputs)
        torch._foreach_copy_(list(captured.inputs), list(inputs), non_blocking=True)
        captured.graph.replay()
        return captured.outputs

    def capture(self, name: str, function: Function, *inputs: Tensor, kind: str = "", rows: int = 1) -> None:
        """Captures `function`, which runs twice; it stays eager if that fails.

        `inputs` become the memory that the graph reads; others may share them, nobody may keep data there.
        Functions of one `kind` share the memory of their outputs, whose first dimension is at most `rows`.
        """
        if not self.enabled or name in self._captured or name in self._failed:
            return
        try:
            outputs = self._kept(kind or name, function(*inputs), rows)
            graph = capture_graph(
                lambda: torch._foreach_copy_(list(outputs), list(function(*inputs))),
                pool=self._pool,
                stream=self._stream,
            )
        except Exception as error:  # Triton's are no RuntimeError
            self._failed.add(name)
            LOGGER.warning("no CUDA graph of %s, it runs eagerly: %s", name, error)
            return
        self._captured[name] = _Captured(graph, inputs, outputs)

    def _kept(self, kind: str, outputs: tuple[Tensor, ...], rows: int) -> tuple[Tensor, ...]:
        """Memory like `outputs`. The graphs' own would stay taken for each of them."""
        if kind not in self._outputs:
            self._outputs[kind] = tuple(each.new_empty(rows, *each.shape[1:]) for each in outputs)
        return tuple(whole[: len(each)] for whole, each in zip(self._outputs[kind], outputs, strict=True))
