"""Region crops: where they lie, and what small regions gain from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from fakes import FakeModel
from numpy.typing import NDArray
from tiny_models import SMALL_SET, assert_same, click, encoded, shipped_model, tiny_pam

from pam_ros.datasets.coloured_shapes import ShapesSource
from pam_ros.datasets.loading import load_masks, load_pixels
from pam_ros.datasets.schema import Kind, Sample
from pam_ros.datasets.shards import ShardSource
from pam_ros.evaluation.masks import inner_point
from pam_ros.geometry import crop_mask
from pam_ros.model.interface import FIRST_FRAME_STRIDE, ModelInfo
from pam_ros.model.pam import Pam
from pam_ros.model.vision.region_crop import CONTEXT, LARGEST, SMALLEST, crop_around
from pam_ros.model.vision.segmenter import Observation
from pam_ros.records import Frame, Prompt
from pam_ros.runtime.embedding_plan import EmbeddingPlan
from pam_ros.runtime.failures import FaultLog
from pam_ros.runtime.tracks import TrackObservation
from pam_ros.training.features.feature_store import random_crop

Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def model() -> Iterator[Pam]:
    with shipped_model() as pam:
        yield pam


@pytest.fixture(scope="module")
def picture() -> Sample:
    return ShardSource(SMALL_SET)[0]


def boxes(picture: Sample, *, small: bool) -> list[tuple[float, float, float, float]]:
    height, width = picture.image().shape[:2]
    found = []
    for region in picture.regions:
        box = region.box_xyxy()
        assert box is not None
        crop = crop_around((box[0] / width, box[1] / height, box[2] / width, box[3] / height))
        if region.kind is Kind.OBJECT and (crop is not None) == small:
            found.append(box)
    assert found, "the first image of the small set has objects of both kinds"
    return found


def segmented(model: Pam, image: Pixels, prompts: list[Prompt]) -> list[Observation]:
    return model.segment(model.encode(image), prompts, [model.new_memory() for _ in prompts])


# ---- position


@pytest.mark.parametrize(
    ("box", "crop"),
    [
        ((0.45, 0.45, 0.55, 0.5), (0.25, 0.225, 0.75, 0.725)),  # small: half of the frame around it
        ((0.3, 0.4, 0.58, 0.5), (0.09, 0.1, 0.79, 0.8)),  # larger: CONTEXT times its longer side
        ((0.0, 0.9, 0.05, 1.0), (0.0, 0.5, 0.5, 1.0)),  # in a corner: inside the frame
    ],
)
def test_a_crop_surrounds_its_region(box: tuple[float, ...], crop: tuple[float, ...]) -> None:
    assert crop_around((box[0], box[1], box[2], box[3])) == pytest.approx(crop)


def test_large_and_absent_regions_have_no_crop() -> None:
    side = LARGEST / CONTEXT
    assert crop_around((0.1, 0.1, 0.1 + side - 0.01, 0.2)) is not None
    assert crop_around((0.1, 0.1, 0.1 + side + 0.01, 0.2)) is None
    assert crop_around((0.0, 0.0, 0.0, 0.0)) is None


def test_random_crops_contain_their_region_and_stay_in_the_frame() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        x, y = random.uniform(0, 0.75, 2)
        width, height = random.uniform(0.01, 0.25, 2)
        x1, y1, x2, y2 = random_crop((x, y, x + width, y + height), random)
        assert 0 <= x1 < x2 <= 1 + 1e-9
        assert 0 <= y1 < y2 <= 1 + 1e-9
        assert x2 - x1 == pytest.approx(y2 - y1)
        assert x2 - x1 > SMALLEST * 0.8
        assert x1 <= x + 1e-9
        assert y1 <= y + 1e-9
        assert x2 >= x + width - 1e-9
        assert y2 >= y + height - 1e-9


# ---- segmentation and embeddings


def test_a_small_region_is_segmented_as_its_crop_alone(model: Pam, picture: Sample) -> None:
    image, box = picture.image(), boxes(picture, small=True)[0]
    (seen,) = segmented(model, image, [Prompt.from_clicks(box_xyxy=box)])
    assert seen.crop is not None
    x1, y1, x2, y2 = seen.crop.box_xyxy
    moved = np.array(box) - [x1, y1, x1, y1]
    crop = np.ascontiguousarray(image[y1:y2, x1:x2])
    (alone,) = segmented(model, crop, [Prompt.from_clicks(box_xyxy=moved)])
    torch.testing.assert_close(seen.crop.mask_logits, alone.mask_logits, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(
        seen.crop.decoder_features.image, alone.decoder_features.image, rtol=1e-3, atol=1e-3
    )
    whole = replace(alone, crop=None)
    assert np.mean(seen.mask[y1:y2, x1:x2] != whole.mask) < 1e-3
    outside = seen.mask.copy()
    outside[y1:y2, x1:x2] = False
    assert not outside.any()
    assert seen.mask_score == pytest.approx(alone.mask_score, abs=1e-3)


def test_crops_improve_masks_of_small_regions(model: Pam, picture: Sample) -> None:
    image, truth = picture.image(), [region.mask() for region in picture.regions]
    ious: dict[bool, list[float]] = {True: [], False: []}
    for region, mask in zip(picture.regions, truth, strict=True):
        if mask is None or region.box_xyxy() not in boxes(picture, small=True):
            continue
        (seen,) = segmented(model, image, [Prompt.from_clicks(box_xyxy=crop_mask(mask)[0])])
        for cropped in (True, False):
            found = (seen if cropped else replace(seen, crop=None)).mask
            ious[cropped].append(np.count_nonzero(found & mask) / np.count_nonzero(found | mask))
    assert np.mean(ious[True]) > np.mean(ious[False])


def test_large_regions_are_not_cropped(model: Pam, picture: Sample) -> None:
    for seen in segmented(
        model, picture.image(), [Prompt.from_clicks(box_xyxy=box) for box in boxes(picture, small=False)]
    ):
        assert seen.crop is None
        (plain,), (cropped,) = (
            model.embeddings([seen], stride=FIRST_FRAME_STRIDE),
            model.embeddings([seen], stride=FIRST_FRAME_STRIDE, crop=True),
        )
        assert torch.equal(plain.tensor, cropped.tensor)


def test_prompts_of_all_kinds_at_once_equal_one_by_one(model: Pam, picture: Sample) -> None:
    image, (first, *_) = picture.image(), boxes(picture, small=True)
    (mask,) = (region.mask() for region in picture.regions if region.box_xyxy() == first)
    assert mask is not None
    point = inner_point(mask)
    prompts = [
        Prompt.from_clicks(box_xyxy=first),
        Prompt.from_clicks([point]),
        Prompt.from_clicks([point, (1, 1)], [1, 0]),  # the second lies outside the crop
        Prompt.from_mask(mask),
        Prompt.from_clicks([point], box_xyxy=first),
    ]
    for prompt, together in zip(prompts, segmented(model, image, prompts), strict=True):
        (alone,) = segmented(model, image, [prompt])
        assert together.crop is not None
        assert alone.crop is not None
        assert together.crop.box_xyxy == alone.crop.box_xyxy
        torch.testing.assert_close(together.crop.mask_logits, alone.crop.mask_logits, rtol=1e-3, atol=1e-2)
    given = segmented(model, image, prompts)[3]
    assert np.array_equal(given.mask, mask)  # a mask prompt is the mask, cropped or not
    assert given.mask_score == 1.0


def test_texts_use_the_crop_and_clips_the_whole_frame(model: Pam, picture: Sample) -> None:
    image, box = picture.image(), boxes(picture, small=True)[0]
    prompt = Prompt.from_clicks(box_xyxy=box)
    (seen,) = segmented(model, image, [prompt])
    assert seen.crop is not None
    (cropped,), (whole,) = (
        model.embeddings([seen], stride=FIRST_FRAME_STRIDE, crop=True),
        model.embeddings([seen], stride=FIRST_FRAME_STRIDE),
    )
    (of_crops,) = model.embeddings(
        [replace(seen, decoder_features=seen.crop.decoder_features)], stride=FIRST_FRAME_STRIDE
    )
    (of_whole,) = model.embeddings([replace(seen, crop=None)], stride=FIRST_FRAME_STRIDE)
    assert torch.equal(cropped.tensor, of_crops.tensor)
    assert torch.equal(whole.tensor, of_whole.tensor)
    assert not torch.allclose(cropped.tensor, whole.tensor)


def test_a_tracked_region_is_cropped_only_for_its_texts(model: Pam, picture: Sample) -> None:
    image, memory = picture.image(), model.new_memory()
    prompt = Prompt.from_clicks(box_xyxy=boxes(picture, small=True)[0])
    model.segment(model.encode(image), [prompt], [memory])
    (seen,) = model.track(model.encode(image), [memory])
    assert seen.crop is None  # not in every frame
    (cropped,), (whole,) = (
        model.embeddings([seen], stride=FIRST_FRAME_STRIDE, crop=True),
        model.embeddings([seen], stride=FIRST_FRAME_STRIDE),
    )
    assert not torch.allclose(cropped.tensor, whole.tensor)


def test_crops_do_not_enter_the_memory(model: Pam, picture: Sample) -> None:
    image, memories = picture.image(), [model.new_memory(), model.new_memory()]
    prompt = Prompt.from_clicks(box_xyxy=boxes(picture, small=True)[0])
    features = model.encode(image)
    model.segment(features, [prompt], memories[:1])
    model.segment(replace(features, image=None), [prompt], memories[1:])
    assert_same(model.track(features, memories[:1]), model.track(features, memories[1:]))


def test_a_correction_is_cropped_too(model: Pam, picture: Sample) -> None:
    image, memory = picture.image(), model.new_memory()
    box = boxes(picture, small=True)[0]
    features = model.encode(image)
    model.segment(features, [Prompt.from_clicks(box_xyxy=box)], [memory])
    middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    (seen,) = model.segment(features, [Prompt.from_clicks([middle])], [memory])
    assert seen.crop is not None


def test_tiny_frames_and_other_models_have_no_crops(model: Pam) -> None:
    speck = np.zeros((20, 3, 3), np.uint8)
    assert segmented(model, speck, [Prompt.from_clicks([(1, 1)])])[0].crop is None
    plain = tiny_pam()
    (features,) = encoded(plain, 1)
    assert features.image is None
    (seen,) = plain.segment(features, [click()], [plain.new_memory()])
    assert seen.crop is None
    assert not plain.info.crop_small_regions
    assert model.info.crop_small_regions


# ---- embedding plan


@pytest.mark.parametrize("crop_small_regions", [True, False])
def test_texts_and_clips_share_embeddings_without_crops(crop_small_regions: bool) -> None:
    class Model(FakeModel):
        @property
        def info(self) -> ModelInfo:
            return replace(super().info, crop_small_regions=crop_small_regions)

    fake = Model()
    frame = Frame(np.zeros((48, 64, 3), np.uint8), 0)
    features = fake.encode(frame.image)
    (seen,) = fake.segment(features, [Prompt.from_clicks([(5, 5)])], [fake.new_memory()])
    observation = TrackObservation(seen, 0, "", 0.0)
    plan = EmbeddingPlan(fake, FaultLog())
    plan.want(observation, stride=FIRST_FRAME_STRIDE, crop=True)
    plan.want(observation, stride=FIRST_FRAME_STRIDE)
    plan.run()
    cropped, whole = (
        plan.embedded(observation, stride=FIRST_FRAME_STRIDE, crop=True),
        plan.embedded(observation, stride=FIRST_FRAME_STRIDE),
    )
    assert (cropped is whole) is not crop_small_regions
    assert fake.count("embedded_stride2") == (2 if crop_small_regions else 1)


# ---- training data


def test_crops_of_samples_show_their_part_of_the_picture() -> None:
    crop = (0.25, 0.1, 0.75, 0.6)
    rows, columns = slice(round(0.1 * 256), round(0.6 * 256)), slice(64, 192)
    for sample in (ShardSource(SMALL_SET)[0], ShapesSource(1)[0]):
        everything = range(len(sample.regions))
        whole, cropped = (load_masks(sample, everything, [0], *size) for size in ((256,), (128, crop)))
        assert cropped.shape == (len(sample.regions), 1, 128, 128)
        assert np.mean(cropped[:, 0] == whole[:, 0, rows, columns][:, :128, :128]) > 0.95
        pixels, cropped_pixels = (load_pixels(sample, [0], *size)[0] for size in ((256,), (128, crop)))
        off = np.abs(cropped_pixels.astype(int) - pixels[rows, columns][:128, :128])
        assert off.mean() < 12
