"""The segmenter: prompts, batches, memory, presence; every frame equals the stock SAM 2 predictor's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import sam2.sam2_video_predictor as stock
import torch
from hydra.utils import instantiate
from PIL import Image
from tiny_models import (
    GRID,
    SIZE,
    WIDTH,
    assert_same,
    box,
    click,
    encoded,
    picture,
    sam2_tiny,
    tiny_pam,
)
from torch import Tensor

from pam_ros.errors import CheckpointError, PromptError
from pam_ros.model.pam import Pam
from pam_ros.model.vision.mask_decoder import DecodedMasks
from pam_ros.model.vision.memory_bank import MAX_CONDITIONING, RegionMemory
from pam_ros.model.vision.prompt_tensors import click_arrays
from pam_ros.model.vision.segmenter import Observation, Segmenter
from pam_ros.records import Prompt


@pytest.fixture(scope="module")
def pam() -> Pam:
    return tiny_pam()


def disc_mask() -> np.ndarray[Any, np.dtype[np.bool_]]:
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    return (x - 30) ** 2 + (y - 30) ** 2 < 15**2


# ---- pixels and prompts


@pytest.mark.parametrize("size", [(72, 96), (300, 200), (16, 16)])
def test_pixels_are_pil_resized_and_normalised(pam: Pam, size: tuple[int, int]) -> None:
    image = picture(size=size)
    side = 16 * GRID
    resized = np.array(Image.fromarray(image).resize((side, side)), np.float32) / 255
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = ((resized - mean) / std).transpose(2, 0, 1)[None].astype(np.float32)
    out = pam.segmenter.pixels(image)
    assert out.shape == (1, 3, side, side)
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_features_have_the_grid(pam: Pam) -> None:
    features = pam.encode(picture())
    assert features.size == SIZE
    assert features.embedding.shape == features.position.shape == (1, WIDTH, GRID, GRID)
    shapes = [tuple(level.shape) for level in features.high_resolution]
    assert shapes == [(1, WIDTH // 8, 4 * GRID, 4 * GRID), (1, WIDTH // 4, 2 * GRID, 2 * GRID)]


def test_clicks_are_scaled_by_axis_and_a_box_becomes_two_corners(pam: Pam) -> None:
    features = pam.encode(picture())
    prompt = Prompt.from_clicks([(96 / 4, 72 / 2), (0, 71)], [1, 0], box_xyxy=(12, 9, 48, 36))
    points, labels = pam.segmenter._clicks([features.size], [prompt])
    assert points.dtype == torch.float32
    assert points[0, :3].tolist() == [[16, 16], [64, 64], [32, 64]]
    torch.testing.assert_close(points[0, 3], torch.tensor([0, 71 * 128 / 72]))
    assert labels[0].tolist() == [2, 3, 1, 0]


@pytest.mark.parametrize(
    ("given", "cut"),
    [
        ((-61, 5, 30, 40), (0, 5, 30, 40)),
        ((9, -9, 30, 90), (9, 0, 30, 64)),
        ((-9, -9, 99, 99), (0, 0, 96, 64)),
    ],
)
def test_a_box_is_cut_at_the_edges_of_the_image(given: Sequence[float], cut: Sequence[float]) -> None:
    points, _ = click_arrays(64, [(64, 96)], [Prompt.from_clicks(box_xyxy=given)])
    expected, _ = click_arrays(64, [(64, 96)], [Prompt.from_clicks(box_xyxy=cut)])
    np.testing.assert_array_equal(points, expected)


def test_prompts_outside_the_frame_are_refused(pam: Pam) -> None:
    features = pam.encode(picture())
    memory = pam.new_memory()
    with pytest.raises(PromptError, match="outside the 96x72 image"):
        pam.segment(features, [click(200, 10)], [memory])
    with pytest.raises(PromptError, match="same size"):
        pam.segment(features, [Prompt.from_mask(np.ones((4, 4)))], [memory])
    with pytest.raises(PromptError, match="no memory yet; prompt it before tracking"):
        pam.track(features, [memory])
    assert memory.is_empty


def test_box_and_clicks_together_differ_from_either(pam: Pam) -> None:
    (features,) = encoded(pam, 1)
    both = Prompt.from_clicks([(30, 30)], [0], box_xyxy=(15, 14, 44, 44))
    only_box = Prompt.from_clicks([], [], box_xyxy=(15, 14, 44, 44))
    found = pam.segment(features, [both, only_box, click()], [pam.new_memory() for _ in range(3)])
    assert not torch.allclose(found[0].mask_logits, found[1].mask_logits, atol=1e-3)
    assert not torch.allclose(found[0].mask_logits, found[2].mask_logits, atol=1e-3)


# ---- observations


def test_observation_shapes_and_ranges(pam: Pam) -> None:
    (features,) = encoded(pam, 1)
    (observation,) = pam.segment(features, [click()], [pam.new_memory()])
    assert observation.mask.shape == SIZE
    assert observation.mask.dtype == np.bool_
    assert 0 <= observation.mask_score <= 1
    assert 0.5 < observation.presence_score < 1
    assert observation.mask_logits.shape == (1, 1, 4 * GRID, 4 * GRID)
    assert observation.decoder_features.image.shape == (1, WIDTH, GRID, GRID)
    assert observation.decoder_features.tokens.shape == (1, 2, WIDTH)
    assert observation.mask.any()
    assert not observation.mask.all()


def test_masks_are_picked_by_stability(pam: Pam) -> None:
    """Token 0 if its mask hardly changes between thresholds -0.05 and 0.05; else the best of 1 to 3."""
    masks = torch.full((4, 4, 10, 10), -1.0)
    masks[0, 0, :5] = 1.0  # stable
    masks[1, 0, :5] = 1.0
    masks[1, 0, 5] = 0.01  # 10 of 60 pixels lie between the thresholds
    masks[2, 0, :9, :] = 1.0  # 90 stable pixels,
    masks[2, 0, 9, 0] = 0.01  # and one between: 90 / 91 = 0.989
    # 3: empty at both thresholds, which counts as stable
    ious = torch.tensor([[0.9, 0.1, 0.3, 0.2]]).repeat(4, 1)
    tokens = torch.arange(4.0)[None, :, None].expand(4, 4, WIDTH)
    decoded = DecodedMasks(masks, ious, torch.ones(4, 1), tokens, torch.zeros(4, WIDTH, 2, 2))
    assert pam.segmenter._decoder_features(decoded).tokens[..., 0].tolist() == [
        [0, 0],
        [2, 0],
        [0, 0],
        [0, 0],
    ]


def test_an_absent_object_has_an_empty_mask_and_is_remembered_as_absent() -> None:
    pam = tiny_pam()
    (features,) = encoded(pam, 1)
    pam.segmenter.sam2.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(-6.0)
    memory = pam.new_memory()
    (observation,) = pam.segment(features, [click()], [memory])
    assert observation.presence_score < 0.5
    assert not observation.mask.any()
    torch.testing.assert_close(memory.conditioning[0].pointer, pam.segmenter.sam2.no_obj_ptr)
    pam.segmenter.sam2.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(6.0)
    (found,) = pam.track(features, [memory])
    assert found.presence_score > 0.5
    assert found.mask.any()


def test_a_mask_prompt_returns_the_mask_and_decoder_features(pam: Pam) -> None:
    (features,) = encoded(pam, 1)
    masks = [disc_mask(), ~disc_mask()]
    memories = [pam.new_memory(), pam.new_memory()]
    found = pam.segment(features, [Prompt.from_mask(mask) for mask in masks], memories)
    for observation, mask in zip(found, masks, strict=True):
        assert np.array_equal(observation.mask, mask)
        assert observation.mask_score == 1
        assert observation.presence_score > 0.99
        assert observation.decoder_features.tokens.isfinite().all()
        decoded = (observation.mask_logits_at_frame_size() > 0).numpy()
        assert (decoded & mask).sum() / (decoded | mask).sum() > 0.9
    assert not torch.allclose(found[0].decoder_features.tokens, found[1].decoder_features.tokens)
    tracked = pam.track(features, memories)
    assert not torch.allclose(tracked[0].mask_logits, tracked[1].mask_logits)


def test_a_mask_thinner_than_the_models_pixels_is_not_lost(pam: Pam) -> None:
    image = np.zeros((900, 1200, 3), np.uint8)
    mask = np.zeros((900, 1200), np.bool_)
    mask[400, 500:520] = True  # 0.14 of an input pixel high
    mask.flags.writeable = False  # as those of messages are
    features = pam.encode(image)
    inside: list[Tensor] = []
    hook = pam.segmenter.sam2.mask_downsample.register_forward_pre_hook(
        lambda _, args: inside.append(args[0])
    )
    (observation,) = pam.segment(features, [Prompt(mask=mask)], [pam.new_memory()])
    hook.remove()
    assert inside[0].sum() >= 1
    assert np.array_equal(observation.mask, mask)


# ---- batches


def mixed_prompts() -> list[Prompt]:
    return [
        click(),
        Prompt.from_clicks([(60, 20), (10, 60)], [1, 0]),
        box(),
        Prompt.from_mask(disc_mask()),
        click(70, 50),
        Prompt.from_clicks([(20, 20)], [1], box_xyxy=(5, 5, 40, 60)),
        box(50, 30, 90, 70),
    ]


def test_several_regions_on_one_encode_equal_one_by_one(pam: Pam) -> None:
    frames = encoded(pam, 4)
    prompts = mixed_prompts()
    together, alone = [pam.new_memory() for _ in prompts], [pam.new_memory() for _ in prompts]
    batch = pam.segment(frames[0], prompts, together)
    singles = [pam.segment(frames[0], [p], [m])[0] for p, m in zip(prompts, alone, strict=True)]
    assert_same(batch, singles, tolerance=1e-5)
    for frame in frames[1:]:
        batch = pam.track(frame, together)
        singles = [pam.track(frame, [m])[0] for m in alone]
        assert_same(batch, singles, tolerance=1e-4)
    assert pam.segment(frames[0], [], []) == []
    assert pam.track(frames[0], []) == []


def test_tracking_regions_of_different_age_together_equals_one_by_one(pam: Pam) -> None:
    frames = encoded(pam, 12)
    prompts = mixed_prompts()
    together, alone = [pam.new_memory() for _ in prompts], [pam.new_memory() for _ in prompts]
    for i, frame in enumerate(frames):
        old = min(2 * i, len(prompts))
        if i:
            batch = pam.track(frame, together[:old])
            singles = [pam.track(frame, [memory])[0] for memory in alone[:old]]
            assert_same(batch, singles)
        new = range(old, min(2 * i + 2, len(prompts)))
        if new:
            pam.segment(frame, [prompts[k] for k in new], [together[k] for k in new])
            for k in new:
                pam.segment(frame, [prompts[k]], [alone[k]])


# ---- memory


def tensors_of(memory: RegionMemory) -> list[Tensor]:
    entries = [*memory.conditioning, *memory.recent]
    held = [entry.pointer for entry in entries]
    held += [entry.features for entry in entries if entry.features is not None]
    return held if memory.mask_logits is None else [*held, memory.mask_logits]


def test_memory_is_bounded(pam: Pam) -> None:
    frames = encoded(pam, 3)
    memories = [pam.new_memory(), pam.new_memory()]
    pam.segment(frames[0], [click(), box()], memories)
    # what is held are a region's own tensors, not views that keep the whole batch's
    for tensor in [held for memory in memories for held in tensors_of(memory)]:
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    held = []
    for i in range(100):
        pam.track(frames[i % 3], memories)
        if i % 10 == 9:  # corrections come and go as well
            pam.segment(frames[i % 3], [click(25, 28)], memories[:1])
            found = tensors_of(memories[0])
            held.append((len(found), sum(tensor.untyped_storage().nbytes() for tensor in found)))
    assert held[4:] == held[4:5] * 6
    assert len(memories[0].conditioning) == MAX_CONDITIONING
    assert memories[0].conditioning[0].index == 0
    assert len(memories[1].conditioning) == 1
    assert memories[1].index == 100
    assert sum(entry.features is not None for entry in memories[1].recent) == 7


def test_refining_changes_the_mask_and_keeps_the_memory(pam: Pam) -> None:
    frames = encoded(pam, 3)
    memory = pam.new_memory()
    pam.segment(frames[0], [click()], [memory])
    pam.track(frames[1], [memory])
    (before,) = pam.track(frames[2], [memory])
    (after,) = pam.segment(frames[2], [Prompt.from_clicks([(70, 50), (5, 5)], [1, 0])], [memory])
    assert not np.array_equal(before.mask, after.mask)
    assert [entry.index for entry in memory.conditioning] == [0, 2]
    assert [entry.index for entry in memory.recent] == [1]
    assert memory.index == 2


def test_configurations_that_do_not_fit_are_refused() -> None:
    with pytest.raises(CheckpointError, match="soft_no_obj_ptr must be False"):
        Segmenter(instantiate(sam2_tiny() | {"soft_no_obj_ptr": True}))


# ---- the stock predictor as an independent stock_predictor


class Float32Memory:
    """Stands for `torch` in the predictor's module: it stores memory in bfloat16, here in float32."""

    bfloat16 = torch.float32

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


