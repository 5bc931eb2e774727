"""Real processes over real DDS: starts a node, talks to it as a robot would, and sees how it ends.

Every process pair gets a domain of its own and stays on this machine.
"""

from __future__ import annotations

import array
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import Point
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import SetParameters
from rclpy.action import ActionClient
from rclpy.action.client import ClientGoalHandle
from rclpy.exceptions import InvalidHandle
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.parameter import Parameter
from rclpy.qos import QoSDurabilityPolicy, QoSProfile, QoSReliabilityPolicy
from rclpy.task import Future
from sensor_msgs.msg import CompressedImage, Image
from vision_msgs.msg import Point2D

from pam_ros.action import CaptionClip
from pam_ros.msg import Prompt, RegionArray
from pam_ros.srv import PerceiveRegion

FAKE_NODE = (str(Path(__file__).with_name("fake_node.py")),)
REAL_NODE = ("-m", "pam_ros.nodes.main")
TIMEOUT_S = 20.0  # for anything that should happen soon; loaded machines are slow
LATCHED = QoSProfile(depth=1, durability=QoSDurabilityPolicy.TRANSIENT_LOCAL)
_TRANSITIONS = {
    "configure": Transition.TRANSITION_CONFIGURE,
    "cleanup": Transition.TRANSITION_CLEANUP,
    "activate": Transition.TRANSITION_ACTIVATE,
    "deactivate": Transition.TRANSITION_DEACTIVATE,
    "shutdown when inactive": Transition.TRANSITION_INACTIVE_SHUTDOWN,
}
_SENSOR = QoSProfile(depth=1, reliability=QoSReliabilityPolicy.BEST_EFFORT)


def wait_until(
    condition: Callable[[], Any], what: str | Callable[[], str], timeout_s: float = TIMEOUT_S
) -> Any:
    """Returns the condition's value once it is true; fails the test, saying what did not happen."""
    until_s = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > until_s:
            raise AssertionError(f"not within {timeout_s} s: {what if isinstance(what, str) else what()}")
        time.sleep(0.01)


