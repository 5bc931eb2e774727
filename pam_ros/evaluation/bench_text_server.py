"""What texts from a server cost: bytes sent and milliseconds, for a text and for a clip."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pam_ros.errors import InferenceError, TextServerError
from pam_ros.model.interface import FIRST_FRAME_STRIDE, LATER_FRAME_STRIDE, RegionEmbeddings, TextRequest
from pam_ros.model.remote_text import RemoteTextModel
from pam_ros.records import IMAGE_TASKS, Language, Prompt, Task

FRAME = (720, 1280)  # height, width, pixels
CLIP_FRAMES = 16
SILENCE_S = 600.0  # a text that takes longer fails the measurement


@dataclass(frozen=True, slots=True)
class ServerFigure:
    """One kind of request: medians over the repeats.

    Attributes:
        texts: number of texts that start together.
        prompt_tokens: of all texts together, without the task's own text.
        sent_bytes: of all texts together, without HTTP headers.
        first_token_ms: from the embeddings to the first token of any text.
        done_ms: from the embeddings to the end of the last text.
        tokens: generated in all texts together.
    """

    name: str
    texts: int
    prompt_tokens: int
    sent_bytes: int
    first_token_ms: float
    done_ms: float
    tokens: int


@dataclass(frozen=True, slots=True)
class _Run:
    sent_bytes: int
    first_token_ms: float
    done_ms: float
    tokens: int


def bench_text_server(
    model: RemoteTextModel, *, repeats: int, progress: Callable[[str], None]
) -> list[ServerFigure]:
    """Measures on noise: each repeat has its own frames, so that only "again" finds its prompt cached.

    Raises TextServerError if the server cannot be used, or InferenceError if a text fails.
    """
    if model.text.problem:
        raise TextServerError(model.text.problem)
    arrived = threading.Event()
    model.text.notify(arrived.set)
    label = (TextRequest(Task.LABEL, Language.EN),)
    tasks = tuple(TextRequest(task, Language.EN) for task in IMAGE_TASKS)
    caption = (TextRequest(Task.CLIP, Language.EN),)
    runs: dict[str, list[_Run]] = {}
    shapes: dict[str, tuple[int, int]] = {}

    def measure(name: str, frames: Sequence[RegionEmbeddings], requests: Sequence[TextRequest]) -> None:
        runs.setdefault(name, []).append(_run(model, frames, requests, arrived))
        shapes[name] = (len(requests), len(requests) * sum(len(frame) for frame in frames))

    for repeat, (first, later) in enumerate(_regions(model, repeats + 1)):
        progress(f"run {repeat} of {repeats}" if repeat else "warming up")
        measure("label", [first], label)
        measure("label again", [first], label)
        clip = [first] + [later] * (CLIP_FRAMES - 1)
        measure(f"caption of {CLIP_FRAMES} frames", clip, caption)
        measure(f"caption of {CLIP_FRAMES} frames again", clip, caption)
        (other, _) = next(_regions(model, 1, seed=10_000 + repeat))
        measure("four tasks of a region", [other], tasks)
        if repeat == 0:
            runs.clear()
    return [
        ServerFigure(
            name=name,
            texts=shapes[name][0],
            prompt_tokens=shapes[name][1],
            sent_bytes=round(statistics.median(run.sent_bytes for run in each)),
            first_token_ms=statistics.median(run.first_token_ms for run in each),
            done_ms=statistics.median(run.done_ms for run in each),
            tokens=round(statistics.median(run.tokens for run in each)),
        )
        for name, each in runs.items()
    ]


def _regions(
    model: RemoteTextModel, count: int, seed: int = 0
) -> Iterator[tuple[RegionEmbeddings, RegionEmbeddings]]:
    """Embeddings of a region in noise, at first-frame and at later-frame density."""
    vision = model.vision
    height, width = FRAME
    prompt = Prompt.from_clicks(box_xyxy=(width * 0.3, height * 0.3, width * 0.6, height * 0.7))
    for number in range(count):
        noise = np.random.default_rng(seed + number).integers(0, 256, (*FRAME, 3), np.uint8)
        observations = vision.segment(vision.encode(noise), [prompt], [vision.new_memory()])
        (first,) = vision.embeddings(observations, stride=FIRST_FRAME_STRIDE)
        (later,) = vision.embeddings(observations, stride=LATER_FRAME_STRIDE)
        yield first, later


def _run(
    model: RemoteTextModel,
    frames: Sequence[RegionEmbeddings],
    requests: Sequence[TextRequest],
    arrived: threading.Event,
) -> _Run:
    text, sent = model.text, model.text.server.sent_bytes
    began_s = time.perf_counter()
    prompt_id = text.open_prompt(clip=len(frames) > 1)
    for frame in frames:
        text.extend_prompt(prompt_id, frame)
    text.generate([(prompt_id, request) for request in requests])
    text.release_prompt(prompt_id)
    first_s: float | None = None
    tokens = 0
    while text.busy:
        if not arrived.wait(SILENCE_S):
            raise InferenceError(f"{text.server.url} sent nothing for {SILENCE_S:g} s")
        arrived.clear()
        for delta in text.step():
            if delta.error is not None:
                raise delta.error
            tokens += delta.new_tokens
            first_s = first_s or time.perf_counter()
    done_s = time.perf_counter()
    return _Run(
        sent_bytes=text.server.sent_bytes - sent,
        first_token_ms=((first_s or done_s) - began_s) * 1e3,
        done_ms=(done_s - began_s) * 1e3,
        tokens=tokens,
    )
