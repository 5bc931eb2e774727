"""`pam_node`: the manager and one perception node per camera in one process, until SIGINT or SIGTERM.

Two single-threaded executors, each with a thread of its own: a transition keeps the manager's busy; the
perception nodes' is never busy, as their callbacks only hand over. (rclpy's multi-threaded executor can miss
the moment at which a waiting coroutine may continue.)
"""

from __future__ import annotations

from pam_ros.nodes.heap import TRIM_S, trim  # before libraries that start threads when they are imported

# isort: split
import logging
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress

import rclpy
from rclpy.exceptions import (
    InvalidParameterTypeException,
    InvalidParameterValueException,
    ParameterUninitializedException,
)
from rclpy.executors import Executor, ExternalShutdownException, SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.logging import get_logger
from rclpy.signals import SignalHandlerOptions
from rclpy.utilities import remove_ros_args

from pam_ros.errors import InputError
from pam_ros.model.descriptions import AUTO
from pam_ros.model.interface import PerceptionModel
from pam_ros.model.loading.files import find_files
from pam_ros.model.loading.options import LoadOptions
from pam_ros.nodes.dds_profile import use_image_profile
from pam_ros.nodes.manager_node import ManagerNode, ModelFactory, Progress
from pam_ros.nodes.overrides import ignored_overrides
from pam_ros.nodes.perception_node import PerceptionNode
from pam_ros.nodes.start_errors import check_parameter_files, one_line, security_is_on, why_not_started
from pam_ros.signals import END_S, leave, stopped_by_signals

_TRANSITION_TIMEOUT_S = END_S - 1.5  # for a transition that runs at shutdown
_ANSWER_TIMEOUT_S = 1.0  # for the answers to requests that the shutdown cancelled
USAGE = """\
pam_node: runs the lifecycle manager and one perception node per camera until SIGINT or SIGTERM.

    pam_node --ros-args -p autostart:=true -r image:=/camera/color/image_raw

It takes ROS arguments only, after --ros-args:
    -p NAME:=VALUE         set a parameter; see docs/parameters.md or config/pam.yaml
    --params-file FILE     set the parameters of a YAML file
    -r FROM:=TO            rename a topic, a service or a node
    --log-level LEVEL      debug, info, warn, error or fatal
Without autostart the manager stays unconfigured until you configure and activate it.
"""
_BAD_PARAMETERS = (
    InputError,
    InvalidParameterTypeException,
    InvalidParameterValueException,
    ParameterUninitializedException,
)


class NodeLog(logging.Handler):
    """Passes the package's own log on to the node's."""

    def emit(self, record: logging.LogRecord) -> None:
        """One record, with its traceback if it has one."""
        log = get_logger("pam_node")
        level = {logging.DEBUG: log.debug, logging.INFO: log.info, logging.WARNING: log.warning}
        level.get(record.levelno, log.error)(self.format(record))


