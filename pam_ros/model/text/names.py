"""The names of what a model knows, in every language: whether texts of a region speak of the same thing.

A model that answers each question on its own may call a region a mug in one text and a bowl in another. With
its list of names (`names.json` beside the weights) the runtime notices, and starts the text again with the
right name. No torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pam_ros.errors import CheckpointError
from pam_ros.records import Language

NAMES = "names.json"
_VOWELS = "aeiou"


@dataclass(frozen=True, slots=True)
class Thing:
    """One thing that the model has words for.

    Attributes:
        names: in each language; the label first, then synonyms.
        noun: English noun that takes an article, "loaf of bread" of bread.
        article: "a", "a pair of", or "" for nouns without one ("leaves").
        counter: Chinese measure word, "把".
    """

    names: Mapping[Language, tuple[str, ...]]
    noun: str
    article: str
    counter: str

    def label(self, language: Language) -> str:
        """The name that serves as its label."""
        return self.names[language][0]

    def as_json(self) -> dict[str, Any]:
        """For `names.json`; see `ObjectNames.read`."""
        names = {language.value: list(names) for language, names in self.names.items()}
        return {**names, "noun": self.noun, "article": self.article, "counter": self.counter}


class ObjectNames:
    """Finds the thing that a text speaks of: the first that it names."""

    def __init__(self, things: Mapping[str, Thing]) -> None:
        """`things`: by a key of their own."""
        self.things = dict(things)

    @classmethod
    def read(cls, path: Path) -> ObjectNames:
        """`names.json`: key → {"en": [names], "zh": [names], "noun", "article", "counter"}.

        Raises CheckpointError for anything else.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return cls({
                str(key): Thing(
                    {language: _names(value[language.value]) for language in Language},
                    str(value["noun"]),
                    str(value["article"]),
                    str(value["counter"]),
                )
                for key, value in content.items()
            })  # fmt: skip
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(
                f"{path} is not a list of names: {type(error).__name__}: {error}"
            ) from error

    def write(self, path: Path) -> None:
        """See `read`."""
        lines = [
            f"{json.dumps(key)}: {json.dumps(thing.as_json(), ensure_ascii=False)}"
            for key, thing in self.things.items()
        ]
        path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")

    def named(self, text: str, language: Language) -> str | None:
        """Key of the first thing that the text names; None if it names none."""
        found = self._first(text, language)
        return None if found is None else found[0]

    def label(self, key: str, language: Language) -> str:
        """The label of a thing."""
        return self.things[key].label(language)

    def beginning(self, text: str, language: Language, key: str) -> str | None:
        """How a text begins that speaks of thing `key` instead of the one that `text` names first.

        It keeps what stands before the name, with the right article or measure word. None if the text speaks
        of that thing already, or of none.
        """
        found = self._first(text, language)
        if found is None or found[0] == key:
            return None
        wrong, start = self.things[found[0]], found[1]
        thing = self.things[key]
        return (
            _begin_zh(text[:start], wrong, thing)
            if language is Language.ZH
            else _begin_en(text[:start], thing)
        )

    def _first(self, text: str, language: Language) -> tuple[str, int] | None:
        """Key of the first thing named, and where its name begins."""
        pattern, keys = self._patterns[language]
        match = pattern.search(text)
        return None if match is None else (keys[match.group(1).lower()], match.start(1))

    @cached_property
    def _patterns(self) -> dict[Language, tuple[re.Pattern[str], dict[str, str]]]:
        """Of each language: a pattern that prefers longer names, and the key of each name."""
        found = {}
        for language in Language:
            keys: dict[str, str] = {}
            for key, thing in self.things.items():
                names = thing.names[language]
                for name in (*names, thing.noun) if language is Language.EN else names:
                    keys.setdefault(name.lower(), key)
            longest_first = "|".join(re.escape(name) for name in sorted(keys, key=len, reverse=True))
            pattern = (
                rf"(?<![a-z])({longest_first})(?:s|es)?(?![a-z])"
                if language is Language.EN
                else f"({longest_first})"
            )
            found[language] = (re.compile(pattern, re.IGNORECASE), keys)
        return found


def _names(values: Any) -> tuple[str, ...]:
    if (
        not isinstance(values, list)
        or not values
        or not all(isinstance(each, str) and each for each in values)
    ):
        raise ValueError(f"names must be a list of words, not {values!r}")
    return tuple(values)


def _begin_en(before: str, thing: Thing) -> str:
    words = re.findall(r"\S+\s*", before)
    place, adjectives = len(words), len(words)  # where the noun phrase begins, and its adjectives
    for i in range(len(words) - 1, -1, -1):
        word = words[i].strip()
        if word.endswith((".", ",", ":")):
            break
        place = i
        if word.lower() in ("a", "an", "the"):
            pair = [each.strip() for each in words[i + 1 : i + 3]] == ["pair", "of"]
            adjectives = i + (3 if pair else 1)
            break
    else:  # a sentence of nothing but adjectives: "Green leaves"
        adjectives = place
    start, kept = "".join(words[:place]), "".join(words[adjectives:])
    if kept and not start:
        kept = kept[0].lower() + kept[1:]
    phrase = kept + thing.noun
    if adjectives > place and words[place].strip().lower() == "the":
        article = "the"
    else:
        article = "an" if thing.article == "a" and phrase[0].lower() in _VOWELS else thing.article
    phrase = f"{article} {phrase}".strip()
    return start + (phrase[0].upper() + phrase[1:] if not start or start.rstrip().endswith(".") else phrase)


def _begin_zh(before: str, wrong: Thing, thing: Thing) -> str:
    place = before.rfind(f"一{wrong.counter}")
    if place >= 0:
        before = f"{before[:place]}一{thing.counter}{before[place + 1 + len(wrong.counter) :]}"
    return before + thing.label(Language.ZH)
