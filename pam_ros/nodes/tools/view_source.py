"""A running perception node as a source of `pam view`: its overlay, regions, captions and services."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import rclpy
from rcl_interfaces.srv import SetParameters
from rclpy.client import Client
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.parameter import Parameter
from sensor_msgs.msg import CompressedImage
from vision_msgs.msg import Point2D

from pam_ros.errors import PamError, StateError
from pam_ros.msg import Prompt as PromptMessage
from pam_ros.msg import RegionArray, StreamingCaption
from pam_ros.nodes.conversions import caption_shown, region_record, stamp_ns, time_message
from pam_ros.records import Language, Region
from pam_ros.runtime.requests import PromptRequest
from pam_ros.srv import ClearRegions, PerceiveRegion, RemoveRegion
from pam_ros.viewer.board import Board

_TOPIC_DEPTH = 5


class NodeSource:
    """A `Source` with a ROS context of its own; domain and discovery are those of the environment."""

    def __init__(self, node: str, board: Board) -> None:
        """`node`: full name of the perception node, e.g. "/pam"."""
        name = "/" + node.strip("/")
        self.title = f"node {name}"
        self._board = board
        self._context = rclpy.Context()
        self._context.init()
        self._node = rclpy.create_node("pam_view", context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        manager = f"{name.rpartition('/')[0]}/pam_manager"
        self._name = name
        self._perceive = self._node.create_client(PerceiveRegion, f"{name}/perceive")
        self._remove = self._node.create_client(RemoveRegion, f"{name}/remove_region")
        self._clear = self._node.create_client(ClearRegions, f"{name}/clear_regions")
        self._parameters = self._node.create_client(SetParameters, f"{manager}/set_parameters")
        self._node.create_subscription(
            CompressedImage, f"{name}/overlay/compressed", self._on_picture, _TOPIC_DEPTH
        )
        self._node.create_subscription(RegionArray, f"{name}/regions", self._on_regions, _TOPIC_DEPTH)
        self._node.create_subscription(StreamingCaption, f"{name}/streaming_captions", self._on_caption, 50)
        self._thread = threading.Thread(target=self._spin, name="pam_view", daemon=True)
        self._thread.start()

    @property
    def notice(self) -> str:
        """Shows a notice if the node is missing or sends no image."""
        if not self._perceive.service_is_ready():
            return f"there is no node {self._name}; start it, or name another one with --node"
        if not self._board.serial:
            return f"{self._name} sends no image yet: is its camera running, and the model loaded?"
        return ""

    @property
    def pace(self) -> str:
        """Known to the node's camera only."""
        return ""

    @property
    def playing(self) -> bool | None:
        """See Source."""
        return None

    def play_or_pause(self) -> None:
        """A camera cannot be paused."""

    def perceive(self, request: PromptRequest) -> Future[Region]:
        """See Source."""
        prompt = request.prompt
        assert prompt is not None and prompt.mask is None, "the page sends clicks and boxes"
        message = PromptMessage(
            points=[Point2D(x=float(x), y=float(y)) for x, y in prompt.points],
            point_labels=[int(label) for label in prompt.labels],
            box=[] if prompt.box is None else [float(edge) for edge in prompt.box],
            region_id=request.region_id,
            tasks=[task.value for task in request.tasks],
            languages=[language.value for language in request.languages],
        )
        message.header.stamp = time_message(request.stamp_ns or 0)
        return self._call(
            self._perceive,
            PerceiveRegion.Request(prompt=message),
            lambda answer: region_record(answer.region),
        )

    def remove(self, region_id: int) -> None:
        """See Source."""
        with suppress(PamError):
            if region_id:
                self._call(self._remove, RemoveRegion.Request(region_id=region_id), lambda _: None)
            else:
                self._call(self._clear, ClearRegions.Request(), lambda _: None)

    def stream_captions(self, enabled: bool, language: Language) -> Future[None]:
        """See Source."""
        values = {"streaming.enabled": enabled, "streaming.language": language.value}
        parameters = [Parameter(name, value=value).to_parameter_msg() for name, value in values.items()]
        return self._call(self._parameters, SetParameters.Request(parameters=parameters), _accepted)

    def close(self) -> None:
        """See Source."""
        self._context.try_shutdown()
        self._thread.join(5.0)

    def _call(self, client: Client, request: Any, read: Callable[[Any], Any]) -> Future[Any]:
        """The answer as `read` converts it; a status that is not OK is a StateError with its message."""
        done: Future[Any] = Future()
        if not client.service_is_ready():
            done.set_exception(StateError(f"{client.srv_name} is not available; is the node running?"))
            return done

        def answered(future: Any) -> None:
            try:
                answer = future.result()
                if (status := getattr(answer, "status", None)) is not None and status.code != status.OK:
                    raise StateError(status.message)
                done.set_result(read(answer))
            except Exception as error:  # whatever it is, the page shows it
                done.set_exception(error if isinstance(error, PamError) else StateError(str(error)))

        client.call_async(request).add_done_callback(answered)
        return done

    # --- topics, on the executor's thread

    def _spin(self) -> None:
        with suppress(ExternalShutdownException):
            while self._context.ok():
                self._executor.spin_once(timeout_sec=0.5)

    def _on_picture(self, message: CompressedImage) -> None:
        self._board.show_picture(bytes(message.data), stamp_ns(message.header.stamp))

    def _on_regions(self, message: RegionArray) -> None:
        self._board.show_regions(region_record(region) for region in message.regions)

    def _on_caption(self, message: StreamingCaption) -> None:
        clip_ns = (stamp_ns(message.clip_start), stamp_ns(message.clip_end))
        self._board.show_caption(message.region_id, caption_shown(message), clip_ns, final=message.final)


def _accepted(answer: SetParameters.Response) -> None:
    """Raises StateError with the reason if a parameter was refused."""
    for result in answer.results:
        if not result.successful:
            raise StateError(result.reason)
