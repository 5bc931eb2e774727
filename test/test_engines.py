"""The engines give the results of the plain path: decoder features, region embeddings and greedy texts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import GRID, SIZE, click, picture, tiny_pam

from pam_ros.errors import CheckpointError
from pam_ros.model.config import PerceiverInput
from pam_ros.model.engines import Engines
from pam_ros.model.interface import FIRST_FRAME_STRIDE, LATER_FRAME_STRIDE, TextRequest
from pam_ros.model.text.prompts import TEXT_BEFORE_IMAGE, text_after_image
from pam_ros.records import Language, Task

TOLERANCE = 1e-4


def test_a_click_gives_the_texts_of_the_plain_path() -> None:
    pam = tiny_pam()
    engines = Engines(pam, cache_tokens=1000, stop_ids=sorted(pam.language.stop_ids))
    (observation,) = pam.segment(pam.encode(picture()), [click()], [pam.new_memory()])
    scale = np.array([16 * GRID / SIZE[1], 16 * GRID / SIZE[0]], np.float32)
    points = (np.array([[[30, 30]]], np.float32) * scale).astype(np.float32)
    found = engines.vision.segment(
        engines.encode(picture()), points, np.ones((1, 1), np.int32), [engines.vision.open()]
    )
    assert np.array_equal(found.to_host().masks[0], observation.mask)
    for stride in (FIRST_FRAME_STRIDE, LATER_FRAME_STRIDE):
        (expected,) = pam.embeddings([observation], stride=stride)
        embeddings = engines.region_embeddings(found.features, stride=stride)[0]
        torch.testing.assert_close(embeddings, expected.tensor, rtol=TOLERANCE, atol=TOLERANCE)
    (first,) = pam.embeddings([observation], stride=FIRST_FRAME_STRIDE)
    prompt_id = pam.text.open_prompt(clip=False)
    pam.text.extend_prompt(prompt_id, first)
    pam.text.generate([(prompt_id, TextRequest(Task.LABEL, Language.EN, max_new_tokens=9))])
    deltas = [delta for _ in range(20) for delta in pam.text.step()]
    before = engines.text.embed(pam.language.encode_text(TEXT_BEFORE_IMAGE))
    prompt = engines.text.open(len(before) + len(first))
    engines.text.extend(
        prompt, torch.cat([before, engines.region_embeddings(found.features, stride=FIRST_FRAME_STRIDE)[0]])
    )
    suffix = pam.language.encode_text(text_after_image(Task.LABEL, Language.EN))
    text = engines.text.generate(prompt, suffix, max_new_tokens=9)
    while not engines.text.idle:
        engines.text.step()
    assert deltas[-1].final
    assert len(text.tokens) > 2
    assert pam.language.decode_text(text.tokens) == deltas[-1].text


def test_engines_refuse_a_perceiver_that_reads_other_features() -> None:
    pam = tiny_pam()
    pam.segmenter.perceiver_input = PerceiverInput.BEFORE
    with pytest.raises(CheckpointError, match="need a Perceiver with input 'after', not 'before'"):
        Engines(pam)
