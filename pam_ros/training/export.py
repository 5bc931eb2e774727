"""`python -m pam_ros.training.export runs/stage2/model models/pam-tiny`: half precision, as it ships."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from pam_ros.model.checkpoint import load_model, save_model


def export_model(trained: Path, folder: Path) -> float:
    """Writes the model into `folder`; returns the weights' size in MB."""
    save_model(load_model(str(trained), device="cpu", dtype="float32"), folder, dtype=torch.float16)
    return (folder / "model.safetensors").stat().st_size / 1e6


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write a trained model as it ships, in half precision.")
    parser.add_argument("trained", type=Path, help="a stage's model folder, e.g. runs/stage2/model")
    parser.add_argument("folder", type=Path, help="where it ships, e.g. models/pam-tiny")
    given = parser.parse_args(arguments)
    print(f"{export_model(given.trained, given.folder):.1f} MB in {given.folder}")


if __name__ == "__main__":
    main()
