"""A node that is all its process does, from its making to its end."""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import rclpy
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from rclpy.utilities import remove_ros_args

from pam_ros.nodes.dds_profile import use_image_profile
from pam_ros.signals import stopped_by_signals

N = TypeVar("N", bound=Node)


def only_ros_arguments(docstring: str | None) -> None:
    """Prints the docstring and exits if --help is given; refuses what is no ROS argument."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=docstring, formatter_class=formatter)
    parser.parse_args(remove_ros_args(sys.argv)[1:])


@contextmanager
def tool_node(make: Callable[[], N]) -> Iterator[tuple[N, threading.Event]]:
    """The node, with the process's ROS arguments, and an event that the first signal sets.

    At the end the node is destroyed and ROS shut down.
    """
    use_image_profile()
    rclpy.init(args=sys.argv, signal_handler_options=SignalHandlerOptions.NO)
    stopped = stopped_by_signals()
    try:
        node = make()
        try:
            yield node, stopped
        finally:
            node.destroy_node()
    finally:
        rclpy.try_shutdown()
