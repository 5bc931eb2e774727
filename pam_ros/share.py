"""The package's version, and its data files in a source checkout or under share/pam_ros."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from xml.etree import ElementTree


def share_folder(name: str, pattern: str) -> Path:
    """The folder `name` (models, config) with files that match `pattern`. Raises FileNotFoundError."""
    for parent in Path(__file__).resolve().parents:
        for candidate in (parent / name, parent / "share" / "pam_ros" / name):
            if any(candidate.glob(pattern)):
                return candidate
    raise FileNotFoundError(
        f"no folder {name} with {pattern} above {__file__}; the installation is incomplete, reinstall pam_ros"
    )


def version() -> str:
    """Of this package, as package.xml has it."""
    try:
        return metadata.version("pam_ros")
    except metadata.PackageNotFoundError:  # built by colcon: nothing but package.xml knows it
        text = (share_folder(".", "package.xml") / "package.xml").read_text(encoding="utf-8")
        found = ElementTree.fromstring(text).findtext("version")
        return found or "unknown"
