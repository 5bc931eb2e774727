"""`pam fetch`: downloads a model at a fixed commit, resumes, and verifies the hub's checksums."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

from pam_ros.errors import CheckpointError, ModelNotFoundError, OutputError, StateError
from pam_ros.model.descriptions import HubFile, ModelDescription, list_models
from pam_ros.model.loading.checksums import Expected, Record, find_wrong, leaves, verify
from pam_ros.model.loading.files import models_folder
from pam_ros.model.schema import readable
from pam_ros.output_files import writable_folder

HUB_TIMEOUT_S = 20.0
SPARE_BYTES = 256 * 2**20  # left free on the disk
# Files that loading needs, and the licences; images of model cards and other weights are left out.
WANTED_SUFFIXES = (".safetensors", ".json", ".txt", ".jinja", ".pt")
WANTED_NAMES = ("LICENSE", "LICENCE", "NOTICE")


class HubUnreachableError(StateError):
    """The hub does not answer; the message says how to bring the files here by hand."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file to fetch.

    Attributes:
        path: in the repository, and below the local folder.
        bytes: its size.
        present: bytes of it that are on this disk, all of them or the part that a stopped download left.
    """

    path: str
    bytes: int
    expected: Expected
    present: int


@dataclass(frozen=True, slots=True)
class FetchPlan:
    """What of one repository is to be downloaded where.

    Attributes:
        revision: the commit's hash, which the record names.
    """

    source: HubFile
    revision: str
    folder: Path
    files: tuple[RemoteFile, ...]

    @property
    def missing_bytes(self) -> int:
        """Bytes to download."""
        return sum(file.bytes - file.present for file in self.files)


def describe(name: str) -> ModelDescription:
    """A model that can be named. Raises ModelNotFoundError."""
    described = list_models()
    if name not in described:
        raise ModelNotFoundError(f"unknown model {name!r}; available: {', '.join(described)}")
    return described[name]


def plan_fetch(description: ModelDescription, revision: str | None = None) -> list[FetchPlan]:
    """Asks the hub for sizes and checksums; downloads nothing.

    A repository that was fetched before stays at its recorded commit, unless `revision` names another.
    `revision` is of the model, SAM 2's is its description's.

    Raises HubUnreachableError, or ModelNotFoundError if the hub has no such repository, revision or file.
    """
    plans = []
    for source in description.sources:
        folder = models_folder() / source.local_name
        record = Record.read(folder)
        wanted = revision if source is description.hub else None
        wanted = wanted or (record.revision if record is not None else source.revision)
        try:
            info = HfApi().model_info(
                source.hub_id, revision=wanted, files_metadata=True, timeout=HUB_TIMEOUT_S
            )
        except (RepositoryNotFoundError, RevisionNotFoundError) as error:
            raise ModelNotFoundError(
                f"the hub has no {source.hub_id} at revision {wanted}: {_line(error)}"
            ) from error
        except (HfHubHTTPError, httpx2.HTTPError, OSError) as error:
            raise HubUnreachableError(_by_hand(description, _line(error))) from error
        files = [_remote_file(folder, sibling, record) for sibling in info.siblings or []]
        chosen = _chosen(source, files)
        _check_announced(source, chosen)
        if not any(file.path.endswith((".safetensors", ".pt")) for file in chosen):
            raise ModelNotFoundError(
                f"{source.hub_id} at {info.sha} holds no weights that match {source.pattern}"
            )
        plans.append(FetchPlan(source, str(info.sha), folder, tuple(chosen)))
    return plans


def fetch(plans: Sequence[FetchPlan], report: Callable[[str], None] = lambda line: None) -> None:
    """Downloads what is missing, each file with a progress bar, and verifies every checksum.

    Files of another commit are removed, so that no load mixes the two. An interrupted download resumes where
    it stopped. Raises OutputError if the disk is too small or the folder not writable, HubUnreachableError if
    the hub stops answering, CheckpointError if a file is not what the hub announced.
    """
    for plan in plans:
        writable_folder(plan.folder)
    check_disk(plans)
    for plan in plans:
        expected = {file.path: file.expected for file in plan.files}
        _remove_others(plan, expected, report)
        # First, so that an unfinished download is recognised as such.
        Record(plan.source.hub_id, plan.revision, expected).write(plan.folder)
        for file in plan.files:
            _download(plan, file)
        verify(plan.folder, expected, report, remove=True)
        report(f"{plan.source.hub_id}: {len(expected)} files in {plan.folder}, checksums verified")


@readable()
def check_disk(plans: Sequence[FetchPlan]) -> None:
    """Raises OutputError, naming needed and free bytes, if the download does not fit."""
    needed = sum(plan.missing_bytes for plan in plans)
    place = models_folder()
    existing = next(folder for folder in (place, *place.resolve().parents) if folder.is_dir())
    free = shutil.disk_usage(existing).free
    if needed and needed + SPARE_BYTES > free:
        raise OutputError(
            f"the download needs {size_of(needed)} in {place} but only {size_of(free)} are free; "
            "free some space, or set PAM_MODELS to a folder on a larger disk"
        )


def size_of(count: int) -> str:
    """1234567 → "1.2 MB"."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"


@readable()
def _remote_file(folder: Path, sibling: Any, record: Record | None) -> RemoteFile:
    """`sibling`: huggingface_hub's RepoSibling with size, blob_id and lfs. `record`: of what is there."""
    path, size = str(sibling.rfilename), int(sibling.size or 0)
    sha256 = sibling.lfs.sha256 if sibling.lfs is not None else None
    expected = Expected(bytes=size, sha256=sha256, git_sha1=None if sha256 else sibling.blob_id)
    known = record.files.get(path, expected) if record is not None else expected
    places = [folder / path] if known.checksum == expected.checksum else []  # else of another commit
    present = 0
    for there in (*places, _part(folder, path, expected)):
        if there.is_file() and there.stat().st_size <= size:
            present = max(present, there.stat().st_size)
    return RemoteFile(path, size, expected, present)


