"""A behaviour-tree leaf (py_trees) that finds what is good for a purpose, and a tree that uses it.

    ros2 run pam_ros find_tree "something to cut with"

The leaf never blocks: it is RUNNING until `~/find` has answered, SUCCESS with the region on the blackboard,
FAILURE if nothing fits. It needs `pip install 'pam_ros[behaviour_trees]'`, or python3-py-trees.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import py_trees
import rclpy
from py_trees.common import Access, Status
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.utilities import remove_ros_args

from pam_ros.examples.asking import shown_label
from pam_ros.msg import Status as Answer
from pam_ros.srv import Find

TICK_S = 0.1


class FindLeaf(py_trees.behaviour.Behaviour):
    """Finds one region and writes it to the blackboard under `key`."""

    def __init__(self, name: str, request: str, *, key: str = "region", service: str = "/pam/find") -> None:
        super().__init__(name)
        self._request, self._key, self._service = request, key, service
        self._blackboard = self.attach_blackboard_client(name=name)
        self._blackboard.register_key(key=key, access=Access.WRITE)
        self._future: Any = None

    def setup(self, **kwargs: Any) -> None:
        """Makes the client; py_trees passes `node` on. Raises KeyError without one."""
        node: Node = kwargs["node"]
        self._client = node.create_client(Find, self._service)

    def initialise(self) -> None:
        """Starts over whenever the leaf is entered."""
        self._future = None

    def update(self) -> Status:
        """One tick."""
        if self._future is None:
            if self._client.service_is_ready():
                request = Find.Request(request=self._request, keep=True, without_mask=True)
                self._future = self._client.call_async(request)
            return Status.RUNNING
        if not self._future.done():
            return Status.RUNNING
        answer, self._future = self._future.result(), None
        if answer.status.code in (Answer.NOT_ACTIVE, Answer.NO_FRAME):  # still starting: ask again
            return Status.RUNNING
        self.feedback_message = answer.status.message
        if answer.status.code != Answer.OK or not answer.fitting:
            self.feedback_message = self.feedback_message or f"nothing fits {self._request!r}"
            return Status.FAILURE
        self._blackboard.set(self._key, answer.regions[0])
        best = answer.regions[0]
        self.feedback_message = f"region {best.id}: {shown_label(best.texts[0])}"
        return Status.SUCCESS

    def terminate(self, new_status: Status) -> None:
        """Drops the question if a higher priority interrupts the leaf."""
        if new_status is Status.INVALID and self._future is not None:
            self._future.cancel()
            self._future = None


def main() -> int:
    """Ticks the leaf until it succeeds (exit status 0), fails, or time is up (1)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("request", help="what you need, e.g. 'something to cut with'")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds")
    options = parser.parse_args(remove_ros_args(sys.argv)[1:])
    rclpy.init(args=sys.argv)
    node = rclpy.create_node("find_tree")
    leaf = FindLeaf("find", options.request)
    # A real tree would go on: root.add_children([leaf, MoveTo("region"), Grasp("region")]).
    root = py_trees.composites.Sequence("fetch", memory=True, children=[leaf])
    tree = py_trees.trees.BehaviourTree(root)
    tree.setup(node=node)
    until_s = time.monotonic() + options.timeout
    try:
        while root.status in (Status.INVALID, Status.RUNNING) and time.monotonic() < until_s:
            tree.tick()
            rclpy.spin_once(node, timeout_sec=TICK_S)
    except (KeyboardInterrupt, ExternalShutdownException):
        raise SystemExit("stopped before the answer came") from None
    finally:
        rclpy.try_shutdown()
    print(f"{root.status.name.lower()}: {leaf.feedback_message}")
    return 0 if root.status is Status.SUCCESS else 1


if __name__ == "__main__":
    sys.exit(main())
