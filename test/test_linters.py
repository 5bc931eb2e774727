"""Linters as tests: ruff and mypy, with the settings of pyproject.toml."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("linter", [("ruff", "check", "."), ("mypy",)], ids=lambda linter: linter[0])
def test_linter_is_content(linter: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", *linter]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(linter)} says:\n{done.stdout}{done.stderr}"