def _chosen(source: HubFile, files: Sequence[RemoteFile]) -> list[RemoteFile]:
    """The files of the subfolder, or those at the top if the subfolder has no weights; licences with them."""
    subfolder, _, name = source.pattern.rpartition("/")
    if not subfolder:
        return [file for file in files if file.path == name]
    inside = [file for file in files if file.path.startswith(f"{subfolder}/")]
    top = [file for file in files if "/" not in file.path]
    if not any(file.path.endswith(".safetensors") for file in inside):
        inside = top
    licences = [file for file in top if file.path.startswith(WANTED_NAMES) and file not in inside]
    wanted = [file for file in inside if file.path.endswith(WANTED_SUFFIXES)]
    return wanted + [file for file in inside if file.path.startswith(WANTED_NAMES)] + licences


def _check_announced(source: HubFile, files: Sequence[RemoteFile]) -> None:
    """Raises CheckpointError for a file without checksum, or another than the description's."""
    for file in files:
        if leaves(file.path):
            raise CheckpointError(f"{source.hub_id} names a file outside its folder: {file.path}")
        if file.expected.checksum is None:
            raise CheckpointError(
                f"the hub states no checksum of {source.hub_id}/{file.path}; nothing was downloaded"
            )
        if source.sha256 is not None and file.expected.sha256 != source.sha256:
            raise CheckpointError(
                f"the hub announces {source.hub_id}/{file.path} with SHA-256 {file.expected.sha256}, "
                f"expected {source.sha256}; nothing was downloaded"
            )


def _remove_others(plan: FetchPlan, expected: Mapping[str, Expected], report: Callable[[str], None]) -> None:
    """Removes files of the commit that was fetched before, unless this one has them with the same content."""
    record = Record.read(plan.folder)
    gone = record.files.keys() - expected.keys() if record is not None else set()
    whole = {
        file.path: file.expected
        for file in plan.files
        if (there := plan.folder / file.path).is_file() and there.stat().st_size == file.bytes
    }
    _, wrong = find_wrong(plan.folder, whole, report)
    changed = gone | wrong.keys()
    for path in changed:
        (plan.folder / path).unlink(missing_ok=True)
    if any(path.endswith(".safetensors") for path in changed):
        _remove_calibration(plan, changed, report)


def _remove_calibration(plan: FetchPlan, changed: set[str], report: Callable[[str], None]) -> None:
    """Removes what was measured on the weights before."""
    from pam_ros.model.text.confidence import CONFIDENCE, FAMILIARITY  # imports torch

    for folder in {(plan.folder / path).parent for path in changed}:
        for stale in (folder / CONFIDENCE, folder / FAMILIARITY):
            if stale.is_file():
                stale.unlink()
                report(f"{stale} belonged to other weights and is removed; calibrate the model again")


def _part(folder: Path, path: str, expected: Expected) -> Path:
    """Where a download grows; its name holds the checksum, so that another version never continues it."""
    checksum = (expected.checksum or "")[:12]
    return folder / f"{path}.{checksum}.part"


def _download(plan: FetchPlan, file: RemoteFile) -> None:
    """Fetches one file, unless it is there with its size (`verify` reads its content afterwards)."""
    target, part = plan.folder / file.path, _part(plan.folder, file.path, file.expected)
    if target.is_file() and target.stat().st_size == file.bytes:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if part.is_file() and part.stat().st_size > file.bytes:
        part.unlink()
    url = hf_hub_url(plan.source.hub_id, file.path, revision=plan.revision)
    try:
        with part.open("ab") as stream:
            http_get(
                url,
                stream,
                resume_size=stream.tell(),
                headers=build_hf_headers(),
                expected_size=file.bytes,
                displayed_filename=file.path,
            )
    except (HfHubHTTPError, httpx2.HTTPError) as error:
        raise HubUnreachableError(
            f"the download of {file.path} stopped at {size_of(part.stat().st_size)} of {size_of(file.bytes)} "
            f"({_line(error)}); run pam fetch again, it continues there"
        ) from error
    except OSError as error:  # of the disk; or the hub sent another size than it announced
        raise CheckpointError(f"cannot download {file.path}: {_line(error)}") from error
    part.replace(target)


def by_hand(description: ModelDescription) -> Iterator[str]:
    """Lines for a machine without the hub: files, sizes, and the folder to copy each to."""
    for source in description.sources:
        folder = models_folder() / source.local_name
        record = Record.read(folder)
        yield f"{source.hub_id}, copy to {folder}/"
        if record is not None:
            for path, expected in record.files.items():
                here = "here" if (folder / path).is_file() else "missing"
                yield f"    {path}  {size_of(expected.bytes or 0)}  {here}"
        elif source.bytes is not None:
            yield f"    {source.pattern}  {source.bytes} bytes  SHA-256 {source.sha256}"
        else:
            yield (
                f"    {source.pattern}: config.json, the tokenizer's files, every *.safetensors  "
                f"about {size_of(source.about_bytes or 0)}"
            )
    yield "    or copy the folder of a machine that has run pam fetch, with its pam_fetch.json"


def _by_hand(description: ModelDescription, why: str) -> str:
    lines = "\n".join(by_hand(description))
    return f"cannot reach the hub ({why}). To install without a network, copy these files:\n{lines}"


def _line(error: BaseException) -> str:
    """The first line of an error."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
