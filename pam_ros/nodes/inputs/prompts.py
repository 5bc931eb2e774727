"""Prompts on topics: clicks in images, masks, `~/prompt` and a detector's boxes. Refusals go to the log."""

from __future__ import annotations

from collections.abc import Callable

from geometry_msgs.msg import Point
from rclpy.node import Node
from sensor_msgs.msg import Image
from vision_msgs.msg import Detection2DArray

from pam_ros.errors import CancelledError
from pam_ros.msg import Prompt as PromptMessage
from pam_ros.nodes.conversions import stamp_or_newest
from pam_ros.nodes.images import mask_from_image
from pam_ros.nodes.inputs.camera import CameraInput
from pam_ros.nodes.link import EngineLink
from pam_ros.nodes.requests import PromptDefaults, detections_of, prompt_request
from pam_ros.nodes.throttled_log import ThrottledLog
from pam_ros.nodes.topics import listen, topic_beside
from pam_ros.records import Prompt
from pam_ros.runtime.failures import rejected_detections
from pam_ros.runtime.requests import PromptRequest

_DEPTH = 10  # messages that may wait for the executor
# A detection with one hypothesis has about 450 bytes. Reading many would hold up the executor.
MAX_DETECTIONS_BYTES = 1 << 20
_PROMPT_BYTES = 1 << 16  # of a prompt without its mask
_MASK_BYTES = 1 << 24  # before the first image


class PromptInputs:
    """The prompt topics of one camera."""

    def __init__(
        self,
        node: Node,
        *,
        camera: str,
        prefix: str,
        images: CameraInput,
        link: EngineLink,
        log: ThrottledLog,
        defaults: Callable[[], PromptDefaults],
    ) -> None:
        """`prefix` goes before the topics' names; clicks come beside the images and `~/overlay`."""
        image_topic = images.base_topic
        self._images = images
        self._camera = camera
        self._link = link
        self._log = log
        self._defaults = defaults
        clicks = topic_beside(node, f"{prefix}image_mouse_left", image_topic, "_mouse_left")
        # rqt_image_view publishes clicks beside the topic that it shows, which can be a compressed one.
        for shown in ("~/overlay", "~/overlay/compressed"):
            listen(node, log, Point, f"{shown}_mouse_left", self._on_click, depth=_DEPTH)
        listen(node, log, Point, clicks, self._on_click, depth=_DEPTH)
        listen(node, log, Point, f"{image_topic}/compressed_mouse_left", self._on_click, depth=_DEPTH)
        listen(node, log, Image, f"{prefix}prompt_mask", self._on_mask, depth=_DEPTH)
        self._detections_topic = node.resolve_topic_name(f"{prefix}detections")
        listen(
            node,
            log,
            Detection2DArray,
            f"{prefix}detections",
            self._on_detections,
            depth=_DEPTH,
            best_effort=True,  # hears reliable detectors, too
            max_bytes=lambda: MAX_DETECTIONS_BYTES,
        )
        listen(
            node, log, PromptMessage, "~/prompt", self._on_prompt, depth=_DEPTH, max_bytes=self._prompt_bytes
        )

    def _prompt_bytes(self) -> int:
        """The largest prompt: one with a mask of the newest image."""
        newest = self._images.newest
        return _PROMPT_BYTES + (newest.size[0] * newest.size[1] if newest is not None else _MASK_BYTES)

    def _on_click(self, message: Point) -> None:
        self.click(message.x, message.y, positive=True, image_ns=None)

    def click(self, x: float, y: float, *, positive: bool, image_ns: int | None) -> None:
        """A person's click at a pixel: refines the region there; elsewhere a positive one makes a region."""
        self._prompt(Prompt.from_clicks([(x, y)], [int(positive)]), image_ns, refine_hit=True)

    def _on_mask(self, message: Image) -> None:
        self._prompt(Prompt.from_mask(mask_from_image(message)), stamp_or_newest(message.header))

    def _on_prompt(self, message: PromptMessage) -> None:
        self._perceive(prompt_request(message, self._defaults()))

    def _on_detections(self, message: Detection2DArray) -> None:
        detections, problems = detections_of(message)
        if problems:
            self._log.warn(f"{self._detections_topic}: {rejected_detections(problems)}")
        if detections or not problems:
            defaults, image_ns = self._defaults(), stamp_or_newest(message.header)
            self._link.engine.detections(
                self._camera, detections, image_ns, defaults.tasks, defaults.languages
            )

    def _prompt(self, prompt: Prompt, image_ns: int | None, *, refine_hit: bool = False) -> None:
        defaults = self._defaults()
        self._perceive(
            PromptRequest(
                prompt=prompt,
                tasks=defaults.tasks,
                languages=defaults.languages,
                stamp_ns=image_ns,
                refine_hit=refine_hit,
            )
        )

    def _perceive(self, request: PromptRequest) -> None:
        handle = self._link.engine.perceive(self._camera, request)
        handle.future.add_done_callback(lambda future: self._report(future.exception()))

    def _report(self, error: BaseException | None) -> None:
        """A topic has no answer: a refusal can only be read in the log."""
        if error is not None and not isinstance(error, CancelledError):
            self._log.warn(f"prompt refused: {error}")
