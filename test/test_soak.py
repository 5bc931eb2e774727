"""`pam soak`: what it measures, and a simulated day in short."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest

pytest.importorskip("pam_ros.msg", reason="needs the built ROS interfaces")

from pam_ros.msg import StreamingCaption
from pam_ros.nodes.tools import soak_camera
from pam_ros.nodes.tools.client import Client
from pam_ros.nodes.tools.processes import Processes
from pam_ros.nodes.tools.soak_day import PERIOD_S, Clip, clips_of, parts_of, run_day
from pam_ros.nodes.tools.soak_watch import CaptionLedger, Sample, trends
from pam_ros.shared_memory import held_by
from pam_ros.srv import RemoveRegion

SECOND = 10**9


def ledger(*sequences: int) -> CaptionLedger:
    taken = CaptionLedger()
    for sequence in sequences:
        taken.take(StreamingCaption(region_id=1, sequence=sequence, final=False))
        taken.take(StreamingCaption(region_id=1, sequence=sequence, final=True))
    taken.take(StreamingCaption(region_id=1, sequence=99, final=True, summary=True))
    return taken


@pytest.mark.parametrize(
    ("sequences", "missing", "late", "twice"),
    [((0, 1, 2), 0, 0, 0), ((0, 2, 1), 0, 1, 0), ((0, 3), 2, 0, 0), ((0, 1, 1), 0, 0, 1), ((1,), 1, 0, 0)],
)
def test_captions_are_counted_by_their_sequence(
    sequences: tuple[int, ...], missing: int, late: int, twice: int
) -> None:
    taken = ledger(*sequences)
    assert (taken.final, taken.missing, taken.late, taken.twice) == (len(sequences), missing, late, twice)


def test_a_summary_has_a_number_that_no_caption_has() -> None:
    taken = CaptionLedger()
    for sequence, summary in ((0, False), (1, True), (2, False)):
        message = StreamingCaption(region_id=1, sequence=sequence, final=True, summary=summary)
        taken.take(message)
    assert (taken.final, taken.missing, taken.place(message)) == (2, 0, 1)


def test_growth_is_judged_after_the_warm_up() -> None:
    """An hour: the ten minutes in which memory doubles do not count, a leak of 10 MiB an hour does."""
    samples = [
        Sample(float(t), 500 + min(t, 600) * 0.5 + t / 360, 100.0, 30 + (t > 3000), 20) for t in range(3600)
    ]
    found = trends(samples)
    assert found["resident_mib"].growth == pytest.approx((2000 / 360) / (500 + 300 + 1100 / 360), rel=0.01)
    assert found["private_mib"].growth == 0.0
    assert (found["threads"].first, found["threads"].last) == (30, 31)
    assert found["threads"].flat and found["files"].flat


def test_threads_that_pile_up_are_not_flat() -> None:
    samples = [Sample(float(t), 500.0, 100.0, 30 + t // 100, 20 + t // 1000) for t in range(1000)]
    assert not trends(samples)["threads"].flat
    assert trends(samples)["files"].flat


HEAPS = """
import ctypes, importlib, sys, threading
importlib.import_module(sys.argv[1])
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
held = threading.Barrier(5)
def allocate():
    for _ in range(100):
        libc.malloc(5000)
    held.wait()
threads = [threading.Thread(target=allocate) for _ in range(4)]
for thread in threads:
    thread.start()
held.wait()
file = ctypes.c_void_p(libc.fopen(sys.argv[2].encode(), b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="heaps are those of glibc")
def test_the_threads_of_the_node_share_one_heap(tmp_path: Path) -> None:
    def heaps(module: str) -> int:
        subprocess.run(
            [sys.executable, "-c", HEAPS, module, str(tmp_path / "heaps")], cwd=tmp_path, check=True
        )
        return (tmp_path / "heaps").read_text().count("<heap nr=")

    assert heaps("rclpy") > 1
    assert heaps("pam_ros.nodes.main") == 1


HOLES = """
import ctypes, psutil
from pam_ros.nodes.heap import trim
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
blocks = [libc.malloc(10_000) for _ in range(10_000)]
for block in blocks:
    ctypes.memset(block, 1, 10_000)
for block in blocks[:-1]:  # the last one keeps the heap from shrinking at its end
    libc.free(block)
before = psutil.Process().memory_info().rss
trim()
print(before - psutil.Process().memory_info().rss)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="trim does nothing with another libc")
def test_trimming_gives_holes_back() -> None:
    done = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 80_000_000


def test_the_truth_is_where_the_kettle_is_drawn() -> None:
    corners = set()
    for time_ns in range(1, 130 * SECOND, 13 * SECOND):
        for scale in (1, 2):
            picture = soak_camera.picture_at(time_ns, scale)
            assert picture.shape == (240 * scale, 320 * scale, 3)
            red = (picture[..., 0] > 120) & (picture[..., 1:] < 40).all(axis=2)
            ys, xs = red.nonzero()
            x1, y1, x2, y2 = (side / scale for side in soak_camera.object_box(time_ns, scale))
            drawn = xs.min() / scale, xs.max() / scale, ys.max() / scale
            assert drawn == pytest.approx((x1, x2, y2), abs=4.0)  # the handle on top is black
            assert x1 > 63.0  # random clicks are left of it
            corners.add((round(x1), round(y1)))
    assert len(corners) > 8


def test_the_simulated_day_crosses_what_integers_hold() -> None:
    first, second, third = parts_of(24)
    assert first[0] < 2**31 < 2**32 < first[5]
    assert first[0] < second[0] < first[-1]
    assert second[-1] < third[0] and third[-1] // SECOND < 2**31 <= third[-1] // SECOND + 3
    assert sum(len(part) for part in (first, second, third)) == pytest.approx(86400, abs=3)


def test_clips_end_after_a_period_and_a_jump_back_gives_one_up() -> None:
    stamps = [s * SECOND for s in chain(range(1, 28), range(5, 16), range(1000, 1002))]
    assert clips_of(stamps) == [
        Clip(1 * SECOND, 11 * SECOND, 11),
        Clip(11 * SECOND, 21 * SECOND, 11),
        Clip(5 * SECOND, 15 * SECOND, 11),
        Clip(15 * SECOND, 1000 * SECOND, 2),
    ]
    assert PERIOD_S == 10.0


def test_a_client_that_has_left_holds_no_shared_memory(tmp_path: Path) -> None:
    def own() -> set[Path]:
        return set(held_by(os.getpid()))

    before = own()
    with Processes(tmp_path) as processes, Client("visitor", processes.domain) as client:
        assert own() > before
        client.publisher(StreamingCaption, "/said", subscribers=0)
        client.node.create_client(RemoveRegion, "/nobody/remove_region")
    assert own() <= before


def test_a_short_simulated_day(tmp_path: Path) -> None:
    result = run_day(0.1, tmp_path)
    assert result.held, result.lines()
    assert result.pictures == 360
    assert result.captions.final == result.expected == 2 * len(clips_of(chain.from_iterable(parts_of(0.1))))
    assert result.expected > 60
    for fault in ({"never_came": 1}, {"untracked": 1}, {"wrong": ["one"]}, {"captions": ledger(0, 0)}):
        assert not replace(result, **fault).held
