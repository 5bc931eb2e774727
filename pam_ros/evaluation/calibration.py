"""Calibrates confidences: `python -m pam_ros.evaluation.calibration MODEL --strangers IMAGES`.

Known regions come from rendered scenes of the validation split; strangers, regions of unknown objects, come
from other images, and every label of them counts as wrong. Both are shown as they are and degraded, so that
image quality does not tell them apart. Writes confidence.json, familiarity.npz and names.json into the
model's folder.

Letters: N regions, F features, T texts.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pam_ros.datasets.schema import SampleRegion
from pam_ros.errors import DatasetError, ImageError, PamError
from pam_ros.evaluation.texts import function_is_right, label_is_right
from pam_ros.media import read_image
from pam_ros.model.interface import TextRequest
from pam_ros.model.loading.checkpoint import load_model
from pam_ros.model.loading.options import LoadOptions
from pam_ros.model.pam import Pam
from pam_ros.model.text.confidence import ConfidenceModel, Curve, Familiarity, features_of, log_odds
from pam_ros.model.text.names import NAMES, ObjectNames, Thing
from pam_ros.records import IMAGE_TASKS, Language, Prompt, Region, Task
from pam_ros.runtime.offline import perceive_image
from pam_ros.simulator.export import exported_image
from pam_ros.simulator.ontology import ontology
from pam_ros.simulator.samples import image_sample

LEAST_PICTURES = 10  # of either kind
FOLDS = 5  # evidence about an image comes from a familiarity that was fitted without it
DIRECTIONS = 64
LINEAR_DIRECTIONS = 24  # of the linear score; more of them would overfit single images
COVERAGE = 0.9  # of the right labels of known regions that are to be called sure
STRANGERS_WEIGHT = 0.5  # of all strangers together, against all known regions
ALL_TASKS_EVERY = 4  # images; the others get labels only, since long texts take long
BOXES, CLICKS = 6, 4  # random prompts on an image of strangers; a click's mask gives another box
LARGEST_SIDE = 1024  # pixels; larger images are scaled down
REGIONS_AT_ONCE = 8


class EvidenceRecorder(ConfidenceModel):
    """Keeps the evidence of every text; a text's "confidence" is its index in `log_probabilities`."""

    def __init__(self, semantic_tokens: int) -> None:
        super().__init__()
        self._semantic_tokens = semantic_tokens
        self.log_probabilities: list[list[float]] = []
        self.features: list[Tensor] = []

    def looks(self, frames: Sequence[Tensor]) -> Tensor | None:
        """The features themselves, (F,)."""
        return features_of(frames[0], self._semantic_tokens)

    def of(
        self, request: TextRequest, log_probabilities: Sequence[float], looks: Tensor | None
    ) -> float | None:
        """See the class."""
        if not log_probabilities or looks is None:
            return None
        self.log_probabilities.append(list(log_probabilities))
        self.features.append(looks.cpu())
        return float(len(self.features) - 1)


@dataclass(frozen=True, slots=True)
class Evidence:
    """One text."""

    picture: int
    task: Task
    language: Language
    known: bool  # the region is of a rendered scene
    right: bool
    least: float  # probability of the least likely token
    mask_score: float
    features: Tensor  # (F,)


# ---- evidence


def known_evidence(model: Pam, recorder: EvidenceRecorder, seed: int, count: int) -> Iterator[list[Evidence]]:
    """Evidence from `count` rendered images of the validation split, image by image."""
    for number in range(count):
        sample = exported_image(image_sample(seed * 1_000_000 + number, "val"))
        picture = (
            degraded(sample.image(), np.random.default_rng([seed, number])) if number % 2 else sample.image()
        )
        tasks = IMAGE_TASKS if number % ALL_TASKS_EVERY == 0 else (Task.LABEL,)
        regions = [region for region in sample.regions if region.can_be_prompted()]
        found: list[Evidence] = []
        for start in range(0, len(regions), REGIONS_AT_ONCE):
            some = regions[start : start + REGIONS_AT_ONCE]
            prompts = [region.prompt() for region in some]
            for truth, region in zip(
                some, perceive_image(model, picture, prompts, tasks, list(Language)), strict=True
            ):
                found += _texts(recorder, number, region, truth)
        yield found


def strange_evidence(
    model: Pam, recorder: EvidenceRecorder, paths: Sequence[Path], seed: int, first: int
) -> Iterator[list[Evidence]]:
    """Evidence from images of unknown objects, image by image; their numbers begin with `first`."""
    for number, path in enumerate(paths):
        rng = np.random.default_rng([seed, 7, number])
        picture = read_image(path)
        scale = LARGEST_SIDE / max(picture.shape[:2])
        if scale < 1:
            picture = np.asarray(
                cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8
            )
        if number % 2:
            picture = degraded(picture, rng)
        height, width = picture.shape[:2]
        boxes = [_random_box(rng, width, height) for _ in range(BOXES)]
        clicks = [Prompt.from_clicks([rng.uniform(0, [width - 1, height - 1])]) for _ in range(CLICKS)]
        for region in perceive_image(model, picture, clicks, (), ()):
            if region.mask.size:
                boxes.append(Prompt.from_clicks(box_xyxy=region.box_xyxy))
        tasks = IMAGE_TASKS if number % ALL_TASKS_EVERY == 0 else (Task.LABEL,)
        found: list[Evidence] = []
        for start in range(0, len(boxes), REGIONS_AT_ONCE):
            for region in perceive_image(
                model, picture, boxes[start : start + REGIONS_AT_ONCE], tasks, list(Language)
            ):
                found += _texts(recorder, first + number, region, None)
        yield found


