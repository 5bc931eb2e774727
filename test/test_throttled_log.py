"""What a flood of warnings leaves in the log."""

from __future__ import annotations

import pytest

from pam_ros.nodes import throttled_log
from pam_ros.nodes.throttled_log import MOST_LINES, PAUSE_S, ThrottledLog


class Lines(list[str]):
    """A logger that keeps its lines."""

    warning = info = error = list.append


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A monotonic clock of one element that the test advances."""
    now_s = [100.0]
    monkeypatch.setattr(throttled_log.time, "monotonic", lambda: now_s[0])
    return now_s


def test_lines_are_throttled_by_kind(clock: list[float]) -> None:
    lines = Lines()
    log = ThrottledLog(lines)  # type: ignore[arg-type]
    for number in range(1000):
        log.warn(f"box [{number}, {number / 7}, nan, -1e-07] of '/front{number}' is outside 640x480")
    log.warn("the box is empty")
    assert lines == [
        "box [0, 0.0, nan, -1e-07] of '/front0' is outside 640x480",
        "the box is empty",
    ]
    clock[0] += PAUSE_S
    log.warn("box [5, 6, inf, 8] of '/rear' is outside 640x480")
    assert lines[2:] == [
        "box [5, 6, inf, 8] of '/rear' is outside 640x480 (999 more like this were left out)"
    ]


def test_kinds_without_end_are_throttled_together(clock: list[float]) -> None:
    lines = Lines()
    log = ThrottledLog(lines)  # type: ignore[arg-type]
    words = [f"{a}{b}{c}" for a in "abcdefghij" for b in "abcdefghij" for c in "abcdefghij"]
    for word in words:
        log.warn(f"unknown word {word}")
    assert len(lines) == MOST_LINES
    clock[0] += PAUSE_S
    log.error("something else")
    assert lines[-1] == "something else"
    assert len(log._kinds) <= 256


def test_long_lines_are_cut(clock: list[float]) -> None:
    lines = Lines()
    ThrottledLog(lines).warn("x" * 1_000_000)  # type: ignore[arg-type]
    assert len(lines[0]) < 5000
    assert lines[0].endswith("x … (1000000 characters)")


def test_some_lines_are_logged_once(clock: list[float]) -> None:
    lines = Lines()
    log = ThrottledLog(lines)  # type: ignore[arg-type]
    for number in range(3):
        log.warn_once(f"frame {number} has no stamp")
        log.inform_once("receiving images")
        clock[0] += 100 * PAUSE_S
    assert lines == ["frame 0 has no stamp", "receiving images"]
