"""Loading at true widths, in every official layout: right tensors, and little host memory beside the model.

On a GPU the models have their true depth (`pytest test/test_loader_memory.py -s` prints the figures); on a
CPU, where the model itself is in host memory, two layers. The files are sparse: they take no disk.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_tokenizer
from transformers.initialization import no_init_weights

from pam_ros.model.loading.random_weights import random_architecture
from pam_ros.model.loading.weights import EMBEDDING, LM_HEAD, SAM2_PREFIX, official_name
from pam_ros.model.pam import Pam

pytestmark = pytest.mark.cuda
GPU = torch.cuda.is_available()
CPU_LAYERS = 2
LARGEST_FRACTION = 1.3  # of the largest file: what loading may take of host memory beside the model
TOWER = official_name(SAM2_PREFIX)
MIB = 2**20


@dataclass(frozen=True)
class Layout:
    """Where a checkpoint keeps its parts."""

    model: str
    shards: int
    subfolder: bool
    sam2: str  # "file", "tower" or "both"
    head: str  # "absent", "present" (both tied) or "untied"
    trimmed: bool = False


LAYOUTS = [  # on a CPU the first three
    Layout("pam-3b", 2, subfolder=True, sam2="file", head="absent"),
    Layout("pam-3b", 1, subfolder=False, sam2="tower", head="present"),
    Layout("pam-3b", 3, subfolder=True, sam2="both", head="untied", trimmed=True),
    Layout("pam-1.5b", 1, subfolder=True, sam2="file", head="absent"),
    Layout("pam-1.5b", 2, subfolder=False, sam2="tower", head="untied"),
]


def mark(name: str) -> float:
    """What a tensor begins with; exact in bfloat16."""
    return float(zlib.crc32(name.encode()) % 255 + 1)


def write_sparse(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """A safetensors file of bfloat16 zeros, in which every tensor begins with its `mark`."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        start = file.tell()
        file.truncate(start + end)
        for name in shapes:
            file.seek(start + header[name]["data_offsets"][0])
            file.write(struct.pack("<f", mark(name))[2:])  # the upper half of a float32


def write_checkpoint(root: Path, layout: Layout) -> tuple[Path, int]:
    """Writes a layout; returns the folder to load, and the size of its largest file, SAM 2's among them."""
    folder = root / layout.model if layout.subfolder else root
    folder.mkdir(parents=True)
    architecture = random_architecture(layout.model)
    config = dict(architecture.language) | {"tie_word_embeddings": layout.head != "untied"}
    if not GPU:
        config["num_hidden_layers"] = CPU_LAYERS
    with no_init_weights():
        pam = Pam(type(architecture)(sam2=architecture.sam2, language=config), None)
    state = pam.state_dict()
    tensors = {official_name(name): tuple(tensor.shape) for name, tensor in state.items()}
    if layout.sam2 != "tower":
        content = {  # zeros, as nothing was initialised
            name.removeprefix(SAM2_PREFIX): torch.zeros_like(tensor)
            for name, tensor in state.items()
            if name.startswith(SAM2_PREFIX)
        }
        torch.save({"model": content}, root / "sam2.1_hiera_large.pt")
    if layout.sam2 == "file":
        tensors = {name: shape for name, shape in tensors.items() if not name.startswith(TOWER)}
    if layout.head == "absent":
        del tensors[LM_HEAD]
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(str(folder))
    if layout.trimmed:
        for name in (EMBEDDING, LM_HEAD):
            tensors[name] = (len(tokenizer), tensors[name][1])
    config_json = {**config, "model_type": "llava_qwen"}
    (folder / "config.json").write_text(json.dumps(config_json), encoding="utf-8")
    sizes = [path.stat().st_size for path in root.glob("*.pt")]
    for index, names in enumerate(divided(tensors, layout.shards), 1):
        path = folder / f"model-{index:05d}-of-{layout.shards:05d}.safetensors"
        write_sparse(path, {name: tensors[name] for name in names})
        sizes.append(path.stat().st_size)
    return root, max(sizes)


