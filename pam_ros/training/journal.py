"""The log of a training stage: curves for TensorBoard, and figures as lines of JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pam_ros.errors import TRAINING_EXTRA

try:
    from tensorboardX import SummaryWriter
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"{error}; {TRAINING_EXTRA}", name=error.name) from None

FIGURES = "figures.jsonl"


class Journal:
    """Writes curves for TensorBoard, and the same figures to figures.jsonl, in the main process only."""

    def __init__(self, out: Path, active: bool, step: int) -> None:
        """Removes lines about steps after `step`, which a killed process has left."""
        if active and (out / FIGURES).is_file():
            _cut_lines(out / FIGURES, step)
        self._writer = SummaryWriter(str(out / "curves")) if active else None
        self._lines = (out / FIGURES).open("a", encoding="utf-8") if active else None

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Writes one line."""
        if self._writer is None or self._lines is None:
            return
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        self._lines.write(
            json.dumps({"step": step, **{name: round(value, 6) for name, value in figures.items()}}) + "\n"
        )
        self._lines.flush()

    def close(self) -> None:
        """Flushes and closes the files."""
        if self._writer is not None and self._lines is not None:
            self._writer.close()
            self._lines.close()


def _cut_lines(path: Path, step: int) -> None:
    """Keeps the whole lines about steps up to `step`."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= step and line.endswith("\n"):
                kept.append(line)
        except ValueError:  # cut by a kill
            continue
    new = path.with_suffix(".new")
    new.write_text("".join(kept), encoding="utf-8")
    new.replace(path)
