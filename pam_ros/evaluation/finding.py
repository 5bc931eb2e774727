"""Evaluates finding by purpose: requests in words that no training text has, on everything in view."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import yaml

from pam_ros.datasets.schema import Kind, Sample, SampleSource
from pam_ros.evaluation.cases import Case, Findings
from pam_ros.geometry import full_mask
from pam_ros.model.interface import PerceptionModel
from pam_ros.records import Language, Region, Task
from pam_ros.runtime.offline import survey_image
from pam_ros.runtime.options import EngineOptions
from pam_ros.runtime.requests import SurveyRequest
from pam_ros.runtime.survey import described
from pam_ros.simulator.functions import fitting_functions

BUDGET_S = 60.0  # enough to search the whole grid on a slow machine
MIN_INSIDE = 0.5  # of a found region's pixels, on an object that fits
WORDINGS = ("", "indirect_")


@lru_cache(maxsize=1)
def requests() -> dict[str, dict[str, list[str]]]:
    """Function → wordings by "en", "zh", "indirect_en", "indirect_zh"."""
    text = Path(__file__).with_name("requests.yaml").read_text(encoding="utf-8")
    read: dict[str, dict[str, list[str]]] = yaml.safe_load(text)
    return read


@dataclass(frozen=True, slots=True)
class _Question:
    """One request about an image; `function` is what it asks for."""

    function: str
    text: str
    wording: str  # of WORDINGS
    exists: bool  # whether an object in the image fits


def evaluate_finding(
    model: PerceptionModel,
    images: SampleSource,
    findings: Findings,
    *,
    min_score: float | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> None:
    """Adds how often `find` is right: a direct and an indirect request for each object, as many for none.

    - `find_first_en`: of requests that an object fits: the region ranked first lies on such an object, and
      its score reaches the threshold `find_min_score`.
    - `find_none_en`: of requests that no object fits: no region reaches the threshold.
    - with `_indirect`: the request does not name the function ("the power is out").
    - with `_boxes`: candidates are the true boxes, as from a perfect detector, not everything in view.

    Chinese has `_zh` for `_en`.
    """
    bar = EngineOptions().find_min_score if min_score is None else min_score
    for number, image in enumerate(images, 1):
        progress(f"finding in image {number} of {len(images)}")
        boxes = tuple(_corners(image, place) for place in range(len(image.regions)))
        for suffix, given in (("", None), ("_boxes", boxes)):
            request = SurveyRequest(
                (Task.LABEL, Task.EXPLAIN), tuple(Language), boxes_xyxy=given, budget_s=BUDGET_S
            )
            found = survey_image(model, image.image(), request).regions
            for language in Language:
                for question in _questions(image, language):
                    _judge(model, image, found, question, language, bar, suffix, findings)
    why = "the data do not name the functions of their objects" if len(images) else "no images"
    for language in Language:
        findings.lack(f"find_first_{language.value}", why)
        findings.lack(f"find_none_{language.value}", why)


def _corners(image: Sample, place: int) -> tuple[float, float, float, float]:
    box = image.regions[place].box_xyxy()
    assert box is not None, "regions of evaluated images can be prompted"
    x1, y1, x2, y2 = map(float, box)
    return x1, y1, x2, y2


def _questions(image: Sample, language: Language) -> list[_Question]:
    rng = np.random.default_rng(zlib.crc32(image.name.encode()))
    here = {region.function for region in image.regions}
    wanted = sorted(
        {region.function for region in image.regions if region.kind is Kind.OBJECT} & set(requests())
    )
    absent = [function for function in requests() if not fitting_functions(function) & here]
    unwanted = [str(each) for each in rng.permutation(absent)[: len(wanted)]]
    questions = []
    for function, exists in [(each, True) for each in wanted] + [(each, False) for each in unwanted]:
        for wording in WORDINGS:
            texts = requests()[function][wording + language.value]
            questions.append(_Question(function, texts[int(rng.integers(len(texts)))], wording, exists))
    return questions


def _judge(
    model: PerceptionModel,
    image: Sample,
    found: Sequence[Region],
    question: _Question,
    language: Language,
    bar: float,
    suffix: str,
    findings: Findings,
) -> None:
    from pam_ros.evaluation.pictures import found_case

    texts = [described(region, language) for region in found]
    scores = list(model.judge.fits(question.text, texts, language)) if found else []
    best = int(np.argmax(scores)) if scores else -1
    first = found[best] if scores and scores[best] >= bar else None
    fits = first is not None and _fits(image, first, question.function)
    right = fits if question.exists else first is None
    kind = "first" if question.exists else "none"
    indirect = "_indirect" if question.wording else ""
    answer = "none" if first is None else f"{scores[best]:.2f} {texts[best].explanation}"
    findings.add(
        Case(
            f"find_{kind}{indirect}{suffix}_{language.value}",
            image.name,
            float(right),
            question.text if question.exists else f"none: {question.text}",
            answer,
            partial(found_case, image, first),
        )
    )


def _fits(image: Sample, region: Region, function: str) -> bool:
    """True if at least half of the region lies on an object with a function that will do."""
    mask = full_mask(region.box_xyxy, region.mask, image.image().shape)
    for truth in image.regions:
        there = truth.mask() if truth.kind is Kind.OBJECT else None
        if there is None or truth.function not in fitting_functions(function):
            continue
        if np.count_nonzero(mask & there) >= MIN_INSIDE * np.count_nonzero(mask):
            return True
    return False
