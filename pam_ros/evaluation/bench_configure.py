"""How long a model takes from a process's start until it answers, and until all its graphs are captured.

`main` is the process that is measured, with arguments OPTIONS BEGIN_S: it prints the seconds since BEGIN_S
(Unix time) as JSON. OPTIONS: `LoadOptions` as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from pam_ros.errors import InferenceError
from pam_ros.model.fast_model import FastModel
from pam_ros.model.loading.options import LoadOptions
from pam_ros.model.opening import open_model

PROCESS = f"from pam_ros.start import start; start({__name__!r})"
POLL_S = 0.05
LONGEST_S = 900.0  # of one process


@dataclass(frozen=True, slots=True)
class Configured:
    """Seconds from a process's start."""

    answers_s: float  # until a frame went through every part of the model
    prepared_s: float  # until all graphs were captured


def measure_configure(options: LoadOptions) -> tuple[Configured, Configured]:
    """Loads a model in two new processes: without, then with compiled kernels on disk.

    Raises InferenceError if a process fails or takes longer than `LONGEST_S`.
    """
    with tempfile.TemporaryDirectory() as cache:
        first, again = (_measured(options, Path(cache)) for _ in range(2))
        return first, again


def _measured(options: LoadOptions, cache: Path) -> Configured:
    command = [sys.executable, "-c", PROCESS, json.dumps(asdict(options)), repr(time.time())]
    environment = os.environ | {"TRITON_CACHE_DIR": str(cache / "triton")}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=LONGEST_S, check=True
        )
    except subprocess.TimeoutExpired:
        raise InferenceError(f"loading {options.model} took more than {LONGEST_S:.0f} s") from None
    except subprocess.CalledProcessError as error:
        raise InferenceError(f"loading {options.model} failed: {error.stderr.strip()[-500:]}") from None
    return Configured(**json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Loads a model and prints how long it took."""
    options, begin = sys.argv[1:]
    model = open_model(LoadOptions(**json.loads(options)))  # which runs a frame through all of it
    answers_s = time.time() - float(begin)
    while isinstance(model, FastModel) and not model.prepared:
        time.sleep(POLL_S)
    print(json.dumps({"answers_s": answers_s, "prepared_s": time.time() - float(begin)}), flush=True)
    model.close()
