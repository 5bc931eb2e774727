"""Judges whether a region's captions continue one another: a rule on the ground truth, or a chat model."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any, Protocol

from pam_ros.errors import StateError
from pam_ros.records import Language
from pam_ros.simulator.texts.judge import judge

KEY_VARIABLE = "PAM_JUDGE_API_KEY"  # environment variable of the endpoint's key
TOP_SCORE = 5  # a chat model answers 0..5
TIMEOUT_S = 120.0
LONGEST_ANSWER_TOKENS = 2048  # models that reason before they answer need them
# Words for "the same goes on" and "a new event begins"; "remains still" is an event, not such a word.
SAME = {Language.EN: r"^(?:still\b|as before\b)", Language.ZH: "仍然|依旧"}
NEXT = {Language.EN: r"^(?:then|next|now)\b", Language.ZH: "接着|随后|现在"}
INSTRUCTIONS = (
    "You judge streaming captions of one object in a video. You are given, clip by clip, a correct "
    "caption and the caption to be judged. Judge how well the judged captions continue one another: "
    "they speak of the same object throughout, do not contradict earlier captions or the correct ones, "
    "do not tell an event that has ended as if it were new, and say that something goes on where it "
    "goes on. First give your reasons in one sentence, then end with a line `score: N`, N from 0 (none)"
    f" to {TOP_SCORE} (faultless)."
)


class JudgeError(StateError):
    """The judging endpoint cannot be used, or its answer has no score."""


@dataclass(frozen=True, slots=True)
class CaptionSequence:
    """The captions of one region, clip by clip; all tuples have one item a clip.

    Attributes:
        sample: e.g. "video 7000001 region 2".
        captions: the model's captions.
        references: a right caption of each clip; "" if none is known.
        category: ontology id of the region; "" if the data do not say.
        events: ontology ids of each clip's events; () if the data do not say.
    """

    sample: str
    language: Language
    captions: tuple[str, ...]
    references: tuple[str, ...]
    category: str
    events: tuple[tuple[str, ...], ...]


class Judge(Protocol):
    """Scores the continuity of at least two captions."""

    @property
    def name(self) -> str:
        """Its name in the result's file."""

    def continuity(self, sequence: CaptionSequence) -> float | None:
        """0 (none) .. 1 (faultless); None if this judge cannot tell. Raises JudgeError."""


class RuleJudge:
    """Judges by the simulator's truth, offline and exactly repeatable.

    A clip after the first scores 0 if its caption names another object than the region, or none, or no event
    of the ontology. Else it scores the mean of two questions, each 1 or 0:

    - It names no event that ended in an earlier clip and is not an event of this one.
    - Its connection fits. If the true events are those of the clip before, it names exactly them and does not
      begin with "then", "next", "now" (接着, 随后, 现在); if they are others, it does not say "still" or
      "as before" (仍然, 依旧). A caption without any such word fits both.

    The score is the mean over the clips after the first.
    """

    name = "rule"

    def continuity(self, sequence: CaptionSequence) -> float | None:
        """See Judge. None for one clip, or if the data do not say what happens."""
        if len(sequence.captions) < 2 or not sequence.category or not all(sequence.events):
            return None
        scores = [self._clip(sequence, place) for place in range(1, len(sequence.captions))]
        return sum(scores) / len(scores)

    @staticmethod
    def _clip(sequence: CaptionSequence, place: int) -> float:
        caption, truth = sequence.captions[place], set(sequence.events[place])
        verdict = judge(caption, sequence.language)
        named, before = set(verdict.events), set(sequence.events[place - 1])
        if verdict.category != sequence.category or not named:
            return 0.0
        ended = {event for events in sequence.events[:place] for event in events} - truth
        text = caption.strip().lower()
        if truth == before:
            linked = named == truth and not re.search(NEXT[sequence.language], text)
        else:
            linked = not re.search(SAME[sequence.language], text)
        return ((not named & ended) + linked) / 2


class ChatJudge:
    """Judges by a chat model at an OpenAI-compatible endpoint, one request per region (G-STDC)."""

    def __init__(self, *, url: str, model: str, key: str = "", timeout_s: float = TIMEOUT_S) -> None:
        """`url` as in http://localhost:8000/v1. Raises JudgeError if the package openai is missing."""
        try:
            from openai import OpenAI
        except ImportError as error:
            raise JudgeError(
                "a judge at a URL needs the package openai; install it (pip install 'pam_ros[judge]'), or "
                "leave out --judge for the offline rule"
            ) from error
        self.name = model
        self._url = url
        # An empty key would make the client look for another service's key in the environment.
        self._client: Any = OpenAI(base_url=url, api_key=key or "none", timeout=timeout_s, max_retries=2)

    def continuity(self, sequence: CaptionSequence) -> float | None:
        """See Judge. None for one clip."""
        if len(sequence.captions) < 2:
            return None
        from openai import OpenAIError

        messages = [
            {"role": "system", "content": INSTRUCTIONS},
            {"role": "user", "content": _question(sequence)},
        ]
        try:
            answer = self._client.chat.completions.create(
                model=self.name, messages=messages, temperature=0, max_tokens=LONGEST_ANSWER_TOKENS
            )
            text = str(answer.choices[0].message.content or "")
        except (OpenAIError, AttributeError, IndexError, TypeError) as error:
            raise JudgeError(
                f"the judge {self.name!r} at {self._url} gave no answer: {error}; check the address "
                f"(it usually ends in /v1), the model's name, and the key in {KEY_VARIABLE}"
            ) from error
        return self._score(text)

    def _score(self, text: str) -> float:
        found: list[str] = re.findall(r"score\W{0,6}(\d+(?:\.\d+)?)", text.lower())
        if not found or not 0 <= float(found[-1]) <= TOP_SCORE:
            raise JudgeError(
                f"the judge {self.name!r} at {self._url} was asked to end with `score: N`, N from 0 to "
                f"{TOP_SCORE}, but answered {text[-200:]!r}; use a model that follows instructions"
            )
        return float(found[-1]) / TOP_SCORE


def _question(sequence: CaptionSequence) -> str:
    """The captions as the chat model reads them."""
    return "\n".join(
        f"clip {place}\ncorrect: {reference or '(not known)'}\njudged: {caption or '(nothing)'}"
        for place, (reference, caption) in enumerate(
            zip(sequence.references, sequence.captions, strict=True), 1
        )
    )


def open_judge(url: str | None = None, model: str | None = None) -> Judge:
    """The offline rule, or with a URL the chat model there; its key is taken from PAM_JUDGE_API_KEY.

    Raises JudgeError if the model's name is missing.
    """
    if url is None:
        return RuleJudge()
    if not model:
        raise JudgeError(f"a judge at {url} needs the name of a model there: --judge-model NAME")
    return ChatJudge(url=url, model=model, key=os.environ.get(KEY_VARIABLE, ""))
