"""Imports flow one way, nodes → runtime → model, without circles; planted violations are found."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "pam_ros"

# Modules that every room may import: values, errors, the package's files, images and videos on disk.
SHARED = {
    "records",
    "errors",
    "findings",
    "geometry",
    "oriented_box",
    "spilled_mask",
    "visible_surface",
    "share",
    "media",
    "videos",
    "output_files",
    "json_results",
    "shared_memory",
    "signals",
    "threads",
}

# The rooms that each room may import besides itself. Nobody imports the command line.
ALLOWED = {
    "records": {"errors"},
    "errors": set(),
    "findings": set(),
    "geometry": {"errors", "records"},
    "oriented_box": {"records"},
    "spilled_mask": {"geometry"},
    "visible_surface": {"geometry", "oriented_box", "records", "spilled_mask"},
    "share": {"errors"},
    "threads": set(),
    "shared_memory": set(),
    "signals": {"shared_memory"},
    "start": set(),
    "media": {"errors", "output_files", "records"},
    "videos": {"errors", "media", "records"},
    "output_files": {"errors"},
    "json_results": {"records"},
    "plain_values": {"errors", "media", "records"},
    "model": SHARED,
    "runtime": SHARED | {"model"},
    "api": SHARED | {"plain_values", "runtime", "model"},
    "viewer": SHARED | {"runtime", "model"},
    "nodes": SHARED | {"viewer", "runtime", "model"},
    "examples": set(),  # what a user's own node has: messages, services, actions
    "datasets": SHARED | {"model"},
    "simulator": SHARED | {"datasets"},
    "training": SHARED | {"datasets", "simulator", "runtime", "model"},
    "evaluation": SHARED | {"datasets", "simulator", "runtime", "model"},
    "cli": SHARED
    | {"api", "model", "runtime", "viewer", "nodes", "datasets", "simulator", "training", "evaluation"},
}

# Modules that may import more than their room. Nobody imports them, their own room included.
ABOVE = {"pam_ros.training.ablations": {"evaluation"}}

# Packages that only some rooms may import: ROS in nodes and examples, PyTorch where networks compute.
ROS = {
    "ament_index_python", "launch", "launch_ros", "message_filters", "rclpy", "std_srvs",
    "tf2_ros",
}  # fmt: skip
ROS_ROOMS = {"nodes", "examples"}
NEURAL = {"accelerate", "sam2", "torch", "transformers"}
NEURAL_ROOMS = {"model", "training", "evaluation"}
KERNEL_ROOMS = {"model"}  # may import Triton, guarded: a CPU-only build of PyTorch lacks it
GENERATED = {"msg", "srv", "action"}  # pam_ros.msg and its like: ROS too


def is_ros(package: str) -> bool:
    """True for rclpy, message packages, and other packages of a ROS installation."""
    return package in ROS or package.startswith("rosidl_") or package.endswith(("_msgs", "_interfaces"))


def imported(tree: ast.AST, package: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import anywhere; relative ones are resolved against `package`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, node.module) if node.module else base)
            # `from pam_ros import errors` names a room only in its aliases.
            for alias in node.names:
                yield node.lineno, f"{module}.{alias.name}" if module == "pam_ros" else module


def forbidden(module: str, name: str) -> str:
    """Why `module`, e.g. "pam_ros.model.pam", must not import `name`; empty if it may."""
    room = module.split(".")[1]
    top, _, rest = name.partition(".")
    if is_ros(top):
        return "" if room in ROS_ROOMS else f"{top} belongs in nodes/"
    if top == "triton":
        return "" if room in KERNEL_ROOMS else f"triton belongs in {', '.join(sorted(KERNEL_ROOMS))}"
    if top in NEURAL:
        return "" if room in NEURAL_ROOMS else f"{top} belongs in {', '.join(sorted(NEURAL_ROOMS))}"
    if top != "pam_ros" or not rest:
        return ""
    other = rest.split(".")[0]
    if other in GENERATED:
        return "" if room in ROS_ROOMS else f"pam_ros.{other} belongs in nodes/"
    if name in ABOVE:
        return f"nobody may import {name}"
    if other == room or other in ALLOWED[room] | ABOVE.get(module, set()):
        return ""
    return f"{room} must not import {other}"


def violations(package: Path) -> list[str]:
    """Every forbidden import under `package`, as `file:line: reason`."""
    found = []
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        room = parts[0]
        if room == "__init__":
            continue
        if room not in ALLOWED:
            found.append(f"{path}: {room} is not a known room; allowed: {', '.join(ALLOWED)}")
            continue
        names = set(imported(ast.parse(path.read_text()), ("pam_ros", *parts[:-1])))
        for line, name in sorted(names):
            if reason := forbidden(".".join(("pam_ros", *parts)), name):
                found.append(f"{path}:{line}: {reason}")
    return found


def arrows(package: Path) -> dict[str, set[str]]:
    """Module → modules of the package that it imports, inside functions, too."""
    modules = {}
    for path in package.rglob("*.py"):
        parts = path.relative_to(package.parent).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    found = {}
    for module, path in modules.items():
        package_parts = tuple(module.split("."))[: None if path.stem == "__init__" else -1]
        found[module] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            for _, name in (
                imported(node, package_parts) if isinstance(node, ast.Import | ast.ImportFrom) else ()
            ):
                names = [name]
                if isinstance(node, ast.ImportFrom):
                    names += [f"{name}.{alias.name}" for alias in node.names]
                found[module] |= {each for each in names if each in modules and each != module}
        found[module] -= {
            each for each in found[module] if any(o.startswith(f"{each}.") for o in found[module])
        }
    return found


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Groups of modules (or folders) that import each other in a loop."""

    def reachable(start: str) -> set[str]:
        seen: set[str] = set()
        todo = [start]
        while todo:
            for following in graph[todo.pop()] - seen:
                seen.add(following)
                todo.append(following)
        return seen

    reach = {module: reachable(module) for module in graph}
    loops = [frozenset(b for b in reach[a] if a in reach[b]) for a in graph if a in reach[a]]
    return [set(loop) for loop in dict.fromkeys(loops)]


