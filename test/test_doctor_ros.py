"""`pam doctor`, the part with ROS: middleware, its profile, shared memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from pam_ros.cli import doctor
from pam_ros.findings import Verdict
from pam_ros.nodes.tools import diagnosis


def test_a_middleware_that_is_not_installed_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RMW_IMPLEMENTATION", "rmw_nowhere_cpp")
    (found,) = doctor.ros_findings()
    assert found.verdict is Verdict.ERROR
    assert "rmw_nowhere_cpp" in found.value
    assert "RMW_IMPLEMENTATION" in found.fix


def test_the_findings_of_the_other_process_come_back() -> None:
    assert "middleware" in {finding.name for finding in doctor.ros_findings()}


def test_the_real_middleware_is_named() -> None:
    found = {each.name: each for each in diagnosis.ros_findings({"ROS_DOMAIN_ID": "7"})}
    assert found["middleware"].value.startswith("rmw_")
    assert found["discovery"].value == "domain 7, range SUBNET"
    assert found["discovery"].verdict is Verdict.OK


def test_a_discovery_that_stays_on_this_machine_is_noted() -> None:
    for environment in ({"ROS_LOCALHOST_ONLY": "1"}, {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}):
        found = {each.name: each for each in diagnosis.ros_findings(environment)}["discovery"]
        assert found.verdict is Verdict.NOTE
        assert "unset" in found.fix


@pytest.mark.parametrize("content", [None, "<dds><profiles></dds>"])
def test_a_profile_that_cannot_be_read_is_an_error(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "profile.xml"
    if content is not None:
        path.write_text(content)
    found = diagnosis.profile_finding("rmw_fastrtps_cpp", {"FASTRTPS_DEFAULT_PROFILES_FILE": str(path)})
    assert found.verdict is Verdict.ERROR
    assert str(path) in found.value
    assert "FASTRTPS_DEFAULT_PROFILES_FILE" in found.fix


def test_other_profiles_are_named(tmp_path: Path) -> None:
    path = tmp_path / "profile.xml"
    path.write_text("<dds/>")
    for name, value in (("CYCLONEDDS_URI", f"file://{path}"), ("CYCLONEDDS_URI", "<CycloneDDS/>")):
        found = diagnosis.profile_finding("rmw_cyclonedds_cpp", {name: value})
        assert found.verdict is Verdict.OK
        assert name in found.value
    assert "none" in diagnosis.profile_finding("rmw_cyclonedds_cpp", {"ROS_DOMAIN_ID": "3"}).value


def test_the_shipped_profile_is_proposed_for_fast_dds_and_accepted() -> None:
    found = diagnosis.profile_finding("rmw_fastrtps_cpp", {"CYCLONEDDS_URI": "x"})
    assert found.verdict is Verdict.NOTE
    names = dict(part.split("=") for part in found.fix.rpartition("export ")[2].split())
    assert set(names) == set(diagnosis.VARIABLES)
    name, path = names.popitem()
    assert diagnosis.profile_finding("rmw_fastrtps_cpp", {name: path}).verdict is Verdict.OK


def test_shared_memory_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = diagnosis.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(diagnosis.shutil, "disk_usage", lambda path: usage._replace(total=64 * 2**20))
    found = diagnosis.shared_memory_finding(str(tmp_path))
    assert (found.verdict, found.fix) == (
        Verdict.NOTE,
        "start the container with --shm-size 1g or --ipc host",
    )
    assert diagnosis.shared_memory_finding(str(tmp_path / "none")).verdict is Verdict.NOTE
