"""The vision engine finds what `Segmenter` finds: by prompts, corrections and masks, and while tracking."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from numpy.typing import NDArray
from sam2.modeling.sam2_base import SAM2Base

from pam_ros.model.config import sam2_config
from pam_ros.model.loading.checkpoint import load_model
from pam_ros.model.loading.options import LoadOptions
from pam_ros.model.vision.fast.engine_vision import EngineVision
from pam_ros.model.vision.fast.image_encoder import ImageEncoder
from pam_ros.model.vision.fast.sam2_ops import SMALL_TILE, TILE, BatchedMemory, Tile, _split_attention
from pam_ros.model.vision.fast.vision_engine import MaskBatch, VisionEngine
from pam_ros.model.vision.features import Observation
from pam_ros.model.vision.segmenter import Segmenter
from pam_ros.records import Prompt

pytestmark = pytest.mark.cuda
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HEIGHT, WIDTH = 360, 480
TOLERANCE = 1e-4
cuda_only = pytest.mark.skipif(DEVICE.type != "cuda", reason="needs a CUDA device")


@pytest.fixture(autouse=True)
def _float32_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def tiny_sam2() -> SAM2Base:
    """pam-tiny's: with random weights masks are noise."""
    return load_model(LoadOptions("pam-tiny", device=DEVICE.type, dtype="float32")).segmenter.sam2


def clip(count: int) -> list[NDArray[np.uint8]]:
    """A red box that moves down to the right, a blue one that moves right, on a checkered ground."""
    rng = np.random.default_rng(0)
    ground = np.kron(rng.integers(0, 255, (12, 16, 3)).astype(np.float32), np.ones((30, 30, 1)))
    frames = []
    for i in range(count):
        frame = ground.copy()
        frame[100 + 6 * i : 180 + 6 * i, 120 + 8 * i : 210 + 8 * i] = (250, 30, 40)
        frame[220:300, 60 + 5 * i : 150 + 5 * i] = (20, 40, 240)
        frames.append(np.clip(frame + rng.normal(0, 3, frame.shape), 0, 255).astype(np.uint8))
    return frames


