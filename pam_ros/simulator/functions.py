"""Substitute functions: a wine glass will do for a request for something to drink tea from."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import yaml


@lru_cache(maxsize=1)
def _substitutes() -> dict[str, frozenset[str]]:
    raw = yaml.safe_load(Path(__file__).with_name("functions.yaml").read_text(encoding="utf-8"))
    return {key: frozenset(others) for key, others in raw.items()}


def fitting_functions(function: str) -> frozenset[str]:
    """The function itself and those that can replace it, by their ids in the ontology."""
    return _substitutes().get(function, frozenset()) | {function}
