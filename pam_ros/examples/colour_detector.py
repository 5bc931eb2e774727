"""A detector that feeds PAM: it finds coloured blobs, PAM names them: `ros2 run pam_ros colour_detector`.

Put your own detector in its place. It publishes vision_msgs/Detection2DArray with the stamp of the image; PAM
makes regions of new objects, and their `source_id` and `source_class` say which detection each was.
"""

from __future__ import annotations

import sys

import cv2
import numpy as np
import rclpy
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image
from vision_msgs.msg import (
    BoundingBox2D,
    Detection2D,
    Detection2DArray,
    ObjectHypothesis,
    ObjectHypothesisWithPose,
    Point2D,
    Pose2D,
)

from pam_ros.examples.asking import only_ros_arguments, shown_label, spin
from pam_ros.msg import RegionArray

MIN_SATURATION = 140  # of 255
MIN_AREA = 0.002  # of the image


class ColourDetector(Node):
    """Reads `image` (rgb8), publishes `detections`, logs what PAM says about each region."""

    def __init__(self) -> None:
        super().__init__("colour_detector")
        self._named: set[int] = set()
        self._publisher = self.create_publisher(Detection2DArray, "detections", 10)
        self.create_subscription(Image, "image", self._detect, qos_profile_sensor_data)
        self.create_subscription(RegionArray, "/pam/regions", self._name, 10)

    def _detect(self, image: Image) -> None:
        if image.encoding != "rgb8":
            self.get_logger().error(f"images must be rgb8, not {image.encoding}", once=True)
            return
        rows = np.frombuffer(image.data, np.uint8).reshape(image.height, image.step)
        pixels = rows[:, : 3 * image.width].reshape(image.height, image.width, 3)
        saturated = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)[..., 1] > MIN_SATURATION
        _, _, blobs, _ = cv2.connectedComponentsWithStats(saturated.astype(np.uint8))
        detections = Detection2DArray(header=image.header)
        for number, (x, y, width, height, area) in enumerate(blobs[1:].tolist()):
            if area >= MIN_AREA * image.height * image.width:
                centre = Pose2D(position=Point2D(x=x + width / 2, y=y + height / 2))
                detections.detections.append(
                    Detection2D(
                        header=image.header,
                        id=f"blob {number}",
                        bbox=BoundingBox2D(center=centre, size_x=float(width), size_y=float(height)),
                        results=[
                            ObjectHypothesisWithPose(
                                hypothesis=ObjectHypothesis(class_id="coloured", score=1.0)
                            )
                        ],
                    )
                )
        self._publisher.publish(detections)

    def _name(self, message: RegionArray) -> None:
        for region in message.regions:
            ready = region.texts and region.texts[0].label
            if region.source_id and ready and region.id not in self._named:
                self._named.add(region.id)
                said = f"{region.source_class} {region.source_id} is region {region.id}"
                self.get_logger().info(f"{said}: {shown_label(region.texts[0])}")


def main() -> int:
    """Runs until SIGINT or SIGTERM."""
    only_ros_arguments(__doc__)
    rclpy.init(args=sys.argv)
    spin(ColourDetector())
    return 0


if __name__ == "__main__":
    sys.exit(main())
