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

from pam_ros.findings import Finding, Verdict
from pam_ros.msg import Region
from pam_ros.share import share_folder

MIB = 2**20
IMAGE_PROFILE = "fastdds.xml"  # see docs/transport.md
SHARED_MEMORY_MIB = 256  # a few images of a large camera; Docker gives 64 MiB
# Environment variables that name a profile, by middleware.
PROFILES = {
    "rmw_fastrtps": ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE"),
    "rmw_cyclonedds": ("CYCLONEDDS_URI",),
    "rmw_zenoh": ("ZENOH_SESSION_CONFIG_URI",),
}


def ros_findings(environment: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """What ROS is used, and what of it could keep messages from arriving."""
    distribution = environment.get("ROS_DISTRO", "Python wheels (no distribution is sourced)")
    yield Finding("ros", "distribution", distribution)
    yield Finding("ros", "interfaces", f"pam_ros.msg from {Path(str(Region.__module__))}")
    rmw = get_rmw_implementation_identifier()
    yield Finding(
        "ros", "middleware", f"{rmw} (RMW_IMPLEMENTATION={environment.get('RMW_IMPLEMENTATION', '')})"
    )
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
        value = "none; Fast DDS's own shared memory is too small for uncompressed images, which get lost"
        own = share_folder("config", IMAGE_PROFILE) / IMAGE_PROFILE
        return Finding("ros", "DDS profile", value, Verdict.NOTE, f"export {names[-1]}={own}")
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
