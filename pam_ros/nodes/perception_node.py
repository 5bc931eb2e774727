"""One camera's node: inputs, services, action and outputs; callbacks hand over to the engine and return."""

from __future__ import annotations

from rclpy.clock import Clock, ClockType
from rclpy.node import Node

from pam_ros.nodes.inputs.calibration import CalibrationInput
from pam_ros.nodes.inputs.camera import CameraInput
from pam_ros.nodes.inputs.depth import DepthInput
from pam_ros.nodes.inputs.points import PointInputs
from pam_ros.nodes.inputs.prompts import PromptInputs
from pam_ros.nodes.inputs.services import Services
from pam_ros.nodes.link import EngineLink
from pam_ros.nodes.outputs.camera_outputs import CameraOutputs
from pam_ros.nodes.parameters import PERCEPTION, declare, perception_settings
from pam_ros.nodes.surfaces import Surfaces
from pam_ros.nodes.throttled_log import ThrottledLog
from pam_ros.runtime.events import CaptionEvent, FrameResult, TextEvent
from pam_ros.runtime.statistics import GapCounter


class PerceptionNode(Node):
    """Topics, services and the action of one camera; the engine's `Listener` for it."""

    def __init__(self, camera: str, *, name: str, input_prefix: str, link: EngineLink) -> None:
        """`input_prefix` goes before the input topics' names: "" for the only camera, else "<camera>/"."""
        super().__init__(name)
        self.camera = camera
        self._log = ThrottledLog(self.get_logger())
        declare(self, PERCEPTION)
        self._settings = perception_settings(self)
        self.add_post_set_parameters_callback(self._take_settings)
        self._images = CameraInput(
            self,
            camera=camera,
            prefix=input_prefix,
            compressed=self.get_parameter("image_transport").value == "compressed",
            link=link,
            log=self._log,
        )
        calibration = CalibrationInput(
            self,
            prefix=input_prefix,
            image_topic=self._images.base_topic,
            rectified=self.get_parameter("image_rectified").value,
            log=self._log,
        )
        depth = DepthInput(
            self,
            prefix=input_prefix,
            compressed=self.get_parameter("depth_transport").value == "compressedDepth",
            tolerance_s=lambda: self._settings.depth_tolerance_s,
            log=self._log,
        )
        surfaces = Surfaces(calibration, depth, self._log)
        self._outputs = CameraOutputs(self, self._log, lambda: self._settings, surfaces)
        steady = Clock(clock_type=ClockType.STEADY_TIME)  # simulated time may stand still
        self.create_timer(1.0, self._outputs.repeat, clock=steady)
        self.create_timer(1.0, self._images.check, clock=steady)
        self._requests = Services(
            self,
            camera=camera,
            link=link,
            log=self._log,
            defaults=lambda: self._settings.defaults,
            frame_id=lambda: self._outputs.frame_id,
            surfaces=surfaces,
        )
        self._prompts = PromptInputs(
            self,
            camera=camera,
            prefix=input_prefix,
            images=self._images,
            link=link,
            log=self._log,
            defaults=lambda: self._settings.defaults,
        )
        self._points = PointInputs(
            self,
            prefix=input_prefix,
            images=self._images,
            calibration=calibration,
            prompts=self._prompts,
            link=link,
            log=self._log,
        )

    def destroy_node(self) -> None:
        """Publishes what waits, then frees what rclpy does not know, then the node."""
        self._outputs.close()
        if not self._outputs.join():
            self.get_logger().warning("a publisher is blocked; shutting down without waiting for it")
        self._requests.destroy()
        super().destroy_node()

    @property
    def image_topic(self) -> str:
        """The topic of the images, after remapping."""
        return self._images.topic

    @property
    def rejected_images(self) -> int:
        """Number of images that could not be read."""
        return self._images.rejected

    @property
    def image_gaps(self) -> GapCounter:
        """Counts the images that did not arrive."""
        return self._images.watch.gaps

    @property
    def dropped_messages(self) -> int:
        """Number of results that were lost because a subscriber or this machine was too slow."""
        return self._outputs.dropped

    @property
    def publication_latency_s(self) -> float:
        """From an image's callback to its published regions: median of the last; 0 before the first."""
        return self._outputs.latency_s

    @property
    def waiting(self) -> int:
        """Number of requests that the engine has not answered yet."""
        return self._requests.waiting

    def close_outputs(self) -> None:
        """Publishes what is queued and nothing more; returns immediately."""
        self._outputs.close()

    def _take_settings(self, _: object) -> None:
        self._settings = perception_settings(self)

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
        """A problem that concerns no waiting caller."""
        self._log.warn(message)

    def clear(self) -> None:
        """The engine was stopped: its regions are gone."""
        self._images.clear()
        self._outputs.clear()
