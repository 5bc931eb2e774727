"""Reports an evaluation: rows of a table, JSON, and a page of images with the worst cases first."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from pam_ros.evaluation.cases import Case, Draw
from pam_ros.evaluation.confidence import Bin, reliability
from pam_ros.evaluation.run import MAIN_KEYS, Part, Plan, SeedFindings, metrics_of
from pam_ros.model.interface import ModelInfo
from pam_ros.output_files import write_text, writing

WORST, TYPICAL = 8, 3  # cases of a metric on the page
JPEG_QUALITY = 88
NONE = "–"
RELIABILITY = "reliability.png"  # on the page


@dataclass(frozen=True, slots=True)
class Row:
    """One metric over all seeds.

    Attributes:
        value: mean of the seeds' values; None if no seed has one.
        low, high: smallest and largest of them.
        seeds: how many have a value.
        samples: answers behind it, of all seeds together.
        why: why there is no value.
    """

    metric: str
    value: float | None
    low: float | None
    high: float | None
    seeds: int
    samples: int
    why: str

    def value_text(self) -> str:
        """The value as a table shows it."""
        return NONE if self.value is None else f"{self.value:.3f}"

    def spread_text(self) -> str:
        """Smallest..largest over the seeds; "" for one seed."""
        return "" if self.low is None or self.seeds < 2 else f"{self.low:.3f}..{self.high:.3f}"


def rows_of(found: Sequence[SeedFindings], parts: Sequence[Part] = tuple(Part)) -> list[Row]:
    """One row per metric, main ones first, without those of parts that were not evaluated."""
    unasked = {key for key, part in MAIN_KEYS if part not in parts}
    scores = [each.findings.scores() for each in found]
    counts = [each.findings.counts() for each in found]
    reasons: dict[str, str] = {}
    for each in found:
        for lack in each.findings.missing:
            reasons.setdefault(lack.metric, lack.why)
    rows = []
    for metric in metrics_of(found):
        values = [value for each in scores if (value := each.get(metric)) is not None]
        if metric in unasked and not values:
            continue
        rows.append(
            Row(
                metric,
                sum(values) / len(values) if values else None,
                min(values, default=None),
                max(values, default=None),
                len(values),
                sum(each.get(metric, 0) for each in counts),
                "" if values else reasons.get(metric, ""),
            )
        )
    return rows


def reasons(rows: Sequence[Row]) -> list[tuple[str, list[str]]]:
    """Reasons for missing values, each with its metrics."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row.value is None:
            found.setdefault(row.why, []).append(row.metric)
    return list(found.items())


def write_json(path: Path, found: Sequence[SeedFindings], plan: Plan, model: str, info: ModelInfo) -> None:
    """Writes metrics at the top level, null if there is no value; `missing` says why.

    `reliability` is the reliability curve of labels, see `evaluation.confidence`.
    `spread` has [smallest, largest] over the seeds, `samples` the number of answers behind each, `seeds` the
    values of each seed.
    """
    rows = rows_of(found)
    seeds = list(plan.seeds) if plan.data is None else []
    record: dict[str, Any] = {
        "model": model,
        "device": info.device,
        "dtype": info.dtype,
        "quantization": info.quantization,
        "cores": os.cpu_count(),
        "seed": seeds[0] if len(seeds) == 1 else seeds or None,
        "count": plan.count if plan.data is None else None,
        "data": None if plan.data is None else str(plan.data),
        "parts": [part.value for part in plan.parts],
        "judge": plan.judge_model or "rule",
        "similarity": plan.embedder or "letters",
        "carry_over": plan.carry_over,
    }
    record |= {row.metric: row.value for row in rows}
    record["spread"] = {row.metric: [row.low, row.high] for row in rows if row.value is not None}
    curve = reliability(label for each in found for label in each.findings.labels)
    record["reliability"] = [asdict(point) for point in curve]
    record["samples"] = {row.metric: row.samples for row in rows}
    record["missing"] = {row.metric: row.why for row in rows if row.value is None}
    record["seeds"] = {str(each.seed): each.findings.scores() for each in found if each.seed is not None}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(record, ensure_ascii=False, indent=1) + "\n")


# ---- the page

STYLE = """
body { font: 15px/1.45 system-ui, "Noto Sans", "Noto Sans CJK SC", sans-serif; margin: 2em auto;
  max-width: 1240px; padding: 0 1em; color: #1c2330; background: #fff }
h1 { font-size: 1.6em } h2 { margin: 2.2em 0 .3em; border-top: 1px solid #cdd3dc; padding-top: .8em }
table { border-collapse: collapse }
td, th { text-align: right; padding: .15em .9em; border-bottom: 1px solid #e4e8ee }
td:first-child, th:first-child, td:last-child { text-align: left }
.cases { display: grid; grid-template-columns: repeat(auto-fill, minmax(560px, 1fr)); gap: 14px }
figure { margin: 0; padding: 8px; border: 1px solid #dde2ea; border-radius: 6px; background: #f8f9fb }
figure img { width: 100%; display: block } figcaption { margin-top: 5px; overflow-wrap: anywhere }
b { color: #a33 } b.right { color: #187a3c }
.truth { color: #187a3c } .found { color: #1c49b8 } .note { color: #5b6675 }
"""
LEGEND = (
    "Yellow: the prompt. Green: the truth. Blue: the model's answer. "
    "Images: the prompt on the left, the answer on the right. Videos: six frames, or those of a clip."
)


