"""`python -m pam_ros.training.export runs/stage2/model models/pam-tiny`: half precision, as it ships."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from enum import Enum
from pathlib import Path

import torch

from pam_ros.model.loading.checkpoint import load_model, save_model
from pam_ros.model.pam import Pam
from pam_ros.training.config import TrainingError
from pam_ros.training.modules import part_of

# Parts of the names of the weights that only tracking uses: memory, pointers, whether the object is in view.
TRACKING = ("memory_", "maskmem_", "obj_ptr", "no_obj", "mask_downsample", "pred_obj_score")


class Blended(Enum):
    """Which weights move towards the older model's."""

    TRACKING = "tracking"  # what SAM 2 tracks by, see TRACKING
    TEXTS = "texts"  # all but SAM 2

    def holds(self, name: str) -> bool:
        """Whether a weight of this name belongs to it."""
        if self is Blended.TEXTS:
            return part_of(name) != "segmenter"
        return part_of(name) == "segmenter" and any(part in name for part in TRACKING)


def export_model(
    trained: Path,
    folder: Path,
    *,
    older: Path | None = None,
    share: float = 1.0,
    what: Blended = Blended.TRACKING,
) -> float:
    """Writes the model into `folder`; returns the weights' size in MB. The others: see `blend`."""
    model = _opened(trained)
    if older is not None:
        blend(model, _opened(older), share, what)
    save_model(model, folder, dtype=torch.float16)
    return (folder / "model.safetensors").stat().st_size / 1e6


@torch.no_grad()
def blend(model: Pam, older: Pam, share: float, what: Blended = Blended.TRACKING) -> None:
    """Moves some weights towards those of the model it was trained on from: `share` of the way, 0..1.

    What it lost where it was trained on mostly other data comes back: tracking after mostly pictures, names
    after fewer pictures (Wortsman et al., "Robust fine-tuning of zero-shot models", 2022). Raises
    TrainingError for another share, or models of other sizes.
    """
    if not 0 <= share <= 1:
        raise TrainingError(f"the older model's share is {share}; allowed: 0..1")
    ours, theirs = ({n: each for n, each in m.named_parameters() if what.holds(n)} for m in (model, older))
    if {name: each.shape for name, each in ours.items()} != {n: each.shape for n, each in theirs.items()}:
        raise TrainingError("the older model has other tensors; blend a model with the one it began from")
    for name, tensor in ours.items():
        tensor.lerp_(theirs[name], share)


def _opened(folder: Path) -> Pam:
    return load_model(str(folder), device="cpu", dtype="float32")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write a trained model as it ships, in half precision.")
    parser.add_argument("trained", type=Path, help="a stage's model folder, e.g. runs/stage2/model")
    parser.add_argument("folder", type=Path, help="where it ships, e.g. models/pam-tiny")
    parser.add_argument(
        "--older", type=Path, help="the model that was trained on: go back towards its weights"
    )
    halves = [each.value for each in Blended]
    parser.add_argument("--what", choices=halves, default=halves[0], help="which weights go back")
    parser.add_argument("--share", type=float, default=1.0, help="of the older model, 0..1")
    given = parser.parse_args(arguments)
    what = Blended(given.what)
    size = export_model(given.trained, given.folder, older=given.older, share=given.share, what=what)
    print(f"{size:.1f} MB in {given.folder}")


if __name__ == "__main__":
    main()
