"""Configuration of a training stage: a self-validating dataclass, read from config/training/*.yaml."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from pam_ros.errors import PamError
from pam_ros.records import IMAGE_TASKS, Language, Task

PARTS = ("segmenter", "perceiver", "projector", "language")


class TrainingError(PamError):
    """A training run cannot start or continue; says what was wrong and what is allowed."""


class StageKind(Enum):
    """What a stage optimises."""

    SEGMENT = "segment"  # SAM 2: masks from prompts, tracking with memory
    LANGUAGE = "language"  # the language model alone, on the texts; stands in for a pretrained one
    CAPTION = "caption"  # Perceiver, projector and (as the stage says) language model: texts from regions


@dataclass(frozen=True, slots=True)
class StageConfig:
    """One stage. Every value has its unit and range here and nowhere else. Fractions are 0..1.

    Attributes:
        kind: segment, language or caption.
        model: folder (or name) of the model to start from.
        fresh: start from the folder's architecture with weights drawn from `seed`, not from its weights.
        data: training data, as `datasets.registry.open_sources` opens them.
        out: folder for checkpoints, curves and the trained model (in `out`/model).
        train: the parts whose weights change; all others stay bit-identical.
        steps: planned optimiser steps, 1.. ; the schedule runs over them.
        max_minutes: the stage ends cleanly after this time, with its schedule shortened to fit; 0 = no limit.
        batch: images (segment) or regions (language, caption) per step and process.
        learning_rate: peak, after warm-up; part_rates: other peaks for some parts.
        warmup: fraction of the schedule, 0..0.5; final_rate: end of its cosine, as a fraction of the peak.
        weight_decay, clip_norm: AdamW's decay; largest gradient norm.
        precision: fp32, or bf16 (autocast).
        workers: processes that decode frames, at the start or in every step (caption without cache_features).
        store: device, or host if the decoded frames do not fit on it.
        save_minutes: time between checkpoints.
        image_regions: regions of each image per step.
        video_fraction: fraction of steps on videos; video_after: first step with videos (segment).
        video_batch: videos (segment) or clips (caption) per step; video_frames, video_regions: of each video.
        loss_size: side of the grid on which masks are compared, pixels.
        correction: fraction of steps in which a second click corrects a mask.
        words_weight: weight of the auxiliary losses that predict labels, words, boxes from SAM 2's features.
        group_weight: weight of the auxiliary loss that predicts which pixels belong together.
        answers: number of questions about each region, trained at once (language, caption).
        tasks: weight of each image task; languages: those trained.
        clip_frames: numbers of frames that a clip may have, drawn per step.
        static_fraction: fraction of clips of regions to which nothing happens in the whole video.
        event_balance: 0 (events of other clips come as in the data) .. 1 (all equally often).
        carry_over: fraction of clips that begin with the last frame of the one before (paper, section 3.1).
        box_fraction: fraction of regions prompted by a box alone; 1 if the data have boxes and no masks.
        label_balance: 0 (labels come as in the data) .. 1 (all equally often).
        part_fraction: fraction of questions about images that are about parts of objects. Parts have few
            labels; if these are frequent, objects that are hard to name get them, too.
        answer_balance: 0 (every token weighs the same, as in the paper) .. 1 (every answer does).
        box_weight: weight of the auxiliary loss that predicts the region's box from the semantic tokens.
        events_weight: weight of the auxiliary loss that predicts, after each frame of a clip, its event and
            how far the object has moved, for data that have both.
        cache_features: keep the decoder features of every region in memory; 0 = off, else prompts per region.
        compile: on a GPU, fuse SAM 2's encoder with torch.compile (segment): faster steps after a minute.
    """

    kind: StageKind
    model: str
    data: tuple[str, ...]
    out: str
    train: tuple[str, ...]
    steps: int
    fresh: bool = False
    max_minutes: float = 0.0
    batch: int = 32
    learning_rate: float = 1e-3
    part_rates: Mapping[str, float] = field(default_factory=dict)
    warmup: float = 0.03
    final_rate: float = 0.01
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    precision: str = "bf16"
    workers: int = field(default_factory=lambda: min(16, os.cpu_count() or 1))
    store: str = "device"
    seed: int = 0
    save_minutes: float = 10.0
    image_regions: int = 4
    video_fraction: float = 0.0
    video_after: int = 0
    video_batch: int = 16
    video_frames: int = 8
    video_regions: int = 2
    loss_size: int = 96
    correction: float = 0.5
    words_weight: float = 0.0
    group_weight: float = 0.0
    answers: int = 1
    tasks: Mapping[Task, float] = field(default_factory=lambda: dict.fromkeys(IMAGE_TASKS, 1.0))
    languages: tuple[Language, ...] = (Language.EN, Language.ZH)
    clip_frames: tuple[int, ...] = (16,)
    static_fraction: float = 0.35
    event_balance: float = 0.0
    carry_over: float = 0.7
    box_fraction: float = 0.4
    label_balance: float = 0.0
    part_fraction: float = 0.08
    answer_balance: float = 0.0
    box_weight: float = 0.0
    events_weight: float = 0.0
    cache_features: int = 0
    compile: bool = False

    def __post_init__(self) -> None:
        unknown = set(self.train) - set(PARTS)
        if unknown or not self.train:
            raise TrainingError(f"train names {sorted(self.train)}; name at least one of {', '.join(PARTS)}")
        if (self.kind is StageKind.SEGMENT) != ("segmenter" in self.train):
            raise TrainingError(
                "train must name segmenter in stages of kind segment, and only there: SAM 2 is frozen later"
            )
        for name, low, high in (
            ("steps", 1, 1e9), ("batch", 1, 1e6), ("answers", 1, 64), ("warmup", 0, 0.5),
            ("final_rate", 0, 1), ("video_fraction", 0, 1), ("box_fraction", 0, 1), ("label_balance", 0, 1),
            ("part_fraction", 0, 1), ("answer_balance", 0, 1),
            ("correction", 0, 1), ("static_fraction", 0, 1), ("event_balance", 0, 1),
            ("carry_over", 0, 1), ("clip_norm", 0, 1e9),
            ("video_frames", 1, 256), ("max_minutes", 0, 1e6), ("video_after", 0, 1e9),
        ):  # fmt: skip
            value = getattr(self, name)
            if not low <= value <= high:
                raise TrainingError(f"{name} is {value}; allowed: {low}..{high:g}")
        if self.precision not in ("fp32", "bf16"):
            raise TrainingError(f"precision is {self.precision!r}; allowed: fp32, bf16")
        if self.store not in ("device", "host"):
            raise TrainingError(f"store is {self.store!r}; allowed: device, host")


def read_config(path: Path, overrides: Sequence[str] = ()) -> StageConfig:
    """Reads a stage's YAML; `overrides` are `key=value`. Raises TrainingError naming a bad key."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise TrainingError(f"--set takes key=value, not {override!r}")
        content[key] = yaml.safe_load(value)
    return config_from(content, str(path))


def config_from(content: Mapping[str, Any], origin: str) -> StageConfig:
    """Plain YAML values → StageConfig."""
    values = dict(content)
    known = {item.name for item in dataclasses.fields(StageConfig)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise TrainingError(f"{origin}: unknown {', '.join(unknown)}; allowed: {', '.join(sorted(known))}")
    try:
        values["kind"] = StageKind(values["kind"])
        for name in ("data", "train", "clip_frames"):
            if name in values:
                values[name] = tuple(values[name]) if isinstance(values[name], list) else (values[name],)
        if "tasks" in values:
            values["tasks"] = {Task.parse(task): float(weight) for task, weight in values["tasks"].items()}
        if "languages" in values:
            values["languages"] = tuple(Language.parse(code) for code in values["languages"])
        return StageConfig(**values)
    except (KeyError, TypeError, ValueError) as error:
        raise TrainingError(f"{origin}: {error}") from error
