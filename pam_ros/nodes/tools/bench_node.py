"""`pam bench-node`: how late masks, captions and answers of the real node come, over DDS."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pam_ros.errors import StateError
from pam_ros.msg import Prompt
from pam_ros.nodes.dds_profile import use_image_profile
from pam_ros.nodes.tools.bench_camera import BenchCamera, Window
from pam_ros.nodes.tools.client import Client
from pam_ros.nodes.tools.processes import Processes

NEVER_S = 86400.0  # noise shows no object, and the region must stay
ANSWER_TIMEOUT_S = 120.0
LABEL_TOKENS, TEXT_TOKENS = 8, 64
FOUR_TASKS = ("label", "explain", "brief", "detail")


def run_bench_node(
    out: Path,
    *,
    model: str,
    device: str,
    size: tuple[int, int],
    rate_hz: float,
    seconds: float,
    report: Callable[[str], None] = print,
    command: Sequence[str] = ("-m", "pam_ros.nodes.main"),
    load_timeout_s: float = 600.0,
) -> dict[str, Any]:
    """Starts `pam_node` in a process of its own and plays a camera to it → figures by window.

    Args:
        out: folder for the node's log.
        command: Python's arguments that start the node.
        size: (height, width) of the images, pixels; rgb8 noise, best effort.
        seconds: of each window.

    Raises StateError if the node fails or does not answer.
    """
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    began_s = time.monotonic()
    use_image_profile()
    with Processes(out) as processes, Client("bench", processes.domain, processes.check) as client:
        parameters = {
            "model": model,
            "device": device,
            "autostart": True,
            "regions.lost_timeout_s": NEVER_S,
            "texts.max_new_tokens": TEXT_TOKENS,
            "streaming.period_s": 2.0,
        }
        node = processes.start("node", command, parameters=parameters, log=True)
        client.wait_for_active(load_timeout_s)
        active_s = time.monotonic() - began_s
        report(f"active after {active_s:.1f} s")
        with BenchCamera(client, size, rate_hz) as camera:
            results = _measure(client, camera, seconds, report)
        return {"active_s": round(active_s, 1), **results, "node_rss_mib": round(node.resident_mib())}


def _measure(
    client: Client, camera: BenchCamera, seconds: float, report: Callable[[str], None]
) -> dict[str, Any]:
    height, width = camera.size
    box = [0.3 * width, 0.3 * height, 0.6 * width, 0.8 * height]
    client.wait(lambda: camera.received, "the first regions", ANSWER_TIMEOUT_S)
    answer = client.perceive(Prompt(box=box, tasks=["label"]), timeout_s=ANSWER_TIMEOUT_S, without_mask=True)
    if answer.status.code:
        raise StateError(f"the node refused the first prompt: {answer.status.message}")
    region = answer.region.id

    def ask(tasks: Sequence[str]) -> Callable[[], None]:
        def call() -> None:
            prompt = Prompt(region_id=region, tasks=list(tasks))
            status = client.perceive(prompt, timeout_s=ANSWER_TIMEOUT_S, without_mask=True).status
            if status.code:
                raise StateError(f"the node refused a request: {status.message}")

        return call

    results: dict[str, Any] = {}

    def window(name: str, request: Callable[[], None] | None = None) -> None:
        found = camera.window(seconds, request)
        results[name] = asdict(found)
        report(f"{name}: {_line(found)}")

    def limit(tokens: int) -> None:
        client.set_parameter("/pam_manager", "texts.max_new_tokens", tokens)

    camera.window(seconds / 2, ask(FOUR_TASKS))  # the first texts of a kind may compile
    window("tracking")
    window("four_tasks", ask(FOUR_TASKS))
    limit(LABEL_TOKENS)
    window("label", ask(["label"]))
    limit(TEXT_TOKENS)
    client.set_parameter("/pam_manager", "streaming.enabled", True)
    client.pause(2.0)
    window("streaming")
    window("streaming_four_tasks", ask(FOUR_TASKS))
    limit(LABEL_TOKENS)
    window("streaming_label", ask(["label"]))
    return results


def _line(window: Window) -> str:
    """One line to print."""
    parts = [f"masks for {window.masks} of {window.pictures} images"]
    if window.p50_ms is not None:
        parts.append(f"p50 {window.p50_ms:.0f} ms, p99 {window.p99_ms:.0f} ms")
    if window.captions:
        parts.append(f"{window.captions} captions, {window.caption_latency_s:.2f} s late at most")
    if window.answers:
        parts.append(f"{window.answers} answers in {window.answer_p50_s:.2f} s (p50)")
    return "; ".join(parts)
