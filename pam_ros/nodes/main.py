"""`pam_node`, one process: the manager and one perception node per camera, until SIGINT or SIGTERM.

Two single-threaded executors, each spun by a thread of its own: the manager's is busy for as long as a
transition takes, the perception nodes' never is, as their callbacks only hand over. (rclpy's multi-threaded
executor can miss the moment when a waiting coroutine may go on.)
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

import rclpy
from rclpy.exceptions import (
    InvalidParameterTypeException,
    InvalidParameterValueException,
    ParameterUninitializedException,
)
from rclpy.executors import Executor, ExternalShutdownException, SingleThreadedExecutor
from rclpy.logging import get_logger
from rclpy.signals import SignalHandlerOptions
from rclpy.utilities import remove_ros_args

from pam_ros.model.interface import PerceptionModel
from pam_ros.nodes.manager_node import ManagerNode, ModelFactory, Progress
from pam_ros.nodes.parameters import unknown_overrides
from pam_ros.nodes.perception_node import PerceptionNode

_M_MMAP_THRESHOLD = -3  # of malloc.h
_LARGE_BLOCK_BYTES = 256 * 1024
_PATIENCE_S = 10.0  # for a transition under way at shutdown
_FAREWELL_S = 1.0  # for the answers to requests that the shutdown cancelled
USAGE = """\
pam_node: the lifecycle manager and one perception node per camera, until SIGINT or SIGTERM.

    pam_node --ros-args -p autostart:=true -r image:=/camera/color/image_raw

It takes ROS arguments only, all after --ros-args:
    -p NAME:=VALUE         a parameter; see docs/parameters.md or config/pam.yaml
    --params-file FILE     many of them
    -r FROM:=TO            another name for a topic, a service, a node
    --log-level LEVEL      debug, info, warn, error, fatal
Without autostart the manager waits, unconfigured, for somebody to configure and activate it.
"""
_BAD_PARAMETERS = (
    InvalidParameterTypeException, InvalidParameterValueException, ParameterUninitializedException,
)  # fmt: skip


class SpinThread:
    """An executor that runs on its own thread until told to stop."""

    def __init__(self, executor: Executor, name: str) -> None:
        self._executor = executor
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Lets the running callback end; False where it did not within the time."""
        self._stopping.set()
        self._executor.create_task(lambda: None)  # wakes it from waiting
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._executor.spin_once()
            except ExternalShutdownException:
                return
            except Exception:  # one callback's fault must not end the others
                get_logger("pam_node").error(f"a callback failed:\n{traceback.format_exc()}")


def perception_nodes(manager: ManagerNode) -> list[PerceptionNode]:
    """One camera: node `pam`, inputs `image`, …; several: nodes `pam_<camera>`, inputs `<camera>/image`, …"""
    if len(manager.cameras) == 1:
        return [PerceptionNode(manager.cameras[0], name="pam", input_prefix="", link=manager.link)]
    return [
        PerceptionNode(camera, name=f"pam_{camera}", input_prefix=f"{camera}/", link=manager.link)
        for camera in manager.cameras
    ]


def keep_heap_small() -> None:
    """Large blocks go back to the system when they are freed, instead of leaving holes in the heap.

    glibc raises that limit to 32 MiB as a process frees larger blocks; a decode's growing caches then scatter
    over the heap and the process grows for minutes. Where libc is another one, nothing is changed.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK_BYTES)


def _initialise(argv: Sequence[str]) -> int | None:
    """Starts rclpy; the exit code where the arguments ask for help or cannot be used."""
    try:
        others = remove_ros_args(list(argv))[1:]
        if "--help" in others or "-h" in others:
            sys.stdout.write(USAGE)
            return 0
        if others:
            raise ValueError(f"{' '.join(others)}: not known outside --ros-args")
        # rclpy's own handlers would end the context before the lifecycle could shut down through it.
        rclpy.init(args=list(argv), signal_handler_options=SignalHandlerOptions.NO)
    except (RuntimeError, ValueError) as error:  # rclpy's errors about arguments are RuntimeErrors
        sys.stderr.write(f"pam_node: {error}\n\n{USAGE}")
        return 2
    return None


def run(argv: Sequence[str], *, load_model: ModelFactory) -> int:
    """Runs until a signal comes; returns the exit code. `argv` begins with the program's name."""
    keep_heap_small()
    if (code := _initialise(argv)) is not None:
        return code
    stop = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once
        stop.set()

    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)
    try:
        manager = ManagerNode(load_model)
        nodes = perception_nodes(manager)
    except _BAD_PARAMETERS as error:
        get_logger("pam_node").fatal(f"a parameter cannot be used: {error}")
        return 2
    names = [manager.get_fully_qualified_name(), *(node.get_fully_qualified_name() for node in nodes)]
    if len(set(names)) < len(names):
        get_logger("pam_node").fatal(
            f"a remapping of __node gave all nodes of this process one name ({names[0]}); "
            "rename them one by one, as in pam_manager:__node:=other_name"
        )
        return 2
    for line in unknown_overrides((manager, *nodes)):
        manager.get_logger().warning(line)
    manager.serve(nodes)
    manager_executor, perception_executor = SingleThreadedExecutor(), SingleThreadedExecutor()
    manager_executor.add_node(manager)
    for node in nodes:
        perception_executor.add_node(node)
    manager_thread = SpinThread(manager_executor, "manager")
    perception_thread = SpinThread(perception_executor, "perception")
    while not stop.wait(1.0):
        pass
    _shut_down(manager, nodes, manager_thread, perception_thread)
    return 0


def _shut_down(
    manager: ManagerNode,
    nodes: Sequence[PerceptionNode],
    manager_thread: SpinThread,
    perception_thread: SpinThread,
) -> None:
    """The manager first: what still waits for the engine is answered by the perception nodes."""
    manager.get_logger().info("shutting down")
    manager.abandon()
    if not manager_thread.stop(_PATIENCE_S):
        manager.get_logger().warning("a transition does not end; leaving without it")
        os._exit(0)  # a thread inside native code cannot be joined, and finalizing around it crashes
    with suppress(RuntimeError):  # shut down already, by request
        manager.trigger_shutdown()
    until_s = time.monotonic() + _FAREWELL_S
    while any(node.waiting for node in nodes) and time.monotonic() < until_s:
        time.sleep(0.01)
    perception_thread.stop(_PATIENCE_S)
    for node in nodes:
        node.destroy_node()
    manager.destroy_node()
    rclpy.try_shutdown()


def _load_pam(
    name_or_path: str, *, device: str, dtype: str, memory_limit_gib: float, progress: Progress | None
) -> PerceptionModel:
    """Torch is imported here: the nodes are up, and say "not active", before it is."""
    from pam_ros.model.loading.checkpoint import load_model

    return load_model(
        name_or_path, device=device, dtype=dtype, memory_limit_gib=memory_limit_gib, progress=progress
    )


def main() -> None:
    """The executable `pam_node`."""
    sys.exit(run(sys.argv, load_model=_load_pam))


if __name__ == "__main__":
    main()
