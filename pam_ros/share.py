"""Finds the package's data files in a source checkout or under share/pam_ros."""

from __future__ import annotations

from pathlib import Path


def share_folder(name: str, pattern: str) -> Path:
    """The folder `name` (models, config) with files that match `pattern`. Raises FileNotFoundError."""
    for parent in Path(__file__).resolve().parents:
        for candidate in (parent / name, parent / "share" / "pam_ros" / name):
            if any(candidate.glob(pattern)):
                return candidate
    raise FileNotFoundError(
        f"no folder {name} with {pattern} above {__file__}; the installation is incomplete, reinstall pam_ros"
    )
