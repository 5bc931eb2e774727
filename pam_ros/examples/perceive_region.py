"""Asks a running node what is in a box or at a click: `ros2 run pam_ros perceive_region --click 320,240`.

How a node of your own calls `~/perceive`. It waits for an active manager and for a frame from the camera.
"""

from __future__ import annotations

import argparse
import sys

import rclpy
from rclpy.utilities import remove_ros_args
from vision_msgs.msg import Point2D

from pam_ros.examples.asking import ask, pixels, shown_label
from pam_ros.msg import Prompt
from pam_ros.srv import PerceiveRegion


def arguments() -> argparse.Namespace:
    """Command-line arguments, without those that start with --ros-args."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    region = parser.add_mutually_exclusive_group(required=True)
    region.add_argument("--click", type=pixels(2), metavar="X,Y", help="pixels of the image")
    region.add_argument("--box", type=pixels(4), metavar="X1,Y1,X2,Y2", help="pixels of the image")
    parser.add_argument("--languages", nargs="+", default=["en"], help="en, zh; preferred first")
    parser.add_argument("--service", default="/pam/perceive", help="name of the node's service")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds to wait for an answer")
    return parser.parse_args(remove_ros_args(sys.argv)[1:])


def main() -> int:
    """Prints the region and one line per language; exit status 1, with the reason, if there is no answer."""
    options = arguments()
    prompt = Prompt(tasks=["label", "explain"], languages=options.languages)
    if options.click is not None:
        prompt.points = [Point2D(x=options.click[0], y=options.click[1])]
    else:
        prompt.box = options.box
    rclpy.init(args=sys.argv)
    try:
        request = PerceiveRegion.Request(prompt=prompt, without_mask=True)
        node = rclpy.create_node("perceive_region")
        region = ask(node, PerceiveRegion, options.service, request, options.timeout).region
    finally:
        rclpy.try_shutdown()
    print(f"region {region.id}, mask score {region.mask_score:.2f}")
    for text in region.texts:
        print(f"{text.language}: {shown_label(text)}; {text.explanation}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
