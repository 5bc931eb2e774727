"""Which question and answer a region gets, which frames it is shown by, and the token ids of both.

Letters: B samples, L tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pam_ros.model.language import LanguageModel
from pam_ros.model.prompts import text_after_rows
from pam_ros.records import Language, Task
from pam_ros.training.config import StageConfig
from pam_ros.training.source import Entry, RegionEntry

IGNORED = -100  # label of a token that is not learned
END = "<|im_end|>"
FIRST_CAPTION = 0.1  # share of later clips that are shown as if they were the first


@dataclass(frozen=True, slots=True)
class Lesson:
    """One question with its answer about a region, and the frames it is shown by."""

    frames: tuple[int, ...]
    question: str  # what follows the visual rows
    answer: str
    task: Task


@dataclass(frozen=True, slots=True)
class Tokens:
    """Texts of B samples, padded on the right."""

    ids: Tensor  # (B, L) int64
    labels: Tensor  # (B, L) int64: the id where it is to be learned, else IGNORED
    is_label: Tensor  # (B,) bool: Task.LABEL
    learned: Tensor  # (K,) int64: where in B·L there is something to be learned
    weights: Tensor  # (K,) float32: what each of these counts in the loss
    asks_labels: bool  # whether any is a label; known without asking the device

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Tokens:
        """Every tensor changed: pinned, or sent somewhere."""
        ids, labels = change(self.ids), change(self.labels)
        where, weights = change(self.learned), change(self.weights)
        return Tokens(ids, labels, change(self.is_label), where, weights, self.asks_labels)


def image_lessons(region: RegionEntry, config: StageConfig) -> list[tuple[Task, Language]]:
    """The tasks and languages in which an image lesson of this region can be given."""
    return [
        key
        for key, texts in region.texts.items()
        if config.tasks.get(key[0], 0) > 0 and key[1] in config.languages and texts
    ]


def image_lesson(
    random: np.random.Generator, region: RegionEntry, config: StageConfig, frame: int = 0
) -> Lesson:
    """A random image task of a region that has one."""
    keys = image_lessons(region, config)
    weights = np.array([config.tasks[task] for task, _ in keys])
    task, language = keys[random.choice(len(keys), p=weights / weights.sum())]
    answer = str(random.choice(region.texts[task, language]))
    return Lesson((frame,), text_after_rows(task, language), answer, task)


def clip_lessons(
    entry: Entry, region: RegionEntry, config: StageConfig, frames: int
) -> list[tuple[int, int]]:
    """(sequence, clip) of the region's clips that hold at least `frames` frames."""
    return [
        (row, place)
        for row, sequence in enumerate(region.clips)
        for place, clip in enumerate(sequence)
        if clip.end - clip.start >= frames and set(clip.texts) & set(config.languages)
    ]


def clip_lesson(
    random: np.random.Generator, region: RegionEntry, where: tuple[int, int], config: StageConfig, frames: int
) -> Lesson:
    """A clip by `frames` of its frames; with carry-over the first is the last of the clip before."""
    sequence, place = region.clips[where[0]], where[1]
    clip = sequence[place]
    language = _choice(random, [code for code in clip.texts if code in config.languages])
    previous = None
    if place and language in sequence[place - 1].texts and random.random() >= FIRST_CAPTION:
        previous = str(random.choice(sequence[place - 1].texts[language]))
    carried = clip.start > 0 and frames > 1 and random.random() < config.carry_over
    own = frames - 1 if carried else frames
    shown = _spread(random, clip.start, clip.end, own)
    question = text_after_rows(Task.CLIP, language, previous)
    answer = str(random.choice(clip.texts[language]))
    return Lesson(((clip.start - 1,) if carried else ()) + shown, question, answer, Task.CLIP)


def _spread(random: np.random.Generator, start: int, end: int, count: int) -> tuple[int, ...]:
    """`count` different frames of start..end (end exclusive), evenly spread but for some jitter."""
    if count == 1:
        return (int(random.integers(start, end)),)
    even = np.linspace(0, end - start - 1, count)
    jitter = random.uniform(-0.5, 0.5, count) * (even[1] - even[0] - 1) * 0.9
    jitter[[0, -1]] = 0
    frames = np.unique(np.clip(np.round(even + jitter), 0, end - start - 1).astype(int))
    if len(frames) < count:
        frames = np.unique(np.round(even).astype(int))
    return tuple(int(start + frame) for frame in frames)


def _choice(random: np.random.Generator, items: Sequence[Language]) -> Language:
    return items[int(random.integers(len(items)))]


def context_lesson(
    random: np.random.Generator, region: RegionEntry, config: StageConfig
) -> tuple[str, Lesson] | None:
    """For the language model alone: a text of the region stands for its rows, and another is asked for."""
    contexts = [
        text
        for (task, _), texts in region.texts.items()
        if task in (Task.DETAIL, Task.EXPLAIN, Task.BRIEF)
        for text in texts
    ]
    clips = clip_lessons(Entry(1, ()), region, config, 1)
    if clips and (not image_lessons(region, config) or random.random() < config.video_share):
        where = clips[int(random.integers(len(clips)))]
        clip = region.clips[where[0]][where[1]]
        hints = [text for texts in clip.texts.values() for text in texts]
        named = [str(random.choice(contexts))] if contexts else []
        return " ".join([*named, str(random.choice(hints))]), clip_lesson(random, region, where, config, 1)
    if not contexts or not image_lessons(region, config):
        return None
    return str(random.choice(contexts)), image_lesson(random, region, config)


class Tokenisation:
    """Texts → padded ids. Remembers what it has seen: the same wordings come again and again."""

    def __init__(self, language: LanguageModel, answer_balance: float = 0.0) -> None:
        self._language, self._balance = language, answer_balance
        self._seen: dict[str, list[int]] = {}

    def ids(self, text: str) -> list[int]:
        """Token ids of one text."""
        if text not in self._seen:
            self._seen[text] = self._language.encode_text(text)
        return self._seen[text]

    def tokens(self, lessons: Sequence[Lesson], contexts: Sequence[str] | None = None) -> Tokens:
        """Question, answer, end token of each, after its context if any. Only answers are learned."""
        rows, learned = [], []
        for place, lesson in enumerate(lessons):
            given = self.ids(contexts[place]) if contexts is not None else []
            before = [*given, *self.ids(lesson.question)]
            answer = [*self.ids(lesson.answer), *self.ids(END)]
            rows.append(before + answer)
            learned.append([IGNORED] * len(before) + answer)
        longest = max(map(len, rows))
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        labels = torch.full((len(rows), longest), IGNORED)
        for place, (row, known) in enumerate(zip(rows, learned, strict=True)):
            ids[place, : len(row)], labels[place, : len(row)] = torch.tensor(row), torch.tensor(known)
        is_label = torch.tensor([lesson.task is Task.LABEL for lesson in lessons])
        counts = labels != IGNORED
        (where,) = counts.flatten().nonzero(as_tuple=True)
        weights = (counts.sum(1, keepdim=True).clamp(min=1) ** -self._balance).expand_as(counts)[counts]
        return Tokens(ids, labels, is_label, where, weights, bool(is_label.any()))
