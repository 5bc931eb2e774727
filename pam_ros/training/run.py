"""`python -m pam_ros.training.run STAGE.yaml …`, also under `accelerate launch`: runs training stages."""

from __future__ import annotations

import argparse
import math
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast, set_seed
from torch import Generator, Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from pam_ros.datasets.registry import open_sources, process_shard
from pam_ros.model.loading.checkpoint import save_model
from pam_ros.model.pam import Pam
from pam_ros.signals import Stopped, exit_code, handle_end_signals
from pam_ros.training.checkpoints import Checkpoints, replace_folder
from pam_ros.training.config import StageConfig, StageKind, TrainingError, read_config
from pam_ros.training.features.feature_store import (
    EIGHT_BITS,
    FeatureStore,
    StageCache,
    feature_key,
    fill_store,
)
from pam_ros.training.features.frame_store import FrameStore
from pam_ros.training.heads.event_head import Events
from pam_ros.training.journal import Journal
from pam_ros.training.modules import fit_for_training, freeze_all_but, open_model, parameter_groups
from pam_ros.training.outline import outlines_of
from pam_ros.training.prompting import MOST_PROCESSES
from pam_ros.training.qa_examples import Tokenisation
from pam_ros.training.stages.caption_stage import CaptionBatch, CaptionDataset, CaptionStage, TextDataset
from pam_ros.training.stages.segment_stage import SegmentBatch, SegmentData, SegmentStage, Words

LOG_STEPS = 20
BETAS = (0.9, 0.95)
Batch = SegmentBatch | CaptionBatch


@dataclass(slots=True)
class Progress:
    """How far a stage is; saved in its checkpoints."""

    step: int = 0
    minutes: float = 0.0

    def state_dict(self) -> dict[str, Any]:
        """For accelerate."""
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """For accelerate."""
        self.step, self.minutes = int(state["step"]), float(state["minutes"])

    def fraction(self, config: StageConfig) -> float:
        """Done so far, 0..1: by steps or by time, whichever is further, so that the rate always decays."""
        by_time = self.minutes / config.max_minutes if config.max_minutes else 0.0
        return min(1.0, max(self.step / config.steps, by_time))


def rate_factor(fraction: float, warmup: float, final: float) -> float:
    """Linear warm-up, then a cosine down to `final`."""
    if fraction < warmup:
        return max(fraction / warmup, 1e-3)
    cosine = 0.5 * (1 + math.cos(math.pi * (fraction - warmup) / (1 - warmup)))
    return final + (1 - final) * cosine


@dataclass(slots=True)
class StopRequest:
    """A signal that asks training to stop: after the current step, or immediately between steps."""

    number: int = 0  # of the signal; 0: none came
    can_wait: bool = False  # steps are running: the current one is finished and saved first

    def take(self, number: int) -> None:
        """Called by the signal's handler."""
        if not self.can_wait:
            raise Stopped(number)
        self.number = number


