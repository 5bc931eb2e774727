"""How close captions are to references in wording: ROUGE-L, METEOR, CIDEr, by the usual libraries.

The libraries are imported when they are used: judging whether a text is right needs none of them.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pam_ros.evaluation.cases import Case, Draw, Findings
from pam_ros.records import Language, Task

# Words of letters and digits; every other letter (Chinese) by itself; no punctuation.
TOKEN = re.compile(r"[a-z0-9]+|[^\W_]")
METRICS = ("rouge_l", "meteor", "cider")


@dataclass(frozen=True, slots=True)
class Wording:
    """A caption of the model with its references.

    Attributes:
        task: any but the label.
        references: right captions in several wordings, at least one.
        picture: see Case.
    """

    sample: str
    task: Task
    language: Language
    found: str
    references: tuple[str, ...]
    picture: Draw | None = None


def tokens(text: str) -> list[str]:
    """Words of a text, lower case, without punctuation; Chinese by characters, which needs no dictionary."""
    return TOKEN.findall(text.lower())


def rouge_l(found: str, references: Sequence[str]) -> float:
    """ROUGE-L as COCO's caption evaluation has it, 0..1: best recall and precision, beta 1.2."""
    from pycocoevalcap.rouge.rouge import Rouge

    score = Rouge().calc_score([_spaced(found)], [_spaced(reference) for reference in references])
    return float(score)


class _NoSynonyms:
    """Stands in for WordNet: no word has synonyms."""

    def synsets(self, word: str) -> list[Any]:
        """None."""
        return []


@lru_cache(maxsize=1)
def _stemmer() -> Any:
    from nltk.stem.porter import PorterStemmer

    return PorterStemmer()


def meteor(found: str, references: Sequence[str]) -> float:
    """METEOR of NLTK, 0..1, the best over the references; equal texts come close to 1.

    Words match exactly or by their stem. Synonyms do not match: WordNet's data would have to be downloaded.
    So values are a little below those of papers that use Java's METEOR 1.5.
    """
    from nltk.translate.meteor_score import meteor_score

    right = [tokens(reference) for reference in references]
    return float(meteor_score(right, tokens(found), stemmer=_stemmer(), wordnet=_NoSynonyms()))


def cider(found: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """CIDEr-D of each text as COCO's caption evaluation has it, 0..10 (papers write 100 for 1).

    Words that are rare among the references given here weigh more, so values of different sets cannot be
    compared, and all are 0 for fewer than two texts.
    """
    from pycocoevalcap.cider.cider import Cider

    if not found:
        return []
    right = {i: [_spaced(reference) for reference in each] for i, each in enumerate(references)}
    said = {i: [_spaced(text)] for i, text in enumerate(found)}
    _, scores = Cider().compute_score(right, said)
    return [float(score) for score in scores]


def _spaced(text: str) -> str:
    return " ".join(tokens(text))


def add_wordings(wordings: Sequence[Wording], findings: Findings) -> None:
    """Adds `rouge_l_TASK_LANGUAGE`, `meteor_…` and `cider_…`; over all image tasks `rouge_l_LANGUAGE` ….

    CIDEr is computed over all texts of a task and language together.
    """
    groups: dict[tuple[Task, Language], list[Wording]] = defaultdict(list)
    for each in wordings:
        groups[each.task, each.language].append(each)
    totals: dict[str, list[float]] = defaultdict(list)
    for (task, language), group in groups.items():
        corpus = cider([each.found for each in group], [each.references for each in group])
        for each, consensus in zip(group, corpus, strict=True):
            scores = (rouge_l(each.found, each.references), meteor(each.found, each.references), consensus)
            for metric, score in zip(METRICS, scores, strict=True):
                name = f"{metric}_{task.value}_{language.value}"
                findings.add(Case(name, each.sample, score, each.references[0], each.found, each.picture))
                if task is not Task.CLIP:
                    totals[f"{metric}_{language.value}"].append(score)
    for metric, values in totals.items():
        findings.put(metric, sum(values) / len(values), len(values))
