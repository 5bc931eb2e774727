"""`pam bench`: latencies, rates and memory of a model on this device, next to the device's own limits.

Every figure is the median of several runs after a warm-up, unless its name says otherwise. A figure that was
not measured is None, and its reason is recorded.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pam_ros.errors import DeviceError, InferenceError, InputError
from pam_ros.evaluation.bench_captioner import CAPTION_TOKENS, track_while_captioning
from pam_ros.evaluation.bench_configure import measure_configure
from pam_ros.evaluation.bench_device import (
    device_limits,
    device_name,
    measure,
    peak_gib,
    reset_peak_memory,
)
from pam_ros.evaluation.bench_paths import (
    CLIP_FRAMES,
    BenchPath,
    EngineKind,
    FastPath,
    PlainPath,
    noise_frames,
)
from pam_ros.evaluation.bench_quantization import Answer, compare_answers, record_answers
from pam_ros.model.engines import Engines
from pam_ros.model.loading.device import GIB, parse_device
from pam_ros.model.loading.options import LoadOptions
from pam_ros.model.loading.random_weights import save_random_model, write_model
from pam_ros.model.pam import Pam
from pam_ros.model.text.quantized import QuantizedLinear
from pam_ros.output_files import write_text

FRAMES = 8  # different ones, in turn
TASK_TOKENS = (8, 64, 32, 128)  # label, explain, brief, detail
LABEL_TOKENS = 8
DECODED_TOKENS = (2, 130)  # of a short and a long text; their difference is pure decoding
TRACK_WARM_UP = 8  # frames until SAM 2's spatial memory is full
TRACKED_FRAMES = 3  # for each repeat
NOT_SELECTED = "not selected"  # reason for a figure that --only leaves out
STREAM_S = 10.0  # of tracking while captioning

# Figures in the order of the table.
FIGURES = (
    "preprocess_ms",
    "click_to_mask_ms",
    "click_to_mask_p95_ms",
    "click_to_first_token_ms",
    "four_tasks_ms",
    "decode_tok_s",
    "decode_limit_tok_s",
    "decode_share_of_limit",
    "eight_labels_ms",
    "track_fps_1",
    "track_p99_ms_1",
    "track_fps_5",
    "track_p99_ms_5",
    "weights_gib",
    "peak_gib_loading",
    "logits_error",
    "equal_tokens",
    "peak_gib_image",
    "peak_reserved_gib_image",
    "clip_caption_64_ms",
    "track_p99_ms_while_captioning",
    "dropped_while_captioning",
    "captions_while_tracking",
    "track_p99_ms_while_captioning_one_thread",
    "dropped_while_captioning_one_thread",
    "captions_while_tracking_one_thread",
    "peak_gib_clip",
    "peak_reserved_gib_clip",
    "configure_eager_s",
    "configure_first_s",
    "configure_again_s",
)


@dataclass(slots=True)
class BenchResult:
    """Figures of one run."""

    about: dict[str, Any]  # model, weights, engine, card, versions
    limits: dict[str, float] = field(default_factory=dict)  # of the device, TB/s and TFLOP/s
    figures: dict[str, float] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)  # of figures that were not measured

    def as_json(self) -> dict[str, Any]:
        """Figures at the top level, None if missing; `about`, `limits` and `reasons` beside them."""
        values = {key: self.figures.get(key) for key in FIGURES}
        missing = {key: self.reasons.get(key, NOT_SELECTED) for key in FIGURES if values[key] is None}
        return {"about": self.about, "limits": self.limits, **values, "reasons": missing}


@dataclass(frozen=True, slots=True)
class BenchPlan:
    """What to measure."""

    engine: EngineKind = EngineKind.PLAIN
    repeats: int = 15  # runs of each figure
    only: tuple[str, ...] = ()  # figures; empty = all
    random_weights: bool = False
    source: str = ""  # name or folder that the model was loaded from; empty: it has random weights

    def __post_init__(self) -> None:
        """Raises InputError for a figure that does not exist."""
        if unknown := [key for key in self.only if key not in FIGURES]:
            raise InputError(f"unknown figures {', '.join(unknown)}; allowed: {', '.join(FIGURES)}")

    def wants(self, *figures: str) -> bool:
        """True if one of the figures is to be measured."""
        return not self.only or any(figure in self.only for figure in figures)


def run_bench(
    load: Callable[[], Pam],
    plan: BenchPlan,
    *,
    device: str = "auto",
    unquantised: Callable[[], Pam] | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> BenchResult:
    """Loads a model on `device`, measures it and returns every figure of `FIGURES`.

    `unquantised`: loads the model that a quantised one is compared with; freed before that one is loaded.
    Raises DeviceError if `plan` selects the fast engines and the device has no CUDA.
    """
    target = parse_device(device)
    answers: list[Answer] = []
    if unquantised is not None and plan.wants("logits_error", "equal_tokens"):
        progress("answers of the unquantised model")
        answers = _answers(unquantised)
    reset_peak_memory(target)
    path = open_path(load, plan.engine, device)
    bench = _Bench(path, path.model, plan, answers)
    bench.note_loading()
    progress("compiling kernels and capturing graphs")
    begin_s = time.perf_counter()
    path.warm_up()
    bench.result.about["warm_up_s"] = round(time.perf_counter() - begin_s, 1)
    bench.run(progress)
    return bench.result


def open_path(load: Callable[[], Pam], engine: EngineKind, device: str) -> BenchPath:
    """Loads a model; returns the path to measure. Raises DeviceError for fast engines without CUDA."""
    target = parse_device(device)
    if engine is EngineKind.FAST and target.type != "cuda":
        raise DeviceError(f"--engine fast needs a CUDA device, not {target}; use --engine plain")
    model = load()
    return PlainPath(model) if engine is EngineKind.PLAIN else FastPath(Engines(model))


class _Bench:
    """Measures one model on one path."""

    def __init__(self, path: BenchPath, model: Pam, plan: BenchPlan, answers: Sequence[Answer]) -> None:
        self._path, self._model, self._plan, self._answers = path, model, plan, answers
        self._frames = noise_frames(FRAMES)
        self.result = BenchResult(
            {
                "model": model.info.name,
                "weights": "random" if plan.random_weights else "from files",
                "engine": plan.engine.value,
                "card": device_name(path.device),
                "dtype": model.info.dtype,
                "quantization": model.info.quantization,
                "torch": torch.__version__,
                "threads": torch.get_num_threads(),
                "repeats": plan.repeats,
            }
        )

    def run(self, progress: Callable[[str], None]) -> None:
        """Measures everything that the plan selects."""
        parts: list[tuple[Sequence[str], Callable[[], None]]] = [
            (("preprocess_ms",), self._preprocess),
            (("click_to_mask_ms", "click_to_mask_p95_ms"), self._click_to_mask),
            (("click_to_first_token_ms",), partial(self._click_to_texts, "click_to_first_token_ms", (1,))),
            (("four_tasks_ms",), partial(self._click_to_texts, "four_tasks_ms", TASK_TOKENS)),
            (("decode_tok_s", "decode_limit_tok_s", "decode_share_of_limit"), self._decode),
            (("eight_labels_ms",), partial(self._click_to_texts, "eight_labels_ms", (LABEL_TOKENS,), 8)),
            (("track_fps_1", "track_p99_ms_1"), partial(self._track, 1)),
            (("track_fps_5", "track_p99_ms_5"), partial(self._track, 5)),
            (("logits_error", "equal_tokens"), self._compare),
            (("peak_gib_image", "peak_reserved_gib_image"), partial(self._peak, "image")),
            (("clip_caption_64_ms",), self._clip_caption),
            (_captioning_figures(""), partial(self._captioning, "", threads=True)),
            (_captioning_figures("_one_thread"), partial(self._captioning, "_one_thread", threads=False)),
            (("peak_gib_clip", "peak_reserved_gib_clip"), partial(self._peak, "clip")),
            (("configure_eager_s", "configure_first_s", "configure_again_s"), self._configure),
        ]
        progress("limits of the device")
        self.result.limits = device_limits(self._path.device, self._model.segmenter.dtype)
        reset_peak_memory(self._path.device)
        for figures, part in parts:
            if self._plan.wants(*figures):
                progress(figures[0])
                part()

    # ---- figures

    def note_loading(self) -> None:
        """Memory in tensors after loading, and at most while loading."""
        names = "weights_gib", "peak_gib_loading"
        if self._path.device.type != "cuda":
            self._lack("no CUDA device", *names)
            return
        self._put(weights_gib=torch.cuda.memory_allocated(self._path.device) / GIB)
        if self._plan.random_weights:
            self._lack("random weights are drawn at once, in float32", "peak_gib_loading")
        else:
            self._put(peak_gib_loading=peak_gib(self._path.device)[0])

    def _compare(self) -> None:
        """Compares answers with those of the unquantised model, on the plain path."""
        names = "logits_error", "equal_tokens"
        if not self._answers:
            self._lack("the model is not quantised", *names)
            return
        self._put(**dict(zip(names, compare_answers(self._model, self._answers), strict=True)))

    def _preprocess(self) -> None:
        """A 720p frame on the host → the encoder's input on the device."""
        times = self._measure(lambda: self._path.preprocess(self._frames[0]))
        self._put(preprocess_ms=times.median)

    def _click_to_mask(self) -> None:
        """A frame and a click on the host → the mask on the host."""

        def run() -> None:
            regions = self._path.segment(self._frames[0], 1)
            self._path.fetch_masks(regions)
            self._path.release(regions)

        times = self._measure(run)
        self._put(click_to_mask_ms=times.median, click_to_mask_p95_ms=times.percentile(95))

    def _click_to_texts(self, figure: str, lengths: Sequence[int], regions: int = 1) -> None:
        """A frame and clicks on the host → texts of these lengths for every region."""

        def run() -> None:
            found = self._path.segment(self._frames[0], regions)
            self._path.generate(found, lengths)
            self._path.release(found)

        self._put(**{figure: self._measure(run).median})

    def _decode(self) -> None:
        """Tokens per second of one text alone, and the limit: reading every weight once per token."""
        short, long = (self._measure(partial(self._path.decode, tokens)).median for tokens in DECODED_TOKENS)
        rate = (DECODED_TOKENS[1] - DECODED_TOKENS[0]) / (long - short) * 1000
        limit = self.result.limits["read_tb_s"] * 1e12 / bytes_per_token(self._model)
        self._put(decode_tok_s=rate, decode_limit_tok_s=limit, decode_share_of_limit=rate / limit)

    def _track(self, count: int) -> None:
        """Frames per second with `count` regions, masks on the host."""
        regions = self._path.segment(self._frames[0], count)
        numbers = iter(range(10**9))

        def run() -> None:
            self._path.track(self._frames[next(numbers) % FRAMES], regions)

        repeats = TRACKED_FRAMES * self._plan.repeats
        times = measure(run, self._path.device, repeats=repeats, warm_up=TRACK_WARM_UP)
        self._path.release(regions)
        self._put(
            **{f"track_fps_{count}": 1000 / times.median, f"track_p99_ms_{count}": times.percentile(99)}
        )

    def _clip_caption(self) -> None:
        """The last frame of a clip on the host → its caption. Earlier frames are read as they arrive."""
        path = self._path
        regions = path.segment(self._frames[0], 1)
        clips: list[Any] = []

        def see(clip: Any, index: int) -> None:
            path.extend_clip(clip, self._frames[index % FRAMES], regions, first=index == 0)

        def prepare() -> Any:
            clip = path.open_clip()
            for index in range(CLIP_FRAMES - 1):
                see(clip, index)
                path.settle()
            return clip

        def run() -> None:
            see(clips[-1], CLIP_FRAMES - 1)
            path.caption(clips[-1], CAPTION_TOKENS)

        runs: list[float] = []
        for _ in range(max(1, self._plan.repeats // 3)):
            clips.append(prepare())
            runs += measure(run, path.device, repeats=1, warm_up=0).runs_ms
        path.release(regions)
        self._put(clip_caption_64_ms=float(np.median(runs)))

    def _captioning(self, suffix: str, *, threads: bool) -> None:
        """One region at the camera's rate, captioned back to back, see `bench_captioner`."""
        names = _captioning_figures(suffix)
        if not isinstance(self._path, FastPath):
            self._lack("measured for the fast engines only", *names)
            return
        found = track_while_captioning(self._path, self._frames, seconds=STREAM_S, threads=threads)
        if found.captions == 0:
            self._lack("failed: no caption was finished", *names)
            return
        values = found.frames.percentile(99), found.dropped, found.captions
        self._put(**dict(zip(names, values, strict=True)))

    def _peak(self, name: str) -> None:
        """Peak memory so far: in tensors, and with all that allocator and graphs hold."""
        names = f"peak_gib_{name}", f"peak_reserved_gib_{name}"
        if self._path.device.type != "cuda":
            self._lack("no CUDA device", *names)
            return
        self._put(**dict(zip(names, peak_gib(self._path.device), strict=True)))

    def _configure(self) -> None:
        """Separate processes load the model from files; random weights are written to files first."""
        names = "configure_eager_s", "configure_first_s", "configure_again_s"
        info, source = self._model.info, self._plan.source
        with tempfile.TemporaryDirectory() as temporary:
            if not source and info.quantization == "none":
                write_model(self._model, Path(temporary))
            elif not source:
                save_random_model(LoadOptions(info.name, info.device, info.dtype), Path(temporary))
            options = LoadOptions(
                source or temporary, info.device, info.dtype, quantization=info.quantization
            )
            try:
                first, again = measure_configure(options)
            except InferenceError as error:
                self._lack(f"failed: {error}", *names)
                return
        values = first.answers_s, first.prepared_s, again.prepared_s
        self._put(**dict(zip(names, values, strict=True)))

    def _measure(self, run: Callable[[], object]) -> Any:
        return measure(run, self._path.device, repeats=self._plan.repeats)

    def _put(self, **figures: float) -> None:
        self.result.figures |= figures

    def _lack(self, why: str, *figures: str) -> None:
        self.result.reasons |= dict.fromkeys(figures, why)


def _captioning_figures(suffix: str) -> tuple[str, ...]:
    """`suffix`: "" for a thread of its own for texts, "_one_thread" for one thread that does everything."""
    names = "track_p99_ms_while_captioning", "dropped_while_captioning", "captions_while_tracking"
    return tuple(f"{name}{suffix}" for name in names)


def bytes_per_token(model: Pam) -> int:
    """Bytes of weights that decoding one token reads: every matrix once, and one row of the embeddings."""
    transformer = model.language.transformer
    head = transformer.lm_head.weight[: model.language.tokens]
    dense = [each for each in transformer.model.layers.parameters() if each.dim() == 2]
    layers = [each for each in transformer.model.layers.modules() if isinstance(each, QuantizedLinear)]
    return sum(each.nbytes for each in (*dense, *(layer.matrix for layer in layers), head))


def _answers(load: Callable[[], Pam]) -> list[Answer]:
    """Answers of a model that is loaded for them."""
    model = load()
    try:
        return record_answers(model)
    finally:
        model.close()
        del model
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def write_result(result: BenchResult, path: Path) -> None:
    """Writes a result as JSON. Raises OutputError."""
    write_text(path, json.dumps(result.as_json(), indent=1) + "\n")


def read_result(path: Path) -> dict[str, Any]:
    """A result that `write_result` wrote. Raises InputError for another file."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path} as JSON: {error}; give a file of `pam bench --json`") from None
    if not isinstance(result, dict) or "about" not in result or not any(key in result for key in FIGURES):
        raise InputError(f"{path} has no figures; give a file that `pam bench --json` wrote")
    return result


def ratio(first: float | None, second: float | None) -> float | None:
    """second / first; None if either is missing or the first is 0."""
    return second / first if first and second is not None else None