class Stage:
    """A stage that is ready to run: model, data, optimiser, progress."""

    def __init__(self, config: StageConfig, cache: StageCache) -> None:
        self.config = config
        self._cache = cache
        self.out = Path(config.out)
        self.accelerator = Accelerator(mixed_precision="bf16" if config.precision == "bf16" else "no")
        set_seed(config.seed)
        self.out.mkdir(parents=True, exist_ok=True)
        self.pam = open_model(config)
        fit_for_training(self.pam)
        freeze_all_but(self.pam, config.train)
        everything = open_sources(config.data)
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        # Each process decodes only its own samples; labels, words and events are those of all samples.
        self.source = process_shard(everything, rank, processes)
        self._all_outlines = outlines_of(everything)
        self.outlines = self._all_outlines[rank::processes]
        self.pam.to(self.accelerator.device)
        module = self._segment() if config.kind is StageKind.SEGMENT else self._caption()
        groups = parameter_groups(module, config)
        optimiser = torch.optim.AdamW(groups, betas=BETAS, fused=self.accelerator.device.type == "cuda")
        # `evaluation_mode` leaves the module unwrapped. `_average_gradients` is faster: not every step uses
        # every part, and searching for unused ones takes longer than sending zeros for them.
        self.module = self.accelerator.prepare_model(module, evaluation_mode=True)
        self.optimiser = self.accelerator.prepare_optimizer(optimiser)
        self._trained = [parameter for group in groups for parameter in group["params"]]
        if self.accelerator.num_processes > 1:
            broadcast([*self.module.parameters()])
        self.progress = Progress()
        self._checkpoints = Checkpoints(self.out / "checkpoint")
        self.accelerator.register_for_checkpointing(self.progress)

    # ---- data

    def _segment(self) -> nn.Module:
        words = Words([region for outline in self._all_outlines for region in outline.regions])
        self._by_step: SegmentData | TextDataset | CaptionDataset = SegmentData(
            self.outlines, self._frames(), words, self.config, rank=self.accelerator.process_index
        )
        return SegmentStage(self.pam, words, self.config)

    def _frames(self) -> FrameStore:
        """All frames of the data, decoded."""
        device = self.accelerator.device if self.config.store == "device" else torch.device("cpu")
        store = FrameStore(self.outlines, self.pam.segmenter.image_size, device)
        with self._bar(len(store.pixels), "decoding", "frame") as bar:
            for count in store.fill(self.source, self.config.workers):
                bar.update(count)
        return store

    def _bar(self, total: int, what: str, unit: str) -> tqdm[Any]:
        main = self.accelerator.is_main_process
        return tqdm(total=total, desc=what, unit=unit, disable=not main, mininterval=1)

    def _caption(self) -> nn.Module:
        config, store = self.config, None
        tokenisation = Tokenisation(self.pam.language, config.answer_balance)
        rank = self.accelerator.process_index
        events = Events(self._all_outlines)
        if config.kind is StageKind.LANGUAGE:
            self._by_step = TextDataset(self.source, self.outlines, config, tokenisation, rank=rank)
        else:
            if config.cache_features:
                store = self._features()
            size = self.pam.segmenter.image_size
            index = None if store is None else store.index
            self._by_step = CaptionDataset(
                self.source,
                self.outlines,
                config,
                tokenisation,
                events,
                size=size,
                region_features=index,
                crop_small_regions=self.pam.segmenter.crop_small_regions,
                rank=rank,
            )
        return CaptionStage(self.pam, store, config, events)

    def _features(self) -> FeatureStore:
        config, cache, segmenter = self.config, self._cache, self.pam.segmenter
        key = feature_key(config, segmenter)
        if cache.region_features is None or cache.feature_key != key:
            cache.region_features = None  # gives its memory back first
            dtype = EIGHT_BITS if config.precision == "bf16" else torch.float32
            store = FeatureStore(self.outlines, segmenter, config.cache_features, dtype)
            total = len(self.outlines) + len(store.index.crops)
            with self._bar(total, "computing region features", "sample") as bar:
                for count in fill_store(store, self.source, self.outlines, segmenter, config):
                    bar.update(count)
            cache.feature_key, cache.region_features = key, store
        return cache.region_features

    def batches(self) -> Iterator[Batch]:
        """Batches from the next step on, on the device."""
        steps = range(self.progress.step, self.config.steps)
        if isinstance(self._by_step, SegmentData):  # made on the device from the store
            found: Iterable[Batch] = (self._by_step[step] for step in steps)
        else:
            found = self._loader(self._by_step, steps)
        for batch in found:
            yield batch.to(self.accelerator.device)

    def _loader(
        self, dataset: TextDataset | CaptionDataset, steps: Sequence[int]
    ) -> DataLoader[CaptionBatch]:
        workers = self.config.workers
        return DataLoader(
            dataset,
            batch_sampler=[[step] for step in steps],
            num_workers=workers,
            collate_fn=_only,
            worker_init_fn=_worker_signals,
            pin_memory=self.accelerator.device.type == "cuda" and workers > 0,
            prefetch_factor=4 if workers else None,
        )

    # ---- the loop

    def run(self, stop: StopRequest) -> None:
        """Trains until the schedule or the time ends or a stop is requested, then saves."""
        config, main = self.config, self.accelerator.is_main_process
        journal = Journal(self.out, main, self.progress.step)
        stop.can_wait = True
        begun = time.monotonic() - 60 * self.progress.minutes
        saved = self.progress.minutes
        bar = tqdm(
            total=config.steps, initial=self.progress.step, desc=self.out.name, unit="step", disable=not main
        )
        window: defaultdict[str, list[Tensor]] = defaultdict(list)  # since the last line of the journal
        for batch in self.batches():
            kind = "video_" if _is_video(batch) else ""
            for name, value in self._step(batch).items():
                window[kind + name].append(value)
            self.progress.step += 1
            self.progress.minutes = self._agreed((time.monotonic() - begun) / 60)
            bar.update()
            if self.progress.step % LOG_STEPS == 0 or self.progress.step in (1, config.steps):
                figures = {name: float(torch.stack(values).mean()) for name, values in window.items()}
                window.clear()
                journal.write(self.progress.step, figures)
                bar.set_postfix({name: f"{value:.3f}" for name, value in figures.items()})
            if self.progress.minutes - saved >= config.save_minutes:
                self.save()
                saved = self.progress.minutes
            if config.max_minutes and self.progress.minutes >= config.max_minutes:
                break
            if self._agreed_to(stop):
                break
        bar.close()
        journal.close()
        self.save(final=not stop.number)
        self.accelerator.wait_for_everyone()  # the next stage reads what was written

    def _step(self, batch: Batch) -> dict[str, Tensor]:
        config = self.config
        factor = rate_factor(self.progress.fraction(config), config.warmup, config.final_rate)
        for group in self.optimiser.param_groups:
            group["lr"] = group["peak"] * factor
        # A step's randomness depends on its number alone, so a resumed run equals an uninterrupted one.
        step = (config.seed * 1_000_003 + self.progress.step) * MOST_PROCESSES
        seed = step + self.accelerator.process_index
        figures: dict[str, Tensor] = self.module(batch, Generator(self.accelerator.device).manual_seed(seed))
        self.accelerator.backward(figures["loss"])
        if self.accelerator.num_processes > 1:
            self._average_gradients()
        norm = self.accelerator.clip_grad_norm_(self.module.parameters(), config.clip_norm)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return {name: value.detach() for name, value in figures.items()} | {
            "gradient": norm,
            "rate": torch.full_like(norm, factor),
        }

    def _average_gradients(self) -> None:
        """Replaces gradients by their mean over all processes, sent as one tensor."""
        found = [
            torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            for parameter in self._trained
        ]
        mean = self.accelerator.reduce(torch.cat([gradient.flatten() for gradient in found]), "mean")
        parts = mean.split([gradient.numel() for gradient in found])
        for parameter, part in zip(self._trained, parts, strict=True):
            parameter.grad = part.view_as(parameter)

    def _agreed(self, minutes: float) -> float:
        """The main process's clock, so that all processes have the same rate and stop at the same step.

        It is read once in `LOG_STEPS` steps, since reading it waits for the device.
        """
        if self.accelerator.num_processes == 1:
            return minutes
        if self.progress.step % LOG_STEPS:
            return self.progress.minutes
        return float(broadcast(torch.tensor(minutes, dtype=torch.float64, device=self.accelerator.device)))

    def _agreed_to(self, stop: StopRequest) -> bool:
        """Whether all processes stop after this step; the main one decides, once in LOG_STEPS steps."""
        if self.accelerator.num_processes == 1:
            return bool(stop.number)
        if self.progress.step % LOG_STEPS:
            return False
        stop.number = int(broadcast(torch.tensor(stop.number, device=self.accelerator.device)))
        return bool(stop.number)

    # ---- checkpoints

    def save(self, *, final: bool = False) -> None:
        """Writes everything needed to resume exactly from here; at the end also the trained model."""
        main = self.accelerator.is_main_process
        if main:
            self._checkpoints.begin()
        self.accelerator.wait_for_everyone()
        folder = self._checkpoints.folder / "unfinished"
        # Safetensors would drop a head that is tied to the embedding, and warn each time.
        self.accelerator.save_state(str(folder), safe_serialization=False)
        self.accelerator.wait_for_everyone()
        if main:
            self._checkpoints.finish(self.progress.step)
        if main and final:
            replace_folder(self.out / "model", lambda new: save_model(self.pam, new, dtype=torch.float32))

    def resume(self) -> None:
        """Continues from the newest checkpoint in `out`. Raises TrainingError if there is none."""
        found = self._checkpoints.found()
        if not found:
            raise TrainingError(
                f"nothing to resume: {self._checkpoints.folder} has no checkpoint; start without --resume"
            )
        self.accelerator.load_state(str(found[0]))


