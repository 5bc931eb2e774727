"""Linters as tests: ruff and mypy, with the settings of pyproject.toml."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]


def check(*linter: str) -> None:
    """Fails with the linter's output."""
    command = [sys.executable, "-m", *linter]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(linter)} failed:\n{done.stdout}{done.stderr}"


def test_ruff_finds_nothing() -> None:
    check("ruff", "check", ".")


def test_ruff_would_not_reformat_anything() -> None:
    check("ruff", "format", "--check", ".")


@pytest.mark.timeout(600)
def test_mypy_finds_nothing() -> None:
    if f"numpy=={np.__version__};" not in (ROOT / ".setup" / "arrays.txt").read_text():
        pytest.skip(f"mypy needs the pinned NumPy; this is {np.__version__}")
    check("mypy")
