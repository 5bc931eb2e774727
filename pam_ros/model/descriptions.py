"""The model descriptions in models/*.yaml: where each model comes from and what it needs. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from pam_ros.errors import CheckpointError
from pam_ros.share import share_folder

AUTO = "auto"  # the default model: see `loading.choice`
DEMONSTRATION = (
    "pam-tiny is a demonstration model: it knows rendered objects only. On real images both masks and names "
    "are wrong: do not judge PAM by it. For real scenes run `pam fetch pam-1.5b` (or pam-3b), then restart"
)


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file, or with `pattern` several, on the Hugging Face hub."""

    hub_id: str
    pattern: str  # a file's name, or "FOLDER/*"
    revision: str = "main"  # a commit, tag or branch; `pam fetch` records the commit it stands for
    bytes: int | None = None  # exact size of the one file, where known
    sha256: str | None = None
    about_bytes: int | None = None  # of several files together

    @property
    def local_name(self) -> str:
        """Its folder's name below `models_folder`."""
        return self.hub_id.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """One models/*.yaml: where a model comes from and what it needs."""

    name: str
    licence: str
    summary: str
    path: Path  # of the yaml file
    folder: str | None = None  # bundled weights, beside the yaml file
    hub: HubFile | None = None
    sam2: HubFile | None = None
    working_memory_gib: float = 0.25  # beside the weights, for one region and one clip
    max_new_tokens: int = 512
    demonstration: bool = False  # it knows rendered objects only
    licence_terms: str = ""  # what a user must agree to before the download; empty: nothing

    @property
    def sources(self) -> tuple[HubFile, ...]:
        """What is to be downloaded; empty for a bundled model."""
        return tuple(source for source in (self.hub, self.sam2) if source is not None)

    @property
    def fetch_command(self) -> str:
        """The command that downloads it."""
        return f"pam fetch {self.name}" + (" --accept-licence" if self.licence_terms else "")


def list_models() -> dict[str, ModelDescription]:
    """Every described model by name."""
    paths = sorted(share_folder("models", "*.yaml").glob("*.yaml"))
    return {description.name: description for description in map(read_description, paths)}


def read_description(path: Path) -> ModelDescription:
    """Reads one models/*.yaml. Raises CheckpointError for a key it does not know."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    try:
        for key in ("hub", "sam2"):
            if key in content:
                content[key] = HubFile(**content[key])
        return ModelDescription(path=path, **content)
    except TypeError as error:
        raise CheckpointError(f"{path}: {error}") from error