class NodeProcess:
    """A ROS process; its log lines are kept."""

    def __init__(self, script: Sequence[str], arguments: Sequence[str], domain: int) -> None:
        environment = os.environ | {
            "ROS_DOMAIN_ID": str(domain),
            "PYTHONUNBUFFERED": "1",
            "RCUTILS_LOGGING_USE_STDOUT": "1",
            "RCUTILS_COLORIZED_OUTPUT": "0",
            "OMP_NUM_THREADS": "1",
        }
        self.lines: list[str] = []
        self._process = subprocess.Popen(
            [sys.executable, *script, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd="/",  # never where a folder could be taken for the package
            env=environment,
        )
        threading.Thread(target=self._read, daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def log(self) -> str:
        """Everything it said so far."""
        return "".join(self.lines)

    def wait_for_log(self, words: str, timeout_s: float = TIMEOUT_S) -> str:
        """The first line that holds these words."""
        return wait_until(
            lambda: next((line for line in list(self.lines) if words in line), None) or self._check_running(),
            lambda: f"a log line with {words!r}; the log:\n{self.log()}",
            timeout_s,
        )

    def resident_mib(self) -> float:
        """Memory it holds."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)

    def send(self, number: int) -> None:
        """Sends it a signal."""
        self._process.send_signal(number)

    def end(self, number: int = signal.SIGINT) -> int:
        """Asks it to stop; its exit code. A process that does not stop is killed and fails the test."""
        if self.exit_code is None:
            self.send(number)
        try:
            return self._process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise AssertionError(f"the process did not end; the log:\n{self.log()}") from None

    def kill(self) -> None:
        """Ends it the hard way, if it still runs."""
        if self.exit_code is None:
            self._process.kill()
            self._process.wait()

    def _check_running(self) -> None:
        assert self.exit_code is None, f"the process ended with {self.exit_code}; the log:\n{self.log()}"

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line)


class Robot:
    """An rclpy client in a context of its own, spun by its own thread."""

    def __init__(self, domain: int) -> None:
        self.domain = domain
        self._context = rclpy.Context()
        self._context.init(domain_id=domain)
        self.node = rclpy.create_node("robot", context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._clients: dict[str, Any] = {}
        self._publishers: dict[str, Any] = {}
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends it."""
        self._context.try_shutdown()
        self._thread.join(TIMEOUT_S)

    # --- topics

    def publisher(self, kind: type, topic: str, qos: QoSProfile | int = 10, listeners: int = 1) -> Any:
        """A publisher that somebody listens to already."""
        if topic not in self._publishers:
            self._publishers[topic] = self.node.create_publisher(kind, topic, qos)
        publisher = self._publishers[topic]
        wait_until(lambda: publisher.get_subscription_count() >= listeners, f"a subscriber of {topic}")
        return publisher

    def silence(self, topic: str) -> None:
        """The topic's publisher dies."""
        self.node.destroy_publisher(self._publishers.pop(topic))

    def collect(self, kind: type, topic: str, qos: QoSProfile | int = 50, wait: bool = True) -> list[Any]:
        """A list that grows with every message on the topic."""
        messages: list[Any] = []
        self.node.create_subscription(kind, topic, messages.append, qos)
        if wait:
            wait_until(lambda: self.node.count_publishers(topic), f"a publisher of {topic}")
        return messages

    def diagnostics(self) -> Diagnostics:
        """Starts to listen to /diagnostics."""
        return Diagnostics(self.collect(DiagnosticArray, "/diagnostics"))

    # --- services

    def start_call(self, kind: type, service: str, request: Any) -> Future:
        """Sends a request; the future holds the response."""
        if service not in self._clients:
            client = self.node.create_client(kind, service)
            assert client.wait_for_service(TIMEOUT_S), f"no service {service}"
            time.sleep(0.1)  # the server may not know yet where to send its answer
            self._clients[service] = client
        return self._clients[service].call_async(request)

    def call(self, kind: type, service: str, request: Any, timeout_s: float = TIMEOUT_S) -> Any:
        """The response."""
        future = self.start_call(kind, service, request)
        wait_until(future.done, f"an answer of {service}", timeout_s)
        return future.result()

    def perceive(
        self, prompt: Prompt, node: str = "/pam", image: Image | None = None, timeout_s: float = TIMEOUT_S
    ) -> Any:
        """The response of `~/perceive`."""
        request = PerceiveRegion.Request(prompt=prompt, image=image or Image())
        return self.call(PerceiveRegion, f"{node}/perceive", request, timeout_s)

    def set_parameter(self, node: str, name: str, value: Any) -> str:
        """Sets it; the reason why not, empty when it was set."""
        parameter = Parameter(name, value=value).to_parameter_msg()
        request = SetParameters.Request(parameters=[parameter])
        (result,) = self.call(SetParameters, f"{node}/set_parameters", request).results
        assert result.successful == (not result.reason)
        return str(result.reason)

    # --- lifecycle

    def start_transition(self, label: str, manager: str = "/pam_manager") -> Future:
        """Asks for "configure", "activate", "deactivate", "cleanup" or a "…shutdown"."""
        request = ChangeState.Request(transition=Transition(id=_TRANSITIONS[label]))
        return self.start_call(ChangeState, f"{manager}/change_state", request)

    def transition(self, label: str, timeout_s: float = TIMEOUT_S) -> bool:
        """Whether it succeeded."""
        future = self.start_transition(label)
        wait_until(future.done, f"the end of {label}", timeout_s)
        return bool(future.result().success)

    def state(self, manager: str = "/pam_manager") -> str:
        """The manager's lifecycle state."""
        for _ in range(5):  # it is the first to be called, and on a busy machine an early answer can be lost
            future = self.start_call(GetState, f"{manager}/get_state", GetState.Request())
            with suppress(AssertionError):
                wait_until(future.done, "", TIMEOUT_S / 5)
                return str(future.result().current_state.label)
        raise AssertionError(f"{manager}/get_state does not answer")

    def wait_for_active(self, timeout_s: float = TIMEOUT_S) -> None:
        """Until autostart has done its work."""
        wait_until(lambda: self.state() == "active", "the manager is active", timeout_s)

    # --- the action

    def send_goal(self, goal: CaptionClip.Goal, node: str = "/pam") -> Goal:
        """Sends a goal and waits until it is accepted."""
        name = f"{node}/caption_clip"
        if name not in self._clients:
            self._clients[name] = ActionClient(self.node, CaptionClip, name)
            assert self._clients[name].wait_for_server(TIMEOUT_S), f"no action {name}"
            time.sleep(0.1)  # as for services
        feedback: list[Any] = []
        accepted = self.on_executor(
            lambda: self._clients[name].send_goal_async(
                goal, feedback_callback=lambda message: feedback.append(message.feedback)
            )
        )
        wait_until(accepted.done, "the goal's acceptance")
        handle = accepted.result()
        assert handle.accepted
        return Goal(self, handle, feedback, self.on_executor(handle.get_result_async))

    def on_executor(self, function: Callable[[], Future]) -> Future:
        """Calls it between callbacks: an action client that is called beside them can miss the response."""
        task = self._executor.create_task(function)
        wait_until(task.done, "a turn of the executor")
        return task.result()

    def _spin(self) -> None:
        while self._context.ok():
            try:
                self._executor.spin_once()
            except ExternalShutdownException:
                return
            except InvalidHandle:
                continue  # a test destroyed something meanwhile
            except rclpy_implementation.RCLError:
                assert not self._context.ok()  # closed meanwhile


@dataclass
class Goal:
    """An accepted goal, the feedback so far, and its result to come."""

    robot: Robot
    handle: ClientGoalHandle
    feedback: list[Any]
    _result: Future

    @property
    def done(self) -> bool:
        """Whether the result is there."""
        return bool(self._result.done())

    def result(self, timeout_s: float = TIMEOUT_S) -> tuple[int, Any]:
        """Goal status (action_msgs/GoalStatus) and result."""
        wait_until(self._result.done, "the goal's result", timeout_s)
        return self._result.result().status, self._result.result().result

    def cancel(self) -> None:
        """Asks for it, and waits until that is accepted."""
        cancelled = self.robot.on_executor(self.handle.cancel_goal_async)
        wait_until(cancelled.done, "an answer to the cancel request")
        assert cancelled.result().goals_canceling


@dataclass
class Diagnostics:
    """What `/diagnostics` said."""

    messages: list[DiagnosticArray]

    def wait_for(
        self, name: str, condition: Callable[[DiagnosticStatus], bool], timeout_s: float = TIMEOUT_S
    ) -> DiagnosticStatus:
        """The first status from now on whose name holds `name` and that meets the condition."""
        seen = len(self.messages)
        return wait_until(
            lambda: next(
                (
                    status
                    for message in self.messages[seen:]
                    for status in message.status
                    if name in status.name and condition(status)
                ),
                None,
            ),
            lambda: f"such a status of {name!r}; the last message: {self.messages[-1:]}",
            timeout_s,
        )

    @staticmethod
    def values(status: DiagnosticStatus) -> dict[str, str]:
        return {pair.key: pair.value for pair in status.values}


class Camera:
    """Plays pictures on an image topic from its own thread, with the stamps of the clock."""

    def __init__(
        self,
        robot: Robot,
        topic: str = "/image",
        *,
        rate_hz: float = 20.0,
        size: tuple[int, int] = (48, 64),
        compressed: bool = False,
        shade: int = 100,
        frame_id: str = "camera_optical",
        dies: bool = False,
        block_xyxy: tuple[int, int, int, int] | None = None,
    ) -> None:
        """`size` is (height, width) in pixels; pictures have one `shade`, which the fake model answers with.
        `dies`: its publisher is destroyed at the end, not only silent. `block_xyxy`: of a red block.
        """
        self._kind = CompressedImage if compressed else Image
        self._publisher = robot.publisher(self._kind, topic, _SENSOR)
        self._robot, self._topic, self._dies = robot, topic, dies
        self._period_s = 1.0 / rate_hz
        self.size, self.shade, self.frame_id, self._block_xyxy = size, shade, frame_id, block_xyxy
        self.sent_ns: list[int] = []  # stamps
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Camera:
        self._thread.start()
        wait_until(lambda: len(self.sent_ns) > 1, "the first images")
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        if self._dies:
            self._robot.silence(self._topic)

    def send(self, stamp_ns: int | None = None) -> int:
        """Sends one picture; its stamp."""
        stamp_ns = time.time_ns() if stamp_ns is None else stamp_ns
        pixels = np.full((*self.size, 3), self.shade, np.uint8)
        if self._block_xyxy is not None:
            x1, y1, x2, y2 = self._block_xyxy
            pixels[y1:y2, x1:x2] = (200, 30, 30)
        message = jpeg_of(pixels) if self._kind is CompressedImage else image_of(pixels)
        message.header.frame_id = self.frame_id
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp_ns, 10**9)
        self._publisher.publish(message)
        self.sent_ns.append(stamp_ns)
        return stamp_ns

    def _run(self) -> None:
        while not self._stopping.wait(self._period_s):
            self.send()


def image_of(pixels: np.ndarray, encoding: str = "") -> Image:
    """(H, W, 3) RGB or (H, W) mono8 pixels → message with a zero stamp."""
    return Image(
        height=pixels.shape[0],
        width=pixels.shape[1],
        encoding=encoding or ("rgb8" if pixels.ndim == 3 else "mono8"),
        step=pixels[0].nbytes,
        data=array.array("B", pixels.tobytes()),
    )


def jpeg_of(pixels: np.ndarray) -> CompressedImage:
    """(H, W, 3) RGB pixels → message with a zero stamp."""
    data = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1]
    return CompressedImage(format="rgb8; jpeg compressed bgr8", data=array.array("B", data.tobytes()))


