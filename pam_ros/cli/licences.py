"""`pam licences`: the licence of every package in this environment, from its metadata or package.xml."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from xml.etree import ElementTree

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pam_ros.cli.common import JsonFlag
from pam_ros.cli.output import note

UNKNOWN = "unknown"
_TEXTS = {  # words of a licence's text → its name
    "Permission is hereby granted, free of charge": "MIT",
    "Neither the name of": "BSD-3-Clause",
    "Redistribution and use in source and binary forms": "BSD-2-Clause",
    "Apache License": "Apache-2.0",
}
_LONGEST = 80  # some packages put the whole text into the field
_CLASSIFIER = "License :: "
_ROS_WHEEL = re.compile(
    r"ros-(?:(?:humble|jazzy|kilted|lyrical|rolling)-)?"
)  # ros-jazzy-rclpy is ROS's rclpy


@dataclass(frozen=True, slots=True)
class Licence:
    """One package, its version, and its licence, which may be UNKNOWN."""

    package: str
    version: str
    licence: str


def licences(as_json: JsonFlag = False) -> None:
    """List the licences of all installed packages.

    The last line names packages whose licence is not known.
    """
    found = sorted(installed(), key=lambda each: each.package.lower())
    if as_json:
        print(json.dumps([asdict(each) for each in found], indent=1, ensure_ascii=False))
    else:
        table = Table("package", "version", "licence")
        for each in found:
            table.add_row(*map(escape, (each.package, each.version, each.licence)))
        Console().print(table)
    unknown = [each.package for each in found if each.licence == UNKNOWN]
    if unknown:
        note(f"{len(unknown)} of {len(found)} packages declare no licence: {', '.join(unknown)}")


def installed() -> Iterator[Licence]:
    """Every package that Python finds, once."""
    seen: set[str] = set()
    for package in metadata.distributions():
        name = str(package.metadata["Name"])
        if name not in seen:
            seen.add(name)
            yield Licence(name, package.version, licence_of(package))


def licence_of(package: metadata.Distribution) -> str:
    """The licence expression, else the License field, classifiers, package.xml, or the text's name."""
    fields = package.metadata
    for expression in fields.get_all("License-Expression") or ():
        return str(expression)
    text = "".join(map(str, fields.get_all("License") or ())).strip()
    first = text.partition("\n")[0]
    if first and len(first) <= _LONGEST and first.upper() != "UNKNOWN":
        return first
    classifiers = [
        str(value).rpartition(" :: ")[2]
        for value in fields.get_all("Classifier") or ()
        if str(value).startswith(_CLASSIFIER) and str(value) != "License :: OSI Approved"
    ]
    return "; ".join(classifiers) or _of_package_xml(str(fields["Name"])) or _of_text(package) or UNKNOWN


def _of_text(package: metadata.Distribution) -> str:
    """The licence of the licence file; empty if it is not a common one."""
    for name in package.metadata.get_all("License-File") or ():
        text = package.read_text(f"licenses/{name}") or package.read_text(name) or ""
        text = " ".join(text.split())
        if found := next((licence for words, licence in _TEXTS.items() if words in text), ""):
            return found
    return ""


def _of_package_xml(name: str) -> str:
    """The licence of a ROS package, built here or in a wheel; empty if it is not one."""
    ros = _ROS_WHEEL.sub("", name, count=1).replace("-", "_")
    for prefix in (*os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep), sys.prefix):
        path = Path(prefix) / "share" / ros / "package.xml"
        if path.is_file():
            tree = ElementTree.fromstring(path.read_text(encoding="utf-8"))
            return "; ".join(element.text.strip() for element in tree.iter("license") if element.text)
    return ""
