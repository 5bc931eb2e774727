"""Tracks a region at the camera's rate while captioning it back to back, for `pam bench --engine fast`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pam_ros.evaluation.bench_device import Times, synchronize
from pam_ros.evaluation.bench_paths import (
    PREVIOUS_CAPTION_TOKENS,
    SUFFIX_TOKENS,
    FastPath,
    FastRegions,
    Image,
    token_ids,
)
from pam_ros.model.interface import FIRST_FRAME_STRIDE, LATER_FRAME_STRIDE
from pam_ros.model.text.fast.kv_cache import Span
from pam_ros.model.text.fast.text_engine import CachedPrompt, Text
from pam_ros.model.text.fast.text_worker import TextWorker
from pam_ros.model.vision.features import DecoderFeatures

CAPTION_TOKENS = 64
CAMERA_FPS = 30
BURST_TOKENS = 2  # between two frames, if one thread does everything
NAP_S = 0.0005


@dataclass(frozen=True, slots=True)
class CaptionedTracking:
    """Results of one run."""

    frames: Times  # from the time a frame is due until its masks are on the host
    dropped: int  # frames that a newer one replaced
    captions: int  # finished


def track_while_captioning(
    path: FastPath, frames: Sequence[Image], *, seconds: float, threads: bool
) -> CaptionedTracking:
    """Tracks frames at `CAMERA_FPS` for some seconds.

    `threads`: texts run on a thread and a stream of their own. Otherwise one thread processes a frame, then
    prefill passes and short bursts of decoding until the next frame is due.
    """
    text = path.engines.text
    regions = path.segment(frames[0], 1)
    worker = TextWorker(text) if threads else None
    captioner = Captioner(path, worker)
    period_s, waits_ms, dropped = 1 / CAMERA_FPS, [], 0
    urgent = torch.cuda.Stream(priority=-1) if threads else torch.cuda.current_stream()  # type: ignore[no-untyped-call]
    synchronize(path.device)
    begin_s = time.perf_counter()
    with torch.cuda.stream(urgent):
        for number in range(int(seconds * CAMERA_FPS)):
            due_s = begin_s + number * period_s
            while (now_s := time.perf_counter()) < due_s:
                if worker is not None or text.idle:
                    time.sleep(min(NAP_S, max(0.0, due_s - now_s)))
                else:
                    text.step(BURST_TOKENS)
            if now_s - due_s > period_s:  # a newer frame is there already
                dropped += 1
                continue
            path.track(frames[number % len(frames)], regions)
            waits_ms.append((time.perf_counter() - due_s) * 1000)
            captioner.see(regions)
    captions = captioner.finished
    if worker is not None:
        worker.close()
    captioner.close()
    path.release(regions)
    return CaptionedTracking(Times(waits_ms), dropped, captions)


class Captioner:
    """Captions one region back to back: a clip is the carried frame and all frames since."""

    def __init__(self, path: FastPath, worker: TextWorker | None) -> None:
        """`worker`: the thread that owns the text engine; None: the caller steps it."""
        self._path, self._worker = path, worker
        self._text: Text | None = None
        self._prompt: CachedPrompt | None = None
        self._frames = 0  # in the clip that is being recorded
        self.finished = 0  # captions

    def see(self, regions: FastRegions) -> None:
        """Adds a frame to the clip. If the last caption has ended, captions the clip and starts the next."""
        features = regions.found.features
        self._extend(features, FIRST_FRAME_STRIDE if self._frames == 0 else LATER_FRAME_STRIDE)
        self._frames += 1
        if self._frames < 2 or not (self._text is None or self._text.finished):
            return
        self.finished += self._text is not None
        self._frames = 1
        self._text = Text(CachedPrompt(Span(0, 0)), 0, (), 0)  # until the thread has started the real one
        self._submit(self._caption)
        self._extend(features, FIRST_FRAME_STRIDE)

    def close(self) -> None:
        """Finishes the caption that is being generated."""
        if self._prompt is not None:
            self._path.engines.text.release(self._prompt)
        self._path.settle()

    def _submit(self, command: Callable[[], None], *tensors: Tensor) -> None:
        if self._worker is None:
            command()
        else:
            self._worker.submit(command, *tensors)

    def _extend(self, features: DecoderFeatures, stride: int) -> None:
        embeddings = self._path.frame_embeddings(features, stride=stride)

        def extend() -> None:
            if self._prompt is None:
                self._prompt = self._path.open_clip()
            prompt = self._prompt
            if prompt.length + prompt.queued_tokens + len(embeddings) < prompt.span.capacity:
                self._path.engines.text.extend(prompt, embeddings)

        self._submit(extend, embeddings)

    def _caption(self) -> None:
        text, prompt = self._path.engines.text, self._prompt
        assert prompt is not None
        suffix = token_ids(SUFFIX_TOKENS + PREVIOUS_CAPTION_TOKENS)
        self._text = text.generate(prompt, suffix, max_new_tokens=CAPTION_TOKENS)
        text.release(prompt)
        self._prompt = None