class StockPredictor:
    """sam2's own video predictor with PAM's flags on the same weights and pixels."""

    def __init__(
        self, pam: Pam, images: Sequence[np.ndarray[Any, Any]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pixels = torch.cat([pam.segmenter.pixels(image) for image in images])
        loaded = (pixels, *images[0].shape[:2])
        module: ModuleType = stock
        monkeypatch.setattr(module, "torch", Float32Memory())
        monkeypatch.setattr(module, "load_video_frames", lambda **_: loaded)
        monkeypatch.setattr(module, "tqdm", lambda order, **_: order)
        config = sam2_tiny() | {
            "_target_": "sam2.sam2_video_predictor.SAM2VideoPredictor",
            "binarize_mask_from_pts_for_mem_enc": True,
            "add_all_frames_to_correct_as_cond": True,
        }
        self.predictor = instantiate(config).eval()
        self.predictor.load_state_dict(pam.segmenter.sam2.state_dict())
        self.state = self.predictor.init_state(video_path="")

    def prompt(self, frame: int, prompt: Prompt) -> Tensor:
        """Mask logits (H, W) of a prompted frame."""
        where = {"inference_state": self.state, "frame_idx": frame, "obj_id": 1}
        if prompt.mask is not None:
            *_, logits = self.predictor.add_new_mask(**where, mask=prompt.mask)
        else:
            *_, logits = self.predictor.add_new_points_or_box(
                **where, points=prompt.points, labels=prompt.labels, box=prompt.box
            )
        return logits[0, 0].clone()

    def track(self, first: int, last: int) -> list[Tensor]:
        """Mask logits (H, W) of frames first … last, the first being tracked or prompted before."""
        found = self.predictor.propagate_in_video(self.state, first, max_frame_num_to_track=last - first)
        return [logits[0, 0].clone() for _, _, logits in found]


@pytest.fixture
def stock_predictor(pam: Pam, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], StockPredictor]:
    return lambda count: StockPredictor(pam, [picture(step) for step in range(count)], monkeypatch)


def assert_logits(ours: Observation, theirs: Tensor) -> None:
    out = ours.mask_logits_at_frame_size()
    error = (out - theirs).norm() / theirs.norm()
    assert error < 1e-4, f"relative error {error:.1e}"
    assert ((out > 0) != (theirs > 0)).sum() <= 2


@pytest.mark.parametrize(
    "prompt",
    [
        click(),
        box(),
        Prompt.from_clicks([(30, 30), (60, 20)], [1, 0], box_xyxy=(15, 14, 44, 44)),
        Prompt.from_mask(disc_mask()),
    ],
    ids=["click", "box", "box_and_clicks", "mask"],
)
def test_tracking_equals_the_stock_video_predictor(
    pam: Pam, stock_predictor: Callable[[int], StockPredictor], prompt: Prompt
) -> None:
    frames, reference = encoded(pam, 24), stock_predictor(24)
    memory = pam.new_memory()
    found = pam.segment(frames[0], [prompt], [memory])
    for frame in frames[1:]:
        found += pam.track(frame, [memory])
    reference.prompt(0, prompt)
    for observation, logits in zip(found, reference.track(0, 23), strict=True):
        assert_logits(observation, logits)
    # The comparison can fail: another prompt has reference logits.
    (elsewhere,) = pam.segment(frames[0], [click(80, 60)], [pam.new_memory()])
    with pytest.raises(AssertionError, match="relative error"):
        assert_logits(elsewhere, found[0].mask_logits_at_frame_size())


@pytest.mark.parametrize("at", [1, 10, 18])
def test_corrections_equal_the_stock_video_predictor(
    pam: Pam, stock_predictor: Callable[[int], StockPredictor], at: int
) -> None:
    """A click on a tracked frame, with 1 to 18 frames behind it."""
    frames, reference = encoded(pam, 24), stock_predictor(24)
    correction = Prompt.from_clicks([(35, 32), (60, 60)], [1, 0])
    memory = pam.new_memory()
    pam.segment(frames[0], [box()], [memory])
    for frame in frames[1 : at + 1]:
        pam.track(frame, [memory])
    (corrected,) = pam.segment(frames[at], [correction], [memory])
    after = [pam.track(frame, [memory])[0] for frame in frames[at + 1 :]]

    reference.prompt(0, box())
    reference.track(0, at)
    assert_logits(corrected, reference.prompt(at, correction))
    for observation, logits in zip(after, reference.track(at, 23)[1:], strict=True):
        assert_logits(observation, logits)


def test_a_second_click_on_the_first_frame_equals_the_stock_video_predictor(
    pam: Pam, stock_predictor: Callable[[int], StockPredictor]
) -> None:
    frames, reference = encoded(pam, 8), stock_predictor(8)
    memory = pam.new_memory()
    pam.segment(frames[0], [click()], [memory])
    (second,) = pam.segment(frames[0], [click(60, 40)], [memory])
    after = [pam.track(frame, [memory])[0] for frame in frames[1:]]
    reference.prompt(0, click())
    assert_logits(second, reference.prompt(0, click(60, 40)))
    # Different on purpose: ages of pointers count in fifteenths here, in the clip's length there.
    last = reference.track(0, 7)[-1]
    with pytest.raises(AssertionError, match="relative error"):
        assert_logits(after[-1], last)
