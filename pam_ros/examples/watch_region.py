"""Records what happens to a region, then captions it: `ros2 run pam_ros watch_region --box 10,20,200,220`.

How a node of your own uses the action `~/caption_clip`, with feedback; Ctrl-C or --patience cancels it.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
from typing import Any

import rclpy
from rclpy.action import ActionClient
from rclpy.node import Node
from rclpy.utilities import remove_ros_args

from pam_ros.action import CaptionClip
from pam_ros.examples.asking import SETTLE_S, pixels
from pam_ros.msg import Prompt

LOOK_S = 0.2  # between two looks at Ctrl-C


def arguments() -> argparse.Namespace:
    """Command-line arguments, without those that start with --ros-args."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--box", type=pixels(4), required=True, metavar="X1,Y1,X2,Y2")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of the clip")
    parser.add_argument("--language", default="en", help="en or zh")
    parser.add_argument("--action", default="/pam/caption_clip", help="name of the node's action")
    parser.add_argument("--patience", type=float, default=120.0, help="seconds after which it is cancelled")
    return parser.parse_args(remove_ros_args(sys.argv)[1:])


def show(message: Any) -> None:
    """Prints a line of feedback: the recording, then the growing text."""
    feedback = message.feedback
    print(f"{feedback.recorded_s:.1f} s recorded {feedback.partial_text}".rstrip(), flush=True)


def watch(node: Node, options: argparse.Namespace, stopped: threading.Event) -> CaptionClip.Result | None:
    """The action's result; None if the server is absent or refuses the goal. `stopped` cancels the goal."""
    client = ActionClient(node, CaptionClip, options.action)
    until_s = time.monotonic() + options.patience
    while not client.wait_for_server(LOOK_S):
        if stopped.is_set() or time.monotonic() > until_s:
            return None
    time.sleep(SETTLE_S)
    goal = CaptionClip.Goal(
        prompt=Prompt(box=options.box), duration_s=options.seconds, language=options.language
    )
    accepted = client.send_goal_async(goal, feedback_callback=show)
    rclpy.spin_until_future_complete(node, accepted, timeout_sec=options.patience)
    handle = accepted.result()
    if handle is None or not handle.accepted:
        return None
    result = handle.get_result_async()
    while not (result.done() or stopped.is_set()) and time.monotonic() < until_s:
        rclpy.spin_until_future_complete(node, result, timeout_sec=LOOK_S)
    if not result.done():  # the node stops recording and generating, and says so in the result
        handle.cancel_goal_async()
        rclpy.spin_until_future_complete(node, result, timeout_sec=options.patience)
    answer: CaptionClip.Result = result.result().result
    return answer


def main() -> int:
    """Prints the caption; exit status 1, with the reason, without one."""
    options = arguments()
    # Ctrl-C sets a flag: `watch` still has a goal to cancel, and an exception in the middle of a callback
    # would leave the executor unable to go on.
    rclpy.init(args=sys.argv, signal_handler_options=rclpy.signals.SignalHandlerOptions.NO)
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: stopped.set())
    try:
        result = watch(rclpy.create_node("watch_region"), options, stopped)
    finally:
        rclpy.try_shutdown()
    if result is None:
        sys.stderr.write(f"{options.action} did not accept the goal; check that pam_node is running\n")
        return 1
    if result.status.message:
        sys.stderr.write(f"{result.status.message}\n")
    if result.status.code != result.status.OK:
        return 1
    print(f"{result.caption.frame_count} frames: {result.caption.text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
