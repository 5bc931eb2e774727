"""What the examples share: calls a service of the node, again while the model loads or no frame has come."""

from __future__ import annotations

import time
from typing import Any

import rclpy
from rclpy.node import Node

from pam_ros.msg import Status

RETRY_S = 1.0


def ask(node: Node, kind: Any, service: str, request: Any, timeout_s: float) -> Any:
    """The response. Raises SystemExit with the reason if there is none or its status is not OK."""
    client = node.create_client(kind, service)
    until_s = time.monotonic() + timeout_s
    response = None
    while client.wait_for_service(max(0.0, until_s - time.monotonic())):
        future = client.call_async(request)
        rclpy.spin_until_future_complete(node, future, timeout_sec=max(0.0, until_s - time.monotonic()))
        response = future.result() if future.done() else response
        starting = response is not None and response.status.code in (Status.NOT_ACTIVE, Status.NO_FRAME)
        if not starting or time.monotonic() + RETRY_S > until_s:
            break
        time.sleep(RETRY_S)
    if response is None:
        raise SystemExit(f"{service} did not answer within {timeout_s:g} s; check that pam_node is running")
    if response.status.code != Status.OK:
        raise SystemExit(response.status.message)
    return response
