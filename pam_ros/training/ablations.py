"""`python -m pam_ros.training.ablations`: the paper's ablations (tables 5 to 7), with shortened recipes.

Every variant starts from the same segmenter and language model with a new Perceiver and projector, and trains
for the same time on one device. Work that several variants share is done once: region features for the same
input of the Perceiver, and stages with the same history. Finished stages are not run again.
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import PartialState

from pam_ros.datasets.schema import Kind
from pam_ros.evaluation.samples import Samples, read_data
from pam_ros.evaluation.stream import PERIOD_S, captioned_clips, chosen_regions, events_are_right
from pam_ros.evaluation.texts import function_is_right, label_is_right
from pam_ros.model.config import PerceiverInput
from pam_ros.model.interface import PerceptionModel
from pam_ros.model.loading.checkpoint import load_model, save_model
from pam_ros.model.loading.options import LoadOptions
from pam_ros.model.pam import Pam
from pam_ros.records import Language, Task
from pam_ros.runtime.offline import perceive_image
from pam_ros.share import share_folder
from pam_ros.training.config import TrainingError, read_config
from pam_ros.training.features.feature_store import StageCache
from pam_ros.training.run import run_stage

SEED = 0  # of the new Perceivers and projectors
FRACTIONS = {"stage1": 0.2, "stage1_5": 0.2}  # of a variant's minutes; stage 2 takes the rest
FINISHED = "finished"  # file in the folder of a stage that ended
LAST_LINES = 5  # of figures.jsonl, 20 steps each: the teacher-forced figures are means over them
FIGURES = ("loss", "token", "label", "video_loss", "video_token")  # as figures.jsonl names them
ANSWER_TOKENS = 96  # longer answers are wrong here anyway
CAPTION_LANGUAGE = Language.EN
Results = dict[str, dict[str, float]]  # by variant: `steps`, figures of `FIGURES`, metrics of `pam evaluate`


@dataclass(frozen=True, slots=True)
class Variant:
    """One row of the table."""

    name: str
    what: str  # what differs from the standard, as displayed
    semantic_tokens: int = 16
    input: PerceiverInput = PerceiverInput.AFTER
    stages: tuple[str, ...] = ("stage1", "stage1_5", "stage2")
    carry_over: bool = True  # in training
    carry_over_tested: bool = True  # when the trained model captions videos


# In this order the region features of one input are computed once.
VARIANTS = (
    Variant("standard", "16 semantic tokens, stage 1.5, input after the transformer, carry-over"),
    Variant("tokens_0", "no semantic tokens", semantic_tokens=0),
    Variant("tokens_4", "4 semantic tokens", semantic_tokens=4),
    Variant("tokens_64", "64 semantic tokens", semantic_tokens=64),
    Variant("without_stage1_5", "stage 2 starts from stage 1's model", stages=("stage1", "stage2")),
    Variant("carry_over_off", "no carry-over at all", carry_over=False, carry_over_tested=False),
    Variant("carry_over_off_later", "the standard, tested without carry-over", carry_over_tested=False),
    Variant("input_image_before", "image embedding from before", input=PerceiverInput.IMAGE_BEFORE),
    Variant("input_before", "image embedding and mask tokens from before", input=PerceiverInput.BEFORE),
)  # fmt: skip
TITLES = {"token": "token", "label": "label", "video_token": "clip token", "label_accuracy_en": "label en"}
TITLES |= {"label_accuracy_zh": "label zh", "function_accuracy": "function", "event_accuracy": "event"}


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run."""

    model: Path  # folder after stage 0 and the language stage
    data: tuple[str, ...]  # to train on, as `datasets.registry.open_sources` opens them
    out: Path  # folder for all results
    minutes: float  # of training, for each variant
    test: Path | None = None  # folder of shards with held-out scenes
    overrides: tuple[str, ...] = ()  # `key=value` for every stage


def run_ablations(plan: Plan, variants: Sequence[Variant]) -> Results:
    """Runs the variants without a result in `plan.out`; returns all results there.

    Raises TrainingError if `plan.out` holds results of another training time.
    """
    results = _read_results(plan)
    samples = None if plan.test is None else read_data(plan.test)
    base = load_model(LoadOptions(str(plan.model), device="cpu", dtype="float32"))
    cache = StageCache()
    for variant in variants:
        if variant.name not in results:
            folder = _trained(plan, base, variant, cache)
            scores = teacher_forced(folder / "figures.jsonl")
            if samples is not None:
                print(f"{variant.name}: evaluating its texts", flush=True)
                pam = load_model(LoadOptions(str(folder / "model")))  # on a GPU if there is one
                pam.text.max_new_tokens = ANSWER_TOKENS
                scores |= check(pam, samples, carry_over=variant.carry_over_tested)
                pam.close()
                _free()
            results[variant.name] = scores
            _write_results(plan, results)
    return results


# ---- training


def _trained(plan: Plan, base: Pam, variant: Variant, cache: StageCache) -> Path:
    """Runs the variant's unfinished stages; returns the last stage's folder."""
    recipes = share_folder("config", "training/*.yaml") / "training"
    start = f"tokens_{variant.semantic_tokens}-{variant.input.value}"
    folder, past, left = plan.out / start, [start], plan.minutes
    if not (folder / FINISHED).is_file():
        save_model(renewed(base, variant), folder / "model", dtype=torch.float32)
        (folder / FINISHED).touch()
    for stage in variant.stages:
        model, config = folder / "model", read_config(recipes / f"{stage}.yaml", plan.overrides)
        off = config.video_fraction > 0 and not variant.carry_over
        past.append(f"{stage}_no_carry_over" if off else stage)
        folder = plan.out / "-".join(past)
        minutes = FRACTIONS[stage] * plan.minutes if stage in FRACTIONS else left
        left -= minutes
        if not (folder / FINISHED).is_file():
            print(f"{variant.name}: {folder.name}, {minutes:.2f} minutes", flush=True)
            shutil.rmtree(folder, ignore_errors=True)  # of an interrupted run
            config = replace(config, model=str(model), data=plan.data, out=str(folder), max_minutes=minutes)
            run_stage(replace(config, carry_over=0.0) if off else config, cache=cache)
            shutil.rmtree(folder / "checkpoint")
            (folder / FINISHED).touch()
            _free()
    return folder