def click(x: float, y: float, **fields: Any) -> Prompt:
    """A prompt of one positive click."""
    return Prompt(points=[Point2D(x=float(x), y=float(y))], **fields)


def mouse(x: float, y: float) -> Point:
    """As rqt_image_view sends it."""
    return Point(x=float(x), y=float(y))


def stamp_of(message: Any) -> int:
    """Nanoseconds of a message's header."""
    return int(message.header.stamp.sec * 10**9 + message.header.stamp.nanosec)


def new_frames(messages: list[RegionArray], since: int = 0) -> list[RegionArray]:
    """Without the repetitions that a finished text causes."""
    return list({stamp_of(message): message for message in messages[since:]}.values())


@contextmanager
def pam(
    *parameters: str, script: Sequence[str] = FAKE_NODE, arguments: Sequence[str] = ()
) -> Iterator[tuple[Robot, NodeProcess]]:
    """Starts `pam_node` with these parameters (`name:=value`) and a robot; ends both."""
    domain = random.SystemRandom().randrange(1, 100)
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    ros_arguments = [part for parameter in parameters for part in ("-p", parameter)]
    process = NodeProcess(script, ["--ros-args", *arguments, *ros_arguments], domain)
    robot = Robot(domain)
    try:
        yield robot, process
    finally:
        robot.close()
        process.kill()


FAKE_ACTIVE = ("model:=fake", "autostart:=true")
