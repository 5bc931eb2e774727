"""`KernelCompiler` compiles Triton kernels in processes of their own, several at a time.

Most of a compilation is Python, so in one process kernels compile one after the other, on however many
threads. A worker compiles a kernel into Triton's cache on the disk, where the launching process finds it.

Run as a module it is a worker: it reads requests, a JSON object a line, and answers each with a line.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any

LOGGER = logging.getLogger(__name__)
MAX_WORKERS = 8
COMPILED, CACHED = "compiled", "cached"  # answers of a worker; any other says what failed


class KernelCompiler:
    """While it is open, kernels that are launched for the first time compile in other processes.

    Where a worker fails, Triton compiles the kernel in this process. Safe to use from any thread.
    """

    def __init__(self, *, workers: int | None = None) -> None:
        """`workers`: most processes; None: one a core, up to `MAX_WORKERS`."""
        self._count = workers or min(MAX_WORKERS, len(os.sched_getaffinity(0)))
        self._local = threading.local()  # of the thread that runs `ahead`: the kernels found so far
        self._lock = threading.Lock()
        self._workers: list[_Worker] = []
        self._pool: ThreadPoolExecutor | None = None
        self._requests: dict[str, Future[None]] = {}
        self._hook_before: Any = None
        self._target: tuple[Any, ...] = ()
        self.compiled = 0  # kernels that workers compiled, as they were not in the cache

    def start(self) -> None:
        """Starts the workers. Without it `open` does, and the first kernels wait for them. Idempotent."""
        if not self._workers:
            self._workers = [_Worker() for _ in range(self._count)]

    def open(self) -> None:
        """Directs Triton's compilations of this process to the workers, if this Triton lets it."""
        try:
            from triton import knobs
            from triton.runtime.driver import driver
        except ImportError:
            LOGGER.debug("kernels compile in this process", exc_info=True)
            return
        target = driver.active.get_current_target()
        self._target = target.backend, target.arch, target.warp_size
        self.start()
        idle = deque(self._workers)
        self._pool = ThreadPoolExecutor(self._count, "pam_compile", self._adopt, (idle,))
        self._hook_before, knobs.runtime.jit_cache_hook = knobs.runtime.jit_cache_hook, self._compiles

    def close(self) -> None:
        """Ends the workers, whatever they do; kernels compile in this process again. Idempotent."""
        with self._lock:
            pool, self._pool = self._pool, None
            workers, self._workers = self._workers, []
        for worker in workers:
            worker.kill()
        if pool is not None:
            from triton import knobs

            if knobs.runtime.jit_cache_hook == self._compiles:  # not of a model that was opened since
                knobs.runtime.jit_cache_hook = self._hook_before
            pool.shutdown()
        for worker in workers:
            worker.close()

    def ahead(self, steps: Iterable[Callable[[], object]]) -> None:
        """Compiles at once what the steps would launch; none of those kernels is launched.

        Everything else in the steps does run, on whatever the kernels would have overwritten.
        """
        found: set[Future[None]] = set()
        self._local.found = found
        try:
            for step in steps:
                step()
        finally:
            self._local.found = None
            wait(found)

    def _compiles(self, *, fn: Any, **about: Any) -> bool:
        """Triton's hook before a compilation. True: the kernel is neither compiled nor launched."""
        try:
            done = self._submit(fn, about["compile"]["specialization_data"])
        except (AttributeError, KeyError, TypeError):  # another Triton's
            LOGGER.debug("a kernel compiles in this process", exc_info=True)
            return False
        if done is None:
            return False
        found = getattr(self._local, "found", None)
        if found is not None:
            found.add(done)
            return True
        wait([done])
        return False  # what failed compiles, and raises, here

    def _submit(self, fn: Any, specialization: str) -> Future[None] | None:
        # Its key in the cache depends on what else the process has looked at, so the worker takes this one's.
        key = fn.jit_function.cache_key
        line = json.dumps(
            {
                "module": fn.module,
                "name": fn.name,
                "key": key,
                "target": self._target,
                "kernel": specialization,
            }
        )
        with self._lock:
            if self._pool is None:
                return None
            if line not in self._requests:
                self._requests[line] = self._pool.submit(self._request, line)
            return self._requests[line]

    def _adopt(self, idle: deque[_Worker]) -> None:
        """Gives the pool's thread a worker of its own."""
        self._local.worker = idle.popleft()

    def _request(self, line: str) -> None:
        answer = self._local.worker.ask(line)
        if answer not in (COMPILED, CACHED):
            LOGGER.debug("a kernel compiles in this process, since its worker failed: %s", answer)
        with self._lock:
            self.compiled += answer == COMPILED


class _Worker:
    """One process that compiles kernels."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for this process, which ends them
        )

    def ask(self, line: str) -> str:
        """Sends a request; the answer. A process that ended says so."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except OSError as error:
            return str(error)
        return answer.strip() if answer else "it ended"

    def kill(self) -> None:
        """Ends the process; what it is asked is answered so."""
        self._process.kill()

    def close(self) -> None:
        """Waits for its end."""
        self._process.communicate()


def _compile(request: dict[str, Any]) -> str:
    """Compiles a kernel and what launches it into Triton's cache; without a card, which `preload` needs."""
    import triton
    from triton.backends.compiler import GPUTarget

    cached: list[bool] = []
    triton.knobs.compilation.listener = lambda *, cache_hit, **_: cached.append(cache_hit)
    function = getattr(importlib.import_module(request["module"]), request["name"])
    function.hash = request["key"]
    data = json.loads(request["kernel"])
    constants = dict(zip(map(tuple, data["constant_keys"]), data["constant_vals"], strict=True))
    attributes = dict(zip(map(tuple, data["attrs_keys"]), data["attrs_vals"], strict=True))
    options = {name: tuple(v) if isinstance(v, list) else v for name, v in data["options"].items()}
    source = triton.compiler.ASTSource(function, data["signature"], constants, attributes)
    kernel = triton.compile(source, target=GPUTarget(*request["target"]), options=options)
    with suppress(Exception):  # what fails here is reported where it is launched
        from triton.backends.nvidia.driver import CudaLauncher

        CudaLauncher(source, kernel.metadata)
    return CACHED if all(cached) else COMPILED


def _work() -> None:
    import triton  # noqa: F401  # while nothing is asked for yet

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what compilers print is no answer
    for line in sys.stdin:
        try:
            answer = _compile(json.loads(line))
        except Exception as error:
            answer = f"{type(error).__name__}: {error}".replace("\n", " ")
        print(answer, file=answers, flush=True)


if __name__ == "__main__":
    _work()
