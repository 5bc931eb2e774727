"""`python -m pam_ros.training.export runs/stage2/model models/pam-tiny`: half precision, as it ships."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from pam_ros.model.checkpoint import load_model, save_model
from pam_ros.model.pam import Pam
from pam_ros.training.config import TrainingError

# Parts of the names of the weights that only tracking uses: memory, pointers, whether the object is in view.
TRACKING = ("memory_", "maskmem_", "obj_ptr", "no_obj", "mask_downsample", "pred_obj_score")


def export_model(trained: Path, folder: Path, *, older: Path | None = None, share: float = 1.0) -> float:
    """Writes the model into `folder`; returns the weights' size in MB. `older`, `share`: see `blend`."""
    model = _opened(trained)
    if older is not None:
        blend(model, _opened(older), share)
    save_model(model, folder, dtype=torch.float16)
    return (folder / "model.safetensors").stat().st_size / 1e6


@torch.no_grad()
def blend(model: Pam, older: Pam, share: float) -> None:
    """Moves what SAM 2 tracks by towards the model it was trained on from: `share` of the way, 0..1.

    What it lost where it was trained on mostly with pictures comes back (Wortsman et al., "Robust fine-tuning
    of zero-shot models", 2022). Raises TrainingError for another share, or a SAM 2 of other sizes.
    """
    if not 0 <= share <= 1:
        raise TrainingError(f"the older model's share is {share}; allowed: 0..1")
    ours, theirs = model.segmenter.state_dict(), older.segmenter.state_dict()
    if {name: each.shape for name, each in ours.items()} != {n: each.shape for n, each in theirs.items()}:
        raise TrainingError(
            "the older model's SAM 2 has other tensors; blend a model with the one it began from"
        )
    for name, tensor in ours.items():
        if any(part in name for part in TRACKING):
            tensor.lerp_(theirs[name], share)


def _opened(folder: Path) -> Pam:
    return load_model(str(folder), device="cpu", dtype="float32")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write a trained model as it ships, in half precision.")
    parser.add_argument("trained", type=Path, help="a stage's model folder, e.g. runs/stage2/model")
    parser.add_argument("folder", type=Path, help="where it ships, e.g. models/pam-tiny")
    parser.add_argument(
        "--older", type=Path, help="the model whose SAM 2 was trained on: keep what it tracks by"
    )
    parser.add_argument("--share", type=float, default=1.0, help="of the older one's weights there, 0..1")
    given = parser.parse_args(arguments)
    size = export_model(given.trained, given.folder, older=given.older, share=given.share)
    print(f"{size:.1f} MB in {given.folder}")


if __name__ == "__main__":
    main()
