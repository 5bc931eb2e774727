"""One camera's node: images and prompts in, services and action; callbacks only hand over to the engine."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

from geometry_msgs.msg import Point
from rclpy.node import Node
from rclpy.qos import QoSHistoryPolicy, QoSProfile, QoSReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CompressedImage, Image
from vision_msgs.msg import Detection2DArray

from pam_ros.errors import CancelledError, PamError
from pam_ros.msg import Prompt as PromptMessage
from pam_ros.nodes.conversions import (
    PromptDefaults,
    detection_boxes,
    prompt_request,
    stamp_ns,
    stamp_or_newest,
)
from pam_ros.nodes.images import mask_from_image, picture_from_compressed, picture_from_image
from pam_ros.nodes.inputs.services import Requests
from pam_ros.nodes.link import EngineLink
from pam_ros.nodes.outputs.regions import Outputs
from pam_ros.nodes.parameters import PERCEPTION, declare, perception_settings
from pam_ros.nodes.throttled_log import ThrottledLog
from pam_ros.records import Frame, Prompt
from pam_ros.runtime.engine import PromptRequest
from pam_ros.runtime.events import CaptionEvent, FrameResult, TextEvent

M = TypeVar("M")

# A frame that waits in a queue is stale when it is read: only the newest counts.
_IMAGE_QOS = QoSProfile(
    history=QoSHistoryPolicy.KEEP_LAST, depth=1, reliability=QoSReliabilityPolicy.BEST_EFFORT
)
_PROMPT_QOS = QoSProfile(depth=10)


class PerceptionNode(Node):
    """Everything people and robots talk to. A `Listener` of the engine, for its camera."""

    def __init__(self, camera: str, *, name: str, input_prefix: str, link: EngineLink) -> None:
        """`input_prefix` goes before the input topics' names: "" for the only camera, else "<camera>/"."""
        super().__init__(name)
        self.camera = camera
        self.rejected_images = 0
        self._link = link
        self._log = ThrottledLog(self.get_logger())
        declare(self, PERCEPTION)
        self._settings = perception_settings(self)
        self.add_post_set_parameters_callback(self._take_settings)
        self._outputs = Outputs(self, self._log, lambda: self._settings)
        self._requests = Requests(
            self,
            camera=camera,
            link=link,
            log=self._log,
            defaults=lambda: self._defaults,
            frame_id=lambda: self._outputs.frame_id,
        )
        self._subscribe(input_prefix)

    def destroy_node(self) -> None:
        """Frees what the node does not own itself, then the node."""
        self._outputs.stop()
        self._requests.destroy()
        super().destroy_node()

    @property
    def waiting(self) -> int:
        """How many callers wait for the engine."""
        return self._requests.waiting

    @property
    def _defaults(self) -> PromptDefaults:
        return self._settings.defaults

    def _take_settings(self, _: object) -> None:
        self._settings = perception_settings(self)

    # --- inputs

    def _subscribe(self, prefix: str) -> None:
        image_topic = self.resolve_topic_name(f"{prefix}image")
        compressed = self.get_parameter("image_transport").value == "compressed"
        if compressed:
            self.image_topic = self._beside(f"{prefix}image/compressed", image_topic, "/compressed")
            self._listen(CompressedImage, self.image_topic, self._on_compressed_image, _IMAGE_QOS)
        else:
            self.image_topic = image_topic
            self._listen(Image, f"{prefix}image", self._on_image, _IMAGE_QOS)
        clicks = self._beside(f"{prefix}image_mouse_left", image_topic, "_mouse_left")
        self._listen(Point, clicks, self._on_click, _PROMPT_QOS)
        self._listen(Image, f"{prefix}prompt_mask", self._on_mask, _PROMPT_QOS)
        self._listen(Detection2DArray, f"{prefix}detections", self._on_detections, _PROMPT_QOS)
        self._listen(PromptMessage, "~/prompt", self._on_prompt, _PROMPT_QOS)

    def _beside(self, name: str, image_topic: str, suffix: str) -> str:
        """A topic that is named after the image topic and follows its remapping, unless remapped itself."""
        if self.resolve_topic_name(name) != self.resolve_topic_name(name, only_expand=True):
            return name
        return image_topic + suffix

    def _listen(self, kind: type[M], topic: str, callback: Callable[[M], None], qos: QoSProfile) -> None:
        name = self.resolve_topic_name(topic)

        @functools.wraps(callback)
        def guarded(message: M) -> None:
            try:
                callback(message)
            except PamError as error:
                self._log.warn(f"{name} ignored: {error}")
            except Exception as error:  # an exception that leaves a callback would end the executor
                self._log.warn(f"{name} failed: {type(error).__name__}: {error}\n{traceback.format_exc()}")

        options = QoSOverridingOptions.with_default_policies()
        self.create_subscription(kind, topic, guarded, qos, qos_overriding_options=options)

    def _on_image(self, message: Image) -> None:
        self._submit(message, picture_from_image)

    def _on_compressed_image(self, message: CompressedImage) -> None:
        self._submit(message, picture_from_compressed)

    def _submit(self, message: Any, picture_from: Callable[[Any], Any]) -> None:
        if not self._link.active and self._link.starting:
            self._log.tell_once("images come already; they are used once autostart has loaded the model")
            return
        engine = self._link.engine  # first: an image that nobody wants is not decoded
        try:
            picture = picture_from(message)
        except PamError:
            self.rejected_images += 1
            raise
        image_ns = stamp_ns(message.header.stamp)
        if image_ns == 0:
            self._log.warn_once(
                f"images on {self.image_topic} have a zero stamp; the time of arrival is used instead, "
                "prompts and other topics can be matched to them only roughly"
            )
            image_ns = self.get_clock().now().nanoseconds
        frame = Frame(image=picture, stamp_ns=image_ns, frame_id=message.header.frame_id, camera=self.camera)
        engine.submit_frame(frame)

    def _on_click(self, message: Point) -> None:
        self._prompt(Prompt.from_clicks([(message.x, message.y)]), None)

    def _on_mask(self, message: Image) -> None:
        self._prompt(Prompt.from_mask(mask_from_image(message)), stamp_or_newest(message.header))

    def _prompt(self, prompt: Prompt, image_ns: int | None) -> None:
        defaults = self._defaults
        self._perceive(
            PromptRequest(
                prompt=prompt, tasks=defaults.tasks, languages=defaults.languages, stamp_ns=image_ns
            )
        )

    def _on_prompt(self, message: PromptMessage) -> None:
        self._perceive(prompt_request(message, self._defaults))

    def _perceive(self, request: PromptRequest) -> None:
        handle = self._link.engine.perceive(self.camera, request)
        handle.future.add_done_callback(lambda future: self._report(future.exception()))

    def _report(self, error: BaseException | None) -> None:
        """Nobody waits for the answer to a topic: the log is where a refusal can be read."""
        if error is not None and not isinstance(error, CancelledError):
            self._log.warn(f"prompt refused: {error}")

    def _on_detections(self, message: Detection2DArray) -> None:
        boxes, problems = detection_boxes(message)
        for problem in problems:
            self._log.warn(f"detections: {problem}")
        if boxes or not problems:
            defaults = self._defaults
            self._link.engine.detections(
                self.camera, boxes, stamp_or_newest(message.header), defaults.tasks, defaults.languages
            )

    # --- results, on the engine's worker thread

    def on_frame(self, result: FrameResult) -> None:
        """The masks of one frame."""
        self._outputs.on_frame(result)

    def on_text(self, event: TextEvent) -> None:
        """A text of one region grew or ended."""
        self._outputs.on_text(event)

    def on_caption(self, event: CaptionEvent) -> None:
        """A rolling caption grew or ended."""
        self._outputs.on_caption(event)

    def on_warning(self, camera: str, message: str) -> None:
        """Something a person should know."""
        self._log.warn(message)

    def clear(self) -> None:
        """The engine was stopped: its regions are gone."""
        self._outputs.clear()
