"""Turns rolling captions into events that a robot can wait for: `ros2 run pam_ros caption_events`.

Prints every final caption. Publishes a std_msgs/String on `/caption_events/events` for each rule that one
meets: "<rule> <region id>". The parameter `rules` holds "name=words|other words" entries. Captions marked
`clip_too_thin` are ignored. The manager's `streaming.enabled` must be true.

    caption_events --ros-args -p "rules:=['taken=picked up|拿起', 'hidden=disappears|is covered']"
"""

from __future__ import annotations

import sys

import rclpy
from rclpy.node import Node
from std_msgs.msg import String

from pam_ros.examples.asking import only_ros_arguments, spin
from pam_ros.msg import StreamingCaption

RULES = ["hidden=disappears|is covered|消失|遮", "taken=picked up|lifted|拿起|提起"]


class CaptionEvents(Node):
    """Reads `/pam/streaming_captions` (remappable), publishes `~/events`."""

    def __init__(self) -> None:
        super().__init__("caption_events")
        rules = self.declare_parameter("rules", RULES).value
        self._rules = {
            name: words.split("|") for name, _, words in (rule.partition("=") for rule in rules) if words
        }
        self._publisher = self.create_publisher(String, "~/events", 10)
        self.create_subscription(StreamingCaption, "/pam/streaming_captions", self._take, 10)

    def _take(self, caption: StreamingCaption) -> None:
        if not caption.final or caption.summary or caption.clip_too_thin:
            return
        self.get_logger().info(f"region {caption.region_id}: {caption.text}")
        for name, words in self._rules.items():
            if any(word in caption.text for word in words):
                self.get_logger().info(f"event: {name} {caption.region_id}")
                self._publisher.publish(String(data=f"{name} {caption.region_id}"))


def main() -> int:
    """Runs until SIGINT or SIGTERM."""
    only_ros_arguments(__doc__)
    rclpy.init(args=sys.argv)
    spin(CaptionEvents())
    return 0


if __name__ == "__main__":
    sys.exit(main())
