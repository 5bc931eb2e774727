"""Why the middleware starts no node, in one sentence: mostly because of ROS's security settings."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Sequence

from pam_ros.errors import InputError

_ENABLED, _KEYSTORE = "ROS_SECURITY_ENABLE", "ROS_SECURITY_KEYSTORE"
_SOURCE = re.compile(r", at \S+:\d+")  # where in its sources a ROS library failed


def security_is_on() -> bool:
    """Whether the environment asks for SROS2."""
    return os.environ.get(_ENABLED, "") == "true"


def one_line(error: Exception) -> str:
    """What a ROS library says, without the places in its sources."""
    return " ".join(_SOURCE.sub("", str(error)).split())


def check_parameter_files(argv: Sequence[str]) -> None:
    """Raises InputError for a --params-file that is not a regular file; rcl's own message is unclear."""
    for option, name in itertools.pairwise(argv):
        if option == "--params-file" and not os.path.isfile(name):
            raise InputError(f"there is no parameters file {name}; check the path after --params-file")


def why_not_started(error: Exception) -> str:
    """The sentence for rclpy's error while it is initialised or creates a node."""
    first_line = _SOURCE.sub("", str(error).strip().split("\n")[0]).rstrip(".!")
    if not security_is_on():
        return f"the node cannot be created: {first_line}"
    on = f"security is on ({_ENABLED}=true), but"
    off = f"or unset {_ENABLED}; see docs/security.md"
    if "security libraries" in str(error):
        return (
            f"{on} this Fast DDS was built without its security libraries, as in the ROS wheels: "
            f"use a ROS distribution's, {off}"
        )
    keystore = os.environ.get(_KEYSTORE, "")
    if not os.path.isdir(keystore):
        return f"{on} {_KEYSTORE}={keystore!r} names no folder: create a keystore with sros2, {off}"
    if re.match("failed to create (subscription|publisher|service|client)", first_line, re.IGNORECASE):
        return (
            f"{on} the policy of the enclave does not allow a topic or service, which Fast DDS names above: "
            f"add it to the policy and create the permission again, {off}"
        )
    return (
        f"{on} the node cannot be created: {first_line}. Check --enclave and the keystore {keystore}, {off}"
    )
