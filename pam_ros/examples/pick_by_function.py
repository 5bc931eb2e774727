"""Finds what to grasp for a purpose: `ros2 run pam_ros pick_by_function "something to cut with"`.

How a robot calls `~/find`. The region is kept: `~/regions` follows its mask and position while the arm moves.
"""

from __future__ import annotations

import argparse
import sys

import rclpy
from rclpy.utilities import remove_ros_args

from pam_ros.examples.asking import ask, shown_label
from pam_ros.srv import Find


def arguments() -> argparse.Namespace:
    """Command-line arguments, without those that start with --ros-args."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("request", help="what you need, e.g. 'something to cut with'; Chinese works too")
    parser.add_argument(
        "--min-score", type=float, default=0.0, help="score that fits; 0 = the node's parameter"
    )
    parser.add_argument("--service", default="/pam/find", help="name of the node's service")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds to wait for an answer")
    return parser.parse_args(remove_ros_args(sys.argv)[1:])


def main() -> int:
    """Prints the best region and its place; exit status 1 if none fits or there is no answer."""
    options = arguments()
    rclpy.init(args=sys.argv)
    try:
        request = Find.Request(
            request=options.request, min_score=options.min_score, keep=True, without_mask=True
        )
        answer = ask(rclpy.create_node("pick_by_function"), Find, options.service, request, options.timeout)
    finally:
        rclpy.try_shutdown()
    if not answer.fitting:
        best = f"; the best of {len(answer.scores)} scores {answer.scores[0]:.2f}" if answer.scores else ""
        print(f"nothing fits {options.request!r}{best}")
        return 1
    region, score = answer.regions[0], answer.scores[0]
    text = region.texts[0]
    print(f"region {region.id}, score {score:.2f}: {shown_label(text)}; {text.explanation}")
    centre = region.bbox.center.position
    print(f"centre {centre.x:.0f}, {centre.y:.0f} px in the image of {answer.header.frame_id}")
    if region.position_known:  # with a depth camera
        place = region.position
        print(f"position {place.x:.3f}, {place.y:.3f}, {place.z:.3f} m in {answer.header.frame_id}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
