"""Finds a model's files on this disk: bundled, fetched, in the hub's cache or in a folder. No torch."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pam_ros.errors import CheckpointError, ModelNotFoundError
from pam_ros.model.descriptions import HubFile, ModelDescription, list_models
from pam_ros.model.loading.checksums import Expected, Record, check_sizes, verify
from pam_ros.model.schema import check_folder, check_readable, readable, short

OFFICIAL_SAM2 = "sam2.1/sam2.1_hiera_l"
_CONTENTS = "a model's folder has config.json, tokenizer and *.safetensors; `pam models` lists what is here"


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Where the pieces of a model lie on this disk.

    Attributes:
        folder: holds config.json and the safetensors files.
        root: the folder that was given or downloaded; `folder` or its parent.
        sam2_weights: None if the safetensors hold SAM 2.
        sam2_architecture: a YAML file, or the name of one in package sam2.
        description: None for a folder that no models/*.yaml describes.
    """

    folder: Path
    weights: tuple[Path, ...]
    sam2_weights: Path | None
    sam2_architecture: Path | str
    description: ModelDescription | None
    root: Path

    @property
    def name(self) -> str:
        """The model's name as displayed."""
        return self.folder.resolve().name if self.description is None else self.description.name


def models_folder() -> Path:
    """Where `pam fetch` puts models: $PAM_MODELS, or pam_ros/models in the user's cache.

    Raises CheckpointError if the user has no home folder.
    """
    if chosen := os.environ.get("PAM_MODELS"):
        return _expanded(chosen)
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return _expanded(cache) / "pam_ros" / "models"


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise CheckpointError(f"{path}: no such home folder; set HOME, or PAM_MODELS to a folder") from None


@readable()
def find_files(name_or_path: str, sam2: Path | None) -> ModelFiles:
    """Finds a model's files without downloading.

    Raises ModelNotFoundError, which says where it looked, or CheckpointError if a download is incomplete or
    this user has no access.
    """
    described = list_models()
    by_hub = {d.hub.hub_id: d for d in described.values() if d.hub is not None}
    description = described.get(name_or_path) or by_hub.get(name_or_path)
    if description is None:
        root = Path(os.path.expanduser(name_or_path))  # leaves the name of an unknown user
        if not _is_folder(root):
            raise ModelNotFoundError(_no_model(name_or_path, tuple(described), tuple(by_hub)))
    elif description.folder is not None:
        root = description.path.parent / description.folder
    else:
        assert description.hub is not None
        root = _downloaded(description.hub, description)
    check_folder(root)
    folder = with_config(root)
    check_folder(folder)
    weights = tuple(sorted(folder.glob("*.safetensors")))
    if not weights:
        raise ModelNotFoundError(f"no *.safetensors file in {folder}; {_CONTENTS}")
    own = folder / "sam2.yaml"
    sam2_weights = _find_sam2((folder, root), sam2, description)
    if sam2_weights is not None:
        check_readable(sam2_weights)
    return ModelFiles(
        folder=folder,
        weights=weights,
        sam2_weights=sam2_weights,
        sam2_architecture=own if own.is_file() else OFFICIAL_SAM2,
        description=description,
        root=root,
    )


def _is_folder(path: Path) -> bool:
    """False also for a name that is too long for a file."""
    try:
        return path.is_dir()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return False
        raise


def _no_model(name_or_path: str, names: tuple[str, ...], hub_ids: tuple[str, ...]) -> str:
    """Why nothing of this name can be loaded; what looks like `owner/name` may be meant as a hub id."""
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name_or_path):
        return (
            f"{name_or_path} is neither a folder nor a hub id that `pam fetch` knows ({', '.join(hub_ids)}); "
            "download other models yourself and give their folder"
        )
    return f"unknown model {short(name_or_path)}; give auto, one of {', '.join(names)}, a hub id or a folder"


def _downloaded(source: HubFile, model: ModelDescription) -> Path:
    """The local copy of a model's repository: of `pam fetch`, or the hub's own.

    Raises ModelNotFoundError if there is none, CheckpointError if `pam fetch` did not finish it.
    """
    own = models_folder() / source.local_name
    if own.is_dir() and any(own.iterdir()):  # an empty one is what a download left that did not start
        if (record := Record.read(own)) is not None:
            check_sizes(own, record.files)
        return own
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source.hub_id, revision=source.revision, local_files_only=True))
    except (LocalEntryNotFoundError, OSError, ValueError) as error:
        raise ModelNotFoundError(
            f"{source.hub_id} is not on this disk (looked in {own} and in the hub's cache); "
            f"download it with: {model.fetch_command}"
        ) from error


def with_config(folder: Path) -> Path:
    """The folder itself or its one subfolder with a config.json (official checkpoints have either)."""
    for candidate in (folder, *sorted(p for p in folder.iterdir() if p.is_dir())):
        if (candidate / "config.json").is_file():
            return candidate
    raise ModelNotFoundError(f"no config.json in {folder} or its subfolders; {_CONTENTS}")


def _find_sam2(
    folders: tuple[Path, ...], given: Path | None, description: ModelDescription | None
) -> Path | None:
    """SAM 2's weight file: given, in a folder, or downloaded; None: the safetensors must hold it."""
    if given is not None and not given.is_file():
        raise ModelNotFoundError(f"no SAM 2 weights at {given}")
    if description is not None and description.folder is not None:  # bundled: one file holds everything
        if given is not None:
            raise CheckpointError(
                f"{description.name} includes its SAM 2 weights; do not give others ({given})"
            )
        return None
    if given is not None:
        return given
    beside = [path for folder in folders for path in sorted(folder.glob("sam2*.pt"))]
    if beside:
        return beside[0]
    if description is not None and description.sam2 is not None:
        with suppress(ModelNotFoundError):
            found = _downloaded(description.sam2, description) / description.sam2.pattern
            return found if found.is_file() else None
    return None


@readable()
def verify_files(files: ModelFiles, report: Callable[[str], None]) -> None:
    """Verifies every file whose checksum is known. Raises CheckpointError."""
    roots = [(files.root, "")]
    if files.root == files.folder:  # it may be the subfolder of a fetched folder
        whole = files.folder.resolve()
        roots.append((whole.parent, f"{whole.name}/"))
    for root, inside in roots:
        if (record := Record.read(root)) is not None:
            known = {name: each for name, each in record.files.items() if name.startswith(inside)}
            verify(root, known, report)
    if files.sam2_weights is not None:
        folder, name = files.sam2_weights.parent, files.sam2_weights.name
        source = files.description.sam2 if files.description is not None else None
        own = Record.read(folder)
        if source is not None and name == source.pattern:  # pinned, whatever a record says
            verify(folder, {name: Expected(bytes=source.bytes, sha256=source.sha256)}, report)
        elif own is not None and name in own.files:
            verify(folder, {name: own.files[name]}, report)
