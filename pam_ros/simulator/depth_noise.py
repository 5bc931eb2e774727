"""Depth as a sensor measures it: noise that grows with distance, quantised disparity, flying pixels, holes.

After Handa et al. (ICRA 2014, lateral shift and quantised disparity) and Nguyen et al. (3DIMPVT 2012, axial
noise), for an active stereo camera with a baseline of 7.5 cm.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

BASELINE_M = 0.075
DISPARITY_STEP_PX = 0.125
DISPARITY_NOISE_PX = 0.08
LATERAL_NOISE_PX = 0.5
JUMP_M = 0.02  # neighbours farther apart than this lie on two surfaces
HOLE_FRACTION = 0.01  # of all pixels
RIM_HOLE_FRACTION = 0.3  # of the pixels at a jump; others mix the depths of both sides
RIM_MIXED_FRACTION = 0.5
FARTHEST_M = 10.0


def sensor_depth(
    depth_m: NDArray[np.float32], focal_px: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """(H, W) true depth, metres → (H, W) measured depth, metres; 0 = nothing measured."""
    shape = depth_m.shape
    rows, columns = np.indices(shape, np.float32)
    shifts = rng.normal(0, LATERAL_NOISE_PX, (2, *shape)).astype(np.float32)
    shifted = cv2.remap(
        depth_m, columns + shifts[0], rows + shifts[1], cv2.INTER_NEAREST, None, cv2.BORDER_REPLICATE
    )
    # Flying pixels: at a jump, the sensor's window sees both surfaces and returns a depth between them.
    kernel = np.ones((3, 3), np.uint8)
    near, far = cv2.erode(depth_m, kernel), cv2.dilate(depth_m, kernel)
    rim, kind = far - near > JUMP_M, rng.random(shape)
    mixed = near + rng.random(shape, np.float32) * (far - near)
    shifted = np.where(rim & (kind < RIM_MIXED_FRACTION), mixed, shifted)
    disparity = focal_px * BASELINE_M / np.maximum(shifted, 1e-3)
    # Neighbouring pixels share most of their stereo window, so most of their noise.
    noise = cv2.GaussianBlur(rng.normal(0, 1, shape), (0, 0), 1.0)
    disparity += noise / noise.std() * DISPARITY_NOISE_PX
    disparity = np.round(disparity / DISPARITY_STEP_PX) * DISPARITY_STEP_PX
    measured = focal_px * BASELINE_M / np.maximum(disparity, DISPARITY_STEP_PX)
    holes = (rng.random(shape) < HOLE_FRACTION) | (rim & (kind > 1 - RIM_HOLE_FRACTION))
    return np.where(holes | (measured > FARTHEST_M), 0, measured).astype(np.float32)
