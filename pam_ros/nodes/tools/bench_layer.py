"""`pam bench-node --layer`: the node's own time and CPU, without its model's, over real DDS."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
from diagnostic_msgs.msg import DiagnosticArray

from pam_ros.errors import StateError
from pam_ros.msg import Prompt
from pam_ros.nodes.dds_profile import use_image_profile
from pam_ros.nodes.tools.bench_camera import BenchCamera, Window
from pam_ros.nodes.tools.bench_node import NEVER_S
from pam_ros.nodes.tools.client import Client
from pam_ros.nodes.tools.processes import Process, Processes

BOX = (0.3, 0.3, 0.6, 0.8)  # of the region: fractions of width and height
ROUNDS = 5  # the two nodes take turns, so that both meet the same load of the machine
WAIT_S = 60.0
TRANSPORTS = ("raw", "compressed")


def run_bench_layer(
    out: Path, *, size: tuple[int, int], rate_hz: float, seconds: float, report: Callable[[str], None] = print
) -> dict[str, Any]:
    """Plays a camera to `pam_node` with a model that computes nothing, and to a bare node, in turns.

    Args:
        out: folder for the nodes' logs.
        size: (height, width) of the images, pixels.
        seconds: of each node and transport.

    Returns figures by transport, see docs/bench/README.md. Raises StateError if a node fails.
    """
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    results = {}
    use_image_profile()
    for transport in TRANSPORTS:
        results[transport] = _measure(out, transport == "compressed", size, rate_hz, seconds)
        report(f"{transport}: {_line(results[transport])}")
    return results


def _measure(
    out: Path, compressed: bool, size: tuple[int, int], rate_hz: float, seconds: float
) -> dict[str, float]:
    height, width = size
    x1, y1, x2, y2 = (round(side * length) for side, length in zip(BOX, (width, height) * 2, strict=True))
    with Processes(out) as processes, Client("bench", processes.domain, processes.check) as client:
        node = processes.start_module(
            "tools.stand_in",
            log=True,
            parameters={
                "autostart": True,
                "image_transport": "compressed" if compressed else "raw",
                "regions.lost_timeout_s": NEVER_S,
            },
        )
        bare = processes.start_module(
            "tools.bare_node",
            log=True,
            ros_arguments=["-r", "image:=/bare/image", "-r", "image/compressed:=/bare/image/compressed"],
            parameters={"compressed": compressed, "mask_height": y2 - y1, "mask_width": x2 - x1},
        )
        client.wait_for_active(WAIT_S)
        topics = ("/image", "/pam/regions"), ("/bare/image", "/bare/regions")
        with ExitStack() as stack:
            cameras = [
                stack.enter_context(
                    BenchCamera(client, size, rate_hz, image=image, regions=regions, compressed=compressed)
                )
                for image, regions in topics
            ]
            client.wait(lambda: all(camera.received for camera in cameras), "the first regions", WAIT_S)
            box = [float(edge) for edge in (x1, y1, x2, y2)]
            answer = client.perceive(Prompt(box=box, tasks=["label"]), timeout_s=WAIT_S, without_mask=True)
            if answer.status.code:
                raise StateError(f"the node refused the prompt: {answer.status.message}")
            for camera in cameras:
                camera.pause()
            pairs = list(zip(cameras, (node, bare), strict=True))
            statuses = client.collect(DiagnosticArray, "/diagnostics")
            rounds = [[_window(*pair, seconds / ROUNDS) for pair in pairs] for _ in range(ROUNDS)]
    return {"layer_ms": _layer_ms(statuses), **_figures(rounds)}


def _layer_ms(statuses: Sequence[DiagnosticArray]) -> float:
    """Median of the node's own figure; the model's time in it is nothing."""
    texts = [
        pair.value
        for message in statuses
        for status in message.status
        for pair in status.values
        if pair.key == "publication latency"
    ]
    if not texts:
        raise StateError("the node published no diagnostics")
    return statistics.median(float(text.split()[0]) for text in texts)


def _window(camera: BenchCamera, process: Process, seconds: float) -> tuple[Window, float]:
    """One node's turn, and the part of a core that it used."""
    usage = psutil.Process(process.pid)
    camera.resume()
    before, begin_s = usage.cpu_times(), time.perf_counter()
    window = camera.window(seconds)
    after, end_s = usage.cpu_times(), time.perf_counter()
    camera.pause()
    used_s = after.user + after.system - before.user - before.system
    return window, used_s / (end_s - begin_s)


def _figures(rounds: Sequence[Sequence[tuple[Window, float]]]) -> dict[str, float]:
    """Medians over rounds of (node, bare node)."""
    if any(window.p50_ms is None for each in rounds for window, _ in each):
        raise StateError("no regions came back within a whole window; see the nodes' logs")

    def median(figure: Callable[[Sequence[tuple[Window, float]]], float]) -> float:
        return round(statistics.median(figure(each) for each in rounds), 3)

    return {
        "node_p50_ms": median(lambda each: each[0][0].p50_ms or 0),
        "bare_p50_ms": median(lambda each: each[1][0].p50_ms or 0),
        "node_cpu_cores": median(lambda each: each[0][1]),
        "bare_cpu_cores": median(lambda each: each[1][1]),
        "pictures": sum(each[0][0].pictures for each in rounds),
        "masks": sum(each[0][0].masks for each in rounds),
    }


def _line(figures: dict[str, float]) -> str:
    """One line to print."""
    return (
        f"{figures['layer_ms']:.2f} ms from an image's callback to its published masks; from publishing to "
        f"receiving {figures['node_p50_ms']:.1f} ms (bare node {figures['bare_p50_ms']:.1f} ms); "
        f"{figures['node_cpu_cores']:.2f} of a core (bare node {figures['bare_cpu_cores']:.2f}); "
        f"masks for {figures['masks']} of {figures['pictures']} images"
    )
