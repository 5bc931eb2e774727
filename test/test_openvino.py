"""OpenVINO's networks give the results of sam2's own; if they fail, those stay."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import box, click, picture, tiny_pam

from pam_ros.model import fast_model
from pam_ros.model.fast_model import use_openvino
from pam_ros.model.openvino_network import openvino_is_installed
from pam_ros.model.pam import Pam
from pam_ros.model.vision.features import FrameFeatures, Observation
from pam_ros.model.vision.openvino_networks import OpenVinoNetworks
from pam_ros.records import Prompt

needs_openvino = pytest.mark.skipif(not openvino_is_installed(), reason="openvino is not installed")


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of converted networks for this module alone."""
    folder = tmp_path_factory.mktemp("cache")
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(folder))
    yield folder
    patch.undo()


def observe(pam: Pam, frames: Sequence[FrameFeatures]) -> list[Observation]:
    """Two regions by a click and a box, one by a mask, tracked together, one corrected, tracked on."""
    mask = np.zeros(frames[0].size, np.bool_)
    mask[20:50, 30:70] = True
    memories = [pam.new_memory() for _ in range(3)]
    found = pam.segment(frames[0], [click(), box(), Prompt(mask=mask)], memories)
    for step, features in enumerate(frames[1:]):
        found += pam.track(features, memories)
        if step == 1:
            found += pam.segment(features, [click()], memories[:1])
    return found


@needs_openvino
def test_features_and_masks_equal_those_of_torch(cache: Path) -> None:
    pam = tiny_pam()
    pictures = [picture(step) for step in range(5)]
    plain = [pam.encode(image) for image in pictures]
    expected = observe(pam, plain)
    lines: list[str] = []
    use_openvino(pam, lines.append)
    assert lines == ["OpenVINO runs SAM 2's networks"]
    frames = [pam.encode(image) for image in pictures]
    for one, other in zip(plain, frames, strict=True):
        assert not torch.equal(one.embedding, other.embedding), "the encoder was not used"
        levels = zip(
            (*one.high_resolution, one.embedding, one.position),
            (*other.high_resolution, other.embedding, other.position),
            strict=True,
        )
        for level, found in levels:
            torch.testing.assert_close(found, level, rtol=1e-4, atol=1e-4)
    for before, after in zip(expected, observe(pam, frames), strict=True):
        torch.testing.assert_close(after.mask_logits, before.mask_logits, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(after.mask_iou, before.mask_iou, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(after.presence_logit, before.presence_logit, rtol=1e-4, atol=1e-4)
        for name in ("image", "tokens"):
            one, other = getattr(before.decoder_features, name), getattr(after.decoder_features, name)
            torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4)


@needs_openvino
@pytest.mark.parametrize("binarise", [False, True])
@pytest.mark.parametrize("present", [False, True])
def test_each_network_equals_its_torch_counterpart(binarise: bool, present: bool) -> None:
    segmenter = tiny_pam().segmenter
    mine = OpenVinoNetworks(segmenter.sam2)
    with torch.inference_mode():
        features = segmenter.encode(picture())
        logits = 10 * torch.randn(2, 1, 4 * segmenter.grid_size, 4 * segmenter.grid_size)
        inputs = features.embedding, logits, torch.full((2, 1), present)
        expected = segmenter.networks.remember(*inputs, binarise=binarise)
        found = mine.remember(*inputs, binarise=binarise)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@needs_openvino
def test_networks_are_converted_once_and_again_for_other_weights(cache: Path) -> None:
    pam = tiny_pam()
    OpenVinoNetworks(pam.segmenter.sam2)

    def stamps() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in cache.rglob("*.xml")}

    before = stamps()
    assert {path.stem for path in before} == {"encoder", "attention", "decoder", "memory"}
    OpenVinoNetworks(pam.segmenter.sam2)
    assert stamps() == before
    with torch.no_grad():
        pam.segmenter.sam2.memory_encoder.out_proj.weight += 1
    OpenVinoNetworks(pam.segmenter.sam2)
    assert len(stamps()) == 2 * len(before)


@needs_openvino
def test_gradients_flow_through_torch(cache: Path) -> None:
    pam = tiny_pam()
    use_openvino(pam)
    pixels = pam.segmenter.pixels(picture()).requires_grad_()
    with torch.enable_grad():
        pam.segmenter.encode_pixels(pixels, (72, 96)).embedding.sum().backward()
    assert pixels.grad is not None and pixels.grad.abs().sum() > 0


def test_a_failure_leaves_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(sam2: object) -> None:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(fast_model, "openvino_is_installed", lambda: True)
    monkeypatch.setattr(fast_model, "OpenVinoNetworks", broken)
    pam, lines = tiny_pam(), []
    use_openvino(pam, lines.append)
    assert pam.segmenter.inference is None
    assert lines == ["OpenVINO is not used: RuntimeError: no such instruction"]


@needs_openvino
def test_a_cache_that_cannot_be_written_leaves_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    pam = tiny_pam()
    use_openvino(pam)
    assert pam.segmenter.inference is None
    (record,) = caplog.records
    assert "Not a directory; set XDG_CACHE_HOME" in record.getMessage()
    assert record.exc_info is None
