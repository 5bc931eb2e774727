"""The DDS profile of this package: room for images in Fast DDS's shared memory (docs/transport.md)."""

from __future__ import annotations

import os
import shutil
from collections.abc import MutableMapping
from pathlib import Path

from pam_ros.share import share_folder

# Fast DDS 2 (Jazzy) and 3 (Kilted and later) read different variables.
VARIABLES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")
FILE_NAME = "fastdds.xml"
_SHARED_MEMORY = "/dev/shm"
_NEEDED_BYTES = 128 << 20  # the profile's segment, and as much for others


def profile_file() -> Path:
    """The profile that comes with the package."""
    return share_folder("config", FILE_NAME) / FILE_NAME


def use_image_profile(
    environment: MutableMapping[str, str] = os.environ, shared_memory: str = _SHARED_MEMORY
) -> bool:
    """Names the profile in the environment; call it before `rclpy.init`. Returns whether it did.

    It does not if the user has set one of the variables, be it to nothing, or if shared memory is too small.
    """
    if any(name in environment for name in VARIABLES):
        return False
    try:
        free = shutil.disk_usage(shared_memory).free
    except OSError:  # this machine has none
        return False
    if free < _NEEDED_BYTES:
        return False
    environment.update(dict.fromkeys(VARIABLES, str(profile_file())))
    return True
