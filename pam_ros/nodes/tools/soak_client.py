"""A client of the node for `pam soak --hostile`, which kills it in the middle of its requests."""

from __future__ import annotations

import os
import sys

from sensor_msgs.msg import Image

from pam_ros.action import CaptionClip
from pam_ros.msg import Prompt, RegionArray, StreamingCaption
from pam_ros.nodes.tools.client import Client
from pam_ros.signals import leave, stopped_by_signals
from pam_ros.srv import PerceiveAll, PerceiveRegion

CLIP_S = 2.0
BUDGET_MS = 300  # of a survey
EVERY_S = 1.0  # a question about the region
SURVEY_EVERY = 5  # questions


def run(region_id: int) -> int:
    """Subscribes to every output, asks about the region and records clips of it, until a signal."""
    stopped = stopped_by_signals()
    with Client("soak_client", int(os.environ["ROS_DOMAIN_ID"])) as client:
        client.collect(RegionArray, "/pam/regions")
        client.collect(StreamingCaption, "/pam/streaming_captions")
        overlays = client.collect(Image, "/pam/overlay", 1)
        prompt = Prompt(region_id=region_id)
        client.send_goal(CaptionClip.Goal(prompt=prompt, duration_s=CLIP_S))
        number = 0
        while not stopped.wait(EVERY_S):
            overlays.clear()
            client.start_call(PerceiveRegion, "/pam/perceive", PerceiveRegion.Request(prompt=prompt))
            if number % SURVEY_EVERY == 0:
                survey = PerceiveAll.Request(budget_ms=BUDGET_MS, max_regions=1, tasks=["label"])
                client.start_call(PerceiveAll, "/pam/perceive_all", survey)
            number += 1
    return 0


def main() -> None:
    """Started by `pam soak`."""
    leave(run(int(sys.argv[1])))


if __name__ == "__main__":
    main()
