"""Every training stage for a few steps, very small: the loss falls, frozen parts stay, resuming is exact."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Generator

from pam_ros.datasets.coloured_shapes import ShapesSource
from pam_ros.datasets.registry import open_sources, process_shard
from pam_ros.datasets.schema import ClipEntry, Entry, RegionEntry
from pam_ros.datasets.shards import ShardSource
from pam_ros.errors import DatasetError, InputError
from pam_ros.model.loading.checkpoint import load_model, save_model
from pam_ros.model.pam import Pam
from pam_ros.model.text.prompts import TEXT_BEFORE_IMAGE
from pam_ros.model.vision.features import of_regions
from pam_ros.records import Language, Prompt, Task
from pam_ros.share import share_folder
from pam_ros.training.config import StageConfig, TrainingError, config_from, read_config
from pam_ros.training.export import TRACKING, Blended, export_model
from pam_ros.training.features.feature_store import (
    FeatureIndex,
    FeatureStore,
    StageCache,
    captioned_regions,
    codes_of,
    fill_store,
    small_regions,
)
from pam_ros.training.features.frame_store import FrameStore, mask_of
from pam_ros.training.heads.box_head import box_loss, normalised_boxes
from pam_ros.training.heads.event_head import UNKNOWN, EventHead, Events, moved
from pam_ros.training.loading import is_video_step, samples_of_step, video_steps_before
from pam_ros.training.modules import open_model, part_of
from pam_ros.training.prompting import Clicks, box, click, correction, first_prompts
from pam_ros.training.qa_examples import QAExample, Tokenisation, clip_questions, image_questions
from pam_ros.training.run import Progress, rate_factor, run_stage
from pam_ros.training.stages.caption_stage import (
    CaptionBatch,
    CaptionDataset,
    CaptionStage,
    balanced,
    drawn,
    shared,
)
from pam_ros.training.stages.segment_stage import UNNAMED, CellsHead, Words, choose_regions
from pam_ros.training.tokenizer import texts_of, train_tokenizer
from pam_ros.training.tools.deepen import deepened, main

SIZE = 64
DATA = ["shapes:24", "shapes:8:6"]


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
    fixed = {"model": str(tiny), "data": DATA, "out": str(out), "workers": 0, "precision": "fp32", "batch": 8}
    return config_from({**fixed, **values}, "test")


def segment_stage(tiny: Path, out: Path, **values: Any) -> StageConfig:
    """Stage 0, pictures and videos."""
    fixed = {
        "kind": "segment", "fresh": True, "train": ["segmenter"], "steps": 12, "image_regions": 1,
        "video_fraction": 0.25, "video_batch": 2, "video_frames": 3, "loss_size": 16, "words_weight": 0.2,
        "group_weight": 0.5,
        "learning_rate": 2e-3,
    }  # fmt: skip
    return stage(tiny, out, **{**fixed, **values})


@pytest.fixture(scope="module")
def segmented(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What stage 0 leaves behind."""
    out = tmp_path_factory.mktemp("segment")
    run_stage(segment_stage(tiny, out))
    return out