def divided(tensors: Mapping[str, tuple[int, ...]], count: int) -> Iterator[list[str]]:
    """Names in shards of about equal size."""
    left = sum(torch.Size(shape).numel() for shape in tensors.values())
    names = list(tensors)
    for shard in range(count, 0, -1):
        limit, taken = left / shard, 0
        chosen: list[str] = []
        while names and (taken < limit or shard == 1):
            taken += torch.Size(tensors[names[0]]).numel()
            chosen.append(names.pop(0))
        left -= taken
        yield chosen


CHILD = """
import json, sys, zlib
import torch
from pam_ros.model.loading.checkpoint import load_model
from pam_ros.model.loading.options import LoadOptions
from pam_ros.model.loading.weights import official_name

folder, device = sys.argv[1:]

def status(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) * 1024

if device != "cpu":
    ones = torch.ones(8, 8, device=device, dtype=torch.bfloat16)
    (ones @ ones).sum().item()  # CUDA's own memory is there before
before = status("VmRSS:")
open("/proc/self/clear_refs", "w").write("5")  # the peak counts from here
pam = load_model(LoadOptions(folder, device=device, dtype="bfloat16"))
peak = status("VmHWM:")
state = pam.state_dict()
firsts = {official_name(name): float(tensor.flatten()[0]) for name, tensor in state.items() if tensor.numel()}
unique = {tensor.data_ptr(): tensor.numel() * tensor.element_size() for tensor in state.values()}
print(json.dumps({"before": before, "peak": peak, "model": sum(unique.values()), "firsts": firsts}))
"""


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "layout",
    LAYOUTS if GPU else LAYOUTS[:3],
    ids=lambda layout: f"{layout.model}-{layout.shards}-{layout.sam2}-{layout.head}",
)
def test_loading_takes_little_host_memory(layout: Layout, tmp_path: Path) -> None:
    folder, largest = write_checkpoint(tmp_path / "model", layout)
    device = "cuda" if GPU else "cpu"
    command = [sys.executable, "-c", CHILD, str(folder), device]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    extra = found["peak"] - found["before"] - (0 if GPU else found["model"])
    sys.stdout.write(
        f"{layout.model}, {layout.shards} files, SAM 2 {layout.sam2}, head {layout.head}, {device}: "
        f"largest file {largest / MIB:.0f} MiB, model {found['model'] / MIB:.0f} MiB, "
        f"host peak {found['peak'] / MIB:.0f} MiB, before {found['before'] / MIB:.0f} MiB, "
        f"loading {extra / MIB:.0f} MiB = {extra / largest:.2f} of the largest file\n"
    )
    assert extra <= LARGEST_FRACTION * largest
    checked = 0
    for name, first in found["firsts"].items():
        is_tied = name == LM_HEAD and layout.head != "untied"
        if (name.startswith(TOWER) and layout.sam2 != "tower") or is_tied:
            continue
        assert first == mark(name), name
        checked += 1
    assert checked > 100 if layout.sam2 == "tower" else checked > 50
    if layout.head != "untied":
        assert found["firsts"][LM_HEAD] == mark(EMBEDDING)


KERNELS = """
import pam_ros.model  # as every way to a model does
import torch

network = torch.nn.Conv2d(8, 8, 3)
with torch.inference_mode():
    for side in [*range(40, 80), 40]:
        network(torch.zeros(2, 8, side, side))
"""


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN")
def test_kernels_of_few_shapes_are_kept() -> None:
    environment = {name: text for name, text in os.environ.items() if not name.startswith(("ONEDNN", "DNNL"))}
    done = subprocess.run(
        [sys.executable, "-c", KERNELS],
        env=environment | {"ONEDNN_VERBOSE": "profile_create"},
        capture_output=True,
        text=True,
        check=True,
    )
    made = [line for line in done.stdout.splitlines() if ",convolution," in line]
    assert len(made) >= 41
    assert "cache_miss" in made[-1]  # 39 shapes came since it was made
