"""What the examples share: pixels as arguments, calls that are repeated while the model loads, spinning."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.utilities import remove_ros_args

from pam_ros.msg import RegionText, Status

RETRY_S = 1.0
NOTICE_S = 5.0  # without a server, before that is said
# A server is found before it knows where its answers go; without a pause the first one can be lost.
SETTLE_S = 0.3


def pixels(count: int) -> Callable[[str], list[float]]:
    """An argument type: that many comma-separated numbers, as the command `pam` takes them."""

    def numbers(text: str) -> list[float]:
        with suppress(ValueError):
            values = [float(part) for part in text.split(",")]
            if len(values) == count:
                return values
        raise argparse.ArgumentTypeError(f"takes {count} comma-separated numbers, not {text!r}")

    return numbers


def ask(node: Node, kind: Any, service: str, request: Any, timeout_s: float) -> Any:
    """The response. Raises SystemExit with the reason if there is none or its status is not OK."""
    try:
        response = _response(node, node.create_client(kind, service), request, timeout_s)
    except (KeyboardInterrupt, ExternalShutdownException):
        raise SystemExit(f"stopped before {service} answered") from None
    except Exception:
        if rclpy.ok():  # else the signal came while the service was looked for
            raise
        raise SystemExit(f"stopped before {service} answered") from None
    if response is None:
        raise SystemExit(f"{service} did not answer within {timeout_s:g} s; pam_node is busy or not running")
    if response.status.code != Status.OK:
        raise SystemExit(response.status.message)
    if response.status.message:  # what limits the result
        print(response.status.message, file=sys.stderr)
    return response


def _response(node: Node, client: Any, request: Any, timeout_s: float) -> Any:
    """The last response; None if it is not there in time. Asks again while the model loads."""
    until_s = time.monotonic() + timeout_s
    response = None
    if not client.wait_for_service(min(NOTICE_S, timeout_s)) and timeout_s > NOTICE_S:
        hint = "start pam_node, with the ROS_DOMAIN_ID of this terminal"
        print(f"nobody serves {client.srv_name} yet; waiting: {hint}", file=sys.stderr, flush=True)
    while client.wait_for_service(max(0.0, until_s - time.monotonic())):
        time.sleep(SETTLE_S)
        future = client.call_async(request)
        rclpy.spin_until_future_complete(node, future, timeout_sec=max(0.0, until_s - time.monotonic()))
        response = future.result() if future.done() else None
        starting = response is not None and response.status.code in (Status.NOT_ACTIVE, Status.NO_FRAME)
        if not starting or time.monotonic() + RETRY_S > until_s:
            break
        time.sleep(RETRY_S)
    return response


def only_ros_arguments(docstring: str | None) -> None:
    """Prints the docstring and exits if --help is given; refuses what is no ROS argument."""
    parser = argparse.ArgumentParser(
        description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args(remove_ros_args(sys.argv)[1:])


def spin(node: Node) -> None:
    """Runs the node's callbacks until SIGINT or SIGTERM."""
    try:
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except Exception:
        if rclpy.ok():  # else the signal came while a callback was publishing
            raise
    rclpy.try_shutdown()


def shown_label(text: RegionText) -> str:
    """The label as displayed: an unsure one ends with a question mark."""
    return f"{text.label}?" if text.label_unsure else str(text.label)
