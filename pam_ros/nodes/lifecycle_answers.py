"""Answers transitions that are not allowed: rclpy raises instead, and the caller would wait forever."""

from __future__ import annotations

import functools

from lifecycle_msgs.srv import ChangeState
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleNode

from pam_ros.nodes.throttled_log import ThrottledLog


def answer_every_request(node: LifecycleNode) -> None:
    """From now on `~/change_state` answers every request; a refusal is logged with what is allowed."""
    (service,) = [it for it in node.services if it.srv_name.endswith("/change_state")]
    service.callback = functools.partial(_answer, node, ThrottledLog(node.get_logger()), service.callback)


def _answer(
    node: LifecycleNode,
    log: ThrottledLog,
    change: functools.partial[ChangeState.Response],
    request: ChangeState.Request,
    response: ChangeState.Response,
) -> ChangeState.Response:
    machine = node._state_machine  # not public in rclpy
    asked = request.transition
    allowed = [(transition_id, label) for transition_id, label, *_ in machine.available_transitions]
    if asked.id in dict(allowed) or asked.label in dict(allowed).values():
        try:
            return change(request, response)
        except rclpy_implementation.RCLError as error:
            log.error(f"the transition {asked.label or asked.id!r} failed: {error}")
    else:
        choices = ", ".join(f"{label} ({transition_id})" for transition_id, label in allowed) or "none"
        log.warn(
            f"the transition {asked.label or asked.id!r} is not allowed in state "
            f"{machine.current_state[1]}; allowed: {choices}"
        )
    response.success = False
    return response
