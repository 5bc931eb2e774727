"""How long a model takes from a process's start until it answers, and until all its graphs are captured.

Run as a module, it is the process that is measured: `python -m pam_ros.evaluation.bench_configure FOLDER DEVICE
DTYPE BEGIN_S` prints the seconds since BEGIN_S (of the epoch) as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pam_ros.errors import InferenceError

POLL_S = 0.05
LONGEST_S = 900.0  # of one process


@dataclass(frozen=True, slots=True)
class Configured:
    """Seconds from a process's start."""

    answers_s: float  # until a frame went through every part of the model
    prepared_s: float  # until all graphs were captured


def measure_configure(
    folder: Path, *, device: str, dtype: str, progress: Callable[[str], None] = lambda line: None
) -> tuple[Configured, Configured]:
    """Loads the model of a folder in two fresh processes: without, then with compiled kernels on disk.

    Raises InferenceError if a process fails or takes longer than `LONGEST_S`.
    """
    with tempfile.TemporaryDirectory() as cache:
        results = []
        for name in ("first", "again"):
            progress(f"configure, {name}")
            results.append(_measured(folder, device, dtype, Path(cache)))
        return results[0], results[1]


def _measured(folder: Path, device: str, dtype: str, cache: Path) -> Configured:
    command = [sys.executable, "-m", __name__, str(folder), device, dtype, repr(time.time())]
    environment = os.environ | {"TRITON_CACHE_DIR": str(cache / "triton")}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=LONGEST_S, check=True
        )
    except subprocess.TimeoutExpired:
        raise InferenceError(f"loading {folder} took more than {LONGEST_S:.0f} s") from None
    except subprocess.CalledProcessError as error:
        raise InferenceError(f"loading {folder} failed: {error.stderr.strip()[-500:]}") from None
    return Configured(**json.loads(done.stdout.splitlines()[-1]))


def _main(folder: str, device: str, dtype: str, begin: str) -> None:
    from pam_ros.model.fast_model import FastModel, open_model
    from pam_ros.model.warm_up import warm_up

    model = open_model(folder, device=device, dtype=dtype)
    warm_up(model)
    answers_s = time.time() - float(begin)
    while isinstance(model, FastModel) and not model.prepared:
        time.sleep(POLL_S)
    print(json.dumps({"answers_s": answers_s, "prepared_s": time.time() - float(begin)}), flush=True)
    model.close()


if __name__ == "__main__":
    _main(*sys.argv[1:])
