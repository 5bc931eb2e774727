"""The DDS profile of this package: room for images, memory that is freed (docs/transport.md)."""

from __future__ import annotations

import os
import shutil
from collections.abc import MutableMapping
from pathlib import Path

from pam_ros.share import share_folder

# Fast DDS 2 (Jazzy) and 3 (Kilted and later) read different variables.
VARIABLES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")
USE_MEMORY_POLICY = "RMW_FASTRTPS_USE_QOS_FROM_XML"  # "1": the profile says how endpoints use memory
FILE_NAME = "fastdds.xml"
_SHARED_MEMORY = "/dev/shm"
_NEEDED_BYTES = 128 << 20  # the profile's segment, and as much for others


def profile_file() -> Path:
    """The profile that comes with the package."""
    return share_folder("config", FILE_NAME) / FILE_NAME


def use_image_profile(
    environment: MutableMapping[str, str] = os.environ, shared_memory: str = _SHARED_MEMORY
) -> bool:
    """Names the profile in the environment; call it before `rclpy.init`. Returns whether it is in use.

    It is not if the user has set one of the variables to something else, even to an empty value, or if shared
    memory is too small. With it, its memory policy counts unless the user has set `USE_MEMORY_POLICY`.
    """
    chosen = {environment[name] for name in VARIABLES if name in environment}
    if not chosen and _has_room(shared_memory):
        chosen = {str(profile_file())}
        environment.update(dict.fromkeys(VARIABLES, str(profile_file())))
    ours = bool(chosen) and all(_is_ours(each) for each in chosen)
    if ours:
        environment.setdefault(USE_MEMORY_POLICY, "1")
    return ours


def _is_ours(value: str) -> bool:
    try:
        return os.path.samefile(value, profile_file())
    except OSError:  # there is no such file, or it cannot be read
        return False


def _has_room(shared_memory: str) -> bool:
    try:
        return shutil.disk_usage(shared_memory).free >= _NEEDED_BYTES
    except OSError:  # this machine has none
        return False
