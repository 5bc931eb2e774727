"""The package's DDS profile is named in the environment, unless the user has chosen."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from pam_ros.nodes import dds_profile
from pam_ros.nodes.dds_profile import USE_MEMORY_POLICY, VARIABLES, profile_file, use_image_profile

QUEUE, LARGE_MIB = 10, 4
# Fills the queue of a publisher with large messages, then with small ones → growth of the process, MiB.
GROWTH = """
import sys
import psutil, rclpy
from pam_ros.nodes import heap
from rclpy.qos import DurabilityPolicy, QoSProfile
from std_msgs.msg import UInt8MultiArray

queue, large_mib = map(int, sys.argv[1:])
rclpy.init()
qos = QoSProfile(depth=queue, durability=DurabilityPolicy.TRANSIENT_LOCAL)  # a queue without subscribers, too
publisher = rclpy.create_node("growth").create_publisher(UInt8MultiArray, "growth", qos)
large = UInt8MultiArray(data=bytes(large_mib << 20))

def publish(message):
    for _ in range(queue):
        publisher.publish(message)
    heap.trim()
    return psutil.Process().memory_info().rss / 2**20

before = publish(UInt8MultiArray())
publish(large)
print(publish(UInt8MultiArray()) - before)
"""


@pytest.fixture(autouse=True)
def room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shared memory of 1 GiB, all free."""
    usage = dds_profile.shutil._ntuple_diskusage(1 << 30, 0, 1 << 30)  # type: ignore[attr-defined]
    monkeypatch.setattr(dds_profile.shutil, "disk_usage", lambda path: usage)


def test_both_names_get_the_profile_of_the_package() -> None:
    environment = {"ROS_DOMAIN_ID": "7"}
    assert use_image_profile(environment)
    named = dict.fromkeys(VARIABLES, str(profile_file()))
    assert environment == {"ROS_DOMAIN_ID": "7"} | named | {USE_MEMORY_POLICY: "1"}
    assert "pam_ros_shm" in ElementTree.parse(profile_file()).getroot().itertext()


@pytest.mark.parametrize("name", VARIABLES)
@pytest.mark.parametrize("value", ["/robot/profile.xml", ""])
def test_what_the_user_has_set_stays(name: str, value: str) -> None:
    environment = {name: value}
    assert not use_image_profile(environment)
    assert environment == {name: value}


def test_a_profile_that_a_launch_file_named_counts_in_full() -> None:
    named = {VARIABLES[0]: str(profile_file())}
    environment = dict(named)
    assert use_image_profile(environment)
    assert environment == named | {USE_MEMORY_POLICY: "1"}
    environment = named | {USE_MEMORY_POLICY: "0"}
    assert use_image_profile(environment)
    assert environment[USE_MEMORY_POLICY] == "0"


def test_the_memory_of_large_messages_is_freed_with_them() -> None:
    kept = {policy: kept_mib(policy) for policy in ("0", "1")}
    assert kept["0"] > 0.9 * QUEUE * LARGE_MIB
    assert kept["1"] < 0.1 * QUEUE * LARGE_MIB


def kept_mib(policy: str) -> float:
    """By how much a process grew after a queue of large messages was replaced by small ones."""
    environment = os.environ | dict.fromkeys(VARIABLES, str(profile_file())) | {USE_MEMORY_POLICY: policy}
    command = [sys.executable, "-c", GROWTH, str(QUEUE), str(LARGE_MIB)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    return float(done.stdout)


def test_without_room_in_shared_memory_the_defaults_stay(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environment: dict[str, str] = {}
    usage = dds_profile.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(dds_profile.shutil, "disk_usage", lambda path: usage._replace(free=60 << 20))
    assert not use_image_profile(environment)
    monkeypatch.undo()
    assert not use_image_profile(environment, str(tmp_path / "none"))
    assert environment == {}
