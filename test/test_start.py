"""Executables that Ctrl-C ends while their modules are imported, and afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
IMPORTING = """
import time

print("ready", flush=True)
time.sleep(60)
"""
RUNNING = """
import time


def main():
    try:
        print("ready", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        return 7
"""


@pytest.mark.parametrize(("program", "code"), [(IMPORTING, -signal.SIGINT), (RUNNING, 7)])
def test_an_interrupt_shows_no_traceback(program: str, code: int, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(program)
    process = subprocess.Popen(
        [sys.executable, "-c", "from pam_ros.start import start; start('program')"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (code, "")
