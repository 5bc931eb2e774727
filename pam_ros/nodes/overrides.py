"""Parameters given at start that no node takes: unknown names, and sections of files that name no node."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rclpy.node import Node

_VALUES = "ros__parameters"


class _Loader(yaml.SafeLoader):
    """Also reads how launch_ros writes a list: `!!python/tuple`, a tag that ROS ignores."""


def _list(loader: yaml.SafeLoader, node: yaml.SequenceNode) -> list[Any]:
    return loader.construct_sequence(node)


_Loader.add_constructor("tag:yaml.org,2002:python/tuple", _list)


def overrides(node: Node) -> dict[str, Any]:
    """Name → value of the parameters given at start for this node."""
    return {name: it.value for name, it in node._parameter_overrides.items()}  # not public in rclpy


def ignored_overrides(nodes: Sequence[Node], argv: Sequence[str]) -> list[str]:
    """One line for each parameter or section given at start that has no effect, and what to do."""
    return [*_unknown_names(nodes), *_unknown_sections(nodes, argv)]


def _unknown_names(nodes: Sequence[Node]) -> list[str]:
    """`-p name:=value` and `/**` in a file reach every node: only what some lack is meant for the others."""
    takers = {node.get_fully_qualified_name(): set(node.get_parameters_by_prefix("")) for node in nodes}
    given = {node.get_fully_qualified_name(): set(overrides(node)) for node in nodes}
    known = sorted(set().union(*takers.values()))
    for_all = set.intersection(*given.values())
    lines = []
    for name in sorted(set().union(*given.values())):
        if name not in known:
            close = difflib.get_close_matches(name, known)
            advice = (
                f"did you mean {' or '.join(close)}?" if close else "see config/pam.yaml for all parameters"
            )
            lines.append(f"unknown parameter {name!r} is ignored; {advice}")
        elif name not in for_all:
            right = [node for node, names in takers.items() if name in names]
            wrong = [node for node, names in given.items() if name in names and node not in right]
            lines += [
                f"parameter {name!r} is ignored: it is given for {node}, but belongs to "
                f"{' and '.join(right)}; move it to that section, or to /**"
                for node in wrong
            ]
    return lines


def _unknown_sections(nodes: Sequence[Node], argv: Sequence[str]) -> list[str]:
    names = [node.get_fully_qualified_name() for node in nodes]
    return [
        f"{file}: section {section!r} is ignored: no node has this name; the nodes here: {', '.join(names)}"
        for flag, file in zip(argv, argv[1:], strict=False)
        if flag == "--params-file" and Path(file).is_file()  # a pipe was read by ROS
        for section in _sections(yaml.load(Path(file).read_text(), Loader=_Loader) or {})
        if not any(_matches(section, name) for name in names)
    ]


def _sections(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Full names of the sections, e.g. "/robot/pam"; namespaces may be nested."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            name = f"{prefix}/{str(key).lstrip('/')}"
            if _VALUES in value:
                yield name
            else:
                yield from _sections(value, name)


def _matches(section: str, name: str) -> bool:
    """As in rcl: `*` is one part of a name, `**` any number of parts."""
    pattern = re.escape(section).replace(r"/\*\*", "(/[^/]+)*").replace(r"\*", "[^/]+")
    return re.fullmatch(pattern, name) is not None
