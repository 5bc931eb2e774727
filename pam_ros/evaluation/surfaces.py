"""`python -m pam_ros.evaluation.surfaces`: errors of positions and sizes from depth, on rendered scenes.

A surface is measured from depth with sensor noise and the model's mask to a tight box, or the true mask. The
truth is what the camera sees of the object, from exact depth and mask.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pam_ros.geometry import Mask, crop_mask, full_mask, mask_iou, pixel_rays
from pam_ros.model.interface import PerceptionModel
from pam_ros.model.loading.options import LoadOptions
from pam_ros.records import CameraModel, Prompt
from pam_ros.runtime.offline import perceive_image
from pam_ros.simulator.depth_noise import sensor_depth
from pam_ros.simulator.samples import ImageSample, image_sample
from pam_ros.visible_surface import ends, measure_surface

GOOD_MASK = 0.85  # IoU


@dataclass(frozen=True, slots=True)
class SurfaceError:
    """One object.

    Attributes:
        mask_iou: of the mask used, with the truth.
        distance_m: from the camera to the true centroid.
        position_m: from the true centroid to the measured one; infinite if nothing was measured.
        size_m: (3,) measured extent minus the true one.
        true_size_m: (3,) extent of the visible pixels, as `VisibleSurface.size_m` defines it.
    """

    category: str
    mask_iou: float
    distance_m: float
    position_m: float
    size_m: NDArray[np.float64]
    true_size_m: NDArray[np.float64]

    @property
    def position_is_right(self) -> bool:
        """Within 1 cm + 1 % of the distance."""
        return self.position_m <= 0.01 + 0.01 * self.distance_m

    @property
    def size_is_right(self) -> NDArray[np.bool_]:
        """(3,): each extent within 1 cm + 1 % of the distance."""
        return np.asarray(np.abs(self.size_m) <= 0.01 + 0.01 * self.distance_m)


def surface_errors(model: PerceptionModel | None, seeds: Iterable[int]) -> list[SurfaceError]:
    """Of every whole object of the test scenes with these seeds. Without a model, masks are the true ones."""
    errors: list[SurfaceError] = []
    for seed in seeds:
        sample = image_sample(seed, "test")
        objects = [region for region in sample.regions if region.mesh_id and not region.part]
        truths = [sample.mask(region) for region in objects]
        masks = truths if model is None else _masks(model, sample, truths)
        (fx, _, cx), (_, fy, cy), _ = sample.intrinsics.tolist()
        height, width = sample.depth_m.shape
        camera = CameraModel((height, width), fx, fy, cx, cy)
        noisy = sensor_depth(sample.depth_m, fx, np.random.default_rng(seed))
        for region, truth, mask in zip(objects, truths, masks, strict=True):
            error = _error(camera, sample.depth_m, noisy, truth, mask)
            errors.append(SurfaceError(region.facts.category, mask_iou(truth, mask), *error))
    return errors


def _masks(model: PerceptionModel, sample: ImageSample, truths: Sequence[Mask]) -> list[Mask]:
    prompts = [Prompt.from_clicks(box_xyxy=crop_mask(truth)[0]) for truth in truths]
    answers = perceive_image(model, sample.rgb, prompts, (), ())
    return [
        full_mask(answer.box_xyxy, answer.mask, truth.shape)
        for answer, truth in zip(answers, truths, strict=True)
    ]


def _error(
    camera: CameraModel, exact: NDArray[np.float32], noisy: NDArray[np.float32], truth: Mask, mask: Mask
) -> tuple[float, float, NDArray[np.float64], NDArray[np.float64]]:
    """The last four fields of SurfaceError."""
    z = exact[truth].astype(np.float64)
    points = np.column_stack([pixel_rays(camera)[truth] * z[:, None], z])
    centroid = points.mean(axis=0)
    low, high = ends(points)
    size = high - low
    surface = measure_surface(camera, noisy, *crop_mask(mask))
    distance_m = float(np.linalg.norm(centroid))
    if surface is None:
        return distance_m, np.inf, np.full(3, np.inf), size
    return distance_m, float(np.linalg.norm(surface.position_m - centroid)), surface.size_m - size, size


def line(name: str, errors: Sequence[SurfaceError]) -> str:
    """A row of the table of docs/spatial.md."""
    off = np.array([error.position_m for error in errors])
    sizes = np.abs(np.stack([error.size_m for error in errors]))
    right = np.mean([error.size_is_right for error in errors], axis=0)
    cells = (
        name,
        len(errors),
        f"{np.mean([error.position_is_right for error in errors]):.3f}",
        f"{np.median(off) * 1000:.1f} / {np.quantile(off, 0.95) * 1000:.0f} mm",
        " / ".join(f"{each:.2f}" for each in right),
        " / ".join(f"{each * 1000:.0f}" for each in np.median(sizes, axis=0)) + " mm",
    )
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    """Prints the table."""
    from pam_ros.model.loading.checkpoint import load_model

    parser = argparse.ArgumentParser(
        description="Errors of positions and sizes that are measured from depth."
    )
    parser.add_argument("--model", default="pam-tiny", help="model that makes the masks")
    parser.add_argument("--seed", type=int, default=7, help="seed of the first scene, in millions")
    parser.add_argument("--count", type=int, default=60, help="number of scenes")
    options = parser.parse_args()
    seeds = range(options.seed * 1_000_000, options.seed * 1_000_000 + options.count)
    predicted = surface_errors(load_model(LoadOptions(options.model)), seeds)
    print("| mask | objects | position right | median / 95 % | size right x / y / z | median x / y / z |")
    print("|---|---|---|---|---|---|")
    print(line("true", surface_errors(None, seeds)))
    good = [error for error in predicted if error.mask_iou >= GOOD_MASK]
    print(line(f"{options.model}, IoU of {GOOD_MASK} or better", good))
    print(line(f"{options.model}, all", predicted))


if __name__ == "__main__":
    main()
