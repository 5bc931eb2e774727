"""2,000 random and corrupted messages over every input of a real node: it answers, and keeps its region."""

from __future__ import annotations

import psutil
import pytest

pytest.importorskip("pam_ros.msg", reason="needs the built ROS interfaces")

from ros_harness import FAKE_ACTIVE, Camera, click, pam, wait_until

from pam_ros.msg import Prompt, RegionArray, Status
from pam_ros.nodes.tools.hostile import Hostile

MESSAGES = 2000
EVERY = 20  # messages to a request that must be answered
SETTLED = 400  # messages until threads and files are counted


@pytest.mark.parametrize("seed", [0])
def test_the_node_stands_and_keeps_its_region(seed: int) -> None:
    with pam(*FAKE_ACTIVE, "regions.max:=4") as (robot, process):
        robot.wait_for_active()
        hostile = Hostile(robot, seed)
        frames = robot.collect(RegionArray, "/pam/regions")
        with Camera(robot, rate_hz=20):
            good = robot.perceive(click(50, 40)).region
            node = psutil.Process(process.pid)
            while hostile.sent < MESSAGES:
                hostile.send()
                if hostile.sent % EVERY == 0:
                    hostile.ask()
                    answer = robot.perceive(Prompt(region_id=good.id))
                    assert (answer.status.code, answer.region.id) == (Status.OK, good.id), answer.status
                if hostile.sent == SETTLED:
                    before = node.num_threads(), node.num_fds()
            wait_until(lambda: all(each.done() for each in hostile.requests), "an answer to every request")
            seen = len(frames)
            wait_until(lambda: len(frames) > seen + 2, "results after the messages")
            for frame in frames:
                for region in frame.regions:
                    if region.id == good.id:
                        assert (region.state, region.bbox) == (region.TRACKED, good.bbox)
            assert any(region.id == good.id for region in frames[-1].regions)
            assert node.num_threads() <= before[0] + 2
            assert node.num_fds() <= before[1] + 2
        assert process.exit_code is None
        assert "corrupted" in process.log()
        assert "Traceback" not in process.log()
        assert process.end() == 0
