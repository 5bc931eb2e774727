"""A perception model without weights: exact, instant, and told by the test what goes wrong.

It answers with what it was asked, so that a test reads in the answer which frames, embeddings and prompts reached
it: a mask is the prompt's box (or a square around its first click), a text names task, language and what it
saw.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pam_ros.model.interface import FIRST_FRAME_STRIDE, GenerationRequest, ModelInfo, TextDelta
from pam_ros.records import Prompt, Task

CLICK_REACH = 4  # a click's mask is the square this many pixels around it
STRIDE_2_TOKENS, STRIDE_4_TOKENS = 10, 3


@dataclass(eq=False)
class FakeFeatures:
    """Features of one frame; `shade` is the mean of its pixels. A black frame shows nothing."""

    size: tuple[int, int]
    shade: int


@dataclass(eq=False)
class FakeMemory:
    """Memory of one region: the shades of the frames it was written on, and its box."""

    number: int
    shades: list[int] = field(default_factory=list)
    box: tuple[float, float, float, float] = (0, 0, 1, 1)  # x1, y1, x2, y2 as parts of width and height
    size: tuple[int, int] = (1, 1)


@dataclass(eq=False)
class FakeObservation:
    """One region in one frame."""

    memory: FakeMemory
    shade: int
    mask: NDArray[np.bool_]
    mask_score: float
    presence_score: float


@dataclass(eq=False)
class FakeEmbeddings:
    """Embeddings of one region in one frame."""

    region: int  # number of its memory
    shade: int
    stride: int

    def __len__(self) -> int:
        return STRIDE_2_TOKENS if self.stride == FIRST_FRAME_STRIDE else STRIDE_4_TOKENS


@dataclass(eq=False)
class Costs:
    """Seconds that a call takes."""

    encode_s: float = 0.0
    segment_s: float = 0.0
    track_s: float = 0.0
    step_s: float = 0.0


@dataclass(eq=False)
class FakeModel:
    """Implements PerceptionModel.

    Attributes:
        words: of each text; a text takes one prefill step and one step a word.
        hidden: numbers of memories that are not in view, beside all of them in a black frame.
        fault: called as fault(call, details) before each call of the model; if it raises, the model fails.
            `details` is what the call is about: shades, prompts, memories, observations or requests.
        calls: name and number of items of every call, newest last, at most `max_calls`.
        batches: the requests of every `decode`, at most `max_calls`.
        stepping: decoding stands still while this is cleared (a step then reports nothing).
    """

    words: int = 3
    costs: Costs = field(default_factory=Costs)
    hidden: set[int] = field(default_factory=set)
    fault: Callable[[str, Sequence[object]], None] | None = None
    max_calls: int = 2000
    calls: list[tuple[str, int]] = field(default_factory=list)
    batches: list[tuple[GenerationRequest, ...]] = field(default_factory=list)
    memories: int = 0
    steps: int = 0
    closed: bool = False
    threads: set[int] = field(default_factory=set)
    stepping: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.stepping.set()

    @property
    def info(self) -> ModelInfo:
        """No model at all."""
        return ModelInfo(name="fake", device="cpu", dtype="float32", parameters=0, licence="none")

    def encode(self, image: NDArray[np.uint8]) -> FakeFeatures:
        shade = int(image.mean())
        self._call("encode", [shade], self.costs.encode_s)
        return FakeFeatures(size=image.shape[:2], shade=shade)

    def new_memory(self) -> FakeMemory:
        self.memories += 1
        return FakeMemory(number=self.memories)

    def segment(
        self, features: FakeFeatures, prompts: Sequence[Prompt], memories: Sequence[FakeMemory]
    ) -> list[FakeObservation]:
        self._call("segment", prompts, self.costs.segment_s)
        return [
            self._observe(features, memory, _box(prompt, features.size))
            for prompt, memory in zip(prompts, memories, strict=True)
        ]

    def track(self, features: FakeFeatures, memories: Sequence[FakeMemory]) -> list[FakeObservation]:
        self._call("track", memories, self.costs.track_s)
        assert all(memory.shades for memory in memories), "tracked before it was prompted"
        return [self._observe(features, memory, memory.box) for memory in memories]

    def embeddings(
        self, observations: Sequence[FakeObservation], *, stride: int, crop: bool = False
    ) -> list[FakeEmbeddings]:
        self._call(
            "embedded_stride2" if stride == FIRST_FRAME_STRIDE else "embedded_stride4", observations, 0.0
        )
        return [FakeEmbeddings(each.memory.number, each.shade, stride) for each in observations]

    def decode(self, requests: Sequence[GenerationRequest]) -> FakeGeneration:
        self._call("decode", requests, 0.0)
        if len(self.batches) < self.max_calls:
            self.batches.append(tuple(requests))
        return FakeGeneration(self, requests)

    def close(self) -> None:
        self.closed = True

    def count(self, name: str) -> int:
        """How often the model was called so."""
        return sum(called == name for called, _ in self.calls)

    def sizes(self, name: str) -> list[int]:
        """How many items each such call had."""
        return [size for called, size in self.calls if called == name]

    def _observe(
        self, features: FakeFeatures, memory: FakeMemory, box: tuple[float, float, float, float]
    ) -> FakeObservation:
        memory.box, memory.size = box, features.size
        memory.shades = [*memory.shades[-8:], features.shade]
        present = features.shade > 0 and memory.number not in self.hidden
        mask = np.zeros(features.size, np.bool_)
        if present:
            height, width = features.size
            x1, y1, x2, y2 = (round(part * side) for part, side in zip(box, (width, height) * 2, strict=True))
            mask[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)] = True
        return FakeObservation(memory, features.shade, mask, 0.9, 0.95 if present else 0.05)

    def _call(self, name: str, details: Sequence[object], cost_s: float) -> None:
        assert not self.closed, "used after close"
        self.threads.add(threading.get_ident())
        if len(self.calls) < self.max_calls:
            self.calls.append((name, len(details)))
        if self.fault is not None:
            self.fault(name, details)
        if cost_s:
            time.sleep(cost_s)


class FakeGeneration:
    """Implements Decode: one step of prefill, then one word a step for every request."""

    def __init__(self, model: FakeModel, requests: Sequence[GenerationRequest]) -> None:
        self.requests = tuple(requests)
        self.cancelled: set[int] = set()
        self._model = model
        self._steps = 0
        self._open = set(range(len(requests)))

    @property
    def done(self) -> bool:
        return not self._open

    def step(self) -> list[TextDelta]:
        if not self._model.stepping.is_set():
            time.sleep(0.001)  # a stopped clock must not spin the worker
            return []
        self._model.steps += 1
        running = [self.requests[index] for index in sorted(self._open)]
        self._model._call("step", running, self._model.costs.step_s)
        self._steps += 1
        if self._steps == 1:
            return []
        words = self._steps - 1
        deltas = []
        for index in sorted(self._open):
            request = self.requests[index]
            last = min(self._model.words, request.max_new_tokens)
            text = " ".join([text_of(request), *["w"] * (words - 1)])
            deltas.append(TextDelta(index, text, words >= last))
        self._open -= {delta.index for delta in deltas if delta.final}
        return deltas

    def cancel(self, index: int) -> None:
        self.cancelled.add(index)
        self._open.discard(index)


def text_of(request: GenerationRequest) -> str:
    """The first word of a request's text: `label-en-r1s100` names task, language, region and shade.

    A clip's has every frame (`f` fine, `c` coarse) and how the previous caption begins:
    `clip-en-r1f100c110<none`.
    """
    if request.task is not Task.CLIP:
        (rows,) = request.embeddings
        return f"{request.task.value}-{request.language.value}-r{rows.region}s{rows.shade}"
    frames = "".join(
        f"{'f' if rows.stride == FIRST_FRAME_STRIDE else 'c'}{rows.shade}" for rows in request.embeddings
    )
    previous = "none" if request.previous_caption is None else request.previous_caption.split("<")[0]
    return f"clip-{request.language.value}-r{request.embeddings[0].region}{frames}<{previous}"


def _box(prompt: Prompt, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Where the prompt points, as parts of width and height."""
    height, width = size
    if prompt.mask is not None:
        rows, columns = np.flatnonzero(prompt.mask.any(1)), np.flatnonzero(prompt.mask.any(0))
        corners = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    elif prompt.box is not None:
        corners = tuple(prompt.box.tolist())
    else:
        x, y = prompt.points[prompt.labels == 1][0].tolist()
        corners = (x - CLICK_REACH, y - CLICK_REACH, x + CLICK_REACH, y + CLICK_REACH)
    sides = (width, height, width, height)
    x1, y1, x2, y2 = (min(max(corner / side, 0.0), 1.0) for corner, side in zip(corners, sides, strict=True))
    return x1, y1, x2, y2


@dataclass(eq=False)
class Recorder:
    """A Listener that keeps what it hears, at most `limit` of each; `order` tells what came after what."""

    limit: int = 5000
    frames: list = field(default_factory=list)
    texts: list = field(default_factory=list)
    captions: list = field(default_factory=list)
    warnings: list = field(default_factory=list)
    order: list = field(default_factory=list)
    heard: threading.Condition = field(default_factory=threading.Condition)

    def on_frame(self, result) -> None:
        self._keep(self.frames, result)

    def on_text(self, event) -> None:
        self._keep(self.texts, event)

    def on_caption(self, event) -> None:
        self._keep(self.captions, event)

    def on_warning(self, camera: str, message: str) -> None:
        self._keep(self.warnings, (camera, message))

    def _keep(self, where: list, what) -> None:
        with self.heard:
            if len(self.order) < self.limit:
                where.append(what)
                self.order.append(what)
            self.heard.notify_all()

    def wait_for(self, condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
        """Waits until something heard makes the condition true; fails the test when nothing does."""
        with self.heard:
            assert self.heard.wait_for(condition, timeout_s), "it did not happen in time"
