"""Questions and answers about a region, the frames that show it, and their token ids.

Letters: B samples, L tokens, K target tokens, N answers of all samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pam_ros.datasets.schema import Clip, SampleRegion
from pam_ros.model.text.language_model import LanguageModel
from pam_ros.model.text.prompts import text_after_image
from pam_ros.records import Language, Task
from pam_ros.runtime.clip_sampler import planned_instants
from pam_ros.training.config import StageConfig

END = "<|im_end|>"
FIRST_CAPTION = 0.1  # fraction of later clips that are asked about without the previous caption


@dataclass(frozen=True, slots=True)
class QAExample:
    """One question about a region with its answer, and the frames that show the region."""

    frames: tuple[int, ...]
    question: str  # the text after the region embeddings
    answer: str
    task: Task


@dataclass(frozen=True, slots=True)
class Tokens:
    """Texts of B samples, padded on the right: the questions of each with their answers, one after the other.

    Questions do not attend to each other: the positions of each continue those of the common text before.
    """

    ids: Tensor  # (B, L) int64
    places: Tensor  # (B, L) int64: place within its question and answer, from 0
    parts: Tensor  # (B, L) int64: number of its question in the sample, from 0; padding: -1
    labels: Tensor  # (K,) int64: ids of the target tokens
    learned: Tensor  # (K,) int64: their indices in B·L
    answers: Tensor  # (K,) int64: number of the answer, of N, that each belongs to
    weights: Tensor  # (K,) float32: weight of each in the loss
    is_label: Tensor  # (N,) bool: the answer is a label
    has_labels: bool  # whether any is; known without waiting for the device

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Tokens:
        """Every tensor changed: pinned, or sent somewhere."""
        ids, places, parts = change(self.ids), change(self.places), change(self.parts)
        learned, labels = change(self.learned), change(self.labels)
        answers, weights = change(self.answers), change(self.weights)
        is_label = change(self.is_label)
        return Tokens(ids, places, parts, labels, learned, answers, weights, is_label, self.has_labels)


def image_tasks_of(region: SampleRegion, config: StageConfig) -> list[tuple[Task, Language]]:
    """The trained tasks and languages that the region has a text for."""
    return [
        key
        for key, texts in region.texts.items()
        if config.tasks.get(key[0], 0) > 0 and key[1] in config.languages and texts
    ]


def image_questions(
    random: np.random.Generator, region: SampleRegion, config: StageConfig
) -> list[QAExample]:
    """Different image tasks of a region: `config.answers` of them, or all that it has."""
    keys = image_tasks_of(region, config)
    weights = np.array([config.tasks[task] for task, _ in keys])
    count = min(config.answers, len(keys))
    examples = []
    for number in random.choice(len(keys), count, replace=False, p=weights / weights.sum()):
        task, language = keys[number]
        answer = _any(random, region.texts[task, language])
        examples.append(QAExample((0,), text_after_image(task, language), answer, task))
    return examples


def clips_of(region: SampleRegion, config: StageConfig, frames: int) -> list[tuple[int, int]]:
    """(sequence, place in it) of the region's clips with at least `frames` frames and a trained language."""
    return [
        (number, place)
        for number, sequence in enumerate(region.clips)
        for place, clip in enumerate(sequence)
        if clip.end - clip.start >= frames and set(clip.captions) & set(config.languages)
    ]


def clip_questions(
    random: np.random.Generator,
    region: SampleRegion,
    where: tuple[int, int],
    config: StageConfig,
    frames: int,
) -> list[QAExample]:
    """Asks `config.answers` times about a clip, in varied wordings, the languages in turn.

    `frames` frames show it; with carry-over the first of them is the last of the clip before.
    """
    sequence, place = region.clips[where[0]], where[1]
    clip = sequence[place]
    languages = [code for code in clip.captions if code in config.languages]
    turn = int(random.integers(len(languages)))
    frame_before = clip.end if clip.backward else clip.start - 1
    carried = frame_before >= 0 and frames > 1 and random.random() < config.carry_over
    own = (clip.end - 1, clip.start) if clip.backward else (clip.start, clip.end - 1)
    shown = _sampled(random, frame_before if carried else own[0], own[1], frames)
    examples = []
    for number in range(config.answers):
        language = languages[(turn + number) % len(languages)]
        previous, known = None, _previous_captions(sequence, place, language)
        if known and random.random() >= FIRST_CAPTION:
            previous = _any(random, known)
        question = text_after_image(Task.CLIP, language, previous)
        examples.append(QAExample(shown, question, _any(random, clip.captions[language]), Task.CLIP))
    return examples


