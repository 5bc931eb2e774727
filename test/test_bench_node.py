"""`pam bench-node` counts and times what a node sends back."""

from __future__ import annotations

from pathlib import Path

import pytest
from ros_harness import FAKE_NODE

from pam_ros.errors import StateError
from pam_ros.nodes.tools.bench_layer import run_bench_layer
from pam_ros.nodes.tools.bench_node import run_bench_node


def test_a_fast_node_loses_nothing_and_answers(tmp_path: Path) -> None:
    lines: list[str] = []
    result = run_bench_node(
        tmp_path, model="fake:words=3", device="cpu", size=(48, 64), rate_hz=10.0, seconds=2.5,
        report=lines.append, command=FAKE_NODE,
    )  # fmt: skip
    windows = {name: value for name, value in result.items() if isinstance(value, dict)}
    assert list(windows) == [
        "tracking", "four_tasks", "label", "streaming", "streaming_four_tasks", "streaming_label",
    ]  # fmt: skip
    for name, window in windows.items():
        assert 0.5 * window["pictures"] < window["masks"] <= window["pictures"], name
        assert 0 < window["p50_ms"] <= window["p99_ms"], name
        assert bool(window["answers"]) == ("four_tasks" in name or "label" in name), name
    assert not windows["tracking"]["captions"]
    assert windows["streaming"]["captions"]
    assert result["node_rss_mib"] > 10
    assert len(lines) == 7
    assert "masks for" in lines[1]


def test_the_layer_is_measured_beside_a_bare_node(tmp_path: Path) -> None:
    lines: list[str] = []
    result = run_bench_layer(tmp_path, size=(48, 64), rate_hz=20.0, seconds=5.0, report=lines.append)
    assert list(result) == ["raw", "compressed"] and len(lines) == 2
    for figures in result.values():
        assert figures["bare_p50_ms"] > 0 and figures["node_p50_ms"] > 0
        assert 0 < figures["layer_ms"] < 1000
        assert 0 < figures["node_cpu_cores"] < 4 and 0 < figures["bare_cpu_cores"] < 4
        assert 50 < figures["masks"] <= figures["pictures"]


def test_a_node_that_cannot_load_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="active"):
        run_bench_node(
            tmp_path, model="fail:ModelNotFoundError", device="cpu", size=(48, 64), rate_hz=10.0,
            seconds=1.0, command=FAKE_NODE, load_timeout_s=5.0,
        )  # fmt: skip
