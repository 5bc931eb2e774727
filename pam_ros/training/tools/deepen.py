"""`python -m pam_ros.training.tools.deepen FOLDER OUT`: a deeper SAM 2 encoder with the same output.

The new blocks end the trunk's third stage. Their last layers are zero, so each adds nothing until it is
trained.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import torch
from torch import Tensor

from pam_ros.errors import InputError
from pam_ros.model.config import sam2_config
from pam_ros.model.loading.checkpoint import (
    architecture_of,
    load_model,
    read_config,
    read_tokenizer,
    save_model,
)
from pam_ros.model.loading.options import LoadOptions
from pam_ros.model.pam import Pam

STAGE = 2  # the third one, of stride 16: that of the features which the mask decoder and the Perceiver read
BLOCKS = "segmenter.sam2.image_encoder.trunk.blocks."
LAST_LAYERS = ("attn.proj.", "mlp.layers.1.")  # of a block's two residual branches


def deepened(folder: Path, blocks: int, seed: int = 0) -> Pam:
    """The model in `folder` with `blocks` more in its encoder; the last of them attends globally.

    Raises InputError if the folder has no sam2.yaml of its own, or `blocks` is not positive.
    """
    described = folder / "sam2.yaml"
    if not described.is_file():
        raise InputError(f"{folder} has no sam2.yaml: only a model with its own SAM 2 can be deepened")
    if blocks < 1:
        raise InputError(f"blocks is {blocks}; give 1 or more")
    old = load_model(LoadOptions(str(folder), device="cpu", dtype="float32"))
    sam2 = sam2_config(described)
    trunk = sam2["image_encoder"]["trunk"]
    end = sum(trunk["stages"][: STAGE + 1])  # number of the first new block
    trunk["stages"][STAGE] += blocks
    trunk["global_att_blocks"] = [
        *(block if block < end else block + blocks for block in trunk["global_att_blocks"]),
        end + blocks - 1,
    ]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pam = Pam(architecture_of(read_config(folder), sam2), read_tokenizer(folder))
    fresh = pam.state_dict()
    known = {_moved(name, end, blocks): tensor for name, tensor in old.state_dict().items()}
    pam.load_state_dict({name: known.get(name, _start(name, tensor)) for name, tensor in fresh.items()})
    return pam


def _moved(name: str, end: int, blocks: int) -> str:
    """A weight's name in the deeper model: blocks after the new ones count on."""
    found = re.match(re.escape(BLOCKS) + r"(\d+)\.", name)
    if found is None or int(found[1]) < end:
        return name
    return f"{BLOCKS}{int(found[1]) + blocks}.{name[found.end() :]}"


def _start(name: str, drawn: Tensor) -> Tensor:
    """A new block's weight: as it was drawn, or zero in the layers that end its branches."""
    return torch.zeros_like(drawn) if any(part in name for part in LAST_LAYERS) else drawn


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="a model with its own sam2.yaml")
    parser.add_argument("out", type=Path, help="folder for the deeper model")
    parser.add_argument("--blocks", type=int, default=3, help="how many to add")
    given = parser.parse_args(arguments)
    save_model(deepened(given.folder, given.blocks), given.out, dtype=torch.float32)


if __name__ == "__main__":
    main()
