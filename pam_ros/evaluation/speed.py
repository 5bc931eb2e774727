"""Speed: tracked frames per second, and seconds from a click to its label, through the real Engine."""

from __future__ import annotations

import concurrent.futures
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from pam_ros.datasets.schema import Sample, SampleRegion, SampleSource
from pam_ros.errors import StateError
from pam_ros.evaluation.cases import Findings
from pam_ros.model.interface import PerceptionModel
from pam_ros.records import Frame, Language, Prompt, Region, Task
from pam_ros.runtime.engine import Engine
from pam_ros.runtime.events import CaptionEvent, FrameResult, TextEvent
from pam_ros.runtime.options import EngineOptions
from pam_ros.runtime.requests import PromptRequest

THREADS = 2
CAMERA = "speed"
WARM_UP_FRAMES = 8
TIMED_FRAMES = 40
CLICKS = 7
ANSWER_TIMEOUT_S = 120.0


class _Camera:
    """Offers the next frame as soon as the previous one is done: none waits, none is dropped."""

    def __init__(self, pictures: Sequence[NDArray[np.uint8]]) -> None:
        self._pictures = pictures
        self._sent = 0
        self._done = 0
        self._newest = -1
        self._changed = threading.Condition()
        self.engine: Engine | None = None

    def send(self) -> None:
        """Offers one frame; stamps are a tenth of a second apart."""
        assert self.engine is not None
        picture = self._pictures[self._sent % len(self._pictures)]
        stamp_ns = self._sent * 100_000_000
        self._sent += 1
        self.engine.submit_frame(Frame(image=picture, stamp_ns=stamp_ns, camera=CAMERA))

    def wait(self, frames: int) -> None:
        """Waits until this many more frames are done. Raises StateError if that takes too long."""
        with self._changed:
            goal = self._done + frames
            if not self._changed.wait_for(lambda: self._done >= goal, ANSWER_TIMEOUT_S):
                raise StateError(f"the engine took more than {ANSWER_TIMEOUT_S:g} s for {frames} frames")

    def on_frame(self, result: FrameResult) -> None:
        """Sends the next frame when one is done; a frame may be reported twice."""
        with self._changed:
            if result.stamp_ns <= self._newest:
                return
            self._newest = result.stamp_ns
            self._done += 1
            self._changed.notify_all()
        self.send()

    def on_text(self, event: TextEvent) -> None:
        """Ignored: `_ask` waits for texts by their handles."""

    def on_caption(self, event: CaptionEvent) -> None:
        """Ignored: no captions are requested."""

    def on_warning(self, camera: str, message: str) -> None:
        """Ignored: a lost region is still tracked."""


def evaluate_speed(
    model: PerceptionModel,
    images: SampleSource,
    videos: SampleSource,
    findings: Findings,
    progress: Callable[[str], None] = lambda line: None,
) -> None:
    """Adds `tracked_fps` and `label_latency_s`, in wall-clock time, with `THREADS` threads.

    `tracked_fps`: frames per second of the Engine with one region, prompted by a box, on a video whose next
    frame is always ready; the mean over `TIMED_FRAMES` after `WARM_UP_FRAMES`.
    `label_latency_s`: while that region is tracked in a steady stream, the median over `CLICKS` clicks of the
    seconds from the click to the final English label; each clicked region is removed again.
    Without videos the images are shown one after the other.
    """
    prompt, pictures = _shown(images, videos)
    if prompt is None:
        for key in ("tracked_fps", "label_latency_s"):
            findings.lack(key, "the data have no region to track")
        return
    fps, latencies_s, trouble = 0.0, [], ""
    camera = _Camera(pictures)
    options = EngineOptions(max_regions=2, lost_timeout_s=86400.0)
    camera.engine = Engine(model=model, cameras=[CAMERA], options=options, listener=camera)
    with _threads(THREADS), _running(camera.engine):
        progress("speed: tracking")
        camera.send()
        camera.wait(1)
        _ask(camera.engine, prompt, ())
        camera.wait(WARM_UP_FRAMES)
        begin_s = time.monotonic()
        camera.wait(TIMED_FRAMES)
        fps = TIMED_FRAMES / (time.monotonic() - begin_s)
        progress("speed: labels")
        try:
            latencies_s = [_label_latency_s(camera, prompt) for _ in range(1 + CLICKS)][1:]  # one warms up
        except StateError as error:  # a model that never finishes must not cost all other results
            trouble = str(error)
    findings.put("tracked_fps", fps, TIMED_FRAMES)
    if latencies_s:
        findings.put("label_latency_s", statistics.median(latencies_s), CLICKS)
    findings.lack("label_latency_s", trouble)


def _shown(images: SampleSource, videos: SampleSource) -> tuple[Prompt | None, list[NDArray[np.uint8]]]:
    """The prompt of the largest region of the first sample, and the frames to show."""
    for video in videos:
        if video.regions:
            return _largest(video), [video.image(index) for index in range(len(video))]
    for image in images:
        if image.regions:
            return _largest(image), [image.image()]
    return None, []


def _largest(sample: Sample) -> Prompt:
    def area(region: SampleRegion) -> float:
        x1, y1, x2, y2 = region.box_xyxy() or (0.0, 0.0, 0.0, 0.0)
        return (x2 - x1) * (y2 - y1)

    return max(sample.regions, key=area).prompt()


def _label_latency_s(camera: _Camera, prompt: Prompt) -> float:
    """Seconds from a click (in the middle of the box) to its final label."""
    assert camera.engine is not None
    camera.wait(1)
    click = prompt
    if prompt.box is not None:
        x1, y1, x2, y2 = (float(edge) for edge in prompt.box)
        click = Prompt.from_clicks([((x1 + x2) / 2, (y1 + y2) / 2)])
    begin_s = time.monotonic()
    region = _ask(camera.engine, click, (Task.LABEL,))
    seconds = time.monotonic() - begin_s
    camera.engine.remove_region(CAMERA, region.region_id)
    return seconds


def _ask(engine: Engine, prompt: Prompt, tasks: tuple[Task, ...]) -> Region:
    handle = engine.perceive(CAMERA, PromptRequest(prompt, tasks, (Language.EN,)))
    try:
        return handle.future.result(timeout=ANSWER_TIMEOUT_S)
    except concurrent.futures.TimeoutError:
        raise StateError(f"the engine gave no answer within {ANSWER_TIMEOUT_S:g} s") from None


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _running(engine: Engine) -> Iterator[None]:
    engine.start()
    try:
        yield
    finally:
        engine.stop()