def _worker_signals(worker: int) -> None:
    """Data loader workers end with their process, not by the signals sent to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _only(items: list[CaptionBatch]) -> CaptionBatch:
    (batch,) = items
    return batch


def _is_video(batch: Batch) -> bool:
    return batch.clip if isinstance(batch, CaptionBatch) else batch.pixels.shape[1] > 1


def run_stage(
    config: StageConfig,
    *,
    resume: bool = False,
    cache: StageCache | None = None,
    stop: StopRequest | None = None,
) -> Pam:
    """Runs a stage to its end; returns the trained model (float32). `cache`: features of earlier stages.

    Raises `Stopped` if `stop` ended it early: it can be resumed.
    """
    stop = stop or StopRequest()
    stage = Stage(config, cache or StageCache())
    if resume:
        stage.resume()
    stage.run(stop)
    if stop.number:
        stopped = Stopped(stop.number)
        stopped.partial = (
            f"step {stage.progress.step} of {config.steps} is saved in {stage.out}/checkpoint; "
            "continue with --resume"
        )
        raise stopped
    return stage.pam


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "configs",
        nargs="+",
        type=Path,
        metavar="STAGE.yaml",
        help="stages of config/training, run one after another",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="overrides one value; repeatable"
    )
    parser.add_argument("--max-minutes", help="minutes for each stage, e.g. 5, or 1.5,1,5 for three stages")
    parser.add_argument(
        "--resume", action="store_true", help="continue from the checkpoint in the stage's folder"
    )
    given = parser.parse_args(arguments)
    minutes = [] if given.max_minutes is None else [float(part) for part in given.max_minutes.split(",")]
    if len(minutes) == 1:
        minutes *= len(given.configs)
    if minutes and len(minutes) != len(given.configs):
        parser.error(f"--max-minutes has {len(minutes)} times for {len(given.configs)} stages")
    cache, stop = StageCache(), StopRequest()
    handle_end_signals(lambda number: stop.take(number), bounded=False)
    for place, path in enumerate(given.configs):
        limit = [f"max_minutes={minutes[place]}"] if minutes else []
        config = read_config(path, [*given.set, *limit])
        try:
            run_stage(config, resume=given.resume, cache=cache, stop=stop)
        except Stopped as stopped:
            print(f"stopped by {stopped}: {stopped.partial}", file=sys.stderr, flush=True)
            sys.exit(exit_code(stopped.number))
        stop.can_wait = False
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main()