def _previous_captions(sequence: Sequence[Clip], place: int, language: Language) -> tuple[str, ...]:
    """Captions that come before a clip's own: the one that the data ask with, or the clip's before it."""
    if language in sequence[place].previous:
        return (sequence[place].previous[language],)
    return sequence[place - 1].captions.get(language, ()) if place else ()


def _sampled(random: np.random.Generator, first: int, last: int, count: int) -> tuple[int, ...]:
    """`count` different frames from the first to the last, which may be before it.

    They are jittered around the instants at which the runtime samples clips; the ends stay.
    """
    length, step = abs(last - first), 1 if last >= first else -1
    if count == 1:
        return (first + step * int(random.integers(length + 1)),)
    instants = planned_instants(0, length, count)
    jitter = random.uniform(-0.5, 0.5, count) * (instants[1] - 1) * 0.9
    jitter[[0, -1]] = 0
    frames = np.unique(np.clip(np.round(instants + jitter), 0, length).astype(int))
    if len(frames) < count:
        frames = np.unique(np.round(instants).astype(int))
    return tuple(int(first + step * frame) for frame in frames)


def _any(random: np.random.Generator, texts: Sequence[str]) -> str:
    return texts[int(random.integers(len(texts)))]


def context_questions(
    random: np.random.Generator, region: SampleRegion, config: StageConfig
) -> tuple[str, list[QAExample]] | None:
    """For the language model alone: a text about the region in place of its embeddings, and questions."""
    contexts = [
        text
        for (task, _), texts in region.texts.items()
        if task in (Task.DETAIL, Task.EXPLAIN, Task.BRIEF)
        for text in texts
    ]
    clips = clips_of(region, config, 1)
    if clips and (not image_tasks_of(region, config) or random.random() < config.video_fraction):
        where = clips[int(random.integers(len(clips)))]
        clip = region.clips[where[0]][where[1]]
        captions = [text for texts in clip.captions.values() for text in texts]
        named = [_any(random, contexts)] if contexts else []
        context = " ".join([*named, _any(random, captions)])
        return context, clip_questions(random, region, where, config, 1)
    if not contexts or not image_tasks_of(region, config):
        return None
    return _any(random, contexts), image_questions(random, region, config)


class Tokenisation:
    """Texts → padded ids. Caches the ids of every text, since wordings recur."""

    def __init__(self, language: LanguageModel, answer_balance: float = 0.0) -> None:
        self._language, self._balance = language, answer_balance
        self._cache: dict[str, list[int]] = {}

    def ids(self, text: str) -> list[int]:
        """Token ids of one text."""
        if text not in self._cache:
            self._cache[text] = self._language.encode_text(text)
        return self._cache[text]

    def tokens(self, samples: Sequence[Sequence[QAExample]], contexts: Sequence[str] | None = None) -> Tokens:
        """Questions, answers and end tokens of each sample. The loss covers answers only.

        `contexts`: a text of each sample, which stands before each of its questions.
        """
        count = len(samples)
        ids: list[list[int]] = [[] for _ in range(count)]
        places: list[list[int]] = [[] for _ in range(count)]
        parts: list[list[int]] = [[] for _ in range(count)]
        learned: list[tuple[int, int]] = []
        answers: list[int] = []
        weights: list[float] = []
        for row, examples in enumerate(samples):
            given = self.ids(contexts[row]) if contexts is not None else []
            for part, example in enumerate(examples):
                before = [*given, *self.ids(example.question)]
                answer = [*self.ids(example.answer), *self.ids(END)]
                whole, start = len(before) + len(answer), len(ids[row]) + len(before)
                ids[row] += before + answer
                places[row] += range(whole)
                parts[row] += [part] * whole
                learned += [(row, start + place) for place in range(len(answer))]
                answers += [len(weights)] * len(answer)
                weights.append(len(answer) ** -self._balance)
        is_label = [example.task is Task.LABEL for examples in samples for example in examples]
        longest = max(map(len, ids))
        where, of_answer = torch.from_numpy(np.array(learned)), torch.from_numpy(np.array(answers))
        padded = _padded(ids, longest, 0)
        return Tokens(
            ids=padded,
            places=_padded(places, longest, 0),
            parts=_padded(parts, longest, -1),
            labels=padded[where[:, 0], where[:, 1]],
            learned=where[:, 0] * longest + where[:, 1],
            answers=of_answer,
            weights=torch.tensor(weights)[of_answer],
            is_label=torch.tensor(is_label),
            has_labels=any(is_label),
        )


def _padded(rows: Sequence[Sequence[int]], longest: int, padding: int) -> Tensor:
    padded = np.full((len(rows), longest), padding)
    for number, row in enumerate(rows):
        padded[number, : len(row)] = row
    return torch.from_numpy(padded)
