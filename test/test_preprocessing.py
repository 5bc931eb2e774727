"""Preprocessing equals PIL's resize bit for bit, on every device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from pam_ros.model.vision.fast.preprocessing import Preprocessor, torch_resize

pytestmark = pytest.mark.cuda
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# (height, width): cameras, single pixels, odd sizes, portrait (PIL's other order of passes), extreme aspects
SIZES = [
    (720, 1280), (480, 640), (1080, 1920), (2160, 3840), (1, 1), (1, 5), (7, 1), (3, 2), (1023, 1025),
    (1025, 333), (99, 2047), (37, 4001), (1024, 77), (600, 1024), (1024, 1024), (1280, 720), (1920, 1080),
    (1100, 10), (80, 40),
]  # fmt: skip


def picture(height: int, width: int, *, extremes: bool) -> NDArray[np.uint8]:
    """Noise; `extremes`: black and white only, so that the filter overshoots."""
    rng = np.random.default_rng(height * 10_000 + width)
    noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return np.where(noise > 127, 255, 0).astype(np.uint8) if extremes else noise


def reference(image: NDArray[np.uint8], size: int, dtype: torch.dtype) -> torch.Tensor:
    """The plain path: PIL, then float arithmetic."""
    resized = np.array(Image.fromarray(image).resize((size, size)))
    pixels = torch.from_numpy(resized).to(DEVICE).permute(2, 0, 1)[None].float() / 255
    mean, std = (torch.tensor(values, device=DEVICE).view(1, 3, 1, 1) for values in (MEAN, STD))
    return ((pixels - mean) / std).to(dtype)


def preprocessor(size: int, dtype: torch.dtype = torch.float32) -> Preprocessor:
    return Preprocessor(size=size, mean=MEAN, std=STD, dtype=dtype, device=DEVICE)


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize(("size", "extremes"), [(1024, False), (1024, True), (384, True)])
def test_resize_equals_pil(height: int, width: int, size: int, extremes: bool) -> None:
    image = picture(height, width, extremes=extremes)
    expected = np.array(Image.fromarray(image).resize((size, size)))
    assert np.array_equal(torch_resize(torch.from_numpy(image).to(DEVICE), size).cpu().numpy(), expected)
    for dtype in (torch.float32, torch.bfloat16):
        part = preprocessor(size, dtype)
        assert torch.equal(part.pixels(part.upload(image)), reference(image, size, dtype))


def test_random_sizes_equal_pil() -> None:
    rng = np.random.default_rng(5)
    for height, width, size in rng.integers(1, 400, (60, 3)):
        image = picture(int(height), int(width), extremes=bool(height % 2))
        expected = np.array(Image.fromarray(image).resize((int(size), int(size))))
        assert np.array_equal(
            torch_resize(torch.from_numpy(image).to(DEVICE), int(size)).cpu().numpy(), expected
        )


def test_a_crop_of_an_uploaded_frame_equals_the_crop_uploaded() -> None:
    image, part = picture(50, 60, extremes=False), preprocessor(64)
    crop = part.pixels(part.upload(image)[10:40, 5:50])
    assert torch.equal(crop, part.pixels(part.upload(image[10:40, 5:50].copy())))


def test_an_uploaded_frame_may_change_afterwards() -> None:
    image, part = picture(50, 60, extremes=False), preprocessor(64)
    expected = reference(image, 64, torch.float32)
    uploaded = (
        [part.upload(image) for _ in range(3)] if DEVICE.type == "cuda" else [part.upload(image.copy())]
    )
    image[:] = 0
    assert all(torch.equal(part.pixels(each), expected) for each in uploaded)
