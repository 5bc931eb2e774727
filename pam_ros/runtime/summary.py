"""One description of a whole stream from its clips' captions, in order, without repetitions (paper, D.3).

Consecutive captions overlap: an event that crosses a decode timestamp ends one caption and begins the
next, and a lasting state appears in every clip. Captions are split into clauses; one that repeats the
clause just before is left out. What happens again after something else is included again.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pam_ros.records import Language

MOST_CAPTIONS = 256  # kept of a stream: the first, and the newest
SAME = 0.8  # a clause that shares at least this fraction of its words repeats the other
COMMON = 0.8  # words with which at least this fraction of the captions begin name the object


@dataclass(frozen=True, slots=True)
class _Wording:
    """How clauses are joined and told apart in one language.

    Attributes:
        sentence: splits a caption into sentences.
        clause: splits a sentence into clauses.
        joint: put between the clauses of a sentence.
        space: put between sentences; stop: ends a sentence.
        goes_on: begins or marks a clause that says that the previous state continues.
        word: finds the words of a clause.
        empty: words without meaning of their own.
    """

    sentence: re.Pattern[str]
    clause: re.Pattern[str]
    joint: str
    space: str
    stop: str
    goes_on: re.Pattern[str]
    word: re.Pattern[str]
    empty: frozenset[str]


_EMPTY_EN = (
    "a", "an", "and", "are", "as", "at", "be", "before", "is", "it", "its", "now", "next", "of", "still",
    "the", "then", "they", "to", "was", "were",
)  # fmt: skip
_WORDINGS = {
    Language.EN: _Wording(
        sentence=re.compile(r"(?<=[.!?])\s+"),
        clause=re.compile(r",? and then |, then |; "),
        joint=" and then ",
        space=" ",
        stop=".",
        goes_on=re.compile(r"^(?:still|as before)\b|\bcontinu(?:e|es|ed|ing)\b", re.IGNORECASE),
        word=re.compile(r"[a-z']+"),
        empty=frozenset(_EMPTY_EN),
    ),
    Language.ZH: _Wording(
        sentence=re.compile(r"(?<=[。！？])"),
        clause=re.compile(r"，(?:然后|随后|接着)|；"),
        joint="，然后",
        space="",
        stop="。",
        goes_on=re.compile("仍然|依旧|继续"),
        word=re.compile(r"[^\W\d_]"),
        empty=frozenset("的了着现在随后接"),
    ),
}


@dataclass(frozen=True, slots=True)
class _Clause:
    """One thing that a caption says: its words, and `own`, those that most other captions lack."""

    text: str
    words: Counter[str]
    own: Counter[str]
    goes_on: bool

    def repeats(self, earlier: _Clause) -> bool:
        """True if the earlier one has nearly all its words; the first caption may have adjectives more."""
        shared = (self.own & earlier.own).total() if self.own else (self.words & earlier.words).total()
        return shared >= SAME * (self.own or self.words).total()


def summarise(captions: Sequence[str], language: Language) -> str:
    """Merges the captions of one region's clips, oldest first, into one text.

    The first caption stays as it is. Of each later one, a clause is left out if it repeats the last clause of
    the caption before (of several sentences: any of its clauses), or says that this continues ("Still, …",
    仍然…). An empty caption says nothing. "" without captions.
    """
    said = [" ".join(caption.split()) for caption in captions if caption.strip()]
    wording = _WORDINGS[language]
    common = _common_words(said, wording)
    told: list[str] = []
    before: list[_Clause] = []
    for text in said:
        sentences = [part for part in wording.sentence.split(text) if part.strip()]
        clauses = [_clauses(sentence, wording, common) for sentence in sentences]
        known = before if len(sentences) > 1 else before[-1:]
        for sentence, parts in zip(sentences, clauses, strict=True):
            _tell(told, sentence, parts, known, wording)
            known = known if len(sentences) > 1 else parts[-1:]
        before = [clause for parts in clauses for clause in parts]
    return wording.space.join(told)


def _tell(
    told: list[str], sentence: str, parts: list[_Clause], known: Sequence[_Clause], wording: _Wording
) -> None:
    """Adds what is new of a sentence: the whole, its beginning, or its end as part of the sentence before."""
    new = []
    for clause in parts:
        if not (known and (clause.goes_on or any(clause.repeats(each) for each in known))):
            new.append(clause)
    if len(new) == len(parts):
        told.append(sentence.strip())
    elif new and new[0] is parts[0]:
        told.append(_joined([clause.text for clause in new], wording))
    elif new:  # its subject is in the clause that is left out
        ending = told.pop().rstrip(f"{wording.stop}!?！？ ")
        told.append(_joined([ending, *(clause.text for clause in new)], wording))


def _joined(clauses: Sequence[str], wording: _Wording) -> str:
    return wording.joint.join(clauses) + wording.stop


def _clauses(sentence: str, wording: _Wording, common: frozenset[str]) -> list[_Clause]:
    parts = [part.strip(f" {wording.stop}") for part in wording.clause.split(sentence)]
    return [
        _Clause(
            part,
            _words(part, wording),
            _words(part, wording, common),
            bool(wording.goes_on.search(part)),
        )
        for part in parts
        if part
    ]


def _words(text: str, wording: _Wording, left_out: frozenset[str] = frozenset()) -> Counter[str]:
    words = wording.word.findall(text.lower())
    return Counter(word for word in words if word not in wording.empty and word not in left_out)


def _common_words(captions: Sequence[str], wording: _Wording) -> frozenset[str]:
    """The words of the subject, mostly: those that nearly all captions have in their first clause."""
    firsts = [wording.clause.split(wording.sentence.split(caption)[0])[0] for caption in captions]
    holders = Counter(word for first in firsts for word in set(_words(first, wording)))
    return frozenset(word for word, count in holders.items() if count >= COMMON * len(captions))
