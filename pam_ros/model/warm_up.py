"""Runs a loaded model once, so that the first image does not pay for first-time work."""

from __future__ import annotations

import time

import numpy as np

from pam_ros.model.interface import (
    FIRST_FRAME_STRIDE,
    PerceptionModel,
    RegionEmbeddings,
    TextGenerator,
    TextRequest,
)
from pam_ros.records import Language, Prompt, Task

POLL_S = 0.001


def warm_up(model: PerceptionModel) -> None:
    """Runs one small frame through every part of the model."""
    vision = model.vision
    image = np.full((64, 64, 3), 127, np.uint8)
    memory = vision.new_memory()
    observations = vision.segment(vision.encode(image), [Prompt.from_clicks([(32, 32)])], [memory])
    vision.track(vision.encode(image), [memory])
    (embeddings,) = vision.embeddings(observations, stride=FIRST_FRAME_STRIDE, crop=True)
    if model.info.text_server:
        return  # another process, which may not even be up
    first_text(model.text, embeddings)


def first_text(text: TextGenerator, embeddings: RegionEmbeddings) -> None:
    """Generates two tokens about a region. Raises what the generator reports."""
    prompt_id = text.open_prompt(clip=False)
    text.extend_prompt(prompt_id, embeddings)
    text.generate([(prompt_id, TextRequest(Task.LABEL, Language.EN, max_new_tokens=2))])
    text.release_prompt(prompt_id)
    while text.busy:
        for delta in text.step():
            if delta.error is not None:
                raise delta.error
        if text.in_background:
            time.sleep(POLL_S)
