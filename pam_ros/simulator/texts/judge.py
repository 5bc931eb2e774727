"""Finds which category, function and events a text names, by the ontology's own words."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from pam_ros.records import Language
from pam_ros.simulator.ontology import ontology


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a text names: ids, or None / empty where it names none.

    Attributes:
        category: the first object, region or part it names.
        function: the first function it names.
        events: all events it names, in order.
    """

    category: str | None
    function: str | None
    events: tuple[str, ...]


@lru_cache(maxsize=8)
def _finder(group: str, language: Language) -> tuple[re.Pattern[str], dict[str, tuple[str, ...]]]:
    """A pattern that finds the longest names first, and which ids each name stands for."""
    known = ontology()
    english = language is Language.EN
    names: dict[str, list[str]] = {}

    def add(name: str, key: str) -> None:
        names.setdefault(name.lower(), []).append(key)

    if group == "category":
        for key, entry in known.entries.items():
            for name in {*entry.names[language], *([entry.noun] if english else [])}:
                add(name, key)
    elif group == "function":
        for key, function in known.functions.items():
            for form in (
                (part for forms in function.english for part in forms) if english else function.chinese
            ):
                add(form, key)
    else:
        for key, event in known.events.items():
            for form in (
                {part for forms in event.english for part in forms} if english else set(event.chinese)
            ):
                add(form, key)
    ordered = sorted(names, key=len, reverse=True)
    alternatives = "|".join(re.escape(name) for name in ordered)
    pattern = rf"(?<![a-z])(?:{alternatives})(?:s|es)?(?![a-z])" if english else f"(?:{alternatives})"
    return re.compile(pattern), {name: tuple(keys) for name, keys in names.items()}


def _find(text: str, group: str, language: Language) -> list[str]:
    """Ids in the order of the text; several ids of one name are given in the file's order."""
    pattern, ids = _finder(group, language)
    found: list[str] = []
    for match in pattern.finditer(text.lower()):
        name = match.group()
        key = next(
            (
                candidate
                for candidate in (name, name.removesuffix("s"), name.removesuffix("es"))
                if candidate in ids
            ),
            None,
        )
        if key is not None:
            found.extend(ids[key])
    return found


def judge(text: str, language: Language) -> Verdict:
    """What the text names. A text in the other language, or about nothing known, gives an empty verdict."""
    categories, functions = _find(text, "category", language), _find(text, "function", language)
    return Verdict(
        categories[0] if categories else None,
        functions[0] if functions else None,
        tuple(_find(text, "event", language)),
    )


def same_category(text: str, language: Language, category: str) -> bool:
    """True where the first category the text names is this one."""
    return judge(text, language).category == category
