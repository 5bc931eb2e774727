"""The package's own transform buffer: what it keeps, forgets and refuses."""

from __future__ import annotations

import numpy as np
import pytest

from pam_ros.errors import TransformError
from pam_ros.nodes.inputs.transform_buffer import MOST_FRAMES, MOST_SAMPLES, TransformBuffer

SECOND = 10**9
STRAIGHT = (0.0, 0.0, 0.0, 1.0)


def insert(
    buffer: TransformBuffer, stamp_s: float, x: float, parent: str = "map", child: str = "base"
) -> None:
    """A frame at x metres."""
    buffer.insert(
        parent=parent,
        child=child,
        stamp_ns=round(stamp_s * SECOND),
        quaternion_xyzw=STRAIGHT,
        translation_m=(x, 0.0, 0.0),
        static=False,
    )


def x_at(buffer: TransformBuffer, stamp_s: float) -> float:
    """Where the base is in the map."""
    return float(buffer.lookup("map", "base", round(stamp_s * SECOND)).translation_m[0])


def test_poses_are_kept_for_ten_seconds() -> None:
    buffer = TransformBuffer()
    for second in range(20):
        insert(buffer, second, float(second))
    assert x_at(buffer, 9.5) == pytest.approx(9.5)
    with pytest.raises(TransformError, match=r"is 0.500 s older than the oldest pose of 'base'"):
        x_at(buffer, 8.5)
    with pytest.raises(TransformError, match=r"is 1.000 s newer than the newest pose of 'base'"):
        x_at(buffer, 20)


def test_time_that_starts_over_replaces_what_was_known() -> None:
    buffer = TransformBuffer()
    insert(buffer, 100, 1.0)
    insert(buffer, 5, 2.0)  # a bag that plays again
    assert x_at(buffer, 5) == 2.0
    with pytest.raises(TransformError, match="newer"):
        x_at(buffer, 100)


def test_the_first_of_two_poses_at_one_time_holds() -> None:
    buffer = TransformBuffer()
    insert(buffer, 1, 1.0)
    insert(buffer, 1, 2.0)
    assert x_at(buffer, 1) == 1.0


def test_nothing_above_the_shared_frame_is_needed() -> None:
    buffer = TransformBuffer()
    insert(buffer, 1, 9.0, "earth", "map")  # long ago
    insert(buffer, 50, 1.0, "map", "base")
    insert(buffer, 50, 4.0, "map", "camera")
    assert buffer.lookup("camera", "base", 50 * SECOND).translation_m[0] == -3.0
    with pytest.raises(TransformError, match="'map'"):
        buffer.lookup("earth", "base", 50 * SECOND)


def test_a_circle_of_frames_ends_the_search() -> None:
    buffer = TransformBuffer()
    insert(buffer, 1, 1.0, "a", "b")
    insert(buffer, 1, 1.0, "b", "a")
    insert(buffer, 1, 1.0, "c", "d")
    with pytest.raises(TransformError, match="different trees"):
        buffer.lookup("c", "a", SECOND)


@pytest.mark.parametrize(
    ("quaternion", "translation", "parent"),
    [
        ((0.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0), "map"),
        ((0.0, 0.0, 0.5, 1.0), (0.0, 0.0, 0.0), "map"),
        (STRAIGHT, (np.nan, 0.0, 0.0), "map"),
        (STRAIGHT, (0.0, 0.0, 0.0), "base"),
        (STRAIGHT, (0.0, 0.0, 0.0), ""),
    ],
)
def test_what_is_no_pose_is_refused(
    quaternion: tuple[float, ...], translation: tuple[float, ...], parent: str
) -> None:
    buffer = TransformBuffer()
    with pytest.raises(TransformError, match=r"not a pose|two different frames"):
        buffer.insert(
            parent=parent,
            child="base",
            stamp_ns=0,
            quaternion_xyzw=quaternion,
            translation_m=translation,
            static=True,
        )
    with pytest.raises(TransformError, match="has not been published"):
        buffer.lookup("map", "base", 0)


def test_a_flood_of_frames_or_samples_is_bounded() -> None:
    buffer = TransformBuffer()
    for number in range(MOST_FRAMES):
        insert(buffer, 1.0, 0.0, child=f"frame_{number}")
    with pytest.raises(TransformError, match=f"'one_more' is one frame too many; at most {MOST_FRAMES}"):
        insert(buffer, 1.0, 0.0, child="one_more")
    with pytest.raises(TransformError, match="more than 256 characters"):
        insert(buffer, 1.0, 0.0, child="x" * 300)
    count = MOST_SAMPLES + 500
    for sample in range(count):
        insert(buffer, 1.0 + sample / count, float(sample), child="frame_0")
    assert len(buffer._edges["frame_0"].poses) == MOST_SAMPLES
    assert buffer.lookup("map", "frame_0", 2 * SECOND - SECOND // count).translation_m[0] == count - 1
