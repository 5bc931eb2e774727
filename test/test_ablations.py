"""The ablations: what the switches mean, that shared work is done once, and that a check counts rightly."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_training
import torch
from evaluation_world import write_shards
from fakes import FakeText
from scripted_model import ScriptedModel, facts_of, region_of
from text_runs import TextRun, Wanted
from tiny_models import LANGUAGE, box, click, fill_by_rule, picture, sam2_tiny, tiny_tokenizer

from pam_ros.datasets.schema import Kind, PictureFile, Sample
from pam_ros.errors import CheckpointError
from pam_ros.evaluation.cases import Findings
from pam_ros.evaluation.judges import RuleJudge
from pam_ros.evaluation.samples import Samples
from pam_ros.evaluation.stream import evaluate_stream, events_in
from pam_ros.evaluation.texts import evaluate_texts
from pam_ros.media import write_image
from pam_ros.model.interface import FIRST_FRAME_STRIDE
from pam_ros.model.loading.checkpoint import architecture_of, load_model, save_model
from pam_ros.model.loading.options import LoadOptions
from pam_ros.model.pam import Pam
from pam_ros.model.vision.features import of_regions
from pam_ros.records import Language, Task
from pam_ros.simulator.texts.captions import clip_caption, describe
from pam_ros.training import ablations, run
from pam_ros.training.ablations import VARIANTS, Plan, check, renewed, run_ablations, teacher_forced
from pam_ros.training.config import TrainingError
from pam_ros.training.modules import open_model, parameter_groups
from pam_ros.training.prompting import Clicks

tiny = test_training.tiny  # an architecture far smaller than pam-tiny, without weights
BY_NAME = {variant.name: variant for variant in VARIANTS}
CHECKED = ("label_accuracy_en", "label_accuracy_zh", "function_accuracy", "event_accuracy")
SMALL = ("steps=2", "batch=4", "video_batch=2", "clip_frames=[3, 2, 1]", "precision=fp32", "workers=0")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small gain nothing from more, and beside other work threads wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pam_with(**perceiver: Any) -> Pam:
    """The model tests' architecture, its weights by their names; other values in mm_perceiver."""
    config = LANGUAGE | {"mm_perceiver": LANGUAGE["mm_perceiver"] | perceiver}
    pam = Pam(architecture_of(config, sam2_tiny()), tiny_tokenizer())
    fill_by_rule(pam)
    return pam.requires_grad_(False)


# ---- how many semantic tokens


@pytest.mark.parametrize("count", [0, 1, 64])
def test_any_number_of_semantic_tokens(count: int, tmp_path: Path) -> None:
    pam = pam_with(semantic_tokens=count)
    memory = pam.new_memory()
    (seen,) = pam.segment(pam.encode(picture()), [box()], [memory])
    (embeddings,) = pam.embeddings([seen], stride=FIRST_FRAME_STRIDE)
    visual = (pam.segmenter.grid_size // 2) ** 2
    assert len(embeddings) == visual + 1 + count + 1  # both separators stay
    request = Wanted(embeddings=(embeddings,), task=Task.LABEL, language=Language.EN, max_new_tokens=3)
    decode = TextRun(pam, [request])
    while not decode.done:
        decode.step()
    save_model(pam, tmp_path, dtype=torch.float32)
    again = load_model(LoadOptions(str(tmp_path), device="cpu", dtype="float32"))
    assert again.architecture.perceiver.semantic_tokens == count
    tensors = again.state_dict()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in pam.state_dict().items())


def test_no_semantic_tokens_still_train(tiny: Path, tmp_path: Path) -> None:
    config = test_training.segment_stage(tiny, tmp_path)
    pam = renewed(open_model(config), BY_NAME["tokens_0"]).requires_grad_(True)
    parameters = [each for group in parameter_groups(pam, config) for each in group["params"]]
    assert all(parameter.numel() for parameter in parameters)
    semantic, refined = pam.perceiver(torch.randn(2, 128, 4, 4), torch.randn(2, 2, 128))
    embeddings = pam.projector(pam.perceiver.shuffle(refined, stride=FIRST_FRAME_STRIDE), semantic)
    embeddings.square().sum().backward()
    assert embeddings.shape[1] == 4 + 2
    assert float(pam.perceiver.layers[0].mlp.layers[0].weight.grad.abs().sum()) > 0


