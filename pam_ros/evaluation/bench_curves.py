"""How time grows: with regions, cameras, frames of a clip, tokens of a caption and texts of a batch.

`measure_curves` writes no file; `write_curves` and `read_curves` keep them as CSV, `plot_curves` draws them.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pam_ros.errors import InputError
from pam_ros.evaluation.bench_captioner import CAPTION_TOKENS
from pam_ros.evaluation.bench_device import measure
from pam_ros.evaluation.bench_paths import CLIP_FRAMES, BenchPath, noise_frames
from pam_ros.output_files import writing

LABEL_TOKENS = 8
COLUMNS = ("curve", "x", "milliseconds")


@dataclass(frozen=True, slots=True)
class Curve:
    """One curve: its x axis, its title and the values of x that are measured."""

    x_name: str
    title: str
    xs: tuple[int, ...]


CURVES = {
    "segment": Curve("regions", "a frame and so many clicks → masks", (1, 2, 3, 5, 8, 12, 16)),
    "track": Curve("regions", "a frame → masks of tracked regions", (1, 2, 3, 5, 8, 12, 16)),
    "labels": Curve("regions", "a frame and so many clicks → 8-token labels", (1, 2, 4, 8, 12)),
    "cameras": Curve("cameras", "a frame of each camera, one region each", (1, 2, 3, 4)),
    "clip": Curve("frames of a clip", "its last frame → a 64-token caption", (1, 2, 4, 8, 12, 16)),
    "caption": Curve("tokens", "a caption of an image", (16, 32, 64, 128, 256)),
    "texts": Curve("texts at once", "64 tokens of each, one region", (1, 2, 4, 8, 12, 16)),
}
Points = dict[str, dict[int, float]]  # curve → x → milliseconds


def measure_curves(
    path: BenchPath, *, repeats: int, progress: Callable[[str], None] = lambda line: None
) -> Points:
    """Median milliseconds of every point of `CURVES`."""
    bench = _CurveBench(path, repeats)
    points: Points = {}
    for name, curve in CURVES.items():
        progress(f"{name} over {curve.x_name}")
        points[name] = {x: getattr(bench, name)(x) for x in curve.xs}
    return points


class _CurveBench:
    """One method for each curve: x → milliseconds."""

    def __init__(self, path: BenchPath, repeats: int) -> None:
        self._path, self._repeats, self._frames = path, repeats, noise_frames(4)

    def segment(self, count: int) -> float:
        def run() -> None:
            regions = self._path.segment(self._frames[0], count)
            self._path.fetch_masks(regions)
            self._path.release(regions)

        return self._median(run)

    def track(self, count: int) -> float:
        regions = self._path.segment(self._frames[0], count)
        elapsed = self._median(lambda: self._path.track(self._frames[1], regions), warm_up=8)
        self._path.release(regions)
        return elapsed

    def labels(self, count: int) -> float:
        return self._texts(count, (LABEL_TOKENS,))

    def caption(self, tokens: int) -> float:
        return self._texts(1, (tokens,))

    def texts(self, count: int) -> float:
        return self._texts(1, (CAPTION_TOKENS,) * count)

    def cameras(self, count: int) -> float:
        cameras = [self._path.segment(self._frames[i % len(self._frames)], 1) for i in range(count)]

        def run() -> None:
            for i, regions in enumerate(cameras):
                self._path.track(self._frames[(i + 1) % len(self._frames)], regions)

        elapsed = self._median(run, warm_up=8)
        for regions in cameras:
            self._path.release(regions)
        return elapsed

    def clip(self, frames: int) -> float:
        assert frames <= CLIP_FRAMES
        regions = self._path.segment(self._frames[0], 1)
        runs: list[float] = []
        for _ in range(max(2, self._repeats // 2)):
            clip = self._path.open_clip()

            def see(index: int, clip: Any = clip) -> None:
                frame = self._frames[index % len(self._frames)]
                self._path.extend_clip(clip, frame, regions, first=index == 0)

            for index in range(frames - 1):
                see(index)
                self._path.settle()

            def run(clip: Any = clip, see: Callable[[int], None] = see) -> None:
                see(frames - 1)
                self._path.caption(clip, CAPTION_TOKENS)

            runs += measure(run, self._path.device, repeats=1, warm_up=0).runs_ms
        self._path.release(regions)
        return sorted(runs)[len(runs) // 2]

    def _texts(self, regions: int, lengths: Sequence[int]) -> float:
        def run() -> None:
            found = self._path.segment(self._frames[0], regions)
            self._path.generate(found, lengths)
            self._path.release(found)

        return self._median(run)

    def _median(self, run: Callable[[], object], warm_up: int = 1) -> float:
        return measure(run, self._path.device, repeats=self._repeats, warm_up=warm_up).median


def write_curves(points: Points, path: Path) -> None:
    """Writes points as CSV with the columns `COLUMNS`."""
    with writing(path), path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for name, values in points.items():
            writer.writerows((name, x, f"{y:.3f}") for x, y in values.items())


def read_curves(path: Path) -> Points:
    """Points that `write_curves` wrote. Raises InputError for another file."""
    points: Points = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for name, x, y in list(csv.reader(file))[1:]:
                points.setdefault(name, {})[int(x)] = float(y)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the curves in {path}: {error}; give a file of --curves") from None
    if not points or not points.keys() <= CURVES.keys():
        raise InputError(f"{path} has no curves of `pam bench`; give a file that --curves wrote")
    return points


def plot_curves(results: Mapping[str, Points], path: Path) -> None:
    """Draws one panel per curve, one line per result, as PNG. `results`: title → points.

    Raises InputError if Matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("plots need Matplotlib, which is not installed: pip install matplotlib") from None
    columns = 4
    figure = Figure(figsize=(14, 6.4), layout="constrained")
    axes = figure.subplots(-(-len(CURVES) // columns), columns).ravel()
    for axis, (name, curve) in zip(axes, CURVES.items(), strict=False):
        for title, points in results.items():
            values = points.get(name, {})
            axis.plot(list(values), list(values.values()), marker="o", markersize=4, label=title)
        axis.set_title(curve.title, fontsize=9)
        axis.set_xlabel(curve.x_name)
        axis.set_ylabel("ms")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    for axis in axes[len(CURVES) :]:
        axis.axis("off")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower right", fontsize=11)
    with writing(path):
        figure.savefig(path, dpi=90)
