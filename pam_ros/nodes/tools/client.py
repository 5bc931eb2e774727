"""A client of the nodes in other processes: topics, services, parameters, lifecycle and the action."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import rclpy
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import GetParameters, SetParameters
from rclpy.action import ActionClient
from rclpy.action.client import ClientGoalHandle
from rclpy.exceptions import InvalidHandle
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.parameter import Parameter, parameter_value_to_python
from rclpy.qos import QoSProfile
from rclpy.task import Future
from sensor_msgs.msg import Image

from pam_ros.action import CaptionClip
from pam_ros.errors import StateError
from pam_ros.msg import Prompt
from pam_ros.nodes.tools.processes import WAIT_TIMEOUT_S, wait_until
from pam_ros.srv import PerceiveRegion

_TRANSITIONS = {
    "configure": Transition.TRANSITION_CONFIGURE,
    "cleanup": Transition.TRANSITION_CLEANUP,
    "activate": Transition.TRANSITION_ACTIVATE,
    "deactivate": Transition.TRANSITION_DEACTIVATE,
    "shutdown when inactive": Transition.TRANSITION_INACTIVE_SHUTDOWN,
}
_SETTLE_S = 0.1  # the other side may not know this one yet: a first answer or message would be lost


class Client:
    """An rclpy node in a context of its own, spun by its own thread: callbacks run there."""

    def __init__(self, name: str, domain: int, check: Callable[[], None] = lambda: None) -> None:
        """`check` is called while waiting; it raises if waiting has become pointless."""
        os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
        self.domain = domain
        self._check = check
        self._context = rclpy.Context()
        self._context.init(domain_id=domain)
        self.node = rclpy.create_node(name, context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._clients: dict[str, Any] = {}
        self._publishers: dict[str, Any] = {}
        self._thread = threading.Thread(target=self._spin, name=name, daemon=True)
        self._thread.start()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leaves the domain."""
        self._context.try_shutdown()
        self._thread.join(WAIT_TIMEOUT_S)
        if self._thread.is_alive():
            return  # a callback does not return: what it uses must stay
        for client in self._clients.values():
            client.destroy()
        self._executor.shutdown(0.0)
        self.node.destroy_node()

    def wait(
        self,
        condition: Callable[[], Any],
        what: str | Callable[[], str],
        timeout_s: float = WAIT_TIMEOUT_S,
    ) -> Any:
        """See `wait_until`; also raises what `check` raises."""

        def checked() -> Any:
            value = condition()
            if not value:
                self._check()
            return value

        return wait_until(checked, what, timeout_s)

    def pause(self, seconds: float) -> None:
        """Lets callbacks run for a while."""
        until_s = time.monotonic() + seconds
        while (left_s := until_s - time.monotonic()) > 0:
            self._check()
            time.sleep(min(left_s, 0.05))

    # --- topics

    def publisher(self, kind: type, topic: str, qos: QoSProfile | int = 10, subscribers: int = 1) -> Any:
        """A publisher, as soon as it has that many subscribers."""
        new = topic not in self._publishers
        if new:
            self._publishers[topic] = self.node.create_publisher(kind, topic, qos)
        publisher = self._publishers[topic]
        self.wait(lambda: publisher.get_subscription_count() >= subscribers, f"a subscriber of {topic}")
        if new:
            time.sleep(_SETTLE_S)
        return publisher

    def drop_publisher(self, topic: str) -> None:
        """Destroys the publisher of a topic."""
        self.node.destroy_publisher(self._publishers.pop(topic))

    def collect(self, kind: type, topic: str, qos: QoSProfile | int = 50, wait: bool = True) -> list[Any]:
        """A list that grows with every message; with `wait`, as soon as the topic has a publisher."""
        messages: list[Any] = []
        self.node.create_subscription(kind, topic, messages.append, qos)
        if wait:
            self.wait(lambda: self.node.count_publishers(topic), f"a publisher of {topic}")
        return messages

    # --- services and parameters

    def start_call(self, kind: type, service: str, request: Any, timeout_s: float = WAIT_TIMEOUT_S) -> Future:
        """Sends a request, once the service exists; the future will have the response."""
        if service not in self._clients:
            client = self.node.create_client(kind, service)
            self.wait(client.service_is_ready, f"the service {service}", timeout_s)
            time.sleep(_SETTLE_S)
            self._clients[service] = client
        return self._clients[service].call_async(request)

    def call(self, kind: type, service: str, request: Any, timeout_s: float = WAIT_TIMEOUT_S) -> Any:
        """The response of a service."""
        future = self.start_call(kind, service, request, timeout_s)
        self.wait(future.done, f"an answer of {service}", timeout_s)
        return future.result()

    def perceive(
        self,
        prompt: Prompt,
        node: str = "/pam",
        image: Image | None = None,
        timeout_s: float = WAIT_TIMEOUT_S,
        *,
        without_mask: bool = False,
    ) -> Any:
        """The response of `~/perceive`."""
        request = PerceiveRegion.Request(prompt=prompt, without_mask=without_mask, image=image or Image())
        return self.call(PerceiveRegion, f"{node}/perceive", request, timeout_s)

    def set_parameter(self, node: str, name: str, value: Any) -> str:
        """Sets a parameter; the reason if it was refused, else empty."""
        parameter = Parameter(name, value=value).to_parameter_msg()
        request = SetParameters.Request(parameters=[parameter])
        (result,) = self.call(SetParameters, f"{node}/set_parameters", request).results
        if result.successful == bool(result.reason):
            raise StateError(f"{node} refused parameter {name} without a reason")
        return str(result.reason)

    def get_parameter(self, node: str, name: str) -> Any:
        """The value of a parameter."""
        request = GetParameters.Request(names=[name])
        (value,) = self.call(GetParameters, f"{node}/get_parameters", request).values
        return parameter_value_to_python(value)

    # --- lifecycle

    def start_transition(self, label: str, manager: str = "/pam_manager") -> Future:
        """Requests "configure", "activate", "deactivate", "cleanup" or "shutdown when inactive"."""
        request = ChangeState.Request(transition=Transition(id=_TRANSITIONS[label]))
        return self.start_call(ChangeState, f"{manager}/change_state", request)

    def transition(self, label: str, timeout_s: float = WAIT_TIMEOUT_S) -> bool:
        """Makes a transition; whether it succeeded."""
        future = self.start_transition(label)
        self.wait(future.done, f"the end of {label}", timeout_s)
        return bool(future.result().success)

    def state(self, manager: str = "/pam_manager", timeout_s: float = WAIT_TIMEOUT_S) -> str:
        """The manager's lifecycle state."""
        until_s = time.monotonic() + timeout_s
        while True:  # often the first service called: on a busy machine an early answer can be lost
            future = self.start_call(GetState, f"{manager}/get_state", GetState.Request(), timeout_s)
            with suppress(StateError):
                wait_until(future.done, "an answer", timeout_s / 5)
                return str(future.result().current_state.label)
            self._check()
            if time.monotonic() > until_s:
                raise StateError(f"{manager}/get_state does not answer")

    def wait_for_active(self, timeout_s: float = WAIT_TIMEOUT_S) -> None:
        """Waits until autostart has activated the manager."""
        until_s = time.monotonic() + timeout_s
        while self.state(timeout_s=timeout_s) != "active":
            if time.monotonic() > until_s:
                raise StateError(f"the manager was not active after {timeout_s:.0f} s; see its log")
            self.pause(0.1)

    # --- the action

    def send_goal(self, goal: CaptionClip.Goal, node: str = "/pam") -> Goal:
        """Sends a goal and waits until it is accepted."""
        name = f"{node}/caption_clip"
        if name not in self._clients:
            client = ActionClient(self.node, CaptionClip, name)
            self.wait(client.server_is_ready, f"the action {name}")
            time.sleep(_SETTLE_S)
            self._clients[name] = client
        feedback: list[Any] = []
        accepted = self.on_executor(
            lambda: self._clients[name].send_goal_async(
                goal, feedback_callback=lambda message: feedback.append(message.feedback)
            )
        )
        self.wait(accepted.done, "an answer to the goal")
        handle = accepted.result()
        if not handle.accepted:
            raise StateError(f"{name} refused the goal")
        return Goal(self, handle, feedback, self.on_executor(handle.get_result_async))

    def on_executor(self, function: Callable[[], Future]) -> Future:
        """Calls it between callbacks: an action client used on another thread can miss the response."""
        task = self._executor.create_task(function)
        self.wait(task.done, "a turn of the executor")
        return task.result()

    def _spin(self) -> None:
        while self._context.ok():
            try:
                self._executor.spin_once()
            except ExternalShutdownException:
                return
            except InvalidHandle:
                continue  # an entity was destroyed meanwhile
            except rclpy_implementation.RCLError:
                if self._context.ok():  # otherwise it was closed meanwhile
                    raise


@dataclass
class Goal:
    """An accepted goal, the feedback so far, and its result to come."""

    client: Client
    handle: ClientGoalHandle
    feedback: list[Any]
    _result: Future

    @property
    def done(self) -> bool:
        """Whether the result is there."""
        return bool(self._result.done())

    def result(self, timeout_s: float = WAIT_TIMEOUT_S) -> tuple[int, Any]:
        """Goal status (action_msgs/GoalStatus) and result."""
        self.client.wait(self._result.done, "the goal's result", timeout_s)
        return self._result.result().status, self._result.result().result

    def cancel(self) -> None:
        """Cancels the goal and waits until the server has accepted that."""
        cancelled = self.client.on_executor(self.handle.cancel_goal_async)
        self.client.wait(cancelled.done, "an answer to the cancel request")
        if not cancelled.result().goals_canceling:
            raise StateError("the cancel request was refused")
