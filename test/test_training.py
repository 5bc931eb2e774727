"""Every training stage for a few steps, very small: it learns, frozen parts stay, resuming is exact."""

from __future__ import annotations

import json
import math
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Generator

from pam_ros.datasets.loading import load_masks, load_owners
from pam_ros.datasets.registry import open_sources
from pam_ros.datasets.rle import RleMask
from pam_ros.datasets.schema import Clip, Kind, LoadedPicture, Sample, SampleRegion
from pam_ros.datasets.shards import ShardWriter
from pam_ros.errors import InputError
from pam_ros.model.loading.checkpoint import load_model, save_model
from pam_ros.model.loading.options import LoadOptions
from pam_ros.model.pam import Pam
from pam_ros.model.text.prompts import TEXT_BEFORE_IMAGE
from pam_ros.model.vision.features import of_regions
from pam_ros.records import Language, Prompt, Task
from pam_ros.runtime.clip_sampler import planned_instants
from pam_ros.share import share_folder
from pam_ros.training.config import StageConfig, TrainingError, config_from, read_config
from pam_ros.training.export import TRACKING, Blended, export_model
from pam_ros.training.features.feature_store import (
    FeatureIndex,
    FeatureStore,
    StageCache,
    fill_store,
    padded_masks,
    small_regions,
)
from pam_ros.training.features.frame_store import NO_MASK, FrameStore, packed, unpacked
from pam_ros.training.heads.box_head import box_loss, normalised_boxes
from pam_ros.training.heads.event_head import UNKNOWN, EventHead, Events, moved
from pam_ros.training.loading import is_video_step, samples_of_step, video_steps_before
from pam_ros.training.modules import open_model, part_of
from pam_ros.training.outline import outline, outlines_of
from pam_ros.training.prompting import Clicks, box, click, correction, first_prompts
from pam_ros.training.qa_examples import QAExample, Tokenisation, clip_questions, image_questions
from pam_ros.training.run import Progress, Stage, StopRequest, _is_video, rate_factor, run_stage
from pam_ros.training.stages.caption_stage import (
    CaptionBatch,
    CaptionDataset,
    CaptionStage,
    balanced,
    drawn,
    with_fraction,
)
from pam_ros.training.stages.segment_stage import UNNAMED, CellsHead, Words, choose_regions
from pam_ros.training.tokenizer import texts_of, train_tokenizer
from pam_ros.training.tools.deepen import deepened, main

