"""Texts of images: labels, functions, and how close captions are to the references in wording."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any, Protocol

from pam_ros.datasets.schema import Kind, Sample, SampleRegion, SampleSource
from pam_ros.errors import InputError
from pam_ros.evaluation.cases import Case, Draw, Findings, JudgedLabel
from pam_ros.evaluation.confidence import add_confidence, texts_agree
from pam_ros.evaluation.samples import SPOKEN, SUFFIX
from pam_ros.evaluation.wording import Wording, add_wordings, tokens
from pam_ros.model.interface import PerceptionModel
from pam_ros.records import IMAGE_TASKS, Language, Region, RegionState, Task
from pam_ros.runtime.offline import perceive_image
from pam_ros.simulator.texts.judge import judge

SHORT_TASKS = (Task.LABEL, Task.EXPLAIN)  # for parts and background, too
REGIONS_AT_ONCE = 8  # bounds the memory of one batch of texts
NGRAMS = (2, 3)  # letters


class Similarity(Protocol):
    """How close two labels are in meaning."""

    @property
    def name(self) -> str:
        """Its name in the result's file."""

    def __call__(self, found: str, truth: str) -> float:
        """-1..1; 1 if they are equal."""


class LetterSimilarity:
    """Without an embedding model: cosine of the counts of 2 and 3 letters in a row, without case, 0..1.

    It measures shared spelling ("mug", "coffee mug"), not meaning: "mug" and "cup" score 0.
    """

    name = "letters"

    def __call__(self, found: str, truth: str) -> float:
        """See Similarity."""
        a, b = self._counts(found), self._counts(truth)
        norm = sqrt(sum(n * n for n in a.values()) * sum(n * n for n in b.values()))
        return min(1.0, sum(n * b[part] for part, n in a.items()) / norm) if norm else 0.0

    @staticmethod
    def _counts(text: str) -> Counter[str]:
        padded = f" {' '.join(text.lower().split())} "
        return Counter(padded[i : i + n] for n in NGRAMS for i in range(len(padded) - n + 1))


class EmbeddingSimilarity:
    """Cosine of sentence embeddings, as the paper's region recognition measures it."""

    def __init__(self, model: str) -> None:
        """`model`: a name or folder for sentence-transformers. Raises InputError if it cannot be loaded."""
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise InputError(
                "an embedding model needs the package sentence-transformers; install it "
                "(pip install 'pam_ros[embedder]'), or leave out --embedder to compare letters"
            ) from error
        self.name = model
        try:
            self._model: Any = SentenceTransformer(model)
        except (OSError, ValueError) as error:
            raise InputError(
                f"the embedding model {model!r} cannot be loaded: {error}; give a folder that holds one, or "
                "a name that sentence-transformers can download"
            ) from error

    def __call__(self, found: str, truth: str) -> float:
        """See Similarity."""
        a, b = self._model.encode([found, truth], normalize_embeddings=True, show_progress_bar=False)
        return float(a @ b)


def open_similarity(embedder: str | None = None) -> Similarity:
    """The embedding model of that name or folder; without one the similarity of letters."""
    return EmbeddingSimilarity(embedder) if embedder else LetterSimilarity()


def semantic_iou(found: str, truth: str) -> float:
    """Shared words over all words of two labels, 0..1 (Osprey, Yuan et al., 2024); Chinese by characters."""
    a, b = set(tokens(found)), set(tokens(truth))
    return len(a & b) / len(a | b) if a | b else 0.0


def label_is_right(found: str, language: Language, region: SampleRegion) -> bool:
    """Whether the first category it names is the region's; if that is not known, whether it is a given label.

    Synonyms of the ontology count as right; other data have only their own labels.
    """
    if region.category:
        return judge(found, language).category == region.category
    return tokens(found) in [tokens(label) for label in region.texts.get((Task.LABEL, language), ())]


def function_is_right(found: str, language: Language, region: SampleRegion) -> bool:
    """Whether the first function the explanation names is the region's."""
    return judge(found, language).function == region.function


