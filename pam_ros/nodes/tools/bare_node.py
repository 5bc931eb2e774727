"""A node that answers every image with the same mask: what DDS and rclpy cost at least."""

from __future__ import annotations

import numpy as np
import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from pam_ros.msg import Region, RegionArray
from pam_ros.nodes.dds_profile import use_image_profile
from pam_ros.nodes.images import image_message


class BareNode(Node):
    """Reads `image` or `image/compressed`, not its pixels; publishes `~/regions`."""

    def __init__(self) -> None:
        super().__init__("bare")
        compressed = self.declare_parameter("compressed", False).value
        height, width = (self.declare_parameter(f"mask_{side}", 1).value for side in ("height", "width"))
        mask = image_message(np.full((height, width), 255, np.uint8), "mono8", Header())
        self._answer = RegionArray(regions=[Region(id=1, mask=mask)])
        self._publisher = self.create_publisher(RegionArray, "~/regions", 5)
        best_effort = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
        kind, topic = (CompressedImage, "image/compressed") if compressed else (Image, "image")
        self.create_subscription(kind, topic, self._on_image, best_effort)

    def _on_image(self, message: Image | CompressedImage) -> None:
        self._answer.header = message.header
        self._publisher.publish(self._answer)


def main() -> None:
    """Until SIGINT."""
    use_image_profile()
    rclpy.init()
    try:
        rclpy.spin(BareNode())
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        rclpy.try_shutdown()


if __name__ == "__main__":
    main()