def degraded(picture: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """(H, W, 3) RGB, same size, as from a poor camera: scaled, other light, noise, JPEG."""
    height, width = picture.shape[:2]
    image = picture
    if rng.random() < 0.5:
        factor = rng.uniform(0.5, 0.9)
        image = np.asarray(
            cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA), np.uint8
        )
        image = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)
    light = rng.uniform(0.8, 1.2) * image.astype(np.float32) + rng.uniform(-12, 12)
    noise = rng.normal(0, rng.uniform(0, 6), image.shape)
    image = np.clip(light + noise, 0, 255).astype(np.uint8)
    quality = int(rng.integers(40, 95))
    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)


def _random_box(rng: np.random.Generator, width: int, height: int) -> Prompt:
    size = np.exp(rng.uniform(np.log(0.08), np.log(0.7), 2)) * [width, height]
    corner = rng.uniform(0, 1, 2) * ([width, height] - size)
    return Prompt.from_clicks(box_xyxy=[*corner, *(corner + size)])


def _texts(
    recorder: EvidenceRecorder, picture: int, region: Region, truth: SampleRegion | None
) -> Iterator[Evidence]:
    for (task, language), text in region.texts.items():
        if text.confidence is None:
            continue
        place = int(text.confidence)
        yield Evidence(
            picture=picture,
            task=task,
            language=language,
            known=truth is not None,
            right=truth is not None and is_right(text.text, task, language, truth),
            least=float(np.exp(min(recorder.log_probabilities[place]))),
            mask_score=region.mask_score,
            features=recorder.features[place],
        )


def is_right(text: str, task: Task, language: Language, truth: SampleRegion) -> bool:
    """Whether it names the region's category; an explanation must name its function, too."""
    right = label_is_right(text, language, truth)
    if task is Task.EXPLAIN and truth.function:
        return right and function_is_right(text, language, truth)
    return right


# ---- fitting


def fit_familiarity(evidence: Sequence[Evidence], semantic_tokens: int) -> Familiarity:
    """Distances to known regions with right labels, and a linear score that separates them from others."""
    features = torch.stack([each.features for each in evidence]).double()
    right = torch.tensor([each.known and each.right for each in evidence])
    known = features[right]
    mean = known.mean(0)
    _, sizes, basis = torch.linalg.svd(known - mean, full_matrices=False)
    deviations = sizes / (len(known) - 1) ** 0.5
    count = min(DIRECTIONS, len(deviations) - 1)
    rest = deviations[count:].square().sum().sqrt()
    centred = features - features.mean(0)
    _, spreads, axes = torch.linalg.svd(centred, full_matrices=False)
    axes = axes[:LINEAR_DIRECTIONS] / (spreads[:LINEAR_DIRECTIONS, None] / len(features) ** 0.5)
    weights = fit_logistic((centred @ axes.T).numpy(), right.numpy(), _balanced(evidence), ridge=3.0)
    linear = torch.from_numpy(weights[1:]) @ axes
    directions = basis[:count] / deviations[:count, None]
    return Familiarity(mean.float(), directions.float(), rest.float(), linear.float(), semantic_tokens)


def fit_logistic(
    inputs: NDArray[np.float64], right: NDArray[np.bool_], weights: NDArray[np.float64], *, ridge: float
) -> NDArray[np.float64]:
    """Inputs (N, K), weights (N,) → bias and K weights of a logistic function, by Newton's method."""
    x = np.concatenate([np.ones((len(inputs), 1)), inputs], 1)
    solution = np.zeros(x.shape[1])
    penalty = np.diag([1e-6, *[ridge] * inputs.shape[1]])
    for _ in range(50):
        probability = 1 / (1 + np.exp(-np.clip(x @ solution, -30, 30)))
        gradient = x.T @ (weights * (right - probability)) - penalty @ solution
        curvature = (x * (weights * probability * (1 - probability))[:, None]).T @ x + penalty
        solution += np.linalg.solve(curvature, gradient)
    return solution


def fit_curve(evidence: Sequence[Evidence], looks: NDArray[np.float64]) -> Curve:
    """One task's evidence with its familiarity (T, 3) → the curve."""
    inputs = np.array([
        [log_odds(each.least), *numbers, log_odds(each.mask_score)]
        for each, numbers in zip(evidence, looks, strict=True)
    ])  # fmt: skip
    right = np.array([each.right for each in evidence])
    return Curve(*(float(weight) for weight in fit_logistic(inputs, right, _balanced(evidence), ridge=0.1)))