# ---- where the Perceiver reads


def test_inputs_of_the_perceiver() -> None:
    """`before`: what enters the decoder; `image_before`: that image with the tokens that leave it."""
    frames = [picture(step) for step in range(3)]
    models = {name: pam_with(input=name) for name in ("after", "image_before", "before")}
    prompts = [click(), box()]
    region_features: dict[str, list[Any]] = {}
    for name, pam in models.items():
        memories = [pam.new_memory() for _ in prompts]
        seen = pam.segment(pam.encode(frames[0]), [click(), click(60, 40)], memories)
        region_features[name] = [seen, *(pam.track(pam.encode(frame), memories) for frame in frames[1:])]
    pam = models["before"]
    own = pam.segmenter.sam2.sam_mask_decoder.mask_tokens.weight
    for step in range(3):
        for after, image_before, before in zip(
            *(region_features[name][step] for name in models), strict=True
        ):
            assert torch.equal(after.mask_logits, before.mask_logits)  # masks and memory are not touched
            assert torch.equal(after.mask_logits, image_before.mask_logits)
            assert torch.equal(image_before.decoder_features.tokens, after.decoder_features.tokens)
            assert torch.equal(image_before.decoder_features.image, before.decoder_features.image)
            assert not torch.allclose(after.decoder_features.image, before.decoder_features.image)
            assert torch.equal(before.decoder_features.tokens[0, 1], own[0])
            assert any(torch.equal(before.decoder_features.tokens[0, 0], each) for each in own)
    # On the first frame no prompt shows in it; later ones, through memory, differ from region to region.
    embedding = pam.encode(frames[0]).embedding + pam.segmenter.sam2.no_mem_embed.view(1, -1, 1, 1)
    first, second = (seen.decoder_features.image for seen in region_features["before"][0])
    assert torch.equal(first, second) and torch.equal(first, embedding)
    assert not torch.equal(
        region_features["before"][1][0].decoder_features.image,
        region_features["before"][1][1].decoder_features.image,
    )


@pytest.mark.parametrize("name", ["image_before", "before"])
def test_training_reads_what_inference_reads(name: str) -> None:
    """Two regions as one training batch, a click each, give the decoder features of `Segmenter`."""
    pam = pam_with(input=name)
    segmenter, frames = pam.segmenter, [picture(step, size=(128, 128)) for step in range(2)]
    clicks = Clicks(torch.tensor([[[30.0, 30.0]], [[60.0, 40.0]]]), torch.ones(2, 1, dtype=torch.int32))
    memories, memory = [pam.new_memory() for _ in range(2)], pam.new_memory()
    for step, frame in enumerate(frames):
        features = pam.encode(frame)
        both = of_regions(features, torch.tensor([0, 0]))
        if step == 0:
            seen = pam.segment(features, [click(), click(60, 40)], memories)
            found = segmenter.step(both, memory, [clicks])
        else:
            seen, found = pam.track(features, memories), segmenter.step(both, memory)
        for row, each in enumerate(seen):
            torch.testing.assert_close(
                found.decoder_features.image[row], each.decoder_features.image[0], atol=1e-4, rtol=1e-3
            )
            torch.testing.assert_close(
                found.decoder_features.tokens[row], each.decoder_features.tokens[0], atol=1e-4, rtol=1e-3
            )


