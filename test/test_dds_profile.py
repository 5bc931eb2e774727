"""The package's DDS profile is named in the environment, unless the user has chosen."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from pam_ros.nodes import dds_profile
from pam_ros.nodes.dds_profile import VARIABLES, profile_file, use_image_profile


@pytest.fixture(autouse=True)
def room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shared memory of 1 GiB, all free."""
    usage = dds_profile.shutil._ntuple_diskusage(1 << 30, 0, 1 << 30)  # type: ignore[attr-defined]
    monkeypatch.setattr(dds_profile.shutil, "disk_usage", lambda path: usage)


def test_both_names_get_the_profile_of_the_package() -> None:
    environment = {"ROS_DOMAIN_ID": "7"}
    assert use_image_profile(environment)
    assert environment == {"ROS_DOMAIN_ID": "7"} | dict.fromkeys(VARIABLES, str(profile_file()))
    assert "pam_ros_shm" in ElementTree.parse(profile_file()).getroot().itertext()


@pytest.mark.parametrize("name", VARIABLES)
@pytest.mark.parametrize("value", ["/robot/profile.xml", ""])
def test_what_the_user_has_set_stays(name: str, value: str) -> None:
    environment = {name: value}
    assert not use_image_profile(environment)
    assert environment == {name: value}


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
