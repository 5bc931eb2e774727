"""The address of a text server, checked before anything is loaded. No torch."""

from __future__ import annotations

from pam_ros.errors import InputError
from pam_ros.model.schema import short


def server_address(url: str) -> str:
    """`http://host:8000`, or https; without a `/v1` at its end. Raises InputError for anything else."""
    import httpx2  # which takes as long as all else here

    try:
        parsed = httpx2.URL(url)
        port = parsed.port or 80
        valid = parsed.scheme in ("http", "https") and parsed.host and not parsed.query and port < 65536
        valid = valid and not any(letter.isspace() for letter in url)
    except (httpx2.InvalidURL, ValueError):
        valid = False
    if not valid:
        raise InputError(f"the text server's address is {short(url)}; give one like http://host:8000")
    return url.rstrip("/").removesuffix("/v1")