def test_the_input_is_kept_and_checked(tmp_path: Path) -> None:
    save_model(pam_with(input="image_before"), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["mm_perceiver"]["input"] == "image_before"
    assert load_model(LoadOptions(str(tmp_path))).segmenter.perceiver_input.value == "image_before"
    with pytest.raises(CheckpointError, match=r"'beside'.*after, image_before, before"):
        pam_with(input="beside")
    assert Pam(architecture_of(LANGUAGE, sam2_tiny())).segmenter.perceiver_input.value == "after"


# ---- the runner


@pytest.fixture(scope="module")
def base(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stands for a model after stage 0 and the language stage."""
    folder = tmp_path_factory.mktemp("base")
    pam = open_model(test_training.segment_stage(tiny, folder))
    torch.nn.init.constant_(pam.segmenter.sam2.sam_mask_decoder.pred_obj_score_head.layers[-1].bias, 6.0)
    save_model(pam, folder / "model", dtype=torch.float32)
    return folder / "model"


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The stages that ran, with their settings, and the inputs that features were computed for."""
    seen: dict[str, Any] = {"run": {}, "region_features": []}
    run_stage, fill_store = ablations.run_stage, run.fill_store

    def noted_stage(config: Any, **options: Any) -> Any:
        assert config.out not in seen["run"]
        seen["run"][Path(config.out).name] = config
        return run_stage(config, **options)

    def noted_features(store: Any, source: Any, outlines: Any, segmenter: Any, config: Any) -> Any:
        seen["region_features"].append(segmenter.perceiver_input.value)
        return fill_store(store, source, outlines, segmenter, config)

    monkeypatch.setattr(ablations, "run_stage", noted_stage)
    monkeypatch.setattr(run, "fill_store", noted_features)
    monkeypatch.setattr(ablations, "ANSWER_TOKENS", 4)
    return seen


def test_variants_share_what_they_can(
    base: Path, tmp_path: Path, stages: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    write_shards(tmp_path / "test")
    out = tmp_path / "out"
    names = "standard,tokens_0,without_stage1_5,carry_over_off,carry_over_off_later,input_before"
    options = ["--model", base, "--data", "shapes:8", "--data", "shapes:4:6", "--test", tmp_path / "test"]
    options += ["--out", out, "--minutes", "10", "--only", names, *(x for s in SMALL for x in ("--set", s))]
    ablations.main([str(option) for option in options])

    after = "tokens_16-after"
    expected = {
        f"{after}-stage1": 2.0, f"{after}-stage1-stage1_5": 2.0, f"{after}-stage1-stage1_5-stage2": 6.0,
        "tokens_0-after-stage1": 2.0, "tokens_0-after-stage1-stage1_5": 2.0,
        "tokens_0-after-stage1-stage1_5-stage2": 6.0,
        f"{after}-stage1-stage2": 8.0,
        f"{after}-stage1-stage1_5_no_carry_over": 2.0,
        f"{after}-stage1-stage1_5_no_carry_over-stage2_no_carry_over": 6.0,
        "tokens_16-before-stage1": 2.0, "tokens_16-before-stage1-stage1_5": 2.0,
        "tokens_16-before-stage1-stage1_5-stage2": 6.0,
    }  # fmt: skip
    assert {name: config.max_minutes for name, config in stages["run"].items()} == pytest.approx(expected)
    assert stages["run"][f"{after}-stage1-stage2"].model == str(out / f"{after}-stage1" / "model")
    carried = {name for name, config in stages["run"].items() if config.carry_over}
    assert {name for name in expected if "no_carry_over" not in name} == carried
    assert stages["region_features"] == ["after", "before"]

    record = json.loads((out / "ablations.json").read_text())
    results = record["variants"]
    assert set(results) == set(names.split(","))
    for scores in results.values():
        assert scores["steps"] == 2 and 0 <= scores["token"] <= 1 and scores["loss"] > 0
        assert set(CHECKED) <= set(scores)
    assert results["carry_over_off_later"]["loss"] == results["standard"]["loss"]
    model = load_model(
        LoadOptions(str(out / "tokens_0-after-stage1-stage1_5-stage2" / "model"), device="cpu")
    )
    assert model.architecture.perceiver.semantic_tokens == 0
    table = (out / "ablations.md").read_text()
    assert [line.split(" | ")[0][2:] for line in table.splitlines()[2:]] == names.split(",")
    assert table in capsys.readouterr().out

    # A second run finds everything done; one of another length does not mix with it.
    plan = Plan(base, ("shapes:8",), out, 10.0)
    assert run_ablations(plan, [BY_NAME["standard"]]) == results
    with pytest.raises(TrainingError, match="trained for 10 minutes each, not 5"):
        run_ablations(replace(plan, minutes=5.0), [BY_NAME["standard"]])


def test_an_interrupted_stage_starts_again(base: Path, tmp_path: Path, stages: dict[str, Any]) -> None:
    plan = Plan(base, test_training.DATA, tmp_path, 10.0, overrides=SMALL)
    folder = tmp_path / "tokens_4-after-stage1"
    folder.mkdir()
    (folder / "figures.jsonl").write_text('{"step": 1, "loss": 99}\n')
    results = run_ablations(plan, [replace(BY_NAME["tokens_4"], stages=("stage1",))])
    assert results["tokens_4"]["loss"] < 50 and "event_accuracy" not in results["tokens_4"]
    assert "| – |" in (tmp_path / "ablations.md").read_text()


def test_errors_name_wrong_arguments(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", str(base), "--data", "shapes:4", "--out", str(tmp_path)]
    for more, message in (
        (["--minutes", "1", "--only", "tokens_5"], "tokens_4"),
        (["--minutes", "0"], "above 0"),
    ):
        with pytest.raises(SystemExit, match="2"):
            ablations.main([*options, *more])
        assert message in capsys.readouterr().err


def test_a_new_perceiver_on_the_same_segmenter_and_language_model(base: Path) -> None:
    old = load_model(LoadOptions(str(base), device="cpu", dtype="float32"))
    new, same = renewed(old, BY_NAME["standard"]), renewed(old, BY_NAME["standard"])
    before, after = old.state_dict(), new.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in same.state_dict().items())
    kept = [name for name in before if name.startswith(("segmenter.", "language."))]
    assert kept and all(torch.equal(before[name], after[name]) for name in kept)
    assert not torch.equal(before["projector.image_newline"], after["projector.image_newline"])
    assert after["perceiver.sem_tokens.weight"].shape[0] == 16


def test_teacher_forced_figures_are_means_over_the_last_lines(tmp_path: Path) -> None:
    lines = [{"step": 1, "loss": 9.0, "rate": 0.1}]
    lines += [{"step": 20 * n, "loss": float(n), "token": n / 10} for n in range(1, 8)]
    lines[-1]["video_token"] = 0.25
    path = tmp_path / "figures.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    means = {"loss": 5.0, "token": pytest.approx(0.5), "video_token": 0.25}
    assert teacher_forced(path) == {"steps": 140, **means}


# ---- the check


@pytest.fixture
def samples(tmp_path: Path) -> Samples:
    """A picture of two objects on a table, and a video of the first."""
    regions = (region_of("mug", 1), region_of("hammer", 2), region_of("table", 3, Kind.BACKGROUND))
    paths = []
    for index in range(48):
        paths.append(PictureFile(tmp_path / f"{index:02}.png"))
        write_image(paths[-1].path, np.full((24, 32, 3), index + 1, np.uint8))
    acting = replace(regions[0], segments=((0, 24, "slides_left"), (24, 48, "still")))
    video = Sample("video 1", tuple(paths), (acting,), is_video=True, fps=8.0, actor=1)
    return Samples((Sample("image 1", tuple(paths[:1]), regions),), (video,))


@pytest.mark.parametrize("wrong", [False, True])
def test_the_check_counts_as_the_evaluation_does(samples: Samples, wrong: bool) -> None:
    """`wrong`: the second object is taken for the first, and in the video nothing ever happens."""

    def answer(number: int, request: FakeText) -> str:
        random = np.random.default_rng(number)
        if request.task is Task.CLIP:
            clip = (0, 25) if request.embeddings[-1].shade <= 25 else (25, 48)
            events = ("still",) if wrong else events_in(samples.videos[0].regions[0], *clip)
            return clip_caption(facts_of("mug"), events, (), request.language, random)
        category = "mug" if wrong and number == 2 else samples.images[0].regions[number - 1].category
        return describe(facts_of(category), request.task, request.language, random)

    found = check(ScriptedModel(answer=answer), samples, carry_over=True)
    assert found == dict.fromkeys(CHECKED, 0.5 if wrong else 1.0)
    findings, told_in = Findings(), (Language.EN,)
    evaluate_texts(ScriptedModel(answer=answer), samples.images, findings)
    evaluate_stream(ScriptedModel(answer=answer), samples.videos, findings, RuleJudge(), languages=told_in)
    assert found == {name: findings.scores()[name] for name in found}
