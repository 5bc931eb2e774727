"""OpenVINO's image encoder gives the features of sam2's own; if it fails, that one stays."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import click, picture, tiny_pam

from pam_ros.model import fast_model
from pam_ros.model.fast_model import use_openvino
from pam_ros.model.vision.openvino_encoder import OpenVinoEncoder, openvino_is_installed

needs_openvino = pytest.mark.skipif(not openvino_is_installed(), reason="openvino is not installed")


@needs_openvino
def test_features_and_masks_equal_those_of_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pam = tiny_pam()
    plain = [pam.encode(picture(step)) for step in range(2)]
    expected = pam.segment(plain[0], [click()], [memory := pam.new_memory()]), pam.track(plain[1], [memory])
    lines: list[str] = []
    use_openvino(pam, lines.append)
    assert lines == ["OpenVINO runs the image encoder"]
    frames = [pam.encode(picture(step)) for step in range(2)]
    for one, other in zip(plain, frames, strict=True):
        assert not torch.equal(one.embedding, other.embedding), "the encoder was not used"
        levels = zip(
            (*one.high_resolution, one.embedding, one.position),
            (*other.high_resolution, other.embedding, other.position),
            strict=True,
        )
        for level, found in levels:
            torch.testing.assert_close(found, level, rtol=1e-4, atol=1e-4)
    memory = pam.new_memory()
    found = pam.segment(frames[0], [click()], [memory]), pam.track(frames[1], [memory])
    for before, after in zip(expected, found, strict=True):
        torch.testing.assert_close(after[0].mask_logits, before[0].mask_logits, rtol=1e-3, atol=1e-3)
    (converted,) = (tmp_path / "pam_ros" / "openvino").glob("*.xml")
    stamp = converted.stat().st_mtime_ns
    batch = torch.cat([pam.segmenter.pixels(picture(step)) for step in range(2)])
    levels_of_two = OpenVinoEncoder(pam.segmenter.sam2)(batch)  # converted already
    assert converted.stat().st_mtime_ns == stamp
    torch.testing.assert_close(levels_of_two[-1][1:], frames[1].embedding, rtol=1e-4, atol=1e-4)


def test_a_failure_leaves_the_plain_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(sam2: object) -> None:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(fast_model, "openvino_is_installed", lambda: True)
    monkeypatch.setattr(fast_model, "OpenVinoEncoder", broken)
    pam, lines = tiny_pam(), []
    use_openvino(pam, lines.append)
    assert pam.segmenter.encoder is None
    assert lines == ["OpenVINO is not used: RuntimeError: no such instruction"]
