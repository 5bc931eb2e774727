"""`pam view` of a running node: pictures and regions arrive, prompts go out, refusals come back."""

from __future__ import annotations

import pytest

pytest.importorskip("pam_ros.msg", reason="needs the built ROS interfaces")

from ros_harness import FAKE_ACTIVE, Camera, pam, wait_until

from pam_ros.errors import StateError
from pam_ros.nodes.tools.view_source import NodeSource
from pam_ros.records import Language, Prompt
from pam_ros.runtime.requests import PromptRequest
from pam_ros.viewer.board import Board


def test_a_running_node_is_shown_and_prompted(monkeypatch: pytest.MonkeyPatch) -> None:
    with pam(*FAKE_ACTIVE) as (robot, _):
        monkeypatch.setenv("ROS_DOMAIN_ID", str(robot.domain))
        board = Board()
        source = NodeSource("pam", board)
        try:
            assert source.title == "node /pam"
            with Camera(robot):
                wait_until(lambda: board.serial > 1, "pictures")
                wait_until(lambda: not source.notice, "services")
                made = source.perceive(
                    PromptRequest(Prompt.from_clicks(box_xyxy=(10, 10, 30, 20)), stamp_ns=board.stamp_ns)
                ).result(20.0)
                assert made.mask.any()
                wait_until(lambda: [it.region.region_id for it in board.regions()] == [made.region_id], "it")
                with pytest.raises(StateError, match="outside"):
                    source.perceive(PromptRequest(Prompt.from_clicks([(500, 500)]))).result(20.0)
                assert source.stream_captions(True, Language.ZH).result(20.0) is None
                source.remove(0)
                wait_until(lambda: not board.regions(), "an empty board")
        finally:
            source.close()


def test_a_node_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    source = NodeSource("/nobody", Board())
    try:
        assert "there is no node /nobody" in source.notice
        with pytest.raises(StateError, match="/nobody/perceive is not available"):
            source.perceive(PromptRequest(Prompt.from_clicks([(1, 1)]))).result(1.0)
    finally:
        source.close()
