"""`pam doctor`: what a bug report needs, and what is wrong with this installation."""

from __future__ import annotations

import importlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from pam_ros.findings import Finding, Verdict

REQUIRED = (
    "torch", "sam2", "transformers", "tokenizers", "safetensors", "huggingface_hub", "hydra-core", "pillow",
    "av", "numpy", "PyYAML",
)  # fmt: skip
OPTIONAL = {
    "triton": "needed by the fast GPU engines only; comes with CUDA builds of torch",
    "mujoco": "needed for scenes and evaluation only: pip install '.[training]'",
    "openvino": "makes the masks of pam-tiny faster on CPUs: pip install --no-deps -r .setup/openvino.txt",
    "torchao": "needed for quantization only: pip install --no-deps -r .setup/quantization.txt",
    "nicegui": "needed for pam view only: pip install -r .setup/view.txt",
    "rosbags": "needed for pam bag only: pip install rosbags",
}
STYLES = {Verdict.OK: "green", Verdict.NOTE: "yellow", Verdict.ERROR: "bold red"}
FONT_PX = 16
ROS_TIMEOUT_S = 60
# Without the current folder on the path: in a checkout it holds the sources, which lack the built messages.
ROS_SCRIPT = """
import sys
sys.path[:] = [folder for folder in sys.path if folder]
from pam_ros.nodes.tools.diagnosis import main
main()
"""
FIX_MIDDLEWARE = "install the middleware that RMW_IMPLEMENTATION names, or unset it"


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="print JSON, for a bug report")] = False,
) -> None:
    """Check this installation and suggest fixes.

    Versions, GPU, memory, models, ROS and fonts: what is wrong, and how to fix it. Exits with 1 if something
    prevents pam_ros from working.
    """
    findings = list(examine())
    if as_json:
        print(json.dumps([finding.as_json() for finding in findings], indent=1, ensure_ascii=False))
    else:
        table = Table("", "", Column(overflow="fold"), "", show_lines=False, show_header=False)
        for finding in findings:
            found = escape(finding.value) + (f"\n→ {escape(finding.fix)}" if finding.fix else "")
            style = STYLES[finding.verdict]
            table.add_row(finding.group, escape(finding.name), found, f"[{style}]{finding.verdict.value}[/]")
        Console().print(table)
        counts = [sum(finding.verdict is verdict for finding in findings) for verdict in Verdict]
        print(f"errors: {counts[2]}, notes: {counts[1]}, ok: {counts[0]}")
    if any(finding.verdict is Verdict.ERROR for finding in findings):
        raise typer.Exit(1)


def examine() -> Iterator[Finding]:
    """Everything, group by group. A group that cannot be examined is reported as an error."""
    yield from version_findings()
    yield from font_findings()
    model = "pam_ros.model.loading.diagnosis"
    yield from _of(model, "gpu_findings", "gpu", "reinstall the packages of .setup/model.txt")
    yield from _of(model, "memory_findings", "memory", "reinstall the packages of .setup/model.txt")
    yield from _of(model, "model_findings", "models", "reinstall pam_ros")
    yield from ros_findings()


def version_findings() -> Iterator[Finding]:
    """This machine, Python, and the packages that matter."""
    yield Finding("versions", "system", f"{platform.platform()}, {os.cpu_count()} CPUs, {platform.machine()}")
    yield Finding("versions", "python", f"{platform.python_version()} ({sys.executable})")
    for name in REQUIRED:
        try:
            yield Finding("versions", name, metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Finding("versions", name, "missing", Verdict.ERROR, f"pip install {name}")
    for name, remark in OPTIONAL.items():
        try:
            yield Finding("versions", name, metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Finding("versions", name, "not installed", Verdict.NOTE, remark)


def font_findings() -> Iterator[Finding]:
    """The font of the overlay, and whether it has Chinese characters."""
    from pam_ros.runtime.fonts import drawable, find_font

    font = find_font("", FONT_PX)
    name = " ".join(part for part in font.getname() if part)
    if drawable("中", font):
        yield Finding("fonts", "overlay", name)
    else:
        fix = "apt install fonts-wqy-microhei (or fonts-noto-cjk), or set overlay.font_file"
        yield Finding("fonts", "overlay", f"{name}: no Chinese characters", Verdict.NOTE, fix)


def ros_findings() -> Iterator[Finding]:
    """ROS, if it is there: without it, only the nodes are missing.

    Examined in a process of its own: if the middleware is not installed, rclpy ends the process.
    """
    command = [sys.executable, "-c", ROS_SCRIPT]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ROS_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        yield Finding("ros", "ROS 2", f"no answer within {ROS_TIMEOUT_S} s", Verdict.ERROR, FIX_MIDDLEWARE)
        return
    if done.returncode == 0:
        for line in json.loads(done.stdout):
            yield Finding(**line | {"verdict": Verdict(line["verdict"])})
        return
    why = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    if "ImportError" in done.stderr or "ModuleNotFoundError" in done.stderr:
        fix = "for the nodes: source a workspace with pam_ros, or use .setup/run.sh pam doctor in a checkout"
        yield Finding("ros", "ROS 2", f"not available ({why})", Verdict.NOTE, fix)
    else:
        yield Finding("ros", "ROS 2", f"does not start: {why}", Verdict.ERROR, FIX_MIDDLEWARE)


def _of(module: str, name: str, group: str, fix: str) -> Iterator[Finding]:
    """The findings of a function whose module needs packages that may be broken."""
    try:
        examined: Callable[[], Iterable[Any]] = getattr(importlib.import_module(module), name)
        yield from examined()
    except Exception as error:  # whatever a broken installation raises is the finding
        yield Finding(group, name, f"{type(error).__name__}: {error}", Verdict.ERROR, fix)
