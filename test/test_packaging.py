"""Packaging: the manifest, pinned versions, message types on the wire, executables, installation by pip."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SETUP = ROOT / ".setup"
MANIFEST = ElementTree.parse(ROOT / "package.xml").getroot()

# rosdep keys of system packages, each looked up in rosdistro's rosdep/python.yaml.
SYSTEM_KEYS = {
    "python3-numpy", "python3-opencv", "python3-pil", "python3-psutil", "python3-pytest",
    "python3-pytest-timeout", "python3-rich", "python3-typer", "python3-yaml",
}  # fmt: skip
# ROS packages, each looked up in the index of Jazzy, Kilted and Lyrical.
ROS_PACKAGES = {
    "action_msgs", "ament_cmake", "ament_cmake_pytest", "ament_cmake_python", "ament_index_python",
    "builtin_interfaces", "diagnostic_msgs", "geometry_msgs", "launch", "launch_ros",
    "lifecycle_msgs", "rcl_interfaces", "rclpy", "ros2launch", "rosidl_default_generators",
    "rosidl_default_runtime", "sensor_msgs", "std_msgs", "std_srvs", "tf2_msgs", "tf2_ros_py", "vision_msgs",
    "visualization_msgs",
}  # fmt: skip

# Two machines understand each other only if these hashes agree. From the released vision_msgs.
VISION_MSGS_TYPES = {
    "Point2D": "eab0e83f44ab4de92ceaf76dd7d0e7638f2bdd1d16ffbe16c7a136c48e407247",
    "Pose2D": "b0b5d1d7b4c20dd4fcde3ed1d4b289a919290572007d67a97043814db25d3648",
    "BoundingBox2D": "008eacbb0cf8f26e83795547bed013eec3675485ef386ec056d80eaaf1c1ce2f",
    "ObjectHypothesis": "51da43cec11c01957a64d1e05a24acd18aae7745ec30b74348ad5f6d634f7f90",
    "ObjectHypothesisWithPose": "41c12344c0396c48b81df12467c192d99b2a0eb1463c5c37194e4223251c80bc",
    "Detection2D": "0d12b69df5c593b3455b7346fac8205437a7d4bcb09b9e0e0b2dde787ded38ea",
    "Detection2DArray": "214274120007f4a683866481336b70310268cfa107aebe9d594a6acf75bda968",
    "BoundingBox3D": "bbb73a65c163d7f9bb29009c7bde9f7faa576bd2d23299c4511d19230dab4698",
    "Detection3D": "ddd703be132ab0b69d33121f1bb034132bfbb3b0ac5f9fb1516005ba1c8a265b",
    "Detection3DArray": "793f5eab9595ac1c0da07873cc859db42eae51f0ee76056db8562515d830e018",
    "VisionClass": "1e4a11f0fed50b5623cb8ff26ca0e37952a48a9c074d16f804b44e9164c2037a",
    "LabelInfo": "3d37df4015cdf660cc851c51897f2acd957e1ca6205ba0a99aebffb9406b0783",
}


def prefix_of(package: str) -> Path:
    """The folder into which colcon or the distribution installed `package`."""
    for prefix in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep):
        if prefix and (Path(prefix) / "share" / package / "package.xml").is_file():
            return Path(prefix)
    pytest.skip(f"ROS package {package} is not installed; run `make test`")


def dependencies() -> set[str]:
    """Every key in any depend tag of package.xml."""
    return {str(tag.text) for tag in MANIFEST if tag.tag.endswith("depend")}


# --- the manifest


def test_manifest_format_name_licence_and_build_type() -> None:
    assert MANIFEST.get("format") == "3"
    assert MANIFEST.findtext("name") == "pam_ros"
    assert MANIFEST.findtext("license") == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert MANIFEST.findtext("export/build_type") == "ament_cmake"
    assert MANIFEST.findtext("member_of_group") == "rosidl_interface_packages"


def test_manifest_depends_only_on_known_keys() -> None:
    assert dependencies() <= SYSTEM_KEYS | ROS_PACKAGES


def test_manifest_names_every_imported_ros_package() -> None:
    imported = set()
    for path in [*(ROOT / "pam_ros" / "nodes").rglob("*.py"), *(ROOT / "launch").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.split(".")[0])
    if "tf2_ros" in imported:
        imported.add("tf2_ros_py")  # the package that holds this module
    ros = {name for name in imported if name in ROS_PACKAGES or name.endswith(("_msgs", "_interfaces"))}
    assert {"rclpy", "sensor_msgs", "launch_ros"} <= ros
    assert ros <= dependencies()


def test_cmake_lists_every_message_package_that_interfaces_use() -> None:
    cmake = (ROOT / "CMakeLists.txt").read_text()
    given = set(re.search(r"set\(message_packages ([^)]+)\)", cmake)[1].split())  # type: ignore[index]
    texts = [path.read_text() for folder in ("msg", "srv", "action") for path in (ROOT / folder).iterdir()]
    used = {name for text in texts for name in re.findall(r"^([a-z]\w+)/", text, flags=re.MULTILINE)}
    assert used <= given <= dependencies()


# --- pins


def pins() -> dict[str, str]:
    """Name → version of every package that a requirements file names."""
    found = {}
    for name in ("model", "arrays", "training", "view", "openvino", "quantization", "dev", "ros_wheels"):
        for line in (SETUP / f"{name}.txt").read_text().splitlines():
            if line and not line.startswith("#"):
                requirement, _, marker = line.partition(";")
                package, _, version = requirement.partition("==")
                assert version, f"{name}.txt: {line!r} is not pinned"
                if '< "3.11"' not in marker and '>= "3.14"' not in marker:
                    found[package.strip()] = version.strip()
    return found


def locked() -> dict[str, list[tuple[str, str]]]:
    """Name → version and marker of every package in the locks. Each has the hashes of its files."""
    found: dict[str, list[tuple[str, str]]] = {}
    for name in ("requirements", "no_deps"):
        text = (SETUP / f"{name}.lock").read_text().replace("\\\n", "")
        for line in text.splitlines():
            if not line.startswith("#"):
                requirement, *hashes = re.split(r"\s+--hash=", line.strip())
                assert hashes and all(re.fullmatch("sha256:[0-9a-f]{64}", each) for each in hashes), line
                package, _, rest = requirement.partition("==")
                version, _, marker = rest.partition(" ; ")
                found.setdefault(package, []).append((version, marker))
    return found


def test_the_locks_hold_every_pin() -> None:
    """After a change of a pin: .setup/lock.sh."""
    found = locked()
    normal = {re.sub(r"[-_.]+", "-", name).lower(): versions for name, versions in found.items()}
    missing = [
        f"{name}=={version}"
        for name, version in pins().items()
        if version not in [each for each, _ in normal.get(re.sub(r"[-_.]+", "-", name).lower(), [])]
    ]
    assert not missing, f"run .setup/lock.sh: {missing}"
    assert "sam2" in found and "torch" in found and len(found) > 300


def test_every_pin_is_documented() -> None:
    page = (ROOT / "docs" / "dependencies.md").read_text()
    assert len(pins()) > 20
    for package, version in pins().items():
        if not package.startswith("ros-jazzy-"):  # one line for all of them
            assert re.search(rf"^\| `{re.escape(package)}` \| {re.escape(version)}\b", page, re.MULTILINE), (
                f"docs/dependencies.md lacks a line for {package} {version}"
            )


# --- the container


def test_the_dockerfile_copies_what_exists_and_runs_what_parses() -> None:
    text = (SETUP / "docker" / "Dockerfile").read_text().replace("\\\n", " ")
    steps = [line.partition(" ")[::2] for line in text.splitlines() if re.match(r"[A-Z]+ ", line)]
    sources = [name for step, rest in steps if step == "COPY" for name in rest.split()[:-1]]
    assert len(sources) >= 4
    assert [name for name in sources if name != "." and not list(ROOT.glob(name))] == []
    scripts = [rest for step, rest in steps if step == "RUN"]
    scripts += [json.loads(rest)[2] for step, rest in steps if step == "ENTRYPOINT"]
    for script in scripts:
        done = subprocess.run(["bash", "-n", "-c", script], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    allowed = (SETUP / "docker" / "Dockerfile.dockerignore").read_text().split()
    linked = re.search(r"for name in (.+); do", (SETUP / "build.sh").read_text())
    assert linked is not None
    assert {f"!{name}" for name in [*linked[1].split(), ".setup"]} <= set(allowed)


# --- installed for ROS


def type_hashes(package: str) -> dict[str, str]:
    """Message → RIHS01 hash, as the message generator wrote it."""
    folder = prefix_of(package) / "share" / package / "msg"
    hashes = {}
    for path in folder.glob("*.json"):
        for entry in json.loads(path.read_text())["type_hashes"]:
            if entry["type_name"].startswith(f"{package}/msg/"):
                hashes[entry["type_name"].rpartition("/")[2]] = entry["hash_string"]
    return hashes


def test_vision_msgs_equal_the_released_ones_on_the_wire() -> None:
    hashes = type_hashes("vision_msgs")
    built = {name: hashes.get(name) for name in VISION_MSGS_TYPES}
    assert built == {name: f"RIHS01_{digest}" for name, digest in VISION_MSGS_TYPES.items()}


# Every example with a `main`, and the camera that plays a clip.
EXAMPLES = [
    f"lib/pam_ros/{path.stem}"
    for path in sorted((ROOT / "pam_ros" / "examples").glob("*.py"))
    if "def main" in path.read_text()
] + ["lib/pam_ros/clip_camera"]


@pytest.mark.parametrize("folder", ["msg", "srv", "action"])
def test_every_interface_imports_beside_the_code(folder: str) -> None:
    prefix_of("pam_ros")
    module = importlib.import_module(f"pam_ros.{folder}")
    for path in (ROOT / folder).iterdir():
        assert hasattr(module, path.stem), f"{path.name} is not built"
    assert importlib.import_module("pam_ros.records")


@pytest.mark.parametrize(
    "name", ["lib/pam_ros/pam_node", "lib/pam_ros/pam", "bin/pam", "bin/pam_node", *EXAMPLES]
)
def test_executables_run_in_the_active_python(name: str) -> None:
    script = prefix_of("pam_ros") / name
    assert os.access(script, os.X_OK)
    assert script.read_text().splitlines()[0] == "#!/usr/bin/env python3"


def test_pam_starts_from_anywhere(tmp_path: Path) -> None:
    pam = prefix_of("pam_ros") / "bin" / "pam"
    done = subprocess.run([pam, "--help"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "perceive" in done.stdout


@pytest.mark.skipif("ROS_DISTRO" in os.environ or bool(shutil.which("ros2")), reason="this machine has ros2")
def test_run_sh_explains_that_the_ros2_command_is_missing() -> None:
    if not (ROOT / ".build" / "install" / "setup.bash").is_file():
        pytest.skip("nothing is built; run `make setup`")
    command = [ROOT / ".setup" / "run.sh", "ros2", "node", "list"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "neither the command ros2 nor launch" in done.stderr
    assert "run.sh pam_node" in done.stderr


def test_models_parameters_and_launch_files_are_installed() -> None:
    share = prefix_of("pam_ros") / "share" / "pam_ros"
    for folder in ("models", "config", "launch"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.suffix != ".pyc":
                installed = share / folder / path.relative_to(ROOT / folder)
                assert installed.read_bytes() == path.read_bytes()


# --- installed by pip; repaired wheels


def test_pip_installs_the_package_without_ros(tmp_path: Path) -> None:
    source, prefix = tmp_path / "source", tmp_path / "prefix"
    for name in ("pam_ros", "models", "config", ".setup"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "pam-tiny"))
    for name in ("setup.py", "pyproject.toml", "package.xml"):
        shutil.copy(ROOT / name, source)
    command = [
        sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
        "--no-build-isolation", "--ignore-installed", "--prefix", prefix, source,
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # Debian's pip installs below local/ and into dist-packages.
    (package,) = prefix.rglob("pam_ros/records.py")
    (script,) = prefix.rglob("bin/pam")
    probe = "import pam_ros.model.descriptions as config; print(config.__file__, *config.list_models())"
    environment = {**os.environ, "PYTHONPATH": str(package.parents[1])}
    command = [sys.executable, "-c", probe]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    file, *models = done.stdout.split()
    assert file == str(package.parent / "model" / "descriptions.py")
    assert "pam-tiny" in models
    assert os.access(script, os.X_OK)


def test_wheels_are_repaired_once(tmp_path: Path) -> None:
    export = tmp_path / "share" / "some_msgs" / "cmake" / "export_some_msgsExport.cmake"
    export.parent.mkdir(parents=True)
    built_on = "/opt/python/cp311-cp311"
    export.write_text(
        f'"{built_on}/include/python3.11;{built_on}/lib/python3.11/site-packages/numpy/_core/include;/kept"'
    )
    sys.path.insert(0, str(SETUP))
    try:
        mend = importlib.import_module("mend_wheels").mend
    finally:
        sys.path.remove(str(SETUP))
    assert mend(tmp_path) == 1
    folders = export.read_text().strip('"').split(";")
    assert built_on not in export.read_text()
    assert folders[2] == "/kept"
    assert (Path(folders[1]) / "numpy" / "arrayobject.h").is_file()
    assert mend(tmp_path) == 0
