"""The README tells the truth: its tree is the package's, its table the parameters'."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from pam_ros.nodes.parameters import markdown

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def tree() -> dict[str, str]:
    """Path → remark of every line of the README's file tree."""
    (block,) = re.findall(r"<!-- tree -->\n+```\n(.*?)```", README, re.DOTALL)
    entries: dict[str, str] = {}
    folders: list[str] = []
    for line in block.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name, _, remark = line.strip().partition("  ")
        folders = [*folders[:depth], name]
        entries["".join(folders)] = remark.strip()
    return entries


def first_line(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.split("\n\n")[0].replace("\n", " ").strip()


def test_every_file_of_the_tree_exists():
    missing = [path for path in tree() if not (ROOT / path).exists()]
    assert not missing


def test_every_module_is_in_the_tree_with_its_own_first_line():
    modules = {
        path.relative_to(ROOT).as_posix(): first_line(path) for path in (ROOT / "pam_ros").rglob("*.py")
    }
    described = {path: line for path, line in modules.items() if not path.endswith("__init__.py")}
    listed = {
        path: remark
        for path, remark in tree().items()
        if path.endswith(".py") and path.startswith("pam_ros/")
    }
    assert listed == described


def test_the_parameter_table_is_that_of_the_code():
    assert markdown().strip() in README
