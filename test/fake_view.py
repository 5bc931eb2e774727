"""`pam view` of grey pictures with a model without weights: `fake_view.py PORT`."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
from fakes import Costs, FakeModel

from pam_ros.records import Frame
from pam_ros.viewer.board import Board
from pam_ros.viewer.page import serve
from pam_ros.viewer.video_source import VideoSource

FRAMES, PERIOD_NS = 60, 100_000_000


def frames() -> Iterator[Frame]:
    """Six seconds, longer than a caption's period; the shade grows."""
    for number in range(FRAMES):
        yield Frame(np.full((240, 320, 3), 100 + number, np.uint8), stamp_ns=number * PERIOD_NS)


if __name__ == "__main__":
    board = Board()
    model = FakeModel(words=8, costs=Costs(step_s=0.05))
    source = VideoSource(model, frames, board, title="grey pictures", notice="a fake model", live=False)
    serve(board, source, port=int(sys.argv[1]), open_browser=False)