class SpinThread:
    """An executor that runs on its own thread until stopped."""

    def __init__(self, executor: Executor, name: str) -> None:
        self._executor = executor
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Waits for the running callback; False if it did not end in time."""
        self._stopping.set()
        self._executor.create_task(lambda: None)  # wakes it from waiting
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            return False
        # Not left to its finalizer, which fails if the garbage collector frees its parts first.
        self._executor.shutdown(timeout_sec=1.0)
        return True

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


def _initialise(argv: Sequence[str]) -> int | None:
    """Starts rclpy; the exit code if the arguments ask for help or are invalid, else None."""
    try:
        check_parameter_files(argv)
        others = remove_ros_args(list(argv))[1:]
        if "--help" in others or "-h" in others:
            sys.stdout.write(USAGE)
            return 0
        if others:
            raise ValueError(f"unknown arguments: {' '.join(others)} (ROS arguments go after --ros-args)")
        use_image_profile()
        # rclpy's own handlers would end the context before the lifecycle could shut down through it.
        rclpy.init(args=list(argv), signal_handler_options=SignalHandlerOptions.NO)
    except (RuntimeError, ValueError) as error:  # rclpy's errors about arguments are RuntimeErrors
        if security_is_on() and isinstance(error, rclpy_implementation.RCLError):
            sys.stderr.write(f"pam_node: {why_not_started(error)}\n")
            return 1
        about_file = isinstance(error, InputError) or "params file" in str(error)
        sys.stderr.write(f"pam_node: {one_line(error)}\n" + ("" if about_file else f"\n{USAGE}"))
        return 2
    return None


def run(argv: Sequence[str], *, load_model: ModelFactory) -> int:
    """Runs until a signal; returns the exit code. `argv` begins with the program's name."""
    stop = stopped_by_signals()
    if (code := _initialise(argv)) is not None:
        return code
    package = logging.getLogger("pam_ros")
    package.addHandler(NodeLog())
    package.setLevel(logging.INFO)
    package.propagate = False
    try:
        manager = ManagerNode(load_model)
        nodes = perception_nodes(manager)
    except _BAD_PARAMETERS as error:
        get_logger("pam_node").fatal(f"invalid parameter: {error}")
        return 2
    except rclpy_implementation.RCLError as error:
        get_logger("pam_node").fatal(why_not_started(error))
        return 1
    names = [manager.get_fully_qualified_name(), *(node.get_fully_qualified_name() for node in nodes)]
    if len(set(names)) < len(names):
        get_logger("pam_node").fatal(
            f"__node:={names[0].rpartition('/')[2]} renames every node of this process; "
            "rename one node only, e.g. pam_manager:__node:=other_name"
        )
        return 2
    for line in ignored_overrides((manager, *nodes), argv):
        manager.get_logger().warning(line)
    manager.serve(nodes)
    manager_executor, perception_executor = SingleThreadedExecutor(), SingleThreadedExecutor()
    manager_executor.add_node(manager)
    for node in nodes:
        perception_executor.add_node(node)
    manager_thread = SpinThread(manager_executor, "manager")
    perception_thread = SpinThread(perception_executor, "perception")
    trimmed_s = time.monotonic()
    while not stop.wait(1.0):
        if time.monotonic() - trimmed_s >= TRIM_S:
            trim()
            trimmed_s = time.monotonic()
    _shut_down(manager, nodes, manager_thread, perception_thread)
    return 0


def _shut_down(
    manager: ManagerNode,
    nodes: Sequence[PerceptionNode],
    manager_thread: SpinThread,
    perception_thread: SpinThread,
) -> None:
    """Stops the manager first: the perception nodes then answer the requests that it cancelled."""
    manager.get_logger().info("shutting down")
    manager.abandon()
    if not manager_thread.stop(_TRANSITION_TIMEOUT_S):
        manager.get_logger().warning("a lifecycle transition does not finish; exiting anyway")
        leave(0)  # a thread in native code cannot be joined, and finalizing under it crashes
    with suppress(RuntimeError):  # shut down already, by request
        manager.trigger_shutdown()
    until_s = time.monotonic() + _ANSWER_TIMEOUT_S
    while any(node.waiting for node in nodes) and time.monotonic() < until_s:
        time.sleep(0.01)
    perception_thread.stop(_TRANSITION_TIMEOUT_S)
    for node in nodes:  # all first, so that the time they may take counts once
        node.close_outputs()
    for node in nodes:
        node.destroy_node()
    manager.destroy_node()
    rclpy.try_shutdown()


def _open_model(options: LoadOptions, *, progress: Progress | None) -> PerceptionModel:
    """Imports torch here, so that the nodes are up and answer "not active" before."""
    if options.model != AUTO:
        find_files(options.model, options.sam2)  # refuses a wrong name before the imports, which take seconds
    from pam_ros.model.opening import open_model

    return open_model(options, progress=progress)


def main() -> None:
    """The executable `pam_node`."""
    leave(run(sys.argv, load_model=_open_model))


if __name__ == "__main__":
    main()
