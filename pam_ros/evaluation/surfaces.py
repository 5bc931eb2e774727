"""Positions and sizes from depth on rendered scenes, against what the camera sees of the objects.

A surface is measured from depth with sensor noise and the model's mask to a tight box, or the true mask. The
truth comes from exact depth and mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pam_ros.evaluation.cases import Case, Findings
from pam_ros.geometry import Mask, crop_mask, full_mask, mask_iou, pixel_rays
from pam_ros.model.interface import PerceptionModel
from pam_ros.oriented_box import ends
from pam_ros.records import CameraModel, Prompt
from pam_ros.runtime.offline import perceive_image
from pam_ros.simulator.depth_noise import JUMP_M, sensor_depth
from pam_ros.simulator.samples import ImageSample, image_sample
from pam_ros.visible_surface import measure_surface

GOOD_MASK = 0.85  # IoU


@dataclass(frozen=True, slots=True)
class SurfaceError:
    """One object.

    Attributes:
        name: its scene's seed and its category.
        mask_iou: of the mask used, with the truth.
        distance_m: from the camera to the true centroid.
        position_m: from the true centroid to the measured one; infinite if nothing was measured.
        size_m: (3,) measured extent minus that of all visible pixels, as `VisibleSurface.size_m` defines it.
        sensed_size_m: (3,) measured extent minus that of the pixels that a sensor can measure, see `_sensed`.
    """

    name: str
    mask_iou: float
    distance_m: float
    position_m: float
    size_m: NDArray[np.float64]
    sensed_size_m: NDArray[np.float64]

    @property
    def bar_m(self) -> float:
        """1 cm + 1 % of the distance: the largest error that counts as right."""
        return 0.01 + 0.01 * self.distance_m

    @property
    def right(self) -> dict[str, bool]:
        """Whether each figure is right."""
        sizes = {"size": self.size_m, "sensed_size": self.sensed_size_m}
        return {"position": self.position_m <= self.bar_m} | {
            f"{kind}_{axis}": bool(abs(off) <= self.bar_m)
            for kind, errors in sizes.items()
            for axis, off in zip("xyz", errors, strict=True)
        }


def evaluate_surfaces(
    model: PerceptionModel,
    seeds: Sequence[int],
    findings: Findings,
    progress: Callable[[str], None] = lambda line: None,
) -> None:
    """Adds, for the model's masks, how often each figure of `SurfaceError.right` is right.

    With `_good_mask`: of masks with an IoU of `GOOD_MASK` or better. With `_true_mask`: of the true masks.
    """
    for number, seed in enumerate(seeds, 1):
        progress(f"positions and sizes in scene {number} of {len(seeds)}")
        predicted = surface_errors(model, [seed])
        good = [error for error in predicted if error.mask_iou >= GOOD_MASK]
        true = surface_errors(None, [seed])
        for suffix, errors in (("", predicted), ("_good_mask", good), ("_true_mask", true)):
            for error in errors:
                for figure, is_right in error.right.items():
                    findings.add(Case(f"surface_{figure}{suffix}", error.name, float(is_right)))


def surface_errors(model: PerceptionModel | None, seeds: Iterable[int]) -> list[SurfaceError]:
    """Errors of every whole object in the test scenes of these seeds; without a model, of the true masks."""
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
            name = f"image {seed} {region.facts.category}"
            errors.append(_error(name, camera, sample.depth_m, noisy, truth, mask))
    return errors


def _masks(model: PerceptionModel, sample: ImageSample, truths: Sequence[Mask]) -> list[Mask]:
    prompts = [Prompt.from_clicks(box_xyxy=crop_mask(truth)[0]) for truth in truths]
    answers = perceive_image(model, sample.rgb, prompts, (), ())
    return [
        full_mask(answer.box_xyxy, answer.mask, truth.shape)
        for answer, truth in zip(answers, truths, strict=True)
    ]


def _error(
    name: str,
    camera: CameraModel,
    exact: NDArray[np.float32],
    noisy: NDArray[np.float32],
    truth: Mask,
    mask: Mask,
) -> SurfaceError:
    points = np.dstack([pixel_rays(camera) * exact[..., None], exact])
    centroid = points[truth].mean(axis=0, dtype=np.float64)
    sizes = [high - low for low, high in (ends(points[each]) for each in (truth, _sensed(exact, truth)))]
    surface = measure_surface(camera, noisy, *crop_mask(mask))
    off = np.full(3, np.inf) if surface is None else surface.position_m - centroid
    errors = [np.full(3, np.inf) if surface is None else surface.size_m - size for size in sizes]
    distance_m = float(np.linalg.norm(centroid))
    return SurfaceError(name, mask_iou(truth, mask), distance_m, float(np.linalg.norm(off)), *errors)


def _sensed(depth: NDArray[np.float32], mask: Mask) -> Mask:
    """The mask's pixels that a sensor can measure: in the window around them, the object's depth has no jump.

    The others are strips of one or two pixels, such as a box's side seen at a grazing angle, and the borders
    of wider surfaces. Their depth is mixed or missing. If most of an object is that thin, all of it counts.
    """
    window = np.ones((3, 3), np.uint8)
    far = cv2.dilate(np.where(mask, depth, 0), window)
    near = cv2.erode(np.where(mask, depth, np.float32(np.inf)), window)
    sensed = mask & (far - near <= JUMP_M)
    return sensed if np.count_nonzero(sensed) >= 0.5 * np.count_nonzero(mask) else mask