SIZE = 64
DATA = ["shapes:24", "shapes:8:6"]
SEGMENT: dict[str, Any] = {
    "kind": "segment", "fresh": True, "train": ["segmenter"], "steps": 12, "image_regions": 1,
    "video_fraction": 0.25, "video_batch": 2, "video_frames": 3, "loss_size": 16, "words_weight": 0.2,
    "group_weight": 0.5,
    "learning_rate": 2e-3,
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an architecture far smaller than pam-tiny, with a tokenizer; no weights."""
    folder = tmp_path_factory.mktemp("tiny")
    source = share_folder("models", "*.yaml") / "pam-tiny"
    sam2 = yaml.safe_load((source / "sam2.yaml").read_text(encoding="utf-8"))
    model = sam2["model"]
    model["image_size"] = SIZE
    model["num_maskmem"] = 3
    trunk = model["image_encoder"]["trunk"]
    trunk.update(embed_dim=8, stages=[1, 1, 2, 1], global_att_blocks=[3], window_spec=[8, 4, 4, 2])
    trunk["window_pos_embed_bkg_spatial_size"] = [2, 2]
    model["image_encoder"]["neck"]["backbone_channel_list"] = [64, 32, 16, 8]
    (folder / "sam2.yaml").write_text(yaml.safe_dump(sam2), encoding="utf-8")
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config |= {"num_key_value_heads": 2, "vocab_size": 512}
    config["mm_perceiver"] = {"semantic_tokens": 4, "depth": 1, "heads": 8, "hidden": 64}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    train_tokenizer(texts_of(DATA), folder, 512)
    return folder


def stage(tiny: Path, out: Path, **values: Any) -> StageConfig:
    """A stage's configuration for a test."""
    return config_from(stage_values(tiny, out) | values, "test")


def stage_values(tiny: Path, out: Path) -> dict[str, Any]:
    """What every stage of these tests has, as its YAML file would."""
    return {
        "model": str(tiny), "data": DATA, "out": str(out), "workers": 0, "precision": "fp32", "batch": 8,
    }  # fmt: skip


def segment_stage(tiny: Path, out: Path, **values: Any) -> StageConfig:
    """Stage 0, pictures and videos."""
    return stage(tiny, out, **{**SEGMENT, **values})


UNSEEN = 10_000  # a step far behind those that are trained; its batch is drawn from the same data
Figures = dict[str, float]


def figures(run: Stage, batches: int = 4) -> Figures:
    """The stage's figures on batches that no step trains on, by the same random numbers each time."""
    found: dict[str, list[float]] = {}
    for number in range(batches):
        batch = run._by_step[UNSEEN + number]
        with torch.no_grad():
            values = run.module(batch, Generator().manual_seed(number))
        for name, value in values.items():
            found.setdefault(("video_" if _is_video(batch) else "") + name, []).append(value.item())
    means = {name: float(np.mean(values)) for name, values in found.items()}
    assert all(map(math.isfinite, means.values())), means
    return means


def trained(config: StageConfig, cache: StageCache | None = None) -> tuple[Figures, Figures]:
    """Runs a stage; its figures on unseen batches before and after."""
    run = Stage(config, cache or StageCache())
    before = figures(run)
    run.run(StopRequest())
    return before, figures(run)


@pytest.fixture(scope="module")
def segmented(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What stage 0 leaves behind, and its figures on unseen batches before and after."""
    out = tmp_path_factory.mktemp("segment")
    before_and_after = trained(segment_stage(tiny, out))
    (out / "unseen.json").write_text(json.dumps(before_and_after))
    return out


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """A trained model's weights."""
    return load_model(LoadOptions(str(folder), device="cpu", dtype="float32")).state_dict()


def changed_parts(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """Parts with a tensor that is not bit-identical."""
    return {part_of(name) for name in before if not torch.equal(before[name], after[name])}


# ---- the stages


def test_segment_stage_learns_and_leaves_the_rest_alone(tiny: Path, segmented: Path) -> None:
    before, after = json.loads((segmented / "unseen.json").read_text())
    for name in ("loss", "video_loss"):
        assert after[name] < 0.9 * before[name], (name, before, after)
    fresh = open_model(segment_stage(tiny, segmented)).state_dict()
    assert changed_parts(fresh, weights(segmented / "model")) == {"segmenter"}


@pytest.mark.parametrize("kind", ["segment", "caption"])
def test_without_a_learning_rate_nothing_gets_better(
    tiny: Path, segmented: Path, tmp_path: Path, kind: str
) -> None:
    """The control of the tests around it: figures on unseen batches change by learning alone."""
    few = {"steps": 2, "batch": 2, "video_batch": 2, "video_fraction": 0.5, "learning_rate": 0.0}
    if kind == "segment":
        config = segment_stage(tiny, tmp_path, **few)
    else:
        values = {"kind": "caption", "train": ["perceiver"], "clip_frames": [2]}
        config = stage(segmented / "model", tmp_path, **few, **values)
    before, after = trained(config)
    assert before == after
    assert {"loss", "video_loss"} <= set(before)


def test_language_stage_learns_and_freezes(segmented: Path, tmp_path: Path) -> None:
    values = {"kind": "language", "train": ["language"], "video_fraction": 0.3, "learning_rate": 1e-2}
    before, after = trained(stage(segmented / "model", tmp_path, steps=16, **values))
    assert after["loss"] < 0.8 * before["loss"], (before, after)
    assert changed_parts(weights(segmented / "model"), weights(tmp_path / "model")) == {"language"}


@pytest.fixture(scope="module")
def constant(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards in which every right answer is the same: whatever learns comes closer to it."""
    folder = tmp_path_factory.mktemp("constant")
    writer = ShardWriter(folder)
    for number, sample in enumerate(open_sources(["shapes:4", "shapes:2:4"])):
        texts = {(Task.LABEL, Language.EN): ("block",)}
        clip = Clip(0, 4, {Language.EN: ("The red disc stays.",)}, ("stays",))
        values: dict[str, Any] = {"texts": texts}
        if sample.is_video:  # a second event, which never comes, so that there is something to choose from
            events = {"segments": ((0, 4, "stays"),), "backward_segments": ((0, 1, "falls"),)}
            values |= {"clips": ((clip,),), **events}
        regions = [replace(region, **values) for region in sample.regions]
        writer.add(f"{number}", replace(sample, regions=tuple(regions)))
    writer.close()
    return folder


@pytest.fixture(scope="module")
def attentive(segmented: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose frozen language model can be steered: with smaller weights it ignores its context."""
    pam = load_model(LoadOptions(str(segmented / "model"), device="cpu", dtype="float32"))
    with torch.no_grad():
        for name, parameter in pam.language.named_parameters():
            if parameter.ndim > 1 and ("self_attn" in name or "mlp" in name):
                parameter.mul_(8)
    folder = tmp_path_factory.mktemp("attentive")
    save_model(pam, folder, dtype=torch.float32)
    return folder


def test_caption_stages_learn_and_freeze(
    segmented: Path, attentive: Path, constant: Path, tmp_path: Path
) -> None:
    base = {
        "kind": "caption", "data": [str(constant)], "languages": ["en"], "tasks": {"label": 1}, "batch": 4,
        "video_batch": 2, "clip_frames": [3, 2], "warmup": 0.0, "steps": 10,
    }  # fmt: skip
    frozen = base | {"train": ["perceiver", "projector"], "cache_features": 1, "learning_rate": 1e-2}
    # The last stage computes features as it goes, as it must if they do not fit into memory.
    last = base | {"train": ["perceiver", "projector", "language"], "learning_rate": 3e-3}
    last |= {
        "label_balance": 0.5,
        "answer_balance": 0.5,
        "box_weight": 1.0,
        "events_weight": 0.5,
        "steps": 12,
    }
    heads = {"box": 0.7, "video_box": 0.7, "video_event": 0.7}
    cache = StageCache()
    for name, model, values, most in (
        ("stage1", attentive, frozen, {"loss": 0.99}),
        ("stage1_5", tmp_path / "stage1/model", frozen | {"video_fraction": 0.5}, {"video_loss": 0.995}),
        (
            "stage2",
            segmented / "model",
            last | {"video_fraction": 0.5},
            {"loss": 0.9, "video_loss": 0.9} | heads,
        ),
    ):
        before, after = trained(stage(model, tmp_path / name, **values), cache)
        for figure, most_left in most.items():
            assert after[figure] < most_left * before[figure], (name, figure, before[figure], after[figure])
        assert changed_parts(weights(model), weights(tmp_path / name / "model")) == set(values["train"]), name


def test_resuming_is_exact(tiny: Path, tmp_path: Path) -> None:
    run_stage(segment_stage(tiny, tmp_path / "whole", steps=4))
    # The same schedule, cut off in the middle: as if the power had gone.
    config = segment_stage(tiny, tmp_path / "parts", steps=4)
    interrupted = _run_until(config, 2)
    assert interrupted.step == 2
    run_stage(config, resume=True)
    whole, parts = weights(tmp_path / "whole" / "model"), weights(tmp_path / "parts" / "model")
    assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []


def _run_until(config: StageConfig, step: int) -> Progress:
    run = Stage(config, StageCache())
    for _, batch in zip(range(step), run.batches(), strict=False):
        run._step(batch)
        run.progress.step += 1
    run.save()
    return run.progress


def test_a_signal_saves_and_a_kill_loses_nothing(tiny: Path, tmp_path: Path) -> None:
    whole = segment_stage(tiny, tmp_path / "whole", steps=8)
    run_stage(whole)
    values = stage_values(tiny, tmp_path / "parts") | SEGMENT | {"steps": 8, "save_minutes": 1e-6}
    (tmp_path / "stage.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    steps = tmp_path / "parts" / "checkpoint"
    for number, code in ((signal.SIGTERM, 143), (signal.SIGKILL, -9)):
        resume = ["--resume"] if number is signal.SIGKILL else []
        command = [sys.executable, "-m", "pam_ros.training.run", str(tmp_path / "stage.yaml"), *resume]
        before = len(list(steps.glob("step_*"))) and max(steps.glob("step_*"))
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            while process.poll() is None and (
                not (found := sorted(steps.glob("step_*"))) or found[-1] == before
            ):
                time.sleep(0.02)
            process.send_signal(number)
            _, said = process.communicate(timeout=60)
        assert process.returncode == code, said
        if number is signal.SIGTERM:
            assert re.search(
                r"stopped by SIGTERM: step \d+ of 8 is saved in .*; continue with --resume$", said.strip()
            )
            assert not (tmp_path / "parts" / "model").exists()
    run_stage(config_from(values, "test"), resume=True)
    done, parts = weights(tmp_path / "whole" / "model"), weights(tmp_path / "parts" / "model")
    assert [name for name in done if not torch.equal(done[name], parts[name])] == []
    lines = (tmp_path / "parts" / "figures.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 8]


def test_resume_needs_a_checkpoint(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="start without --resume"):
        run_stage(segment_stage(tiny, tmp_path), resume=True)


def test_a_stage_out_of_time_ends_cleanly(tiny: Path, tmp_path: Path) -> None:
    run_stage(segment_stage(tiny, tmp_path, steps=10_000, max_minutes=1e-4, video_fraction=0))
    assert (tmp_path / "model" / "model.safetensors").is_file()
    assert (tmp_path / "checkpoint").is_dir()


# ---- training sees what inference sees


def test_training_computes_what_inference_computes(tiny: Path, tmp_path: Path) -> None:
    """Regions of two pictures as one batch: the very region_features and masks of `Segmenter`, one by one."""
    pam: Pam = open_model(segment_stage(tiny, tmp_path))
    torch.nn.init.constant_(pam.segmenter.sam2.sam_mask_decoder.pred_obj_score_head.layers[-1].bias, 3.0)
    segmenter = pam.segmenter.eval()
    random = np.random.default_rng(0)
    frames = random.integers(0, 256, (2, 4, SIZE, SIZE, 3), np.uint8)  # (videos, time, …)
    prompts = [Prompt.from_clicks([(20, 30)]), Prompt.from_clicks(box_xyxy=(5, 6, 40, 50))]
    groups = [
        Clicks(torch.tensor([[[20.0, 30.0]]]), torch.tensor([[1]], dtype=torch.int32)),
        Clicks(torch.tensor([[[5.0, 6.0], [40.0, 50.0]]]), torch.tensor([[2, 3]], dtype=torch.int32)),
    ]
    memory, single = segmenter.new_memory(), [segmenter.new_memory(), segmenter.new_memory()]
    with torch.no_grad():
        for t in range(4):
            pixels = torch.cat([segmenter.pixels(frames[video, t]) for video in range(2)])
            features = of_regions(segmenter.encode_pixels(pixels, (SIZE, SIZE)), torch.tensor([0, 1]))
            found = segmenter.step(features, memory, groups if t == 0 else None)
            for video in range(2):
                alone = segmenter.encode(frames[video, t])
                if t == 0:
                    (seen,) = segmenter.segment(alone, [prompts[video]], [single[video]])
                else:
                    (seen,) = segmenter.track(alone, [single[video]])
                torch.testing.assert_close(
                    found.decoder_features.image[video : video + 1],
                    seen.decoder_features.image,
                    atol=1e-4,
                    rtol=1e-3,
                )
                torch.testing.assert_close(
                    found.decoder_features.tokens[video : video + 1],
                    seen.decoder_features.tokens,
                    atol=1e-4,
                    rtol=1e-3,
                )
                torch.testing.assert_close(
                    found.presence[video, 0], seen.presence_logit, atol=1e-4, rtol=1e-3
                )


def test_clicks_boxes_and_corrections_lie_on_their_regions() -> None:
    masks = torch.zeros(6, 32, 32, dtype=torch.bool)
    masks[:, 8:20, 10:24] = True
    generator = Generator().manual_seed(1)
    x, y = click(masks, generator).points[:, 0].long().unbind(1)
    assert bool(masks[torch.arange(6), y, x].all())
    boxes = box(masks, generator)
    assert boxes.labels.tolist() == [[2, 3]] * 6
    assert float((boxes.points - torch.tensor([[10.0, 8.0], [24.0, 20.0]])).abs().max()) < 3
    found = torch.zeros_like(masks)
    found[:, 8:20, 10:30] = True  # too much on the right
    wrong = correction(masks, found, generator)
    assert wrong.labels.flatten().tolist() == [0] * 6
    assert bool((wrong.points[..., 0] >= 24).all())


# ---- schedule, order, configuration


@pytest.mark.parametrize("box_fraction", [0.0, 0.4, 1.0])
def test_box_fraction_is_the_fraction_of_regions_prompted_by_a_box(box_fraction: float) -> None:
    masks = torch.zeros(40, 64, 64, dtype=torch.bool)
    masks[:, 20:50, 10:40] = True
    groups = first_prompts(masks, Generator().manual_seed(0), box_fraction)
    assert sum(len(group.points) for group in groups) == 40
    boxes = [group for group in groups if group.labels.tolist() == [[2, 3]] * len(group.labels)]
    assert sum(len(group.points) for group in boxes) == round(40 * box_fraction)


def test_boxes_of_regions() -> None:
    masks = torch.zeros(2, 32, 32, dtype=torch.bool)
    masks[0, 8:24, 4:12] = True
    boxes = normalised_boxes(masks)
    assert boxes[0].tolist() == [0.25, 0.5, 0.25, 0.5, 1.0]
    assert boxes[1, 4] == 0.0  # not in view
    certain = torch.tensor([[0.25, 0.5, 0.25, 0.5, 20.0], [0.9, 0.9, 0.9, 0.9, -20.0]])
    assert float(box_loss(certain, boxes)) < 1e-6  # the box of a region out of view does not count
    assert float(box_loss(certain + torch.tensor([0.1, 0, 0, 0, 0]), boxes)) == pytest.approx(0.025)
    assert float(box_loss(-certain, boxes)) > 1


def test_events_of_frames() -> None:
    source = open_sources(["shapes:6:4"])
    region = replace(source[0].regions[0], segments=((0, 1, "stays"), (1, 3, "slides right")))
    without = replace(region, clips=())  # regions without captions do not count
    events = Events([replace(source[0], regions=(each,)) for each in (region, without)])
    assert (events.names, events.counts) == (["slides right", "stays"], [2, 1])
    assert events.numbers(region, [0, 2, 3]) == [1, 0, UNKNOWN]
    head = EventHead(8, events)
    states, truth = torch.randn(2, 3, 8), torch.tensor([[1, 0, UNKNOWN], [UNKNOWN] * 3])
    far = torch.full((2, 3, 3), float("nan"))
    far[0, 1] = torch.tensor([0.5, 0.0, -0.5])
    found = head(states, truth, far)
    answers = head.head(states[0])
    last = torch.nn.functional.cross_entropy(answers[:2, :2], truth[0, :2], head.weights)
    assert found["event"].item() == pytest.approx(last.item())
    off = torch.nn.functional.smooth_l1_loss(answers[1, 2:], far[0, 1])
    assert found["moved"].item() == pytest.approx(off.item())
    assert float(found["event_right"]) in (0.0, 0.5, 1.0)
    assert float(found["acting_right"]) in (0.0, 1.0)
    nothing = head(states, torch.full((2, 3), UNKNOWN), torch.full((2, 3, 3), float("nan")))
    assert nothing["event"].item() == nothing["moved"].item() == 0.0


def test_how_far_an_object_has_moved() -> None:
    region = SampleRegion(path_m=((0.0, 0.0, 0.0), (0.1, 0.0, 0.02), (0.3, -2.0, 0.02)))
    assert np.allclose(moved(region, [1, 2]), [[0, 0, 0], [2, -5, 0]])  # decimetres; far is far
    assert np.isnan(moved(SampleRegion(), [0, 1])).all()


def test_events_are_predicted_after_the_last_embedding_of_a_frame(segmented: Path) -> None:
    pam = load_model(LoadOptions(str(segmented / "model"), device="cpu", dtype="float32"))
    config = stage(segmented, segmented, kind="caption", train=["perceiver"], steps=1)
    module = CaptionStage(pam, None, config, Events([]))
    frames, grid, width = 3, pam.segmenter.grid_size, pam.segmenter.width
    tokens = Tokenisation(pam.language).tokens([[QAExample((0, 1, 2), "?", "a", Task.CLIP)]])
    semantic, refined = pam.perceiver(torch.randn(frames, width, grid, grid), torch.randn(frames, 2, width))
    embeddings = module._embeddings(CaptionBatch(tokens, frames, clip=True), semantic, refined)
    ends = module._frame_ends(0, embeddings.shape[1], frames)
    assert ends[-1] == embeddings.shape[1] - 1
    assert len(set(ends)) == frames
    newline = pam.projector.frame_newline
    assert all(torch.equal(embeddings[0, end], newline) for end in ends)


def test_small_objects_weigh_as_much_as_large_ones_in_cells() -> None:
    words = Words(
        [SampleRegion(texts={(Task.LABEL, Language.EN): (name,)}) for name in ("mug", "table", "wall")]
    )
    owners = torch.zeros(1, 32, 32, dtype=torch.int16)
    owners[:, :, 16:], owners[:, :4, :4] = 1, 2  # a table of 512 pixels, a mug of 16; the rest has no name
    names = torch.tensor([[UNNAMED, words.labels.index("table"), words.labels.index("mug")]])
    head = CellsHead(4, words)
    embedding = torch.zeros(1, 4, 2, 2)

    def loss(sure: dict[str, float]) -> float:
        last = head.head[-1]
        last.weight.data.zero_()
        last.bias.data = torch.tensor([sure.get(label, 0.0) for label in words.labels])
        return head(embedding, owners, names).item()

    assert loss({}) == pytest.approx(math.log(3))
    table, mug = 512**0.25, 16**0.25  # weights of all their pixels together
    fractions = torch.tensor([mug, table]) / (mug + table)
    expected = -(fractions * torch.tensor([5.0, 0.0, 0.0]).log_softmax(0)[:2]).sum()
    assert loss({"mug": 5.0}) == pytest.approx(float(expected), rel=1e-4)


def test_a_deeper_encoder_computes_the_same(segmented: Path, tmp_path: Path) -> None:
    main(["--blocks", "2", str(segmented / "model"), str(tmp_path)])
    old = load_model(LoadOptions(str(segmented / "model"), device="cpu", dtype="float32"))
    new = load_model(LoadOptions(str(tmp_path), device="cpu", dtype="float32"))
    trunk = new.segmenter.sam2.image_encoder.trunk
    assert len(trunk.blocks) == len(old.segmenter.sam2.image_encoder.trunk.blocks) + 2
    assert [number for number, block in enumerate(trunk.blocks) if block.window_size == 0] == [3, 5]
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    assert torch.equal(old.encode(image).embedding, new.encode(image).embedding)
    # Each can learn: the layers that end its branches get gradients, the others once these are not zero.
    blocks = [dict(block.named_parameters()) for block in trunk.blocks[4:6]]
    assert all(not block["attn.proj.weight"].any() and block["attn.qkv.weight"].any() for block in blocks)
    with pytest.raises(InputError, match="give 1 or more"):
        deepened(segmented / "model", 0)
    with pytest.raises(InputError, match=r"no sam2\.yaml"):
        deepened(tmp_path / "nowhere", 1)


@pytest.mark.parametrize("what", list(Blended))
def test_weights_move_back_towards_an_older_model(
    tiny: Path, segmented: Path, tmp_path: Path, what: Blended
) -> None:
    trained = segmented / "model"
    export_model(trained, tmp_path / "older")
    older = load_model(LoadOptions(str(tmp_path / "older"), device="cpu", dtype="float32"))
    for parameter in older.parameters():
        parameter.add_(1.0)
    save_model(older, tmp_path / "older", dtype=torch.float32)
    export_model(trained, tmp_path / "blended", older=tmp_path / "older", fraction=0.25, what=what)
    before, after = weights(trained), weights(tmp_path / "blended")
    for name, tensor in before.items():
        if tensor.is_floating_point() and name in dict(older.named_parameters()):
            seen = part_of(name) == "segmenter"
            tracks = seen and any(part in name for part in TRACKING)
            moves = tracks if what is Blended.TRACKING else not seen
            assert torch.allclose(after[name], tensor + 0.25 * moves, atol=2e-2), name
    assert sum("memory_attention" in name for name in before) > 10
    with pytest.raises(TrainingError, match=r"fraction is 1\.5; allowed: 0\.\.1"):
        export_model(trained, tmp_path / "no", older=tmp_path / "older", fraction=1.5, what=what)
    shipped = share_folder("models", "*.yaml") / "pam-tiny"
    with pytest.raises(TrainingError, match="other tensors"):
        export_model(trained, tmp_path / "no", older=shipped, fraction=0.5, what=what)


def test_frequent_labels_come_less_often_if_they_are_balanced() -> None:
    labels = ["handle"] * 9 + ["mug"] + [""] * 2
    assert balanced(labels, 0.0).tolist() == [1.0] * 12
    even = balanced(labels, 1.0)
    assert even[:9].sum() == pytest.approx(even[9])  # both labels come as often
    assert even[10] == pytest.approx(even[:10].mean())
    assert balanced([""] * 3, 0.5).tolist() == [1.0] * 3


def test_bystanders_and_parts_make_up_their_fraction() -> None:
    moving = ((0, 8, "still"), (8, 20, "slides_left"))
    assert SampleRegion(segments=((0, 48, "still"),)).is_static
    assert not SampleRegion(segments=moving).is_static and not SampleRegion().is_static
    weights = with_fraction([True, False, False, False], 0.4, np.array([9.0, 2.0, 2.0, 4.0]))
    assert weights.tolist() == pytest.approx([0.4, 0.15, 0.15, 0.3])
    found = drawn(np.random.default_rng(0), weights.cumsum(), 20000)
    assert np.bincount(found) / 20000 == pytest.approx(weights, abs=0.02)
    for alike in ([True, True], [False, False]):
        assert with_fraction(alike, 0.4, np.array([1.0, 3.0])).tolist() == [1.0, 3.0]


@pytest.mark.parametrize(("balance", "rare"), [(0.0, 0.2), (1.0, 0.5)])
def test_rare_events_come_as_their_balance_says(segmented: Path, balance: float, rare: float) -> None:
    config = replace(
        stage(segmented, segmented, kind="caption", train=["perceiver"], steps=1, video_fraction=1.0),
        event_balance=balance, video_batch=2000, clip_frames=(4,), answers=1, languages=(Language.EN,),
    )  # fmt: skip
    moving = ((0, 4, "slides_left"), (4, 20, "still"))
    clips = [
        Clip(4 * i, 4 * i + 4, {Language.EN: (f"{i}",)}, ("still",) if i else ("moves",)) for i in range(5)
    ]
    region = SampleRegion(clips=(tuple(clips),), segments=moving)
    source = [replace(open_sources(["shapes:1:20"])[0], regions=(region,))]
    tokenisation = Tokenisation(load_model(LoadOptions("pam-tiny", device="cpu")).language)
    region_features = FeatureIndex(1, starts={(0, 0, 0): 0}, usable={(0, 0)})
    dataset = CaptionDataset(
        source,
        outlines_of(source),
        config,
        tokenisation,
        Events(source),
        size=64,
        region_features=region_features,
        crop_small_regions=False,
        rank=0,
    )
    rows = dataset[0].feature_rows
    assert rows is not None
    first = rows.reshape(2000, 4)[:, -1] < 4  # which clip is shown
    assert float(first.float().mean()) == pytest.approx(rare, abs=0.04)


@pytest.mark.parametrize("balance", [0.0, 1.0])
def test_answer_balance_weighs_tokens_or_answers(balance: float) -> None:
    language = load_model(LoadOptions("pam-tiny", device="cpu")).language
    examples = [
        QAExample((0,), "?", "a", Task.LABEL),
        QAExample((0,), "?", "a long answer of many more tokens than the other", Task.DETAIL),
    ]
    tokens = Tokenisation(language, balance).tokens([[example] for example in examples])
    of_answer = tokens.learned // tokens.ids.shape[1]
    assert torch.equal(of_answer, tokens.answers)
    short, long = (float(tokens.weights[of_answer == row].sum()) for row in (0, 1))
    counts = [int((of_answer == row).sum()) for row in (0, 1)]
    assert counts[1] > counts[0] > 1
    assert (short, long) == pytest.approx((1.0, 1.0) if balance else counts)


def test_questions_of_one_sample_do_not_attend_to_each_other(segmented: Path) -> None:
    pam = load_model(LoadOptions(str(segmented / "model"), device="cpu", dtype="float32"))
    config = stage(segmented, segmented, kind="caption", train=["perceiver"], steps=1)
    module = CaptionStage(pam, None, config, Events([]))
    examples = [
        QAExample((0,), "What is it?", "a mug", Task.LABEL),
        QAExample((0,), "Tell more.", "A red mug stands on the table.", Task.BRIEF),
        QAExample((0,), "What is it?", "a spoon", Task.LABEL),
    ]
    turned = Tokenisation(pam.language, answer_balance=1.0)

    def figures(samples: list[list[QAExample]]) -> dict[str, float]:
        batch = CaptionBatch(turned.tokens(samples, ["Red."] * len(samples)))
        return {name: value.item() for name, value in module(batch, torch.Generator()).items()}

    alone = [figures([[example]]) for example in examples]
    for together in (figures([examples]), figures([examples[:1], examples[1:]])):
        assert together["loss"] == pytest.approx(sum(each["loss"] for each in alone) / 3, rel=1e-5)
    # As in one piece, with plain causal attention:
    before, text = turned.ids(TEXT_BEFORE_IMAGE), turned.ids("Red.") + turned.ids(examples[0].question)
    ids = torch.tensor([before + text + turned.ids("a mug") + turned.ids("<|im_end|>")])
    start = len(before) + len(text)
    logits = pam.language.transformer(input_ids=ids).logits[0, start - 1 : -1]
    whole = torch.nn.functional.cross_entropy(logits, ids[0, start:])
    assert alone[0]["loss"] == pytest.approx(whole.item(), rel=1e-5)


def test_a_region_gets_several_questions_at_once() -> None:
    region = next(r for sample in open_sources(["shapes:6:4"]) for r in sample.regions if r.clips)
    config = stage(Path(), Path(), kind="caption", train=["perceiver"], steps=1, answers=3, carry_over=1.0)
    random = np.random.default_rng(0)
    last = len(region.clips[0]) - 1
    clip = region.clips[0][last]
    questions = clip_questions(random, region, (0, last), config, 2)
    assert len(questions) == 3
    assert len({example.frames for example in questions}) == 1  # of the same view
    assert questions[0].frames[0] == (clip.start - 1 if clip.start else 0)
    assert {code for code in clip.captions for q in questions if q.answer in clip.captions[code]} == set(
        clip.captions
    )
    picture = open_sources(["shapes:1"])[0].regions[0]
    tasks = [(example.task, example.question) for example in image_questions(random, picture, config)]
    assert len(set(tasks)) == 3  # none twice


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("carry_over", [0.0, 1.0])
def test_clips_are_sampled_around_the_instants_of_the_runtime(backward: bool, carry_over: float) -> None:
    clip = Clip(10, 58, {Language.EN: ("It falls.",)}, backward=backward)
    region = SampleRegion(clips=((clip,),))
    config = stage(Path(), Path(), kind="caption", train=["perceiver"], steps=1, carry_over=carry_over)
    random = np.random.default_rng(0)
    shown = np.array([clip_questions(random, region, (0, 0), config, 16)[0].frames for _ in range(400)])
    first, last = (57 + carry_over, 10) if backward else (10 - carry_over, 57)
    instants = first + planned_instants(0, last - first, 16)
    assert (shown[:, 0] == first).all() and (shown[:, -1] == last).all()
    assert all(len(set(frames)) == 16 for frames in shown.tolist())
    assert np.abs(shown.mean(0) - instants).max() < 0.2  # jitter is even
    spacing = abs(last - first) / 15
    assert 0.5 < np.abs(shown - instants).max() <= 0.5 * (spacing - 1) + 0.5  # and stays within its instant


def test_schedule_follows_steps_or_time(tiny: Path, tmp_path: Path) -> None:
    config = segment_stage(tiny, tmp_path, steps=100, max_minutes=10)
    assert Progress(50, 1).fraction(config) == 0.5
    assert Progress(10, 8).fraction(config) == 0.8
    assert rate_factor(0.015, 0.03, 0.01) == pytest.approx(0.5)
    assert rate_factor(0.03, 0.03, 0.01) == pytest.approx(1.0)
    assert rate_factor(1.0, 0.03, 0.01) == pytest.approx(0.01)
    assert rate_factor(1.0, 0.03, 0.4) == pytest.approx(0.4)


def test_every_sample_comes_once_per_epoch() -> None:
    parts = [samples_of_step(step, length=12, batch=2, seed=3) for step in range(6)]
    assert sorted(np.concatenate(parts).tolist()) == list(range(12))


def test_features_are_kept_of_the_regions_with_captions(tiny: Path, segmented: Path) -> None:
    source = list(open_sources(["shapes:2", "shapes:3:4"]))
    # Of the second video only the last region has captions; elsewhere all have.
    captioned, silent = source[3].regions[-1], source[3].regions[:-1]
    source[3] = replace(source[3], regions=(*(replace(each, clips=()) for each in silent), captioned))
    config = stage(tiny, segmented, kind="caption", train=["perceiver"], steps=1, cache_features=1)
    segmenter = load_model(LoadOptions(str(segmented / "model"), device="cpu", dtype="float32")).segmenter
    outlines = outlines_of(source)
    store = FeatureStore(outlines, segmenter, 1, torch.float32)
    assert sum(fill_store(store, source, outlines, segmenter, config)) == 5
    assert not store.index.crops
    counts = [len(sample.regions) for sample in source]
    assert len(store.image) == counts[0] + counts[1] + 4 * (counts[2] + 1 + counts[4])
    last = len(silent)
    assert {(sample, region) for sample, region in store.index.usable if sample == 3} == {(3, last)}
    assert torch.isfinite(store.image).all()
    assert len(torch.unique(store.image[store.index.find(3, last, 0, range(4))], dim=0)) == 4
    # Their boxes are those of the right region's masks.
    masks = torch.from_numpy(load_masks(source[3], [last], range(4), SIZE))
    kept = store.take(torch.tensor(store.index.find(3, last, 0, range(4))))
    assert torch.equal(kept.boxes, normalised_boxes(masks[0]))


def test_masks_are_padded_for_samples_with_fewer_regions() -> None:
    random = np.random.default_rng(0)
    masks = torch.from_numpy(random.random((2 * 3 + 2 * 1, 8, 8)) < 0.5)  # two frames of 3 regions, of 1
    padded = padded_masks(masks, [3, 1], 2)
    assert padded.shape == (2, 3, 2, 8, 8)
    assert torch.equal(padded[0, 2, 1], masks[5]) and torch.equal(padded[0, 1, 0], masks[1])
    assert torch.equal(padded[1, 0, 1], masks[7]) and not padded[1, 1:].any()
    assert torch.equal(unpacked(torch.from_numpy(packed(masks.numpy())), 8), masks)


def test_features_of_small_regions_are_those_of_their_crops(tiny: Path, segmented: Path) -> None:
    source = open_sources(["shapes:6", "shapes:2:4"])
    config = stage(tiny, segmented, kind="caption", train=["perceiver"], steps=1, cache_features=2)
    segmenter = load_model(LoadOptions(str(segmented / "model"), device="cpu", dtype="float32")).segmenter
    segmenter.crop_small_regions = True
    outlines = outlines_of(source)
    store = FeatureStore(outlines, segmenter, 2, torch.float32)
    small = small_regions(outlines)
    assert 0 < len(small) < 12  # of the pictures' 12
    assert max(sample for sample, _ in small) < 6  # none of the videos'
    assert sum(fill_store(store, source, outlines, segmenter, config)) == 8 + 2 * len(small)
    for sample, region in small:
        rows = [store.index.find_for_text(sample, region, variant) for variant in (0, 1)]
        whole = store.index.find(sample, region, 0, [0])
        assert len({*rows, *whole}) == 3
        near, first = store.take(torch.tensor(rows)).boxes, store.take(torch.tensor(whole)).boxes[0]
        assert (near[:, 2:4] > first[2:4]).all()  # it fills more of the crop
        assert not torch.equal(near[0], near[1])  # crops vary
    large = next((0, region) for region in (0, 1) if (0, region) not in small)
    assert store.index.find_for_text(*large, 0) == store.index.find(*large, 0, [0])[0]


def test_regions_that_vanish_are_often_chosen() -> None:
    random = np.random.default_rng(0)
    seen = np.tile([True, True, True, False, True], (400, 1))
    vanishing = np.tile([False, True, False, True, False], (400, 1))  # the 4th is not seen at the start
    places, absent = choose_regions(random, seen, vanishing, 2)
    assert not absent.any()
    assert not (places == 3).any()
    assert all(first != second for first, second in places)
    # In half the videos it comes first; in the others it is one of four, like any.
    assert 0.55 < (places == 1).any(1).mean() < 0.95
    assert 0.35 < (places == 2).any(1).mean() < 0.65
    places, absent = choose_regions(random, np.zeros((2, 3), bool), np.ones((2, 3), bool), 2)
    assert absent.all()
    assert choose_regions(random, seen[:1, :1], vanishing[:1, :1], 3)[0].tolist() == [[0, 0, 0]]


def test_two_processes_train_one_model(tiny: Path, tmp_path: Path) -> None:
    stages = []
    for name in ("segment", "stage1"):
        path = tmp_path / f"{name}.yaml"
        recipe = share_folder("config", "*") / "training" / f"{name}.yaml"
        config = yaml.safe_load(recipe.read_text(encoding="utf-8"))
        config |= {"out": str(tmp_path / name), "data": DATA, "steps": 4, "batch": 4, "video_batch": 2}
        config |= {"precision": "fp32", "workers": 1, "video_frames": 3, "video_after": 0}
        config["model"] = str(tiny if name == "segment" else tmp_path / "segment" / "model")
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        stages.append(str(path))
    command = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1"]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no", "--num_cpu_threads_per_process", "1"]
    command += ["--main_process_port", "0", "-m", "pam_ros.training.run", *stages]
    command = [sys.executable, *command]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    segmented, after = weights(tmp_path / "segment" / "model"), weights(tmp_path / "stage1" / "model")
    assert changed_parts(segmented, after) == {"perceiver", "projector"}
    assert all(torch.isfinite(weight).all() for weight in after.values())


def test_video_steps_are_spread_and_counted() -> None:
    kinds = [is_video_step(step, 0.3) for step in range(40)]
    assert [sum(kinds[:step]) for step in range(40)] == [video_steps_before(step, 0.3) for step in range(40)]
    late = [is_video_step(step, 0.5, after=10) for step in range(20)]
    assert (sum(late[:10]), sum(late)) == (0, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": ["everything"]}, "perceiver"),
        ({"train": ["language"]}, "segmenter"),
        ({"warmup": 0.9}, "warmup is 0.9"),
        ({"precision": "fp8"}, "bf16"),
        ({"colour": 1}, "unknown colour"),
    ],
)
def test_bad_configurations_are_named(
    tiny: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        segment_stage(tiny, tmp_path, **change)


def test_shipped_configurations_are_valid() -> None:
    folder = share_folder("config", "training/*.yaml") / "training"
    paths = sorted(folder.glob("*.yaml"))
    assert len(paths) >= 5
    for path in paths:
        assert read_config(path, ["batch=3"]).batch == 3


# ---- data


def overlapping() -> Sample:
    """A picture of 16 x 16 pixels: a cup, its handle, and a table that is no region; cup and lid overlap."""
    cup, lid, handle, table = (np.zeros((16, 16), np.bool_) for _ in range(4))
    key = Task.LABEL, Language.EN
    cup[2:8, 4:12], lid[2:4, 4:12], handle[4:6, 10:12], table[8:] = True, True, True, True
    regions = [
        SampleRegion(name, kind, number, masks=(RleMask.of(mask),), texts={key: (name,)})
        for name, kind, number, mask in (
            ("cup", Kind.OBJECT, 1, cup), ("lid", Kind.OBJECT, 2, lid), ("handle", Kind.PART, 1, handle)
        )
    ]  # fmt: skip
    picture = LoadedPicture(np.full((16, 16, 3), 90, np.uint8))
    return Sample("a", (picture,), tuple(regions), size=(16, 16), other_masks=((RleMask.of(table),),))


def test_the_frame_store_has_every_mask_and_owner() -> None:
    source = [overlapping(), *open_sources(["shapes:1:3"])]
    store = FrameStore(outlines_of(source), 32, torch.device("cpu"))
    assert sum(store.fill(source, workers=0)) == 4
    assert store.areas[0].tolist() == [4 * 48, 4 * 16, 4 * 4]
    rows, places = np.array([[0, 0], [1, 3]]), np.array([[0, 2, 1], [1, NO_MASK, 0]])
    masks = store.masks(rows, places)
    expected = load_masks(source[0], [0, 2, 1], [0, 0], 32)
    assert np.array_equal(masks[0].numpy(), expected)
    assert np.array_equal(masks[1, [0, 2]].numpy(), load_masks(source[1], [1, 0], [0, 2], 32))
    assert not masks[1, 1].any()
    pixels, owners = store.take(rows)
    assert pixels.shape == (2, 2, 3, 32, 32) and owners.shape == (2, 2, 32, 32)
    assert np.array_equal(owners[1, 1].numpy(), load_owners(source[1], 2, 32))
    # The lid lies in front of the cup since it is smaller; the table has a number of its own.
    assert [int((owners[0, 0] == number).sum()) for number in (1, 2, 3)] == [4 * 32, 4 * 16, 4 * 128]


def test_an_outline_keeps_what_examples_are_chosen_by() -> None:
    sample = overlapping()
    clip = Clip(0, 1, {Language.EN: ("It stands.", "It is there.")}, ("still",), {Language.EN: "It fell."})
    region = replace(sample.regions[0], clips=((clip,),), segments=((0, 1, "still"),), path_m=((0.0,) * 3,))
    short = outline(replace(sample, regions=(region, *sample.regions[1:])))
    assert short.crop_box(short.regions[0]) == sample.crop_box(sample.regions[0]) == (0.25, 0.125, 0.75, 0.5)
    assert [each.label for each in short.regions] == ["cup", "lid", "handle"]
    kept = short.regions[0]
    assert (kept.segments, kept.object_id, kept.kind) == (region.segments, 1, Kind.OBJECT)
    assert kept.clips == ((Clip(0, 1, {Language.EN: ("",)}, ("still",)),),)
    assert not kept.masks and not kept.path_m and not short.other_masks


def test_questions_about_a_clip_have_its_previous_caption() -> None:
    clip = Clip(0, 8, {Language.EN: ("It falls.",)}, previous={Language.EN: "It stood."})
    first = replace(clip, previous={})
    config = stage(Path(), Path(), kind="caption", train=["perceiver"], steps=1, answers=40)
    random = np.random.default_rng(0)

    def fraction(*sequence: Clip) -> float:
        region, last = SampleRegion(clips=(sequence,)), len(sequence) - 1
        asked = [each.question for each in clip_questions(random, region, (0, last), config, 4)]
        return sum("It stood." in each for each in asked) / len(asked)

    assert 0.7 < fraction(clip) < 1  # some are asked about as if they were the first
    assert fraction(first) == 0
    assert 0.7 < fraction(Clip(0, 4, {Language.EN: ("It stood.",)}), replace(first, start=4)) < 1
