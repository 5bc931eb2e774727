"""`pam_node` with a model without weights. The parameter `model` says how it behaves.

fake                          answers at once
fake:words=40,step_s=0.05     texts of 40 words, one every 50 ms
fake:slots=1                  tracks as many regions as `regions.max` was at load, as a GPU does
fake:load_s=3,ballast_mib=200 loading takes 3 s, and 200 MiB until it is closed
fake:stuck_s=60               loading does not look at anything for a minute
fail:ModelNotFoundError       loading fails with that error; fail:RuntimeError is a fault of the package
"""

from __future__ import annotations

import sys
import time

import numpy as np
from fakes import Costs, FakeModel

from pam_ros import errors
from pam_ros.model.loading.options import LoadOptions
from pam_ros.nodes.main import run
from pam_ros.nodes.manager_node import Progress
from pam_ros.signals import leave

THINGS = ((4.0, 4.0, 20.0, 20.0), (30.0, 10.0, 60.0, 30.0))  # what a survey of any image finds, pixels


class BallastModel(FakeModel):
    """Holds memory until it is closed."""

    ballast: np.ndarray | None = None
    close_fails = False

    def close(self) -> None:
        self.ballast = None
        super().close()
        if self.close_fails:
            raise RuntimeError("close was told to fail")


def load_fake(options: LoadOptions, *, progress: Progress | None) -> FakeModel:
    """Builds the model that the name describes; a text server is not asked."""
    kind, _, details = options.model.partition(":")
    if kind == "fail":
        held = np.ones(100 << 20, np.uint8)  # what a loader has read when it fails
        error = getattr(errors, details, RuntimeError)
        raise error(f"{details} was asked for, {held.nbytes >> 20} MiB were read")
    behaviour = dict(part.split("=") for part in details.split(",") if part)
    if "stuck_s" in behaviour and progress is not None:
        progress("loading in native code")
        time.sleep(float(behaviour["stuck_s"]))
    until_s = time.monotonic() + float(behaviour.get("load_s", 0))
    while time.monotonic() < until_s:
        if progress is not None:
            progress("loading the fake")
        time.sleep(0.1)
    model = BallastModel(
        words=int(behaviour.get("words", 3)),
        things=list(THINGS),
        max_regions=options.regions if "slots" in behaviour else 0,
        costs=Costs(step_s=float(behaviour.get("step_s", 0)), track_s=float(behaviour.get("track_s", 0))),
    )
    model.ballast = np.ones(int(behaviour.get("ballast_mib", 0)) << 20, np.uint8)
    model.close_fails = "close" in behaviour
    return model


if __name__ == "__main__":
    leave(run(sys.argv, load_model=load_fake))
