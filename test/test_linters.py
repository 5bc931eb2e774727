"""Linters as tests: ruff and mypy, with the settings of pyproject.toml."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]


def check(*linter: str) -> None:
    """Fails with everything the linter says."""
    command = [sys.executable, "-m", *linter]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(linter)} says:\n{done.stdout}{done.stderr}"


def test_ruff_is_content() -> None:
    check("ruff", "check", ".")


@pytest.mark.timeout(600)
def test_mypy_is_content() -> None:
    if f"numpy=={np.__version__};" not in (ROOT / ".setup" / "arrays.txt").read_text():
        pytest.skip(f"type hints of arrays are checked with the pinned NumPy, not with {np.__version__}")
    check("mypy")
