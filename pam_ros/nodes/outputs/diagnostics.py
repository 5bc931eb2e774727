"""`/diagnostics`, once a second: the manager with its model, and every camera (as in REP 107)."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from std_msgs.msg import Header

from pam_ros.model.interface import ModelInfo
from pam_ros.nodes.perception_node import PerceptionNode
from pam_ros.runtime.statistics import MISSING_ABOVE, CameraStatistics, EngineStatistics

STALE_AFTER_S = 3.0  # a camera that sends no image for so long is stale
_MIB = 1024 * 1024


class Phase(Enum):
    """The manager's state; the values are displayed."""

    UNCONFIGURED = "unconfigured"  # no model is loaded
    FAILED = "configure failed"  # no model is loaded; `Health.cause` says why
    CONFIGURING = "configuring"  # the model is being loaded
    INACTIVE = "inactive"  # the model is loaded, but no frame or request is accepted
    ACTIVE = "active"  # frames and requests are processed
    FINALIZED = "finalized"  # shut down


@dataclass(frozen=True, slots=True)
class Health:
    """How the manager is; `cause` says why it failed, or what it is doing."""

    phase: Phase
    cause: str
    advice: str  # how to make it active; empty while it is
    model: ModelInfo | None


def report(
    manager: str,
    health: Health,
    statistics: EngineStatistics | None,
    nodes: Sequence[PerceptionNode],
    header: Header,
) -> DiagnosticArray:
    """One status of the manager, one of each camera; `manager` is the node's full name."""
    statuses = [_manager_status(manager, health, statistics)]
    cameras = {camera.camera: camera for camera in statistics.cameras} if statistics is not None else {}
    statuses += [_camera_status(node, cameras.get(node.camera)) for node in nodes]
    return DiagnosticArray(header=header, status=statuses)


def _manager_status(manager: str, health: Health, statistics: EngineStatistics | None) -> DiagnosticStatus:
    level, message = DiagnosticStatus.OK, health.phase.value
    if health.phase is Phase.FAILED:
        level, message = DiagnosticStatus.ERROR, f"{message}: {health.cause}"
    elif health.phase is not Phase.ACTIVE:
        level, message = DiagnosticStatus.WARN, f"{message}; {health.cause or health.advice}"
    elif statistics is not None and statistics.text_problem:
        level, message = DiagnosticStatus.WARN, f"{message}, without texts: {statistics.text_problem}"
    values = {"state": health.phase.value, "memory": f"{_resident_bytes() // _MIB} MiB"}
    if health.model is not None:
        values |= {
            "model": health.model.name,
            "model parameters": f"{health.model.parameters / 1e6:.1f} million",
            "device": health.model.device,
            "dtype": health.model.dtype,
            "quantization": health.model.quantization,
            "licence": health.model.licence,
        }
        if health.model.text_server:
            values["text server"] = health.model.text_server
        try:
            values |= _gpu_memory(health.model.device)
        except RuntimeError as error:  # CUDA does not recover within a process
            level = DiagnosticStatus.ERROR
            message += f"; the GPU fails, restart the process: {str(error).splitlines()[0]}"
    if statistics is not None:
        values |= {
            "texts being generated": str(statistics.generating),
            "requests waiting": str(statistics.queued),
            "generation speed": f"{statistics.tokens_per_s:.1f} tokens/s",
            "text latency": f"{statistics.text_latency_s:.3f} s",
        }
    return _status(f"{manager}: model", level, message, health.model.device if health.model else "", values)


def _camera_status(node: PerceptionNode, camera: CameraStatistics | None) -> DiagnosticStatus:
    name, topic = f"{node.get_fully_qualified_name()}: camera {node.camera}", node.image_topic
    values = {
        "topic": topic,
        "unreadable images": str(node.rejected_images),
        "results lost": str(node.dropped_messages),
    }
    if camera is None:
        return _status(name, DiagnosticStatus.WARN, "not active", node.camera, values)
    values |= {
        "images received": str(camera.received),
        "images processed": str(camera.processed),
        "images dropped": str(camera.dropped),
        "images missed": str(node.image_gaps.missed),
        "rate": f"{camera.rate_hz:.2f} Hz",
        "mask latency": f"{camera.mask_latency_s:.3f} s",
        "publication latency": f"{1000 * node.publication_latency_s:.2f} ms",
        "regions tracked": str(camera.regions_tracked),
        "regions lost": str(camera.regions_lost),
    }
    if math.isinf(camera.age_s):
        level, message = DiagnosticStatus.STALE, f"no image on {topic} yet"
    elif camera.age_s > STALE_AFTER_S:
        level, message = DiagnosticStatus.STALE, f"no image on {topic} for {camera.age_s:.0f} s"
    elif (missing := node.image_gaps.missing_fraction) > MISSING_ABOVE:
        level = DiagnosticStatus.WARN
        message = f"{camera.rate_hz:.1f} Hz, {missing:.0%} of the images do not arrive; see docs/transport.md"
    elif camera.regions_lost:
        level, message = DiagnosticStatus.OK, f"{camera.rate_hz:.1f} Hz, {camera.regions_lost} regions lost"
    else:
        level, message = DiagnosticStatus.OK, f"{camera.rate_hz:.1f} Hz, {camera.regions_tracked} regions"
    return _status(name, level, message, node.camera, values)


def _status(name: str, level: bytes, message: str, hardware: str, values: dict[str, str]) -> DiagnosticStatus:
    pairs = [KeyValue(key=key, value=value) for key, value in values.items()]
    return DiagnosticStatus(level=level, name=name, message=message, hardware_id=hardware, values=pairs)


def _resident_bytes() -> int:
    """Resident memory of this process; 0 if the system does not say."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _gpu_memory(device: str) -> dict[str, str]:
    torch = sys.modules.get("torch")  # a model without torch must not cause its import
    if torch is None or not device.startswith("cuda"):
        return {}
    free, total = torch.cuda.mem_get_info(device)
    held = torch.cuda.memory_reserved(device)
    return {"GPU memory": f"{held // _MIB} MiB held, {free // _MIB} of {total // _MIB} MiB free"}
