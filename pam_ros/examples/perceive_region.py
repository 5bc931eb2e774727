"""Asks a running node what is in a box or at a click: `ros2 run pam_ros perceive_region --click 320 240`.

How a node of your own calls `~/perceive`. It waits for an active manager and for a frame from the camera.
"""

from __future__ import annotations

import argparse
import sys
import time

import rclpy
from rclpy.utilities import remove_ros_args
from vision_msgs.msg import Point2D

from pam_ros.msg import Prompt, Status
from pam_ros.srv import PerceiveRegion

RETRY_S = 1.0  # while the manager is not active, or no frame has come


def arguments() -> argparse.Namespace:
    """Command-line arguments, without those that start with --ros-args."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    region = parser.add_mutually_exclusive_group(required=True)
    region.add_argument("--click", type=float, nargs=2, metavar=("X", "Y"), help="pixels of the image")
    region.add_argument("--box", type=float, nargs=4, metavar=("X1", "Y1", "X2", "Y2"), help="pixels")
    parser.add_argument("--languages", nargs="+", default=["en"], help="en, zh; preferred first")
    parser.add_argument("--service", default="/pam/perceive", help="name of the node's service")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds to wait for an answer")
    return parser.parse_args(remove_ros_args(sys.argv)[1:])


def ask(options: argparse.Namespace) -> PerceiveRegion.Response | None:
    """Calls the service, again while the model loads or no frame has come; None if it does not answer."""
    node = rclpy.create_node("perceive_region")
    client = node.create_client(PerceiveRegion, options.service)
    prompt = Prompt(tasks=["label", "explain"], languages=options.languages)
    if options.click is not None:
        prompt.points = [Point2D(x=options.click[0], y=options.click[1])]
    else:
        prompt.box = options.box
    until_s = time.monotonic() + options.timeout
    response = None
    while client.wait_for_service(max(0.0, until_s - time.monotonic())):
        future = client.call_async(PerceiveRegion.Request(prompt=prompt, without_mask=True))
        rclpy.spin_until_future_complete(node, future, timeout_sec=max(0.0, until_s - time.monotonic()))
        response = future.result() if future.done() else response
        starting = response is not None and response.status.code in (Status.NOT_ACTIVE, Status.NO_FRAME)
        if not starting or time.monotonic() + RETRY_S > until_s:
            break
        time.sleep(RETRY_S)
    node.destroy_node()
    return response


def main() -> int:
    """Prints the region and one line per language; exit status 1 if there is no answer."""
    options = arguments()
    rclpy.init(args=sys.argv)
    try:
        response = ask(options)
    finally:
        rclpy.try_shutdown()
    if response is None:
        waited = f"{options.service} did not answer within {options.timeout:g} s"
        sys.stderr.write(f"{waited}; check that pam_node is running\n")
        return 1
    if response.status.code != response.status.OK:
        sys.stderr.write(f"{response.status.message}\n")
        return 1
    region = response.region
    sys.stdout.write(f"region {region.id}, mask score {region.mask_score:.2f}\n")
    for text in region.texts:
        sys.stdout.write(f"{text.language}: {text.label}; {text.explanation}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
