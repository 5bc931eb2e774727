"""The texts of one region agree: one of them decides what it is, the others are corrected to say the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from pam_ros.model.text.names import ObjectNames
from pam_ros.records import Language, Task, Text

Key = tuple[Task, Language]
UNKNOWN = -1.0  # stands for a confidence that is not known when texts are ranked


@dataclass(slots=True, eq=False)
class Agreement:
    """Settles the texts of one region as they are finished.

    The most confident label decides what the region is: of the requested labels or, if there are none, of the
    known ones (`labels`); without any label, the most confident text. Texts that name something else are
    generated again, starting with the right name. Without a list of names every text stays as it is.

    Attributes:
        asked: the texts that are generated.
        thing: key of what the region is in `names`; None before that is decided, or if it cannot be named.
        again: texts to be generated once more, and how they begin.
        settled: texts that stay as they are.
    """

    names: ObjectNames | None
    asked: tuple[Key, ...]
    labels: Mapping[Key, Text] = field(default_factory=dict)
    thing: str | None = None
    again: dict[Key, str] = field(default_factory=dict)
    settled: dict[Key, Text] = field(default_factory=dict)
    _drafts: dict[Key, Text] = field(default_factory=dict)
    _sure: float | None = None  # confidence of the text that has decided
    _decided: bool = False

    def round(self) -> list[tuple[Key, str]]:
        """The texts that are to be generated now, and how they begin; earlier drafts are dropped."""
        self._drafts.clear()
        return [(key, self.again.get(key, "")) for key in self.asked if key not in self.settled]

    def add(self, key: Key, text: Text) -> dict[Key, Text]:
        """A text was generated; returns those that are settled by it."""
        if self.names is None:
            return self._settle({key: text})
        if key in self.again:
            return self._settle({key: self._follow(text)})
        self._drafts[key] = text
        if not self._decided and not self._decide(self.names):
            return {}
        drafts, self._drafts = self._drafts, {}
        if self.thing is None:
            return self._settle(drafts)
        return self._settle(self._agreeing(self.names, self.thing, drafts))

    def _decide(self, names: ObjectNames) -> bool:
        """Decides what the region is as soon as the texts that may say so are there."""
        asked = [key for key in self.asked if key[0] is Task.LABEL]
        known = {} if asked else {key: each for key, each in self.labels.items() if key[0] is Task.LABEL}
        waiting = asked or ([] if known else list(self.asked))
        if any(key not in self._drafts and key not in self.settled for key in waiting):
            return False
        found = self.settled | self._drafts
        voices = known or {key: found[key] for key in waiting}
        self.thing, self._sure = _surest(voices, names)
        self._decided = True
        return True

    def _agreeing(self, names: ObjectNames, thing: str, drafts: Mapping[Key, Text]) -> dict[Key, Text]:
        """The drafts that say so; of the others, labels are replaced and texts noted in `again`."""
        kept: dict[Key, Text] = {}
        for key, text in drafts.items():
            task, language = key
            beginning = names.beginning(text.text, language, thing)
            if beginning is None:
                kept[key] = self._follow(text)
            elif task is Task.LABEL:
                kept[key] = replace(text, text=names.label(thing, language), confidence=self._sure)
            else:
                self.again[key] = beginning
        return kept

    def _follow(self, text: Text) -> Text:
        """No text is more confident than the one that has decided."""
        if self._sure is None or text.confidence is None or text.confidence <= self._sure:
            return text
        return replace(text, confidence=self._sure)

    def _settle(self, texts: dict[Key, Text]) -> dict[Key, Text]:
        self.settled |= texts
        return texts


def thing_of(texts: Mapping[Key, Text], names: ObjectNames) -> tuple[str | None, float | None] | None:
    """The most confident label of `texts` → key of what it names, and its confidence, 0..1; None without any.

    Each of the two is None if it is not known.
    """
    labels = {key: text for key, text in texts.items() if key[0] is Task.LABEL}
    return _surest(labels, names) if labels else None


def _surest(texts: Mapping[Key, Text], names: ObjectNames) -> tuple[str | None, float | None]:
    """What the most confident text names, and its confidence; the first of equals."""
    (_, language), text = max(texts.items(), key=lambda item: _rank(item[1]))
    return names.named(text.text, language), text.confidence


def _rank(text: Text) -> float:
    return UNKNOWN if text.confidence is None else text.confidence