def folders(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """The same arrows between folders: `pam_ros.nodes.inputs.clicks` counts as `pam_ros.nodes.inputs`."""
    joined: dict[str, set[str]] = {}
    for module, names in graph.items():
        home = module.rpartition(".")[0]
        own = joined.setdefault(home, set())
        for other in {name.rpartition(".")[0] for name in names}:
            joined.setdefault(other, set())
            # Between a folder and its sub-folders only the modules count.
            if not f"{home}.".startswith(f"{other}.") and not f"{other}.".startswith(f"{home}."):
                own.add(other)
    return joined


def test_neither_modules_nor_folders_import_in_circles() -> None:
    graph = arrows(PACKAGE)
    assert len(graph) > 100
    assert circles(graph) == []
    assert circles(folders(graph)) == []


def test_a_planted_circle_is_found(tmp_path: Path) -> None:
    package = tmp_path / "pam_ros"
    for name, text in {
        "model/a.py": "def f():\n    from pam_ros.model import b\n",
        "model/b.py": "from pam_ros.model.c import x",
        "model/c.py": "from .a import f",
        "model/d.py": "import pam_ros.model.a",
        "runtime/e.py": "from pam_ros.model.d import y\nfrom pam_ros import runtime",
    }.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
        (package / name).with_name("__init__.py").touch()
    assert circles(arrows(package)) == [{"pam_ros.model.a", "pam_ros.model.b", "pam_ros.model.c"}]


def test_imports_flow_one_way() -> None:
    assert violations(PACKAGE) == []


def test_every_room_is_checked() -> None:
    rooms = {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in PACKAGE.rglob("*.py")}
    assert {"records", "errors", "model", "runtime", "nodes"} <= rooms


def test_the_package_itself_is_empty() -> None:
    assert (PACKAGE / "__init__.py").read_text() == "", "Lyrical's message generator may overwrite it"


@pytest.mark.parametrize(
    ("file", "line", "reason"),
    [
        ("model/pam.py", "from pam_ros.runtime.engine import Engine", "model must not import runtime"),
        ("model/pam.py", "def f():\n    import pam_ros.nodes.main", "model must not import nodes"),
        ("model/pam.py", "from ..runtime import engine", "model must not import runtime"),
        ("model/pam.py", "from .. import runtime", "model must not import runtime"),
        ("runtime/engine.py", "from pam_ros import nodes", "runtime must not import nodes"),
        ("runtime/engine.py", "import torch.nn as nn", "torch belongs in"),
        ("evaluation/bench.py", "import triton", "triton belongs in model"),
        ("runtime/engine.py", "from rclpy.node import Node", "rclpy belongs in nodes/"),
        ("runtime/engine.py", "from sensor_msgs.msg import Image", "sensor_msgs belongs in nodes/"),
        ("runtime/engine.py", "from pam_ros.msg import Region", "pam_ros.msg belongs in nodes/"),
        ("nodes/main.py", "from pam_ros.training import stages", "nodes must not import training"),
        ("training/run.py", "from pam_ros.evaluation import parity", "training must not import evaluation"),
        ("training/run.py", "from pam_ros.training.ablations import main", "nobody may import"),
        ("training/ablations.py", "from pam_ros.nodes import main", "training must not import nodes"),
        ("records.py", "from pam_ros.model.config import Config", "records must not import model"),
        ("nodes/main.py", "from pam_ros.cli.main import main", "nodes must not import cli"),
        ("helpers.py", "", "helpers is not a known room"),
    ],
)  # fmt: skip
def test_a_planted_violation_is_found(tmp_path: Path, file: str, line: str, reason: str) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(f"import numpy\n{line}\n")
    (found,) = violations(tmp_path)
    assert reason in found


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("nodes/main.py", "import rclpy, pam_ros.msg, pam_ros.runtime.engine"),
        ("runtime/engine.py", "from pam_ros.model.interface import PerceptionModel"),
        ("training/run.py", "import torch\nfrom pam_ros.simulator.scene import scenes"),
        ("training/ablations.py", "from pam_ros.evaluation.texts import label_is_right"),
        ("model/pam.py", "from .config import Config\nfrom pam_ros import errors"),
    ],
)
def test_allowed_imports_pass(tmp_path: Path, file: str, line: str) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(f"{line}\n")
    assert violations(tmp_path) == []
