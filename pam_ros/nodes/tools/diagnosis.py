"""`pam doctor`, the part with ROS: distribution, interfaces, middleware, its profile, and shared memory."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from xml.etree import ElementTree

from rclpy.utilities import get_rmw_implementation_identifier

import pam_ros.msg
from pam_ros.findings import Finding, Verdict
from pam_ros.nodes.dds_profile import VARIABLES, profile_file

MIB = 2**20
SHARED_MEMORY_MIB = 256  # a few images of a large camera; Docker gives 64 MiB
# Environment variables that name a profile, by middleware.
PROFILES = {
    "rmw_fastrtps": VARIABLES,
    "rmw_cyclonedds": ("CYCLONEDDS_URI",),
    "rmw_zenoh": ("ZENOH_SESSION_CONFIG_URI",),
}


def ros_findings(environment: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """What ROS is used, and what of it could keep messages from arriving."""
    distribution = environment.get("ROS_DISTRO", "Python wheels (no distribution is sourced)")
    yield Finding("ros", "distribution", distribution)
    yield Finding("ros", "interfaces", f"pam_ros.msg from {Path(pam_ros.msg.__file__).parent}")
    rmw = get_rmw_implementation_identifier()
    chosen = environment.get("RMW_IMPLEMENTATION")
    yield Finding("ros", "middleware", f"{rmw} (RMW_IMPLEMENTATION={chosen})" if chosen else rmw)
    domain = environment.get("ROS_DOMAIN_ID", "0")
    reach = environment.get("ROS_AUTOMATIC_DISCOVERY_RANGE", "SUBNET")
    localhost = environment.get("ROS_LOCALHOST_ONLY", "0") == "1" or reach in ("LOCALHOST", "OFF")
    yield Finding(
        "ros",
        "discovery",
        f"domain {domain}, range {reach}{', this machine only' if localhost else ''}",
        Verdict.NOTE if localhost else Verdict.OK,
        "unset ROS_LOCALHOST_ONLY and ROS_AUTOMATIC_DISCOVERY_RANGE to reach other machines"
        if localhost
        else "",
    )
    yield profile_finding(rmw, environment)
    yield shared_memory_finding()


def profile_finding(rmw: str, environment: Mapping[str, str]) -> Finding:
    """The middleware's profile: none, or an XML file that can be read."""
    names = next((names for prefix, names in PROFILES.items() if rmw.startswith(prefix)), ())
    name = next((each for each in names if environment.get(each)), "")
    if not name and rmw.startswith("rmw_fastrtps"):
        value = "none set: pam_ros uses its own; a camera driver without one loses uncompressed images"
        fix = "in the camera's terminal: export " + " ".join(f"{each}={profile_file()}" for each in names)
        return Finding("ros", "DDS profile", value, Verdict.NOTE, fix)
    if not name:
        return Finding("ros", "DDS profile", "none; the middleware's defaults")
    given = environment[name].removeprefix("file://")
    if given.lstrip().startswith("<") or not given.endswith(".xml"):  # XML in the variable, or Zenoh's JSON5
        return Finding("ros", "DDS profile", f"{name} is set")
    fix = f"correct or unset {name}; the middleware ignores a profile that it cannot read"
    try:
        ElementTree.parse(given)
    except (OSError, ElementTree.ParseError) as error:
        return Finding("ros", "DDS profile", f"{name}={given}: {error}", Verdict.ERROR, fix)
    return Finding("ros", "DDS profile", f"{name}={given}")


def shared_memory_finding(folder: str = "/dev/shm") -> Finding:
    """Room for images between processes of this machine."""
    if not Path(folder).is_dir():
        return Finding("ros", "shared memory", f"no {folder}; messages go through UDP", Verdict.NOTE)
    total = shutil.disk_usage(folder).total / MIB
    if total < SHARED_MEMORY_MIB:
        fix = "start the container with --shm-size 1g or --ipc host"
        return Finding("ros", "shared memory", f"{folder} has {total:.0f} MiB", Verdict.NOTE, fix)
    return Finding("ros", "shared memory", f"{folder} has {total:.0f} MiB")


def main() -> None:
    """Prints the findings as JSON, for `pam doctor`, which runs this in a process of its own."""
    json.dump([finding.as_json() for finding in ros_findings()], sys.stdout)
