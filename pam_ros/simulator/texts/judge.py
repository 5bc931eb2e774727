"""Judges texts: finds the category, function and events that a text names in the ontology's words."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from pam_ros.records import Language
from pam_ros.simulator.ontology import ontology


@dataclass(frozen=True, slots=True)
class Verdict:
    """The ids that a text names.

    Attributes:
        category: the first object, region or part, or None.
        function: the first function, or None.
        events: all events, in the order of the text.
    """

    category: str | None
    function: str | None
    events: tuple[str, ...]


@lru_cache(maxsize=8)
def _finder(group: str, language: Language) -> tuple[re.Pattern[str], dict[str, tuple[str, ...]]]:
    """A pattern that prefers longer names, and the ids of each name."""
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
    """Ids in the order of the text; if a name has several ids, all of them in the order of the file."""
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
    """What the text names. A text in another language, or without known words, gives an empty verdict."""
    categories, functions = _find(text, "category", language), _find(text, "function", language)
    return Verdict(
        categories[0] if categories else None,
        functions[0] if functions else None,
        tuple(_find(text, "event", language)),
    )
