"""Starts the package's own processes and talks to them: what `pam demo` and `pam soak` share."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import rclpy
from lifecycle_msgs.srv import GetState
from rclpy.executors import SingleThreadedExecutor
from rclpy.task import Future

from pam_ros.errors import StateError

END_TIMEOUT_S = 20.0


class Processes:
    """Modules of this package as processes of one private ROS domain; ends them all when left."""

    def __init__(self, folder: Path) -> None:
        """`folder`: working directory and place of the logs; must exist."""
        self._folder = folder
        self.domain = random.SystemRandom().randrange(1, 100)
        self._environment = os.environ | {
            "ROS_DOMAIN_ID": str(self.domain),
            "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        }
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in list(self.running):
            self.end(name)

    def start(
        self, module: str, parameters: Mapping[str, Any], remaps: Sequence[str] = (), log: bool = False
    ) -> subprocess.Popen[bytes]:
        """Starts `pam_ros.nodes.<module>`; with `log` what it says goes to `<module>.log`."""
        arguments = [part for key, value in parameters.items() for part in ("-p", f"{key}:={value}")]
        arguments += [part for remap in remaps for part in ("-r", remap)]
        command = [sys.executable, "-m", f"pam_ros.nodes.{module}", "--ros-args", *arguments]
        stream = (self._folder / f"{module}.log").open("wb") if log else None
        process = subprocess.Popen(
            command,
            cwd=self._folder,
            env=self._environment,
            stdout=stream,
            stderr=subprocess.STDOUT if log else None,
        )
        if stream is not None:
            stream.close()
        self.running[module] = process
        return process

    def end(self, module: str) -> int:
        """Asks a process to stop; kills it after a while. Its exit code."""
        process = self.running.pop(module)
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            return process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def check(self) -> None:
        """Raises StateError where a process ended by itself with an error."""
        for module, process in self.running.items():
            code = process.poll()
            if code:
                raise StateError(f"the process {module} ended with exit code {code}; its log says why")


class Client:
    """An rclpy node of this process, in the processes' domain, spun while it waits."""

    def __init__(self, name: str, processes: Processes) -> None:
        self._processes = processes
        self._context = rclpy.Context()
        os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
        self._context.init(domain_id=processes.domain)
        self.node = rclpy.create_node(name, context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)

    def close(self) -> None:
        """Leaves the domain."""
        self.node.destroy_node()
        self._context.try_shutdown()

    def wait(self, condition: Callable[[], Any], what: str, timeout_s: float) -> None:
        """Spins until the condition holds. Raises StateError where it does not within the time."""
        until_s = time.monotonic() + timeout_s
        while not condition():
            self._processes.check()
            if time.monotonic() > until_s:
                raise StateError(f"waited {timeout_s:.0f} s in vain for {what}")
            self._executor.spin_once(timeout_sec=0.05)

    def spin(self, seconds: float) -> None:
        """Handles what comes in for a while."""
        until_s = time.monotonic() + seconds
        while (left_s := until_s - time.monotonic()) > 0:
            self._processes.check()
            self._executor.spin_once(timeout_sec=min(left_s, 0.05))

    def call(self, kind: Any, service: str, request: Any, timeout_s: float = 120.0) -> Any:
        """The response of a service, which may still have to come up."""
        client = self.node.create_client(kind, service)
        try:
            self.wait(client.service_is_ready, f"the service {service}", timeout_s)
            future: Future = client.call_async(request)
            self.wait(future.done, f"an answer of {service}", timeout_s)
            return future.result()
        finally:
            self.node.destroy_client(client)

    def wait_for_active(self, timeout_s: float) -> None:
        """Until the manager is active."""
        until_s = time.monotonic() + timeout_s
        while (
            self.call(GetState, "/pam_manager/get_state", GetState.Request()).current_state.label != "active"
        ):
            if time.monotonic() > until_s:
                raise StateError(
                    f"the manager did not become active within {timeout_s:.0f} s; its log says why"
                )
            self.spin(0.2)


@contextmanager
def client(name: str, processes: Processes) -> Iterator[Client]:
    """A client that leaves the domain at the end."""
    robot = Client(name, processes)
    try:
        yield robot
    finally:
        robot.close()