def clicks(prompt: Prompt, size: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """A prompt as the engine takes it: points (1, K, 2) in encoder pixels, labels (1, K)."""
    corners = np.zeros((0, 2), np.float32) if prompt.box is None else prompt.box.reshape(2, 2)
    points = np.concatenate([corners, prompt.points]) * np.array([size / WIDTH, size / HEIGHT], np.float32)
    labels = np.concatenate([np.array([2, 3], np.int32)[: len(corners)], prompt.labels])
    return points[None].astype(np.float32), labels[None].astype(np.int32)


def raises(error: Exception) -> Callable[..., Any]:
    """What raises it whatever it is given."""

    def call(*_: Any) -> Any:
        raise error

    return call


def assert_equal(expected: Sequence[Observation], found: MaskBatch) -> None:
    host = found.to_host()
    for i, each in enumerate(expected):
        pairs = [
            (each.mask_logits[0], found.logits[i]),
            (each.mask_iou, found.ious[i]),
            (each.presence_logit, found.presence[i]),
            (each.decoder_features.image[0], found.features.image[i]),
            (each.decoder_features.tokens[0], found.features.tokens[i]),
        ]
        for one, other in pairs:
            assert float((one - other).abs().max() / (1 + one.abs().max())) < TOLERANCE
        mask = (each.mask_logits_at_frame_size() > 0).cpu().numpy()
        union = (mask | host.masks[i]).sum()
        assert union == 0 or (mask & host.masks[i]).sum() / union >= 0.999
        assert host.mask_scores[i] == pytest.approx(each.mask_score, abs=TOLERANCE)
        assert host.presence_scores[i] == pytest.approx(each.presence_score, abs=TOLERANCE)


@pytest.mark.parametrize("graphs", [False, pytest.param(True, marks=cuda_only)])
@torch.inference_mode()
def test_regions_prompted_at_any_time_equal_those_of_the_segmenter(graphs: bool) -> None:
    sam2 = tiny_sam2()
    old, new = Segmenter(sam2).to(DEVICE), VisionEngine(sam2, regions=4, graphs=graphs)
    new.warm_up(batches=(1, 2, 3, 5), clicks=(1, 2))
    starts = {
        0: Prompt.from_clicks([(150, 130)]),
        1: Prompt(box=np.array([60, 220, 150, 300], np.float32)),
        5: Prompt.from_clicks([(300, 50)]),
    }
    given = np.zeros((HEIGHT, WIDTH), bool)
    given[230:290, 90:180] = True
    correction = Prompt.from_clicks([(170, 150)])
    old_memories, new_memories = [], []
    for t, image in enumerate(clip(20)):  # longer than pointers are kept, with more corrections than are
        frame = old.encode(image)
        features = new.encode(old.pixels(image), frame.size)
        if old_memories:
            assert_equal(old.track(frame, old_memories), new.track(features, new_memories))
        if t in starts or t == 7:
            old_memories.append(old.new_memory())
            new_memories.append(new.open())
            last = old_memories[-1:], new_memories[-1:]
            if t == 7:
                assert_equal(
                    old.segment(frame, [Prompt(mask=given)], last[0]),
                    new.segment_masks(features, given[None], last[1]),
                )
            else:
                points = clicks(starts[t], sam2.image_size)
                assert_equal(
                    old.segment(frame, [starts[t]], last[0]), new.segment(features, *points, last[1])
                )
        if t in (3, 9, 12, 15, 18):
            points = clicks(correction, sam2.image_size)
            assert_equal(
                old.segment(frame, [correction], old_memories[:1]),
                new.refine(features, *points, new_memories[:1]),
            )


@torch.inference_mode()
def test_a_frame_that_fails_leaves_nothing_in_the_memories(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its caller tries the regions one by one: each memory must be as it was before."""
    sam2 = tiny_sam2()
    segmenter, engine = Segmenter(sam2).to(DEVICE), VisionEngine(sam2, regions=4, graphs=False)
    vision = EngineVision(
        engine,
        lambda image: engine.encode(segmenter.pixels(image), image.shape[:2]),
        None,
        segmenter,  # type: ignore[arg-type]
    )
    memories = [vision.new_memory(), vision.new_memory()]
    first, *others = clip(12)
    prompts = [Prompt.from_clicks([(150, 130)]), Prompt.from_clicks([(100, 250)])]
    vision.segment(vision.encode(first), prompts, memories)
    for image in others:
        features = vision.encode(image)
        expected = copy.deepcopy([(each.index, each.conditioning, each.recent) for each in memories])
        with monkeypatch.context() as patch:
            patch.setattr(MaskBatch, "to_host", raises(torch.OutOfMemoryError("no memory")))
            with pytest.raises(torch.OutOfMemoryError):
                vision.track(features, memories)
            with pytest.raises(torch.OutOfMemoryError):
                vision.segment(features, prompts, memories)
        assert [(each.index, each.conditioning, each.recent) for each in memories] == expected
        slots = [
            {*each.free_pointers, *(entry.pointer_slot for entry in each.conditioning + each.recent)}
            for each in memories
        ]
        assert not slots[0] & slots[1]
        for memory in memories:
            vision.track(features, [memory])
    assert [each.index for each in memories] == [11, 11]


@pytest.mark.parametrize("fast", [False, True])
@torch.inference_mode()
def test_what_was_written_to_a_memory_can_be_undone(fast: bool) -> None:
    model: Any = load_model(LoadOptions("pam-tiny", device=DEVICE.type, dtype="float32"))
    segmenter = model.segmenter
    if fast:
        engine = VisionEngine(segmenter.sam2, regions=4, graphs=False)
        model = EngineVision(
            engine,
            lambda image: engine.encode(segmenter.pixels(image), image.shape[:2]),
            None,  # type: ignore[arg-type]
            segmenter,
        )
    memory, twin = model.new_memory(), model.new_memory()
    prompt, other = Prompt.from_clicks([(150, 130)]), Prompt(box=np.array([60, 220, 150, 300], np.float32))
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[230:290, 90:180] = True
    for t, image in enumerate(clip(6)):
        features = model.encode(image)
        if t == 0:
            model.segment(features, [prompt, prompt], [memory, twin])
            continue
        model.track(features, [memory, twin])
        one, same = model.segment(features, [prompt, prompt], [memory, twin])
        assert (one.mask != same.mask).mean() < 1e-4
        scores = one.mask_score, one.presence_score
        assert scores == pytest.approx((same.mask_score, same.presence_score), abs=1e-5)
        undo = model.saved(memory)
        if t == 4:  # as many prompted frames as are kept
            model.track(features, [memory])
        model.segment(features, [Prompt(mask=mask) if t % 2 else other], [memory])
        undo()


@cuda_only
@torch.inference_mode()
def test_the_fused_encoder_equals_the_package() -> None:
    torch.manual_seed(0)
    sam2 = instantiate(sam2_config("sam2.1/sam2.1_hiera_l")).eval().to(DEVICE)
    pixels = torch.randn(1, 3, 1024, 1024, device=DEVICE)
    plain, fused = ImageEncoder(sam2, fused=False).levels(pixels), ImageEncoder(sam2).levels(pixels)
    for one, other in zip(plain, fused, strict=True):
        assert float((one - other).abs().max() / one.abs().max()) < TOLERANCE


@cuda_only
@pytest.mark.parametrize("tile", [TILE, SMALL_TILE, Tile(64, 64, 4, 2, 1)])
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_attention_ignores_padding(batch: int, tile: Tile) -> None:
    torch.manual_seed(batch)
    length, firsts, counts = 3000, [12, 0, 40][:batch], [2901, 64, 2960][:batch]
    q = torch.randn(batch, 256, 256, device=DEVICE, dtype=torch.bfloat16)
    k, v = (torch.randn(batch, length, 256, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    starts = torch.tensor([b * length + first for b, first in enumerate(firsts)], dtype=torch.int32)
    memory = BatchedMemory(k, k, 0, starts.to(DEVICE), torch.tensor(counts, dtype=torch.int32, device=DEVICE))
    out = _split_attention(q, k, v, memory, tile)
    for b, (first, count) in enumerate(zip(firsts, counts, strict=True)):
        span = slice(first, first + count)
        wide = (each[None].double() for each in (q[b], k[b, span], v[b, span]))
        expected = torch.nn.functional.scaled_dot_product_attention(*wide)[0]
        assert float((out[b] - expected).norm() / expected.norm()) < 1e-2
