"""CUDA graphs by name: captures a function for its inputs' shapes, then replays it on new inputs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

LOGGER = logging.getLogger(__name__)
# One capture at a time in the process: starting one waits for the whole device, which no other may be
# capturing then.
CAPTURING = threading.Lock()
Function = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True, slots=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


class GraphCache:
    """Captured functions. Outputs are overwritten by the next run of the same name."""

    def __init__(self, *, enabled: bool, urgent: bool = False) -> None:
        """`urgent`: this work takes priority over that of other streams."""
        self.enabled = enabled
        self._stream: torch.cuda.Stream | None = None
        if enabled:
            self._stream = torch.cuda.Stream(priority=-1 if urgent else 0)  # type: ignore[no-untyped-call]
        self._captured: dict[str, _Captured] = {}
        self._failed: set[str] = set()
        # Inputs of `capture`, kept so that their addresses are not reused, and the copies that graphs read.
        self._inputs: dict[tuple[int, torch.Size, torch.dtype], tuple[Tensor, Tensor]] = {}
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

    def capture(self, name: str, function: Function, *inputs: Tensor) -> None:
        """Captures `function`, which runs twice; it stays eager if that fails. Equal inputs use one copy."""
        if not self.enabled or name in self._captured or name in self._failed:
            return
        kept = tuple(self._kept(each) for each in inputs)
        try:
            function(*kept)
            torch.cuda.current_stream().synchronize()
            graph = torch.cuda.CUDAGraph()
            with (
                CAPTURING,
                torch.cuda.graph(
                    graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
                ),
            ):
                outputs = function(*kept)
        except (RuntimeError, torch.cuda.OutOfMemoryError) as error:
            self._failed.add(name)
            LOGGER.warning("no CUDA graph of %s, it runs eagerly: %s", name, error)
            return
        self._captured[name] = _Captured(graph, kept, outputs)

    def _kept(self, tensor: Tensor) -> Tensor:
        """The memory that new inputs are copied to; graphs captured with the same tensor use it together."""
        key = tensor.data_ptr(), tensor.shape, tensor.dtype
        if key not in self._inputs:
            self._inputs[key] = tensor, tensor.clone()
        return self._inputs[key][1]
