"""Writes the file tree of docs/files.md from the modules' docstrings: `python docs/tree.py`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "files.md"
BEGIN, END = "<!-- tree -->\n```\n", "```\n<!-- /tree -->\n"
COLUMN = 30  # where remarks begin

# Remarks on folders, in the order in which they are listed, and on files that have no docstring.
PACKAGE = {
    "pam_ros/": "values, errors, files: no torch, no ROS",
    "pam_ros/model/": "the network; torch, but no ROS",
    "pam_ros/model/vision/": "SAM 2",
    "pam_ros/model/vision/fast/": "SAM 2 at fixed shapes with CUDA graphs",
    "pam_ros/model/vision/fast/kernels/": "Triton",
    "pam_ros/model/text/": "Qwen2.5",
    "pam_ros/model/text/fast/": "a static cache, kernels and CUDA graphs",
    "pam_ros/model/text/fast/kernels/": "Triton",
    "pam_ros/model/loading/": "checkpoints, weights, devices, downloads",
    "pam_ros/runtime/": "threads, queues, scheduling; no ROS",
    "pam_ros/viewer/": "the page of `pam view`",
    "pam_ros/nodes/": "everything that needs rclpy",
    "pam_ros/nodes/inputs/": "from topics and services to the engine",
    "pam_ros/nodes/outputs/": "from the engine to topics",
    "pam_ros/nodes/tools/": "processes around the node: demo, soak test, recorder, view",
    "pam_ros/examples/": "how your own node uses the services",
    "pam_ros/simulator/": "rendered scenes with ground truth and texts",
    "pam_ros/simulator/assets/": "what objects look like",
    "pam_ros/simulator/scene/": "where objects stand",
    "pam_ros/simulator/events/": "what happens to objects",
    "pam_ros/simulator/texts/": "what is said about objects",
    "pam_ros/simulator/tools/": "scripts for maintainers",
    "pam_ros/datasets/": "training and evaluation data",
    "pam_ros/training/": "training stages",
    "pam_ros/training/stages/": "what one optimiser step does",
    "pam_ros/training/heads/": "auxiliary losses; not part of the model",
    "pam_ros/training/features/": "frames and features that are computed once",
    "pam_ros/training/tools/": "scripts for maintainers",
    "pam_ros/evaluation/": "the paper's metrics, and parity with the reference",
    "pam_ros/cli/": "the command `pam`",
}
FILES = {
    "pam_ros/simulator/ontology.yaml": "Objects, parts, places, functions and events, with their words.",
}
BESIDE = {
    "msg/": "messages: {names}",
    "srv/": "services: {names}",
    "action/": "actions: {names}",
    "launch/": "{names}",
    "config/": "pam.yaml, pam.rviz, foxglove.json, sros2/ (policy), demo/ (its clip), training/",
    "models/": "one description per model; pam-tiny/ is bundled",
    "test/": "unit tests, model tests, and tests with real ROS processes",
    "docs/": "{names}",
    ".setup/": "what `make` runs, and the pinned versions",
    ".ci/": "run: the whole check on a fresh machine",
}


def first_line(path: Path) -> str:
    """The first paragraph of a module's docstring, in one line."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(docstring.split("\n\n")[0].split())


def modules(folder: Path) -> Iterator[tuple[str, str]]:
    """(path from the root, remark) of every file of one folder, in alphabetical order."""
    for path in sorted(folder.iterdir()):
        name = path.relative_to(ROOT).as_posix()
        if path.suffix == ".py" and path.name != "__init__.py":
            yield name, first_line(path)
        elif name in FILES:
            yield name, FILES[name]


def names(folder: Path) -> str:
    """The files of a folder in one line; without suffixes if they are interfaces."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    short = folder.name in ("msg", "srv", "action")
    return ", ".join(path.stem if short else path.name for path in files)


def tree() -> str:
    """The whole tree. Raises ValueError if a folder has no remark above."""
    folders = {path.parent.relative_to(ROOT).as_posix() + "/" for path in (ROOT / "pam_ros").rglob("*.py")}
    if missing := sorted(folders - PACKAGE.keys()):
        raise ValueError(f"docs/tree.py has no remark for {', '.join(missing)}")
    lines = []
    for folder, remark in PACKAGE.items():
        if folder in folders:
            depth = folder.count("/") - 1
            lines.append(line(depth, Path(folder).name + "/", remark))
            lines += [line(depth + 1, Path(name).name, it) for name, it in modules(ROOT / folder)]
    lines += [line(0, name, it.format(names=names(ROOT / name))) for name, it in BESIDE.items()]
    return "\n".join(lines) + "\n"


def line(depth: int, name: str, remark: str) -> str:
    """One line of the tree."""
    return f"{'  ' * depth + name:{COLUMN}}  {remark}"


def page_with_tree() -> str:
    """The page as it should be."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    return before + BEGIN + tree() + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(page_with_tree(), encoding="utf-8")
