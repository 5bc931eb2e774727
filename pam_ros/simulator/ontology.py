"""Reads ontology.yaml: names, definitions, functions, attributes and events, in two languages."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from pam_ros.records import Language


@dataclass(frozen=True, slots=True)
class Entry:
    """One object category, background region or part.

    Attributes:
        id: key in the file, e.g. "frying_pan".
        kind: "object", "region" or "part".
        names: names in each language: the label first, then synonyms.
        noun: English noun that takes an article; usually the label.
        measure_word: Chinese counter, e.g. "把".
        plural: True for "scissors": "a pair of", "they".
        home: "kitchen", "workshop", "everyday" or "never"; "" for regions and parts.
        looks: materials, each with its possible colours; empty for regions and parts.
        definition: noun phrase in each language.
        function: id of its function.
    """

    id: str
    kind: str
    names: dict[Language, tuple[str, ...]]
    noun: str
    measure_word: str
    plural: bool
    home: str
    looks: tuple[tuple[str, tuple[str, ...]], ...]
    definition: dict[Language, str]
    function: str

    def label(self, language: Language) -> str:
        """The name that serves as its label."""
        return self.names[language][0]


@dataclass(frozen=True, slots=True)
class Function:
    """A purpose.

    Attributes:
        id: key in the file.
        english: (infinitive, -ing form) pairs, e.g. ("boil water", "boiling water").
        chinese: verb phrases, e.g. "烧水".
    """

    id: str
    english: tuple[tuple[str, str], ...]
    chinese: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """What object `first` does near `second`; `text` in each language."""

    first: str
    second: str
    text: dict[Language, str]


@dataclass(frozen=True, slots=True)
class Event:
    """An event of an object; English phrases are (singular, plural) pairs."""

    id: str
    english: tuple[tuple[str, str], ...]
    chinese: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ontology:
    """The whole file. `words` maps ("colours" | "materials" | "surfaces", id) to a word in each language."""

    entries: dict[str, Entry]
    functions: dict[str, Function]
    pairs: tuple[Pair, ...]
    events: dict[str, Event]
    words: dict[tuple[str, str], dict[Language, str]]

    def of_kind(self, kind: str) -> tuple[Entry, ...]:
        """Entries of a kind, in the order of the file."""
        return tuple(entry for entry in self.entries.values() if entry.kind == kind)

    def word(self, group: str, key: str, language: Language) -> str:
        """The word for a colour, material or surface."""
        return self.words[group, key][language]


def _both(pair: Any) -> dict[Language, str]:
    return {Language.EN: str(pair[0]), Language.ZH: str(pair[1])}


def _forms(text: str) -> tuple[str, str]:
    """`"[is|are] lifted"` → `("is lifted", "are lifted")`."""
    singular, plural = (re.sub(r"\[([^|]*)\|([^\]]*)\]", rf"\{form}", text) for form in (1, 2))
    return singular, plural


def _entry(key: str, kind: str, raw: Any) -> Entry:
    return Entry(
        id=key,
        kind=kind,
        names={Language.EN: tuple(raw["en"]), Language.ZH: tuple(raw["zh"])},
        noun=raw.get("noun", raw["en"][0]),
        measure_word=raw["count"],
        plural=bool(raw.get("plural", False)),
        home=raw.get("home", ""),
        looks=tuple((material, tuple(colours)) for material, colours in raw.get("looks", {}).items()),
        definition=_both(raw["is"]),
        function=raw["use"],
    )


@lru_cache(maxsize=1)
def ontology() -> Ontology:
    """The shipped ontology; it is read once."""
    raw = yaml.safe_load(Path(__file__).with_name("ontology.yaml").read_text(encoding="utf-8"))
    entries = {
        key: _entry(key, kind, value)
        for group, kind in (("objects", "object"), ("regions", "region"), ("parts", "part"))
        for key, value in raw[group].items()
    }
    functions = {}
    for key, value in raw["functions"].items():
        forms = [tuple(form.strip() for form in text.split("|")) for text in value["en"]]
        functions[key] = Function(key, tuple((form[0], form[1]) for form in forms), tuple(value["zh"]))
    words = {("colours", key): _both((key, value)) for key, value in raw["colours"].items()}
    for group in ("materials", "surfaces"):
        words |= {(group, key): _both(value) for key, value in raw[group].items()}
    pairs = tuple(Pair(item["a"], item["b"], _both(item["text"])) for item in raw["pairs"])
    events = {
        key: Event(key, tuple(_forms(text) for text in value["en"]), tuple(value["zh"]))
        for key, value in raw["events"].items()
    }
    return Ontology(entries, functions, pairs, events, words)