def _balanced(evidence: Sequence[Evidence]) -> NDArray[np.float64]:
    known = np.array([each.known for each in evidence])
    share = STRANGERS_WEIGHT * known.sum() / max(1, (~known).sum())
    return np.where(known, 1.0, share)


def calibrate(evidence: Sequence[Evidence], semantic_tokens: int) -> tuple[ConfidenceModel, dict[str, float]]:
    """Evidence → the calibration, and its quality on texts from images that it was not fitted on."""
    looks = np.zeros((len(evidence), 3))
    folds = np.array([each.picture % FOLDS for each in evidence])
    for fold in range(FOLDS):
        others = [each for each, own in zip(evidence, folds, strict=True) if own != fold]
        familiarity = fit_familiarity([each for each in others if each.task is Task.LABEL], semantic_tokens)
        for place in np.flatnonzero(folds == fold):
            looks[place] = familiarity(evidence[place].features).numpy()
    curves: dict[Task, Curve] = {}
    sure = np.zeros(len(evidence))
    for task in IMAGE_TASKS:
        places = [place for place, each in enumerate(evidence) if each.task is task]
        chosen = [evidence[place] for place in places]
        curves[task] = fit_curve(chosen, looks[places])
        for place, each in zip(places, chosen, strict=True):
            sure[place] = curves[task](each.least, looks[place].tolist(), each.mask_score)
    labels = np.array([each.task is Task.LABEL for each in evidence])
    known = labels & np.array([each.known for each in evidence])
    right = np.array([each.right for each in evidence])
    bar = float(np.quantile(sure[known & right], 1 - COVERAGE))
    above = sure >= bar
    figures = {
        "right_above": float(above[known & right].mean()),
        "right_of_above": float(right[known & above].mean()),
        "strangers_below": float((~above)[labels & ~known].mean()),
    }
    familiarity = fit_familiarity([each for each in evidence if each.task is Task.LABEL], semantic_tokens)
    return ConfidenceModel(curves, familiarity, min_confidence=round(bar, 3)), figures


# ---- names


def names_of_ontology() -> ObjectNames:
    """The names of everything in rendered scenes."""
    things = {}
    for key, entry in ontology().entries.items():
        article = "" if entry.plural and entry.kind == "part" else "a pair of" if entry.plural else "a"
        things[key] = Thing(entry.names, entry.noun, article, entry.measure_word)
    return ObjectNames(things)


def pictures_in(folder: Path, report: Callable[[str], None]) -> list[Path]:
    """The images in a folder, by name; other files are reported. Raises DatasetError for too few."""
    if not folder.is_dir():
        raise DatasetError(f"no folder {folder}; give one with images of objects unknown to the model")
    paths = []
    for path in sorted(folder.iterdir()):
        try:
            read_image(path)
            paths.append(path)
        except ImageError as error:
            report(f"left out: {error}")
    if len(paths) < LEAST_PICTURES:
        raise DatasetError(f"{folder} has {len(paths)} images; at least {LEAST_PICTURES} are needed")
    return paths


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see --help."""
    parser = argparse.ArgumentParser(description="Calibrate the confidences of a model's texts.")
    parser.add_argument("folder", type=Path, help="the model's folder")
    parser.add_argument("--strangers", type=Path, required=True, help="folder of images of unknown objects")
    parser.add_argument("--images", type=int, default=120, help="number of rendered images")
    parser.add_argument("--seed", type=int, default=4711, help="seed of the rendered images")
    options = parser.parse_args(arguments)
    if options.images < LEAST_PICTURES:
        parser.error(f"--images is {options.images}; give at least {LEAST_PICTURES}")
    try:
        paths = pictures_in(options.strangers, lambda line: print(line, flush=True))
        model = load_model(LoadOptions(model=str(options.folder)))
    except PamError as error:
        parser.error(str(error))
    model.names = None  # every text for itself
    semantic_tokens = model.architecture.perceiver.semantic_tokens
    model.text.confidence = recorder = EvidenceRecorder(semantic_tokens)
    evidence: list[Evidence] = []
    pictures = itertools.chain(
        known_evidence(model, recorder, options.seed, options.images),
        strange_evidence(model, recorder, paths, options.seed, options.images),
    )
    total = options.images + len(paths)
    for number, found in enumerate(pictures, 1):
        evidence += found
        print(f"image {number} of {total}: {len(evidence)} texts", flush=True)
    confidence, figures = calibrate(evidence, semantic_tokens)
    made = {
        "by": "pam_ros.evaluation.calibration",
        "rendered_pictures": options.images,
        "seed": options.seed,
        "pictures_of_strangers": len(paths),
        "texts": len(evidence),
        "labels_of_other_pictures_than_fitted": {key: round(value, 4) for key, value in figures.items()},
    }
    names_of_ontology().write(options.folder / NAMES)
    confidence.write(options.folder, made)
    print(f"{figures}, threshold {confidence.min_confidence}")


if __name__ == "__main__":
    main()
