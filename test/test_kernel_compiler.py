"""Kernels compile in other processes: found in the cache afterwards, not launched ahead, or compiled here."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton", reason="comes with torch's CUDA builds")

from pam_ros.model.kernel_compiler import KernelCompiler  # noqa: E402
from pam_ros.model.text.fast.kernels import linear  # noqa: E402
from pam_ros.model.vision.fast.kernels import resize  # noqa: E402

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)


class Card:
    """Triton's driver of a card that is not there: it says what to compile for and launches nothing."""

    binary_ext = "cubin"

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@dataclass
class Tensor:
    """What Triton reads of a tensor's address and dtype."""

    dtype: str = "bf16"

    def data_ptr(self) -> int:
        return 256


class Compiled(list[tuple[str, bool]]):
    """What this process compiled: a kernel's name, and whether it was in the cache."""

    def record(self, *, src: Any, cache_hit: bool, **_: Any) -> None:
        """Triton's listener."""
        self.append((src.name, cache_hit))


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Compiled]:
    """What is compiled here, for a card that is not there, with an empty cache on the disk."""
    from triton.runtime.driver import driver

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    found = Compiled()
    before = driver._active
    driver.set_active(Card())
    linear.rms_norm.device_caches.clear()
    triton.knobs.compilation.listener = found.record
    yield found
    triton.knobs.compilation.listener = None
    linear.rms_norm.device_caches.clear()
    driver._active = before


@pytest.fixture
def compiler(compiled: Compiled) -> Iterator[KernelCompiler]:
    """An open compiler with two workers."""
    compiler = KernelCompiler(workers=2)
    compiler.open()
    yield compiler
    compiler.close()


def norm(width: int, *, block: Any = 1024) -> Any:
    """Compiles the RMS norm's kernel as a launch would, without launching it."""
    x = Tensor()
    return linear.rms_norm.warmup(x, x, x, 1e-6, H=width, BLOCK=block, PDL=False, num_warps=4, grid=(1,))


def test_worker_compiles_what_is_launched(compiler: KernelCompiler, compiled: Compiled) -> None:
    """The launching process reads it from the cache."""
    assert norm(1000) is not None
    assert compiled == [("rms_norm", True)]
    assert compiler.compiled == 1


def test_ahead_compiles_without_launching(compiler: KernelCompiler, compiled: Compiled) -> None:
    """Nothing comes of the steps' launches; then all their kernels are in the cache."""
    launched: list[Any] = []
    compiler.ahead(lambda width=width: launched.append(norm(width)) for width in (600, 700, 800))
    assert launched == [None] * 3
    assert (compiler.compiled, compiled) == (3, [])
    for width in (600, 700, 800):
        assert norm(width) is not None
    assert compiled == [("rms_norm", True)] * 3


def test_kernels_of_an_earlier_process_are_not_compiled_again(compiled: Compiled) -> None:
    """Then workers are not needed."""
    counts = []
    for _ in range(2):
        compiler = KernelCompiler(workers=1)
        compiler.open()
        compiler.ahead([lambda: norm(400)] * 2)
        counts.append(compiler.compiled)
        compiler.close()
    assert counts == [1, 0]


def test_kernels_that_share_a_function_have_the_keys_of_this_process(
    compiler: KernelCompiler, compiled: Compiled
) -> None:
    """Triton's key of a kernel depends on which of them it looked at first."""
    byte, number = Tensor("u8"), Tensor("i32")
    for kernel in (resize.resize_along, resize.resize_across):
        kernel.device_caches.clear()
    along = {"S": 64, "BLOCK": 256, "grid": (1,)}
    resize.resize_along.warmup(byte, byte, number, number, 192, 3, 4, **along)
    resize.resize_across.warmup(byte, byte, number, number, byte, 64, 1, 4, **along)
    assert compiled == [("resize_along", True), ("resize_across", True)]


def test_workers_that_nobody_needed_are_ended() -> None:
    """E.g. of a model that could not be read."""
    compiler = KernelCompiler(workers=2)
    compiler.start()
    processes = [worker._process for worker in compiler._workers]
    compiler.close()
    assert all(process.poll() is not None for process in processes)


def test_closed_compiler_leaves_it_to_this_process(compiler: KernelCompiler, compiled: Compiled) -> None:
    """Idempotent, and Triton's hook is as it was."""
    compiler.close()
    compiler.close()
    assert triton.knobs.runtime.jit_cache_hook is None
    norm(900)
    assert compiled == [("rms_norm", False)]


def test_dead_workers_are_replaced_by_this_process(compiler: KernelCompiler, compiled: Compiled) -> None:
    """As if there were none."""
    for worker in compiler._workers:
        worker.kill()
    compiler.ahead([lambda: norm(500)])
    assert norm(500) is not None
    assert (compiler.compiled, compiled) == (0, [("rms_norm", False)])


def test_kernel_that_does_not_compile_raises_where_it_is_launched(compiler: KernelCompiler) -> None:
    """Not ahead of it."""
    compiler.ahead([lambda: norm(100, block=100)])  # a block is a power of two
    with pytest.raises(triton.CompilationError, match="power of 2"):
        norm(100, block=100)
    assert compiler.compiled == 0


def test_failing_step_raises_and_later_launches_work(compiler: KernelCompiler) -> None:
    """`ahead` is over then."""

    def fail() -> None:
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        compiler.ahead([lambda: norm(300), fail])
    assert norm(300) is not None


def test_workers_import_no_torch() -> None:
    """They would start seconds later."""
    import subprocess

    code = (
        "import sys, pam_ros.model.kernel_compiler, pam_ros.model.text.fast.kernels.prefill, "
        "pam_ros.model.text.fast.kernels.int4, pam_ros.model.vision.fast.kernels.sam2, "
        "pam_ros.model.vision.fast.kernels.resize; sys.exit('torch' in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