def evaluate_texts(
    model: PerceptionModel,
    images: SampleSource,
    findings: Findings,
    *,
    languages: Sequence[Language] = tuple(Language),
    similarity: Similarity | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> None:
    """Adds the metrics of texts. Every region is prompted by the box of its true mask.

    Whole objects give the main keys, in English and, with `_zh`, in Chinese:

    - `label_accuracy_en`, `label_accuracy_zh`: see `label_is_right`.
    - `function_accuracy`, `function_accuracy_zh`: the explanation names the right function.
    - `semantic_similarity`, `semantic_iou` (and `_zh`): of the label to the nearest right one.
    - `texts_agree`: fraction of regions, of every kind, whose texts all name the same thing.
    - `sure_labels_right`, `right_labels_sure`, `label_calibration_error`: see `add_confidence`.
    - `rouge_l_brief_en`, `meteor_detail_zh`, `cider_explain_en` …: see `wording.add_wordings`.

    Parts and background have the first three kinds under their own keys, `_parts` and `_background`. A text
    is asked for only if the data have a right one.
    """
    similarity = similarity or LetterSimilarity()
    wordings: list[Wording] = []
    for number, image in enumerate(images, 1):
        progress(f"texts of image {number} of {len(images)}")
        for answer in _answers(model, image, languages):
            _judge(answer, findings, similarity)
            wordings += _wordings(answer)
    add_wordings(wordings, findings)
    add_confidence(findings)
    _report_missing(findings, bool(images), languages)


@dataclass(frozen=True, slots=True)
class _Answer:
    """All texts of the model about one region."""

    sample: str
    region: SampleRegion
    texts: Mapping[tuple[Task, Language], str]
    found: Region
    picture: Draw


def _answers(model: PerceptionModel, image: Sample, languages: Sequence[Language]) -> list[_Answer]:
    """Asks about every region of an image; regions with the same questions form batches."""
    groups: dict[tuple[tuple[Task, ...], tuple[Language, ...]], list[int]] = defaultdict(list)
    for place, region in enumerate(image.regions):
        short = region.kind in (Kind.PART, Kind.BACKGROUND)
        known = [key for key in region.texts if key[1] in languages]
        tasks = tuple(
            task for task in (SHORT_TASKS if short else IMAGE_TASKS) if task in {t for t, _ in known}
        )
        if tasks:
            spoken = tuple(language for language in languages if language in {each for _, each in known})
            groups[tasks, spoken].append(place)
    answers: dict[int, _Answer] = {}
    for (tasks, spoken), places in groups.items():
        for start in range(0, len(places), REGIONS_AT_ONCE):
            chosen = places[start : start + REGIONS_AT_ONCE]
            prompts = [image.regions[place].prompt() for place in chosen]
            found = perceive_image(model, image.image(), prompts, tasks, spoken)
            answers |= {place: _answer(image, place, seen) for place, seen in zip(chosen, found, strict=True)}
    return [answers[place] for place in sorted(answers)]


def _answer(image: Sample, place: int, found: Region) -> _Answer:
    from pam_ros.evaluation.pictures import image_case  # imports OpenCV, which judging texts does not need

    region = image.regions[place]
    texts = {key: text.text for key, text in found.texts.items() if key in region.texts}
    if found.state is RegionState.LOST:  # nothing was found there: every text is wrong
        texts = dict.fromkeys(region.texts, "")
    picture = image_case(image, place, region.prompt(), found)
    return _Answer(f"{image.name} {region.name}", region, texts, found, picture)


def _judge(answer: _Answer, findings: Findings, similarity: Similarity) -> None:
    """Label, explanation, and whether all texts agree."""
    region, suffix = answer.region, SUFFIX[answer.region.kind]
    if len(answer.texts) > 1:
        agree = texts_agree(answer.texts)
        said = "; ".join(answer.texts.values())
        findings.add(Case("texts_agree", answer.sample, float(agree), "", said, answer.picture))
    for (task, language), text in answer.texts.items():
        right = region.texts[task, language]
        scores: dict[str, float] = {}
        spoken = SPOKEN[language]
        if task is Task.LABEL and right:
            scores[f"label_accuracy_{language.value}{suffix}"] = label_is_right(text, language, region)
            label = answer.found.texts.get((task, language))  # None: nothing was found there
            if label is not None:
                is_right = label_is_right(text, language, region)
                findings.labels.append(JudgedLabel(label.confidence, label.unsure, is_right))
            scores[f"semantic_similarity{spoken}{suffix}"] = max(similarity(text, label) for label in right)
            scores[f"semantic_iou{spoken}{suffix}"] = max(semantic_iou(text, label) for label in right)
        elif task is Task.EXPLAIN and region.function:
            scores[f"function_accuracy{spoken}{suffix}"] = function_is_right(text, language, region)
        for metric, score in scores.items():
            findings.add(Case(metric, answer.sample, float(score), right[0], text, answer.picture))


def _wordings(answer: _Answer) -> list[Wording]:
    """The captions of a whole object."""
    if SUFFIX[answer.region.kind]:
        return []
    return [
        Wording(answer.sample, task, language, text, answer.region.texts[task, language], answer.picture)
        for (task, language), text in answer.texts.items()
        if task is not Task.LABEL and answer.region.texts[task, language]
    ]


def _report_missing(findings: Findings, any_images: bool, languages: Sequence[Language]) -> None:
    for language in languages:
        spoken = SPOKEN[language]
        why = f"the data have no whole object with a label in {language.value}" if any_images else "no images"
        findings.lack(f"label_accuracy_{language.value}", why)
        why = "the data do not name the functions of their objects" if any_images else "no images"
        findings.lack(f"function_accuracy{spoken}", why)