def write_page(
    folder: Path, found: Sequence[SeedFindings], model: str, parts: Sequence[Part] = tuple(Part)
) -> Path:
    """index.html and its images: the labels' reliability; per metric the mean, worst and typical cases.

    Must be called while the samples' files exist. Returns the page's path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    gallery = _Gallery(folder)
    rows = rows_of(found, parts)
    seeds = ", ".join(str(each.seed) for each in found if each.seed is not None)
    title = f"{model}: evaluation" + (f", seed {seeds}" if seeds else "")
    lines = [
        "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'>",
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{html.escape(title)}</h1><p class='note'>{LEGEND}</p>",
        _table(rows),
    ]
    if curve := reliability(label for each in found for label in each.findings.labels):
        _draw_reliability(curve, folder / RELIABILITY)
        lines.append(f"<h2>reliability of labels</h2><img src='{RELIABILITY}' alt='reliability curve'>")
    for row in rows:
        cases = sorted(
            (case for each in found for case in each.findings.of(row.metric)), key=lambda case: case.score
        )
        if cases:
            lines.append(_section(row, cases, gallery))
    lines.append("</body></html>\n")
    page = folder / "index.html"
    write_text(page, "\n".join(lines))
    return page


def _draw_reliability(curve: Sequence[Bin], path: Path) -> None:
    """The reliability curve as PNG; a point's number is that of its labels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="grey", linestyle="dashed", label="perfectly calibrated")
    axes.plot([each.confidence for each in curve], [each.right for each in curve], marker="o", label="labels")
    for each in curve:
        axes.annotate(str(each.count), (each.confidence, each.right), (5, -11), textcoords="offset points")
    axes.set(xlabel="confidence, mean of a bin", ylabel="fraction that is right")
    axes.set(xlim=(-0.05, 1.08), ylim=(-0.05, 1.05))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=2)  # where it covers no point
    with writing(path):
        figure.savefig(path, dpi=100)


def _table(rows: Sequence[Row]) -> str:
    lines = ["<table><tr><th>metric</th><th>mean</th><th>over seeds</th><th>answers</th><th></th></tr>"]
    for row in rows:
        name = html.escape(row.metric)
        name = f"<a href='#{name}'>{name}</a>" if row.value is not None else name
        cells = f"<td>{row.value_text()}</td><td>{row.spread_text()}</td><td>{row.samples}</td>"
        lines.append(f"<tr><td>{name}</td>{cells}<td class='note'>{html.escape(row.why)}</td></tr>")
    return "\n".join([*lines, "</table>"])


def _section(row: Row, cases: Sequence[Case], gallery: _Gallery) -> str:
    """`cases` are sorted, the worst first."""
    worst = cases[:WORST]
    middle = max(len(worst), (len(cases) - TYPICAL) // 2)  # around the median; no case is shown twice
    typical = cases[middle : middle + TYPICAL]
    lines = [f"<h2 id='{html.escape(row.metric)}'>{html.escape(row.metric)}: {row.value_text()}</h2>"]
    for name, chosen in (("worst", worst), ("typical", typical)):
        if chosen:
            figures = "\n".join(_figure(case, gallery) for case in chosen)
            lines.append(f"<h3>{name}</h3><div class='cases'>{figures}</div>")
    return "\n".join(lines)


def _figure(case: Case, gallery: _Gallery) -> str:
    picture = f"<img src='{gallery.file(case.picture)}' alt='' loading='lazy'>" if case.picture else ""
    mark = " class='right'" if case.score >= 0.5 else ""
    lines = [f"<b{mark}>{case.score:.3f}</b> <span class='note'>{html.escape(case.sample)}</span>"]
    for name, text in (("truth", case.truth), ("found", case.found)):
        if text:
            lines.append(f"<span class='{name}'>{name}: {html.escape(text)}</span>")
    return f"<figure>{picture}<figcaption>{'<br>'.join(lines)}</figcaption></figure>"


class _Gallery:
    """Draws images into a folder, each once, even if several cases show it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._drawn: list[Draw] = []  # kept, so that identities stay unique

    def file(self, draw: Draw) -> str:
        """Its file name beside the page."""
        for number, known in enumerate(self._drawn):
            if known is draw:
                return f"{number:04d}.jpg"
        name = f"{len(self._drawn):04d}.jpg"
        with writing(self._folder / name):
            Image.fromarray(draw()).save(self._folder / name, quality=JPEG_QUALITY)
        self._drawn.append(draw)
        return name
