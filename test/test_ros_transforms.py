"""Transforms heard on `/tf` and `/tf_static`: this package's listener and tf2_ros give the same answers."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

pytest.importorskip("pam_ros.msg", reason="needs the built ROS interfaces")

from geometry_msgs.msg import TransformStamped
from rclpy.qos import QoSDurabilityPolicy, QoSProfile
from ros_harness import Client, wait_until
from tf2_msgs.msg import TFMessage

from pam_ros.errors import TransformError
from pam_ros.nodes.inputs.transforms import ListenedTransforms, Tf2Transforms, Transforms
from pam_ros.nodes.throttled_log import ThrottledLog
from pam_ros.nodes.tools.processes import Processes

SECOND = 10**9
START = 1_700_000_000 * SECOND
STATIC = QoSProfile(depth=10, durability=QoSDurabilityPolicy.TRANSIENT_LOCAL)
# Rotation vector and translation of each frame in its parent.
ODOM = ((0.0, 0.0, 0.8), (4.0, -1.0, 0.0))
BASE_A = ((0.0, 0.0, 3.0), (1.0, 0.0, 0.0))
BASE_B = ((0.0, 0.0, -3.0), (2.0, 1.0, 0.0))  # 0.28 rad further, through half a turn
CAMERA = ((-1.2, 1.2, -1.2), (0.1, 0.02, 0.6))


def sample(
    parent: str, child: str, pose: tuple[tuple[float, ...], tuple[float, ...]], stamp_ns: int
) -> TransformStamped:
    """One transform."""
    message = TransformStamped(child_frame_id=child)
    message.header.frame_id = parent
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp_ns, SECOND)
    vector, shift = np.array(pose[0]), message.transform.translation
    angle = max(float(np.linalg.norm(vector)), 1e-12)
    x, y, z = (vector / angle * np.sin(angle / 2)).tolist()
    turn = message.transform.rotation
    turn.x, turn.y, turn.z, turn.w = x, y, z, float(np.cos(angle / 2))
    shift.x, shift.y, shift.z = pose[1]
    return message


def matrix(pose: tuple[tuple[float, ...], tuple[float, ...]]) -> np.ndarray:
    """(4, 4), by OpenCV."""
    whole = np.eye(4)
    whole[:3, :3], whole[:3, 3] = cv2.Rodrigues(np.array(pose[0]))[0], pose[1]
    return whole


@pytest.fixture(scope="module")
def robot() -> Iterator[Client]:
    with (
        tempfile.TemporaryDirectory() as folder,
        Processes(Path(folder), {}) as processes,
        Client("robot", processes.domain) as client,
    ):
        yield client


@pytest.fixture(scope="module", params=["own", "tf2_ros"])
def transforms(request: pytest.FixtureRequest, robot: Client) -> Transforms:
    """A listener that has heard of map → odom → base → camera, and of another tree."""
    if request.param == "own":
        listener: Transforms = ListenedTransforms(robot.node, ThrottledLog(robot.node.get_logger()))
    else:
        listener = Tf2Transforms(robot.node, pytest.importorskip("tf2_ros"))
    static = robot.publisher(TFMessage, "/tf_static", STATIC)
    dynamic = robot.publisher(TFMessage, "/tf", 100)
    static.publish(
        TFMessage(
            transforms=[
                sample("map", "odom", ODOM, 0),
                sample("base", "camera", CAMERA, 0),
                sample("mars", "rover", ODOM, 0),
            ]
        )
    )
    # In the wrong order, as several publishers may send them; the last one is not a pose.
    dynamic.publish(TFMessage(transforms=[sample("odom", "base", BASE_B, START + SECOND)]))
    dynamic.publish(TFMessage(transforms=[sample("/odom", "base", BASE_A, START)]))
    broken = sample("odom", "base", BASE_A, START + 2 * SECOND)
    broken.transform.rotation.w = float("nan")
    dynamic.publish(TFMessage(transforms=[broken]))

    def known() -> bool:
        try:
            listener.lookup("map", "camera", START)
            listener.lookup("mars", "rover", START)
        except TransformError:
            return False
        return True

    wait_until(known, "the transforms")
    return listener


def base_at(part: float) -> np.ndarray:
    """Between the two samples, along the shortest arc."""
    turn = 3.0 + part * (2 * np.pi - 6.0)
    shift = np.array(BASE_A[1]) + part * (np.array(BASE_B[1]) - BASE_A[1])
    return matrix(((0.0, 0.0, turn), tuple(shift)))


@pytest.mark.parametrize("part", [0.0, 0.25, 0.9, 1.0])
def test_a_chain_of_static_and_moving_frames(transforms: Transforms, part: float) -> None:
    stamp_ns = START + round(part * SECOND)
    expected = matrix(ODOM) @ base_at(part) @ matrix(CAMERA)
    found = transforms.lookup("map", "camera", stamp_ns)
    assert np.abs(found.rotation - expected[:3, :3]).max() < 1e-6
    assert np.abs(found.translation_m - expected[:3, 3]).max() < 1e-6
    back = transforms.lookup("camera", "/map", stamp_ns)
    assert np.abs(back.rotation - np.linalg.inv(expected)[:3, :3]).max() < 1e-6
    assert np.abs(back.translation_m - np.linalg.inv(expected)[:3, 3]).max() < 1e-6


def test_static_frames_hold_at_any_time(transforms: Transforms) -> None:
    for stamp_ns in (SECOND, START, START + 1000 * SECOND):
        assert np.abs(transforms.lookup("base", "camera", stamp_ns).translation_m - CAMERA[1]).max() < 1e-9
    same = transforms.lookup("camera", "camera", START + 1000 * SECOND)
    assert np.array_equal(same.rotation, np.eye(3)) and not same.translation_m.any()


@pytest.mark.parametrize(
    ("target", "stamp_ns", "words"),
    [
        pytest.param("map", START + SECOND + 1, "all machines use one clock", id="image too new"),
        pytest.param("map", START + 500 * SECOND, "all machines use one clock", id="stale transform"),
        pytest.param("map", START - 1, "all machines use one clock", id="image too old"),
        pytest.param("moon", START, "check that its publisher on /tf or /tf_static is running", id="missing"),
        pytest.param("mars", START, "publish a transform that connects the two trees", id="two trees"),
    ],
)
def test_what_is_not_known_is_refused_in_one_sentence(
    transforms: Transforms, target: str, stamp_ns: int, words: str
) -> None:
    with pytest.raises(
        TransformError, match=f"^no transform from 'camera' to '{target}': .*{words}"
    ) as caught:
        transforms.lookup(target, "camera", stamp_ns)
    assert "\n" not in str(caught.value)


def test_tf2_ros_starts_over_with_time() -> None:
    """tf2_ros as far as it is used: it ignores poses that are 10 s older than a frame's newest one."""

    class Buffer:
        def __init__(self) -> None:
            self.newest_ns: dict[str, int] = {}

        def clear(self) -> None:
            self.newest_ns.clear()

        def set_transform(self, message: TransformStamped, authority: str) -> None:
            frame, stamp = message.child_frame_id, message.header.stamp
            at_ns = stamp.sec * SECOND + stamp.nanosec
            if at_ns >= self.newest_ns.get(frame, at_ns) - 10 * SECOND:
                self.newest_ns[frame] = max(at_ns, self.newest_ns.get(frame, at_ns))

    class TransformListener:
        def __init__(self, buffer: Buffer, node: object, *, spin_thread: bool) -> None:
            self.buffer = buffer

        def hear(self, child: str, stamp_ns: int) -> None:
            self.buffer.set_transform(sample("map", child, ODOM, stamp_ns), "default_authority")

    tf2_ros = SimpleNamespace(Buffer=Buffer, TransformListener=TransformListener)
    transforms = Tf2Transforms(None, tf2_ros)  # type: ignore[arg-type]
    hear, known_ns = transforms._listener.hear, transforms._buffer.newest_ns
    hear("odom", START)
    hear("odom", START + 12 * SECOND)
    hear("base", START)  # another frame may be slower
    hear("odom", START + 4 * SECOND)  # in the wrong order
    assert known_ns == {"odom": START + 12 * SECOND, "base": START}
    hear("odom", START)  # a bag that plays again
    hear("odom", START + SECOND)
    assert known_ns == {"odom": START + SECOND}
