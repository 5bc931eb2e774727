"""Runs an evaluation: samples of every seed → results of every part, through the model's public interface."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from pam_ros.errors import TRAINING_EXTRA, InputError, StateError
from pam_ros.evaluation.cases import Findings
from pam_ros.evaluation.judges import open_judge
from pam_ros.evaluation.masks import WHOLE_KEYS, evaluate_masks
from pam_ros.evaluation.samples import SEEDS_PER_RUN, Samples, read_data, render_samples
from pam_ros.evaluation.speed import evaluate_speed
from pam_ros.evaluation.video import evaluate_video
from pam_ros.model.interface import PerceptionModel
from pam_ros.threads import in_temporary_thread

Progress = Callable[[str], None]


class Part(Enum):
    """Parts of an evaluation. Values are their names on the command line."""

    MASKS = "masks"  # from a box and from a click, in images
    VIDEO = "video"  # tracking
    TEXTS = "texts"  # labels, explanations, captions of images
    FIND = "find"  # finding by purpose, on everything in view
    STREAM = "stream"  # streaming captions of videos
    SPEED = "speed"  # frames per second, latency
    SURFACES = "surfaces"  # positions and sizes from depth; only if asked for

    @classmethod
    def parse(cls, names: str) -> tuple[Part, ...]:
        """`"masks,speed"` → parts; "" → the usual ones. Raises InputError naming what is allowed."""
        known = {part.value: part for part in cls}
        wanted = (
            [name.strip() for name in names.split(",")]
            if names.strip()
            else [each.value for each in USUAL_PARTS]
        )
        for name in wanted:
            if name not in known:
                allowed = ", ".join(known)
                raise InputError(f"unknown part {name!r} to evaluate; allowed, commas between: {allowed}")
        return tuple(part for part in cls if part.value in wanted)


USUAL_PARTS = tuple(part for part in Part if part is not Part.SURFACES)
PICTURE_PARTS = {Part.MASKS, Part.TEXTS, Part.FIND}  # need images only
# Every report has these keys, with null if their part was not run.
MAIN_KEYS: tuple[tuple[str, Part], ...] = (
    *((key, Part.MASKS) for key in WHOLE_KEYS),
    ("jf_video", Part.VIDEO),
    ("label_accuracy_en", Part.TEXTS),
    ("label_accuracy_zh", Part.TEXTS),
    ("function_accuracy", Part.TEXTS),
    ("sure_labels_right", Part.TEXTS),
    ("right_labels_sure", Part.TEXTS),
    ("label_calibration_error", Part.TEXTS),
    ("texts_agree", Part.TEXTS),
    *((f"find_{kind}_{language}", Part.FIND) for kind in ("first", "none") for language in ("en", "zh")),
    ("event_accuracy", Part.STREAM),
    ("recovery_rate", Part.VIDEO),
    ("tracked_fps", Part.SPEED),
    ("label_latency_s", Part.SPEED),
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to evaluate, and how.

    Attributes:
        seeds: each renders its own test scenes; not used with `data`.
        count: images per seed; with a quarter as many videos, and an eighth as many in which an object goes
            away and comes back, at least one of each.
        data: a folder of shards, or a .jsonl file in PAM's layout.
        cache: folder in which rendered scenes stay; None = they are deleted.
        judge_url, judge_model: an OpenAI-compatible endpoint that judges continuity; None = the offline rule.
        embedder: sentence-transformers model for the similarity of labels; None = letters.
        carry_over: streaming clips start with the last frame of the clip before (paper, section 3.1).
        open_meshes: only open meshes are evaluated, see `render_samples`.
    """

    seeds: tuple[int, ...] = (1,)
    count: int = 40
    parts: tuple[Part, ...] = USUAL_PARTS
    data: Path | None = None
    cache: Path | None = None
    judge_url: str | None = None
    judge_model: str | None = None
    embedder: str | None = None
    carry_over: bool = True
    open_meshes: bool = False

    def __post_init__(self) -> None:
        if self.count < 1:
            raise InputError(f"the number of images must be at least 1, not {self.count}")
        if self.data is None and not self.seeds:
            raise InputError("nothing to evaluate: give a seed or data")
        if Part.SURFACES in self.parts and (self.data is not None or self.open_meshes):
            raise InputError(
                "surfaces are measured on rendered scenes with all meshes; leave out data and open meshes"
            )
        if len(set(self.seeds)) < len(self.seeds) or any(seed < 0 for seed in self.seeds):
            raise InputError(f"seeds must be different whole numbers, 0 or above, not {list(self.seeds)}")

    @property
    def videos(self) -> int:
        """Rendered videos per seed."""
        return max(1, self.count // 4)

    @property
    def absences(self) -> int:
        """Further videos rendered per seed, in which an object goes away and comes back."""
        return max(1, self.count // 8)


@dataclass(frozen=True, slots=True)
class SeedFindings:
    """The results of one seed; `seed` is None for data that were not rendered."""

    seed: int | None
    findings: Findings = field(default_factory=Findings)


@contextmanager
def evaluation(
    model: PerceptionModel, plan: Plan, progress: Progress = lambda line: None
) -> Iterator[list[SeedFindings]]:
    """Evaluates seed by seed. While the context is open, the cases' images can be drawn.

    Raises DatasetError for data that cannot be used.
    """
    _check_packages(plan)  # before hours of work, not after
    if plan.judge_url is not None:
        open_judge(plan.judge_url, plan.judge_model)
    with tempfile.TemporaryDirectory(prefix="pam-evaluate-") as scratch:
        found = []
        for seed in (None,) if plan.data is not None else plan.seeds:
            name = "" if seed is None else f"seed {seed}: "
            report = _prefixed(name, progress)
            samples = _samples(plan, seed, plan.cache or Path(scratch), report)
            findings = in_temporary_thread(partial(evaluate_samples, model, samples, plan, report))
            if Part.SURFACES in plan.parts and seed is not None:
                from pam_ros.evaluation.surfaces import evaluate_surfaces  # needs the simulator

                scenes = range(seed * SEEDS_PER_RUN, seed * SEEDS_PER_RUN + plan.count)
                in_temporary_thread(partial(evaluate_surfaces, model, scenes, findings, report))
            found.append(SeedFindings(seed, findings))
        yield found


def evaluate_samples(
    model: PerceptionModel, samples: Samples, plan: Plan, progress: Progress = lambda line: None
) -> Findings:
    """All parts of the plan on these samples."""
    findings = Findings()
    if Part.SPEED in plan.parts:  # first: see `in_temporary_thread`
        evaluate_speed(model, samples.images, samples.videos, findings, progress)
    if Part.MASKS in plan.parts:
        evaluate_masks(model, samples.images, findings, progress)
    if Part.VIDEO in plan.parts:
        evaluate_video(model, samples.videos, findings, progress, absences=samples.absences)
    if Part.TEXTS in plan.parts:
        from pam_ros.evaluation.texts import evaluate_texts, open_similarity  # needs training.txt's packages

        similarity = open_similarity(plan.embedder)
        evaluate_texts(model, samples.images, findings, similarity=similarity, progress=progress)
    if Part.FIND in plan.parts:
        from pam_ros.evaluation.finding import evaluate_finding

        evaluate_finding(model, samples.images, findings, progress=progress)
    if Part.STREAM in plan.parts:
        from pam_ros.evaluation.stream import evaluate_stream

        judge = open_judge(plan.judge_url, plan.judge_model)
        evaluate_stream(model, samples.videos, findings, judge, carry_over=plan.carry_over, progress=progress)
    for key, part in MAIN_KEYS:
        findings.lack(key, f"{part.value} was not evaluated" if part not in plan.parts else "no case came up")
    return findings


def _check_packages(plan: Plan) -> None:
    """Raises StateError if packages are missing that the plan needs; `pip install .` leaves them out."""
    texts = bool({Part.TEXTS, Part.STREAM} & set(plan.parts))
    has_masks = plan.data is None or plan.data.is_dir()
    needed = {
        "mujoco": plan.data is None,
        "nltk": texts,
        "pycocoevalcap": texts,
        "pycocotools": has_masks,
    }
    missing = [name for name, used in needed.items() if used and find_spec(name) is None]
    if missing:
        raise StateError(f"{', '.join(missing)} not installed; {TRAINING_EXTRA}")


def _prefixed(name: str, progress: Progress) -> Progress:
    return lambda line: progress(name + line)


def _samples(plan: Plan, seed: int | None, folder: Path, progress: Progress) -> Samples:
    if seed is None:
        assert plan.data is not None
        return read_data(plan.data)
    pictures = PICTURE_PARTS & set(plan.parts)
    return render_samples(
        seed,
        plan.count if pictures else 0,
        plan.videos if set(plan.parts) - PICTURE_PARTS - {Part.SURFACES} else 0,
        folder,
        progress,
        absences=plan.absences if Part.VIDEO in plan.parts else 0,
        open_meshes=plan.open_meshes,
    )


def metrics_of(found: Sequence[SeedFindings]) -> list[str]:
    """Every metric, the main keys first."""
    main = [key for key, _ in MAIN_KEYS]
    others = [key for each in found for key in each.findings.scores()]
    return list(dict.fromkeys([*main, *others]))