def losses(out: Path, name: str = "loss") -> list[float]:
    """A stage's curve."""
    lines = (out / "figures.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)[name] for line in lines if name in json.loads(line)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """A trained model's weights."""
    return load_model(str(folder), device="cpu", dtype="float32").state_dict()


def changed_parts(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """Parts with a tensor that is not bit-identical."""
    return {part_of(name) for name in before if not torch.equal(before[name], after[name])}


# ---- the stages


def test_segment_stage_learns_and_leaves_the_rest_alone(tiny: Path, segmented: Path) -> None:
    curve = losses(segmented)
    assert curve[-1] < curve[0]
    assert all(map(math.isfinite, curve + losses(segmented, "video_loss")))
    fresh = open_model(segment_stage(tiny, segmented)).state_dict()
    assert changed_parts(fresh, weights(segmented / "model")) == {"segmenter"}


def test_language_and_caption_stages_learn_and_freeze(segmented: Path, tmp_path: Path) -> None:
    small = {
        "tasks": {"label": 1, "brief": 1},
        "clip_frames": [3, 2, 1],
        "learning_rate": 1e-2,
        "video_batch": 4,
    }
    plan: list[tuple[str, dict[str, Any]]] = [
        ("language", {"kind": "language", "train": ["language"], "video_fraction": 0.3}),
        ("stage1", {"kind": "caption", "train": ["perceiver", "projector"], "cache_features": 1}),
        (
            "stage1_5",
            {
                "kind": "caption",
                "train": ["perceiver", "projector"],
                "cache_features": 1,
                "video_fraction": 0.5,
            },
        ),
    ]
    # The last stage computes region_features on the fly, as it must where they do not fit into memory.
    last: dict[str, Any] = {
        "kind": "caption",
        "train": ["perceiver", "projector", "language"],
        "learning_rate": 3e-3,
    }
    balance = {"label_balance": 0.5, "answer_balance": 0.5, "box_weight": 1.0, "events_weight": 0.5}
    plan.append(("stage2", {**last, **balance, "video_fraction": 0.25, "steps": 12}))
    model, kept = segmented / "model", StageCache()
    for name, values in plan:
        out = tmp_path / name
        run_stage(stage(model, out, **{"steps": 24, **small, **values}), kept=kept)
        curve = losses(out)
        assert curve[-1] < curve[0], f"{name}: {curve}"
        if name == "stage2":
            off = losses(out, "where")
            assert off[-1] < off[0], off
            assert all(map(math.isfinite, losses(out, "video_event"))), "it was asked what happens"
        assert changed_parts(weights(model), weights(out / "model")) == set(values["train"]), name
        model = out / "model"


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
    from pam_ros.training.run import Stage

    run = Stage(config, StageCache())
    for _, batch in zip(range(step), run.batches(), strict=False):
        run._step(batch)
        run.progress.step += 1
    run.save()
    return run.progress


def test_resume_needs_a_checkpoint(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="start without --resume"):
        run_stage(segment_stage(tiny, tmp_path), resume=True)


def test_a_stage_out_of_time_ends_cleanly(tiny: Path, tmp_path: Path) -> None:
    run_stage(segment_stage(tiny, tmp_path, steps=10_000, max_minutes=1e-4, video_fraction=0))
    assert (tmp_path / "model" / "model.safetensors").is_file()
    assert (tmp_path / "checkpoint").is_dir()


# ---- training sees what inference sees


def test_rollout_equals_inference(tiny: Path, tmp_path: Path) -> None:
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


def test_prompts_lie_where_they_should() -> None:
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
def test_as_many_regions_get_a_box_as_is_asked(box_fraction: float) -> None:
    masks = torch.zeros(40, 64, 64, dtype=torch.bool)
    masks[:, 20:50, 10:40] = True
    groups = first_prompts(masks, Generator().manual_seed(0), box_fraction)
    assert sum(len(group.points) for group in groups) == 40
    boxes = [group for group in groups if group.labels.tolist() == [[2, 3]] * len(group.labels)]
    assert sum(len(group.points) for group in boxes) == round(40 * box_fraction)


def test_where_regions_are() -> None:
    masks = torch.zeros(2, 32, 32, dtype=torch.bool)
    masks[0, 8:24, 4:12] = True
    where = normalised_boxes(masks)
    assert where[0].tolist() == [0.25, 0.5, 0.25, 0.5, 1.0]
    assert where[1, 4] == 0.0  # nowhere
    certain = torch.tensor([[0.25, 0.5, 0.25, 0.5, 20.0], [0.9, 0.9, 0.9, 0.9, -20.0]])
    assert float(box_loss(certain, where)) < 1e-6  # where it would be does not count when it is out of view
    assert float(box_loss(certain + torch.tensor([0.1, 0, 0, 0, 0]), where)) == pytest.approx(0.025)
    assert float(box_loss(-certain, where)) > 1


def test_events_of_frames() -> None:
    source = open_sources(["shapes:6:4"])
    region = replace(source.entries[0].regions[0], segments=((0, 1, "stays"), (1, 3, "slides right")))
    events = Events([Entry(4, (region,)), Entry(4, (replace(region, clips=()),))])  # silent ones do not count
    assert (events.names, events.counts) == (["slides right", "stays"], [2, 1])
    assert events.numbers(region, [0, 2, 3]) == [1, 0, UNKNOWN]
    head = EventHead(8, events)
    states, truth = torch.randn(2, 3, 8), torch.tensor([[1, 0, UNKNOWN], [UNKNOWN] * 3])
    far = torch.full((2, 3, 3), float("nan"))
    far[0, 1] = torch.tensor([0.5, 0.0, -0.5])
    told = head(states, truth, far)
    answers = head.head(states[0])
    last = torch.nn.functional.cross_entropy(answers[:2, :2], truth[0, :2], head.weights)
    assert told["event"].item() == pytest.approx(last.item())
    off = torch.nn.functional.smooth_l1_loss(answers[1, 2:], far[0, 1])
    assert told["moved"].item() == pytest.approx(off.item())
    assert float(told["event_right"]) in (0.0, 0.5, 1.0)
    assert float(told["acting_right"]) in (0.0, 1.0)
    nothing = head(states, torch.full((2, 3), UNKNOWN), torch.full((2, 3, 3), float("nan")))
    assert nothing["event"].item() == nothing["moved"].item() == 0.0


def test_how_far_a_thing_has_moved() -> None:
    region = RegionEntry(path_m=((0.0, 0.0, 0.0), (0.1, 0.0, 0.02), (0.3, -2.0, 0.02)))
    assert np.allclose(moved(region, [1, 2]), [[0, 0, 0], [2, -5, 0]])  # decimetres; far is far
    assert np.isnan(moved(RegionEntry(), [0, 1])).all()


def test_events_are_asked_where_a_frame_ends(segmented: Path) -> None:
    pam = load_model(str(segmented / "model"), device="cpu", dtype="float32")
    config = stage(segmented, segmented, kind="caption", train=["perceiver"], steps=1)
    asked = CaptionStage(pam, None, config, Events([]))
    frames, grid, width = 3, pam.segmenter.grid_size, pam.segmenter.width
    tokens = Tokenisation(pam.language).tokens([[QAExample((0, 1, 2), "?", "a", Task.CLIP)]])
    semantic, refined = pam.perceiver(torch.randn(frames, width, grid, grid), torch.randn(frames, 2, width))
    rows = asked._rows(CaptionBatch(tokens, frames, clip=True), semantic, refined)
    ends = asked._frame_ends(0, rows.shape[1], frames)
    assert ends[-1] == rows.shape[1] - 1
    assert len(set(ends)) == frames
    newline = pam.projector.frame_newline
    assert all(torch.equal(rows[0, end], newline) for end in ends)


def test_cells_ask_for_small_objects_too() -> None:
    words = Words([RegionEntry({(Task.LABEL, Language.EN): (name,)}) for name in ("mug", "table", "wall")])
    ids = torch.zeros(1, 32, 32, dtype=torch.int16)
    ids[:, :, 16:], ids[:, :4, :4] = 1, 2  # a table of 512 pixels, a mug of 16, beside what has no name
    names = torch.tensor([[UNNAMED, words.labels.index("table"), words.labels.index("mug")]])
    head = CellsHead(4, words)
    embedding = torch.zeros(1, 4, 2, 2)

    def loss(sure: dict[str, float]) -> float:
        last = head.head[-1]
        last.weight.data.zero_()
        last.bias.data = torch.tensor([sure.get(label, 0.0) for label in words.labels])
        return head(embedding, ids, names).item()

    assert loss({}) == pytest.approx(math.log(3))
    table, mug = 512**0.25, 16**0.25  # what their pixels weigh together
    share = torch.tensor([mug, table]) / (mug + table)
    expected = -(share * torch.tensor([5.0, 0.0, 0.0]).log_softmax(0)[:2]).sum()
    assert loss({"mug": 5.0}) == pytest.approx(float(expected), rel=1e-4)


def test_a_deeper_encoder_computes_the_same(segmented: Path, tmp_path: Path) -> None:
    main(["--blocks", "2", str(segmented / "model"), str(tmp_path)])
    old = load_model(str(segmented / "model"), device="cpu", dtype="float32")
    new = load_model(str(tmp_path), device="cpu", dtype="float32")
    trunk = new.segmenter.sam2.image_encoder.trunk
    assert len(trunk.blocks) == len(old.segmenter.sam2.image_encoder.trunk.blocks) + 2
    assert [number for number, block in enumerate(trunk.blocks) if block.window_size == 0] == [3, 5]
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    assert torch.equal(old.encode(image).embedding, new.encode(image).embedding)
    # Each can learn: what ends its sequences gets gradients, and the rest once that is not zero.
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
    older = load_model(str(tmp_path / "older"), device="cpu", dtype="float32")
    for parameter in older.parameters():
        parameter.add_(1.0)
    save_model(older, tmp_path / "older", dtype=torch.float32)
    export_model(trained, tmp_path / "blended", older=tmp_path / "older", share=0.25, what=what)
    before, after = weights(trained), weights(tmp_path / "blended")
    for name, tensor in before.items():
        if tensor.is_floating_point() and name in dict(older.named_parameters()):
            seen = part_of(name) == "segmenter"
            tracks = seen and any(part in name for part in TRACKING)
            moves = tracks if what is Blended.TRACKING else not seen
            assert torch.allclose(after[name], tensor + 0.25 * moves, atol=2e-2), name
    assert sum("memory_attention" in name for name in before) > 10
    with pytest.raises(TrainingError, match=r"share is 1\.5; allowed: 0\.\.1"):
        export_model(trained, tmp_path / "no", older=tmp_path / "older", share=1.5, what=what)
    shipped = share_folder("models", "*.yaml") / "pam-tiny"
    with pytest.raises(TrainingError, match="other tensors"):
        export_model(trained, tmp_path / "no", older=shipped, share=0.5, what=what)


def test_frequent_labels_are_asked_for_less_often() -> None:
    labels = ["handle"] * 9 + ["mug"] + [""] * 2
    assert balanced(labels, 0.0).tolist() == [1.0] * 12
    even = balanced(labels, 1.0)
    assert even[:9].sum() == pytest.approx(even[9])  # both labels come as often
    assert even[10] == pytest.approx(even[:10].mean())
    assert balanced([""] * 3, 0.5).tolist() == [1.0] * 3


def test_bystanders_and_parts_come_with_their_share() -> None:
    moving = ((0, 8, "still"), (8, 20, "slides_left"))
    assert RegionEntry(segments=((0, 48, "still"),)).is_static
    assert not RegionEntry(segments=moving).is_static and not RegionEntry().is_static
    weights = shared([True, False, False, False], 0.4, np.array([9.0, 2.0, 2.0, 4.0]))
    assert weights.tolist() == pytest.approx([0.4, 0.15, 0.15, 0.3])
    found = drawn(np.random.default_rng(0), weights.cumsum(), 20000)
    assert np.bincount(found) / 20000 == pytest.approx(weights, abs=0.02)
    for alike in ([True, True], [False, False]):
        assert shared(alike, 0.4, np.array([1.0, 3.0])).tolist() == [1.0, 3.0]


@pytest.mark.parametrize(("balance", "rare"), [(0.0, 0.2), (1.0, 0.5)])
def test_rare_events_are_told_of_as_often_as_asked(segmented: Path, balance: float, rare: float) -> None:
    config = replace(
        stage(segmented, segmented, kind="caption", train=["perceiver"], steps=1, video_fraction=1.0),
        event_balance=balance, video_batch=2000, clip_frames=(4,), answers=1, languages=(Language.EN,),
    )  # fmt: skip
    moving = ((0, 4, "slides_left"), (4, 20, "still"))
    clips = [
        ClipEntry(4 * i, 4 * i + 4, {Language.EN: (f"{i}",)}, "still" if i else "moves") for i in range(5)
    ]
    region = RegionEntry(clips=(tuple(clips),), segments=moving)
    source = ShapesSource(count=1, frames=20)
    source.entries = [Entry(20, (region,))]
    tokenisation = Tokenisation(load_model("pam-tiny", device="cpu").language)
    region_features = FeatureIndex(1, starts={(0, 0, 0): 0}, usable={(0, 0)})
    told = CaptionDataset(
        source,
        config,
        tokenisation,
        Events(source.entries),
        size=64,
        region_features=region_features,
        crop_small_regions=False,
        rank=0,
    )
    rows = told[0].embed_features
    assert rows is not None
    first = rows.reshape(2000, 4)[:, -1] < 4  # which clip is shown
    assert float(first.float().mean()) == pytest.approx(rare, abs=0.04)


@pytest.mark.parametrize("balance", [0.0, 1.0])
def test_answers_weigh_as_they_should(balance: float) -> None:
    language = load_model("pam-tiny", device="cpu").language
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


def test_answers_asked_at_once_do_not_see_each_other(segmented: Path) -> None:
    pam = load_model(str(segmented / "model"), device="cpu", dtype="float32")
    config = stage(segmented, segmented, kind="caption", train=["perceiver"], steps=1)
    asked = CaptionStage(pam, None, config, Events([]))
    examples = [
        QAExample((0,), "What is it?", "a mug", Task.LABEL),
        QAExample((0,), "Tell more.", "A red mug stands on the table.", Task.BRIEF),
        QAExample((0,), "What is it?", "a spoon", Task.LABEL),
    ]
    turned = Tokenisation(pam.language, answer_balance=1.0)

    def figures(samples: list[list[QAExample]]) -> dict[str, float]:
        batch = CaptionBatch(turned.tokens(samples, ["Red."] * len(samples)))
        return {name: value.item() for name, value in asked(batch, torch.Generator()).items()}

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


def test_a_region_is_asked_several_things_at_once() -> None:
    region = next(r for entry in open_sources(["shapes:6:4"]).entries for r in entry.regions if r.clips)
    config = stage(Path(), Path(), kind="caption", train=["perceiver"], steps=1, answers=3, carry_over=1.0)
    random = np.random.default_rng(0)
    last = len(region.clips[0]) - 1
    clip = region.clips[0][last]
    questions = clip_questions(random, region, (0, last), config, 2)
    assert len(questions) == 3
    assert len({example.frames for example in questions}) == 1  # of the same view
    assert questions[0].frames[0] == (clip.start - 1 if clip.start else 0)
    assert {code for code in clip.texts for q in questions if q.answer in clip.texts[code]} == set(clip.texts)
    picture = open_sources(["shapes:1"]).entries[0].regions[0]
    tasks = [(example.task, example.question) for example in image_questions(random, picture, config)]
    assert len(set(tasks)) == 3  # none twice


def test_schedule_follows_steps_or_time(tiny: Path, tmp_path: Path) -> None:
    config = segment_stage(tiny, tmp_path, steps=100, max_minutes=10)
    assert Progress(50, 1).share(config) == 0.5
    assert Progress(10, 8).share(config) == 0.8
    assert rate_factor(0.015, 0.03, 0.01) == pytest.approx(0.5)
    assert rate_factor(0.03, 0.03, 0.01) == pytest.approx(1.0)
    assert rate_factor(1.0, 0.03, 0.01) == pytest.approx(0.01)
    assert rate_factor(1.0, 0.03, 0.4) == pytest.approx(0.4)


def test_samples_come_once_an_epoch() -> None:
    parts = [samples_of_step(step, length=12, batch=2, seed=3) for step in range(6)]
    assert sorted(np.concatenate(parts).tolist()) == list(range(12))


def test_processes_share_the_samples() -> None:
    source = open_sources(["shapes:5"])
    shares = [process_shard(source, rank, 2) for rank in (0, 1)]
    assert [len(share.entries) for share in shares] == [3, 2]
    for index in range(5):
        share = shares[index % 2]
        assert share.entries[index // 2] is source.entries[index]
        assert np.array_equal(share.load(index // 2, [0], 32).pixels, source.load(index, [0], 32).pixels)
    with pytest.raises(DatasetError, match="5 samples cannot be shared by 6"):
        process_shard(source, 0, 6)


def test_taps_are_kept_of_the_regions_that_are_told_of(tiny: Path, segmented: Path) -> None:
    source = open_sources(["shapes:2", "shapes:3:4"])
    # Of the second video nothing is told but of its last region; elsewhere of all.
    told, silent = source.entries[3].regions[-1], source.entries[3].regions[:-1]
    is_static = [replace(region, clips=()) for region in silent]
    source.entries[3] = replace(source.entries[3], regions=(*is_static, told))
    config = stage(tiny, segmented, kind="caption", train=["perceiver"], steps=1, cache_features=1)
    segmenter = load_model(str(segmented / "model"), device="cpu", dtype="float32").segmenter
    store = FeatureStore(source.entries, segmenter, 1, torch.float32)
    assert sum(fill_store(store, source, segmenter, config)) == 5
    assert not store.index.crop
    regions = [len(entry.regions) for entry in source.entries]
    assert len(store.image) == regions[0] + regions[1] + 4 * (regions[2] + 1 + regions[4])
    last = len(silent)
    assert {(sample, region) for sample, region in store.index.usable if sample == 3} == {(3, last)}
    assert torch.isfinite(store.image).all()
    assert len(torch.unique(store.image[store.index.find(3, last, 0, range(4))], dim=0)) == 4
    # Their masks are those of the right regions; a place that is filled up has none.
    frames = FrameStore(source.entries, SIZE, torch.device("cpu"))
    assert sum(frames.fill(source, 0)) == 2 + 3 * 4
    _, ids = frames.take(frames.starts[[2, 3]][:, None] + np.arange(4))
    places = [captioned_regions(source.entries[sample]) for sample in (2, 3)]
    masks = codes_of(source.entries, [2, 3], places, ids.device).masks(ids)
    for place, region in enumerate(source.entries[2].regions):
        assert np.array_equal(masks[0, place].numpy(), mask_of(ids[0].numpy().astype(np.uint16), region))
    assert np.array_equal(masks[1, 0].numpy(), mask_of(ids[1].numpy().astype(np.uint16), told))
    assert not masks[1, 1:].any()
    kept = store.take(torch.tensor(store.index.find(3, last, 0, range(4))))
    assert torch.equal(kept.where, normalised_boxes(masks[1, 0]))


def test_small_regions_of_pictures_are_kept_as_seen_from_near(tiny: Path, segmented: Path) -> None:
    source = open_sources(["shapes:6", "shapes:2:4"])
    config = stage(tiny, segmented, kind="caption", train=["perceiver"], steps=1, cache_features=2)
    segmenter = load_model(str(segmented / "model"), device="cpu", dtype="float32").segmenter
    segmenter.crop_small_regions = True
    store = FeatureStore(source.entries, segmenter, 2, torch.float32)
    small = small_regions(source.entries)
    assert 0 < len(small) < 12  # of the pictures' 12
    assert max(sample for sample, _ in small) < 6  # none of the videos'
    assert sum(fill_store(store, source, segmenter, config)) == 8 + 2 * len(small)
    for sample, region in small:
        rows = [store.index.find_for_text(sample, region, variant) for variant in (0, 1)]
        whole = store.index.find(sample, region, 0, [0])
        assert len({*rows, *whole}) == 3
        near, first = store.take(torch.tensor(rows)).where, store.take(torch.tensor(whole)).where[0]
        assert (near[:, 2:4] > first[2:4]).all()  # it fills more of what is seen
        assert not torch.equal(near[0], near[1])  # cuts vary
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


def test_shards_are_read(tmp_path: Path) -> None:
    ids = np.zeros((12, 16), np.uint16)
    ids[2:8, 4:12] = 1
    ids[2:4, 4:12] = 1 + 256 * 2  # its part 2
    shard = tmp_path / "images-00000"
    shard.mkdir()
    Image.fromarray(np.full((12, 16, 3), 90, np.uint8)).save(shard / "0.jpg")
    Image.fromarray(ids).save(shard / "0.png")
    texts = {"label/en": ["cup"], "label/zh": ["杯子"]}
    regions = [{"instance": 1, "part": 0, "texts": texts}, {"instance": 1, "part": 2, "texts": texts}]
    (shard / "index.jsonl").write_text(
        json.dumps({"image": "0.jpg", "ids": "0.png", "regions": regions}) + "\n"
    )
    source = ShardSource(tmp_path)
    assert source.entries[0].regions[1].texts[Task.LABEL, Language.ZH] == ("杯子",)
    scene = source.load(0, [0], 24)
    assert scene.pixels.shape == (1, 24, 24, 3)
    assert scene.ids.shape == (1, 24, 24)
    regions_read = source.entries[0].regions
    assert [int(mask_of(scene.ids, region).sum()) for region in regions_read] == [12 * 12, 4 * 12]
    store = FrameStore(source.entries, 24, torch.device("cpu"))
    assert sum(store.fill(source, workers=0)) == 1
    assert store.areas.tolist() == [[12 * 12, 4 * 12]]
    pixels, ids = store.take(np.array([[0]]))
    assert pixels.shape == (1, 1, 3, 24, 24)
    assert store.codes.masks(ids).sum((2, 3, 4)).tolist() == store.areas.tolist()


def test_reference_jsonl_is_read(tmp_path: Path) -> None:
    Image.fromarray(np.full((20, 40, 3), 90, np.uint8)).save(tmp_path / "a.jpg")
    question = "Provide a caption for this subject in this video.\nPrevious caption: It stood."
    image = {"type": "image", "image": "a.jpg", "bbox": [10, 5, 20, 10], "points": [], "labels": []}
    video = {"type": "video", "image_root": "", "frames": ["a.jpg"] * 3, "bbox": [[10, 5, 20, 10]]}
    lines = [
        image | {"conversations": _turns("Provide a concise caption for this subject.", "A cup.")},
        video | {"points": [[[15, 8]]], "labels": [[1]], "conversations": _turns(question, "It falls.")},
    ]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    source = open_sources([str(path)])
    assert source.entries[0].regions[0].texts == {(Task.BRIEF, Language.EN): ("A cup.",)}
    before, clip = source.entries[1].regions[0].clips[0]
    assert before.texts == {Language.EN: ("It stood.",)}
    assert (clip.start, clip.end) == (0, 3)
    mask = mask_of(source.load(0, [0], 16).ids[0], source.entries[0].regions[0])
    assert mask[4:12, 4:12].all()
    assert mask.sum() == 64


def _turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]


def test_unknown_data_is_named() -> None:
    with pytest.raises(DatasetError, match="no training data at 'nowhere'"):
        open_sources(["nowhere"])
