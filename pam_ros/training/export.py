"""`python -m pam_ros.training.export runs/stage2/model models/pam-tiny`: writes a model in half precision."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from enum import Enum
from pathlib import Path

import torch

from pam_ros.model.loading.checkpoint import load_model, save_model
from pam_ros.model.loading.options import LoadOptions
from pam_ros.model.pam import Pam
from pam_ros.training.config import TrainingError
from pam_ros.training.modules import part_of

# Parts of the names of weights that only tracking uses: memory, object pointers, presence.
TRACKING = ("memory_", "maskmem_", "obj_ptr", "no_obj", "mask_downsample", "pred_obj_score")


class Blended(Enum):
    """Weights that move towards the older model's."""

    TRACKING = "tracking"  # weights of SAM 2 that only tracking uses
    TEXTS = "texts"  # all but SAM 2

    def holds(self, name: str) -> bool:
        """Whether a weight of this name is one of them."""
        if self is Blended.TEXTS:
            return part_of(name) != "segmenter"
        return part_of(name) == "segmenter" and any(part in name for part in TRACKING)


def export_model(
    trained: Path,
    folder: Path,
    *,
    older: Path | None = None,
    fraction: float = 1.0,
    what: Blended = Blended.TRACKING,
) -> float:
    """Writes the model into `folder`; returns the weights' size in MB. Other arguments: see `blend`."""
    model = _opened(trained)
    if older is not None:
        blend(model, _opened(older), fraction, what)
    save_model(model, folder, dtype=torch.float16)
    return (folder / "model.safetensors").stat().st_size / 1e6


@torch.no_grad()
def blend(model: Pam, older: Pam, fraction: float, what: Blended = Blended.TRACKING) -> None:
    """Moves some weights by `fraction` (0..1) of the way back to the model that training started from.

    This restores what training has unlearned: tracking by training mostly on images, labels by training on
    few images (Wortsman et al., "Robust fine-tuning of zero-shot models", 2022). Raises TrainingError for a
    fraction outside 0..1, or for models of different sizes.
    """
    if not 0 <= fraction <= 1:
        raise TrainingError(f"the older model's fraction is {fraction}; allowed: 0..1")
    new, old = ({n: each for n, each in m.named_parameters() if what.holds(n)} for m in (model, older))
    if {name: each.shape for name, each in new.items()} != {n: each.shape for n, each in old.items()}:
        raise TrainingError("the older model has other tensors; blend a model with the one it started from")
    for name, tensor in new.items():
        tensor.lerp_(old[name], fraction)


def _opened(folder: Path) -> Pam:
    return load_model(LoadOptions(str(folder), device="cpu", dtype="float32"))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write a trained model in half precision.")
    parser.add_argument("trained", type=Path, help="a stage's model folder, e.g. runs/stage2/model")
    parser.add_argument("folder", type=Path, help="folder to write to, e.g. models/pam-tiny")
    parser.add_argument(
        "--older", type=Path, help="the model that training started from; some weights move back to it"
    )
    halves = [each.value for each in Blended]
    parser.add_argument("--what", choices=halves, default=halves[0], help="weights that move back")
    parser.add_argument("--fraction", type=float, default=1.0, help="of the way back, 0..1")
    given = parser.parse_args(arguments)
    what = Blended(given.what)
    size = export_model(given.trained, given.folder, older=given.older, fraction=given.fraction, what=what)
    print(f"{size:.1f} MB in {given.folder}")


if __name__ == "__main__":
    main()