def renewed(base: Pam, variant: Variant) -> Pam:
    """The base's segmenter and language model with a new Perceiver and projector of the variant."""
    old = base.architecture.perceiver
    perceiver = replace(old, semantic_tokens=variant.semantic_tokens, input=variant.input)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        pam = Pam(replace(base.architecture, perceiver=perceiver), base.language.tokenizer)
    pam.segmenter.load_state_dict(base.segmenter.state_dict())
    pam.language.load_state_dict(base.language.state_dict())
    return pam


def _free() -> None:
    """Frees a past stage's features: the objects that accelerate prepared refer to themselves."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# ---- scores


def teacher_forced(figures: Path) -> dict[str, float]:
    """Steps and final figures of a stage on training data: loss, fractions of right tokens and labels."""
    lines = [json.loads(line) for line in figures.read_text(encoding="utf-8").splitlines()]
    last: dict[str, list[float]] = defaultdict(list)
    for line in lines[-LAST_LINES:]:
        for name in FIGURES:
            if name in line:
                last[name].append(line[name])
    means = {name: sum(values) / len(values) for name, values in last.items()}
    return {"steps": float(lines[-1]["step"]), **means}


def check(model: PerceptionModel, samples: Samples, *, carry_over: bool) -> dict[str, float]:
    """Accuracy of texts about whole objects and of streaming captions, by the rules of `pam evaluate`.

    Leaves out wording and continuity; captions are in English only.
    """
    right: dict[str, list[bool]] = defaultdict(list)
    for image in samples.images:
        regions = [region for region in image.regions if region.kind is Kind.OBJECT]
        prompts = [region.prompt() for region in regions]
        found = perceive_image(model, image.image(), prompts, (Task.LABEL, Task.EXPLAIN), tuple(Language))
        for region, seen in zip(regions, found, strict=True):
            for (task, language), text in seen.texts.items():
                if task is Task.LABEL:
                    known = label_is_right(text.text, language, region)
                    right[f"label_accuracy_{language.value}"].append(known)
                elif language is Language.EN:
                    right["function_accuracy"].append(function_is_right(text.text, language, region))
    for video in samples.videos:
        places = chosen_regions(video)
        captioned = captioned_clips(model, video, places, CAPTION_LANGUAGE, PERIOD_S, carry_over)
        right["event_accuracy"] += [
            events_are_right(clip.text, CAPTION_LANGUAGE, clip.events)
            for clips in captioned.values()
            for clip in clips
            if clip.events
        ]
    return {metric: sum(values) / len(values) for metric, values in right.items()}


# ---- results


def _read_results(plan: Plan) -> Results:
    path = plan.out / "ablations.json"
    if not path.is_file():
        return {}
    record = json.loads(path.read_text(encoding="utf-8"))
    if (minutes := record["minutes"]) != plan.minutes:
        raise TrainingError(
            f"{path} holds variants trained for {minutes:g} minutes each, not {plan.minutes:g}; "
            "give the same number or another folder"
        )
    found: Results = record["variants"]
    return found


def _write_results(plan: Plan, results: Results) -> None:
    """ablations.json and ablations.md."""
    record = {name: str(getattr(plan, name)) for name in ("model", "data", "test")}
    text = json.dumps({**record, "minutes": plan.minutes, "variants": results}, indent=1)
    (plan.out / "ablations.json").write_text(text + "\n", encoding="utf-8")
    (plan.out / "ablations.md").write_text(table(results) + "\n", encoding="utf-8")


def table(results: Results) -> str:
    """Markdown. The first figures are teacher-forced on training data, the last are of generated texts."""
    rows = [["variant", "what", "steps", *TITLES.values()], ["---"] * 2 + ["--:"] * (1 + len(TITLES))]
    for variant in VARIANTS:
        if scores := results.get(variant.name):
            shown = [f"{scores[key]:.3f}" if key in scores else "–" for key in TITLES]
            rows.append([variant.name, variant.what, f"{scores['steps']:.0f}", *shown])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = {variant.name: variant for variant in VARIANTS}
    add = parser.add_argument
    add("--model", type=Path, required=True, help="model folder after stage 0 and the language stage")
    add("--data", action="append", required=True, help="training data, as in a stage's YAML; repeatable")
    add("--test", type=Path, help="folder of `pam scenes render` with held-out scenes")
    add("--out", type=Path, required=True, help="folder for models, curves, ablations.md and ablations.json")
    add("--minutes", type=float, required=True, help="training time of each variant, minutes")
    add("--only", default="", metavar="NAME,…", help=f"some of {', '.join(names)}")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="for every stage; repeatable")
    given = parser.parse_args(arguments)
    wanted = [name.strip() for name in given.only.split(",") if name.strip()] or list(names)
    if unknown := sorted(set(wanted) - set(names)):
        parser.error(f"--only names {', '.join(unknown)}; allowed: {', '.join(names)}")
    if not given.minutes > 0:
        parser.error(f"--minutes is {given.minutes:g}; give a time above 0")
    plan = Plan(given.model, tuple(given.data), given.out, given.minutes, given.test, tuple(given.set))
    print(table(run_ablations(plan, [variant for variant in VARIANTS if variant.name in wanted])))
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main()
