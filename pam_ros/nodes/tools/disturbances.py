"""What `pam soak --hostile` does to the node, one kind after another: floods, kills, churn."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import Any

from geometry_msgs.msg import Point, TransformStamped
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from rclpy.serialization import serialize_message
from rclpy.task import Future
from tf2_msgs.msg import TFMessage
from vision_msgs.msg import BoundingBox2D, Detection2D, Detection2DArray, Point2D, Pose2D

from pam_ros.errors import StateError
from pam_ros.msg import Prompt
from pam_ros.nodes.tools.client import Client
from pam_ros.nodes.tools.hostile import Hostile
from pam_ros.nodes.tools.processes import Processes
from pam_ros.nodes.tools.soak_camera import RATE_HZ, SIZE

BURST_HZ = 100.0
CHANGE_EVERY_S = 1.5  # of the images' size
KILL_EVERY_S = 4.0
MANAGER, CAMERA_NODE, OTHER = "/pam_manager", "/soak_camera", "/other"
# A value that must be accepted, and one that must be refused.
PARAMETERS: tuple[tuple[str, str, Any, Any], ...] = (
    (MANAGER, "streaming.period_s", 8.0, -1.0),
    (MANAGER, "streaming.period_s", 10.0, math.nan),
    (MANAGER, "streaming.clip_frames", 8, 0),
    (MANAGER, "streaming.clip_frames", 16, "many"),
    (MANAGER, "streaming.language", "zh", "xx"),
    (MANAGER, "streaming.language", "en", 7),
    (MANAGER, "streaming.carry_over", False, "no"),
    (MANAGER, "streaming.carry_over", True, 1.5),
    (MANAGER, "frames.history", 5, 10**9),
    (MANAGER, "frames.history", 30, -5),
    (MANAGER, "texts.max_new_tokens", 4, 10**6),
    (MANAGER, "texts.max_new_tokens", 12, 0),
    (MANAGER, "regions.lost_timeout_s", 60.0, math.inf),
    (MANAGER, "detections.iou", 0.5, 2.0),
    ("/pam", "overlay.opacity", 0.2, -0.1),
    ("/pam", "overlay.texts", False, "off"),
    ("/pam", "overlay.texts", True, 3),
    ("/pam", "overlay.opacity", 0.5, math.nan),
    ("/pam", "markers.show", "none", "some"),
    ("/pam", "markers.show", "all", ""),
    ("/pam", "prompt.languages", ["en", "zh"], ["en", "tlh"]),
    ("/pam", "prompt.languages", ["en"], ["en", ""]),
    ("/pam", "overlay.jpeg_quality", 10, 101),
    ("/pam", "overlay.font_file", "", "/dev/zero"),
)


@dataclass(slots=True)
class Stage:
    """What disturbances act on. `messages`: how many were sent, kills and calls included."""

    client: Client
    processes: Processes
    hostile: Hostile
    restart: Callable[[str], None]  # a process that was killed, by its name
    messages: int = 0
    abandoned: int = 0  # segments of shared memory that killed processes left


def _nothing(stage: Stage) -> None:
    """Some kinds need no beginning, or no end."""


@dataclass(slots=True)
class Disturbance:
    """One kind. `tick` is called every few milliseconds; `end` undoes what would last."""

    name: str
    tick: Callable[[Stage], None] = _nothing
    begin: Callable[[Stage], None] = _nothing
    end: Callable[[Stage], None] = _nothing


class _Flood:
    """The same message again and again, at a rate."""

    def __init__(self, topic: str, message: Any, rate_hz: float) -> None:
        self._topic, self._kind, self._data = topic, type(message), serialize_message(message)
        self._period_s = 1 / rate_hz
        self._due_s = 0.0

    def tick(self, stage: Stage) -> None:
        """All that are due; after a pause of over 0.1 s, the others are left out."""
        publisher = stage.client.publisher(self._kind, self._topic)
        self._due_s = max(self._due_s, time.monotonic() - 0.1)
        while self._due_s <= time.monotonic():
            publisher.publish(self._data)
            stage.messages += 1
            self._due_s += self._period_s


class _Every:
    """A step every few seconds, the first immediately."""

    def __init__(self, every_s: float, step: Callable[[Stage], None]) -> None:
        self._step, self._every_s = step, every_s
        self._due_s = 0.0

    def tick(self, stage: Stage) -> None:
        """A step, if one is due."""
        if time.monotonic() >= self._due_s:
            self._due_s = time.monotonic() + self._every_s
            self._step(stage)
            stage.messages += 1


class _Lifecycle:
    """A second node on the same camera goes through its states; the first is asked for what it cannot do."""

    def __init__(self) -> None:
        self._labels = cycle(("configure", "activate", "deactivate", "cleanup"))
        self._running: Future | None = None

    def tick(self, stage: Stage) -> None:
        """The next transition, once the one before has ended. Raises StateError if one went wrong."""
        if self._running is not None:
            if not self._running.done():
                return
            if not self._running.result().success:
                raise StateError(f"a transition of {OTHER}{MANAGER} failed")
            if stage.client.transition("activate"):
                raise StateError("the active node could be activated")
        self._running = stage.client.start_transition(next(self._labels), f"{OTHER}{MANAGER}")
        stage.messages += 2


def _change_parameter(left: Iterator[tuple[str, str, Any, Any]], stage: Stage) -> None:
    """Two values of the next one. Raises StateError if the wrong one is refused."""
    node, name, good, bad = next(left)
    if refused := stage.client.set_parameter(node, name, good):
        raise StateError(f"{node} refused {name} = {good!r}: {refused}")
    if not stage.client.set_parameter(node, name, bad):
        raise StateError(f"{node} accepted {name} = {bad!r}")


def set_camera(stage: Stage, name: str, value: float) -> None:
    """A parameter of the camera, without waiting for its answer."""
    request = SetParameters.Request(parameters=[Parameter(name, value=value).to_parameter_msg()])
    stage.client.start_call(SetParameters, f"{CAMERA_NODE}/set_parameters", request)
    stage.messages += 1


def _camera(name: str, value: float) -> Callable[[Stage], None]:
    return lambda stage: set_camera(stage, name, value)


def _kill(name: str) -> Callable[[Stage], None]:
    def kill(stage: Stage) -> None:
        stage.processes.kill(name)
        stage.restart(name)

    return kill


def _flood(name: str, topic: str, message: Any, rate_hz: float) -> Disturbance:
    return Disturbance(f"flood: {name}", _Flood(topic, message, rate_hz).tick)


def _boxes(count: int, x: float, size: float = 20.0) -> Detection2DArray:
    """So many boxes, a pixel apart, from (x, 30) on."""
    centres = [Pose2D(position=Point2D(x=x + number, y=30.0)) for number in range(count)]
    boxes = [BoundingBox2D(center=centre, size_x=size, size_y=size) for centre in centres]
    return Detection2DArray(detections=[Detection2D(bbox=box) for box in boxes])


def disturbances() -> list[Disturbance]:
    """All kinds, in the order in which they come."""
    sizes, parameters = cycle((2, 1, 3, 1)), cycle(PARAMETERS)
    clicks, transform = [Point2D()], TransformStamped(child_frame_id="x")
    return [
        Disturbance("random messages only"),
        Disturbance("random requests", _Every(0.5, lambda stage: stage.hostile.ask()).tick),
        Disturbance("flood: images", begin=_camera("rate_hz", BURST_HZ), end=_camera("rate_hz", RATE_HZ)),
        _flood("20 boxes", "/detections", _boxes(20, 30.0), 30.0),
        _flood("3,000 boxes", "/detections", _boxes(3000, 30.0), 30.0),
        _flood("250 NaN boxes", "/detections", _boxes(250, math.nan), 30.0),
        _flood("clicks beside the image", "/image_mouse_left", Point(x=-5.0, y=9.0 * SIZE[0]), 1000.0),
        _flood("prompts of 1,000 clicks", "/pam/prompt", Prompt(points=clicks * 1000), 100.0),
        _flood("prompts of 100,000 clicks", "/pam/prompt", Prompt(points=clicks * 100_000), 5.0),
        _flood("transforms", "/tf", TFMessage(transforms=[transform] * 2000), 30.0),
        Disturbance(
            "sizes of images",
            _Every(CHANGE_EVERY_S, lambda stage: set_camera(stage, "scale", next(sizes))).tick,
            end=_camera("scale", 1),
        ),
        Disturbance("camera killed", _Every(KILL_EVERY_S, _kill("soak_camera")).tick),
        Disturbance("client killed", _Every(KILL_EVERY_S, _kill("soak_client")).tick),
        Disturbance("lifecycle of a second node", _Lifecycle().tick),
        Disturbance("parameters", _Every(0.3, partial(_change_parameter, parameters)).tick),
    ]
