"""Downloads a model from the hub with progress; verifies sizes and checksums."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from pam_ros.errors import CheckpointError, ModelNotFoundError
from pam_ros.model.config import HubFile, list_models

BLOCK_BYTES = 16 * 2**20


def fetch_model(name: str) -> Iterator[str]:
    """Downloads what models/<name>.yaml names (resuming, skipping what is there); yields lines for the user.

    Raises ModelNotFoundError for an unknown name or an unreachable hub, CheckpointError for a damaged file.
    """
    described = list_models()
    if name not in described:
        raise ModelNotFoundError(f"unknown model {name!r}; available: {', '.join(described)}")
    description = described[name]
    if description.hub is None:
        yield f"{name} is bundled with this package; nothing to download"
        return
    yield f"licence: {description.licence}"
    try:
        folder = snapshot_download(description.hub.hub_id, allow_patterns=[description.hub.pattern, "*.json"])
        yield f"weights: {folder}"
        if description.sam2 is not None:
            path = Path(hf_hub_download(description.sam2.hub_id, description.sam2.pattern))
            check_file(path, description.sam2)
            yield f"SAM 2: {path} (checksum verified)"
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelNotFoundError(f"cannot download {name}: {error}") from error


def check_file(path: Path, expected: HubFile) -> None:
    """Raises CheckpointError if size or SHA-256 differ from the description."""
    size = path.stat().st_size
    if expected.bytes is not None and size != expected.bytes:
        raise CheckpointError(
            f"{path} has {size} bytes, expected {expected.bytes}; delete it and run pam fetch again"
        )
    if expected.sha256 is None:
        return
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    if digest.hexdigest() != expected.sha256:
        found = digest.hexdigest()
        raise CheckpointError(
            f"{path} has SHA-256 {found}, expected {expected.sha256}; delete it and run pam fetch again"
        )
