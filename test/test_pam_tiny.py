"""The shipped pam-tiny on the small test set: as good as when its weights were made.

The bars are a little below the measured figures (in comments), since machines round differently. The goals
and the figures on other scenes are in models/pam-tiny/README.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import torch
from tiny_models import SMALL_SET

from pam_ros.datasets.registry import SelectedSource
from pam_ros.datasets.schema import SampleSource
from pam_ros.evaluation.cases import Findings
from pam_ros.evaluation.judges import open_judge
from pam_ros.evaluation.masks import evaluate_masks
from pam_ros.evaluation.samples import Samples, read_data
from pam_ros.evaluation.stream import evaluate_stream
from pam_ros.evaluation.texts import evaluate_texts, open_similarity
from pam_ros.evaluation.video import evaluate_video
from pam_ros.model.interface import PerceptionModel
from pam_ros.model.loading.options import LoadOptions
from pam_ros.model.opening import open_model
from pam_ros.records import Language

DESCRIBED, TRACKED = 16, 4  # of 32 images and 8 videos, for the slow metrics

pytestmark = pytest.mark.timeout(900)  # two evaluations share a busy machine


def first(source: SampleSource, count: int) -> SampleSource:
    return SelectedSource(source, range(count))


def masks(model: PerceptionModel, samples: Samples, findings: Findings) -> None:
    evaluate_masks(model, samples.images, findings)


def tracking(model: PerceptionModel, samples: Samples, findings: Findings) -> None:
    evaluate_video(model, first(samples.videos, TRACKED), findings)


def texts(model: PerceptionModel, samples: Samples, findings: Findings) -> None:
    evaluate_texts(model, first(samples.images, DESCRIBED), findings, similarity=open_similarity(None))


def streaming(model: PerceptionModel, samples: Samples, findings: Findings) -> None:
    evaluate_stream(model, samples.videos, findings, open_judge(), languages=[Language.EN])


Evaluation = Callable[[PerceptionModel, Samples, Findings], None]


def scores_of(evaluation: Evaluation) -> Mapping[str, float | None]:
    """Runs an evaluation on a model of its own, as the node opens it."""
    findings = Findings()
    evaluation(open_model(LoadOptions("pam-tiny", device="cpu")), read_data(SMALL_SET), findings)
    return findings.scores()


@pytest.fixture(scope="module")
def scores() -> Iterator[dict[Evaluation, Future[Mapping[str, float | None]]]]:
    """All evaluations, two at a time, each on one thread: so its results are the same on every machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(2) as pool:
            yield {each: pool.submit(scores_of, each) for each in (streaming, masks, tracking, texts)}
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("evaluation", "bars"),
    [  # measured: 0.889, 0.835; 0.884, 1; 0.889 each, 0.938, 0.827, 1; 0.81 (these videos have more
        # events than others)
        (masks, {"mask_iou_box": 0.87, "mask_iou_click": 0.82}),
        (tracking, {"jf_video": 0.88, "recovery_rate": 0.9}),
        (
            texts,
            {
                "label_accuracy_en": 0.84,
                "label_accuracy_zh": 0.88,
                "function_accuracy": 0.86,
                "sure_labels_right": 0.92,
                "right_labels_sure": 0.8,
                "texts_agree": 0.98,
            },
        ),
        (streaming, {"event_accuracy": 0.75}),
    ],
)
def test_pam_tiny_is_as_good_as_it_was(
    scores: dict[Evaluation, Future[Mapping[str, float | None]]],
    evaluation: Evaluation,
    bars: Mapping[str, float],
) -> None:
    measured = scores[evaluation].result()
    found = {metric: measured[metric] for metric in bars}
    assert all((found[metric] or 0.0) >= bar for metric, bar in bars.items()), (found, bars)
