"""A perception model without weights: exact, instant, and failing only if a test makes it fail.

Its answers show which frames, embeddings and prompts reached it: a mask is the prompt's box (or a square
around its first click); a text names its task, language and frames.
"""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count

import numpy as np
from numpy.typing import NDArray

from pam_ros.errors import CapacityError
from pam_ros.model.interface import FIRST_FRAME_STRIDE, Described, ModelInfo, TextDelta, TextRequest
from pam_ros.model.text.names import ObjectNames
from pam_ros.model.vision.grid import Candidates
from pam_ros.records import Language, Prompt, Task

SPARE_REGIONS = 4  # of `model.fast_model`, which would import torch
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
    box: tuple[float, float, float, float] = (0, 0, 1, 1)  # x1, y1, x2, y2 as fractions of width and height
    size: tuple[int, int] = (1, 1)


@dataclass(eq=False)
class FakeObservation:
    """One region in one frame."""

    region: int  # number of its memory
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


@dataclass(frozen=True, eq=False)
class FakeText:
    """A text that was started: its prompt's embeddings and its request."""

    text_id: int
    prompt_id: int
    embeddings: tuple[FakeEmbeddings, ...]
    request: TextRequest

    @property
    def task(self) -> Task:
        return self.request.task

    @property
    def language(self) -> Language:
        return self.request.language

    @property
    def previous_caption(self) -> str | None:
        return self.request.previous_caption

    @property
    def max_new_tokens(self) -> int:
        return self.request.max_new_tokens


@dataclass(eq=False)
class Costs:
    """Duration of each call."""

    encode_s: float = 0.0
    segment_s: float = 0.0
    track_s: float = 0.0
    step_s: float = 0.0


@dataclass(eq=False)
class FakeModel:
    """Implements PerceptionModel; it is its own VisionModel (`vision`) and TextGenerator (`text`).

    Attributes:
        things: boxes (x1, y1, x2, y2), pixels, of what a grid of points finds.
        words: number of words of each text; a text takes one step for prefill and one for each word.
        hidden: numbers of memories that are out of view; in a black frame, all are.
        text_problem: why no text can be generated; it is only reported.
        fault: called as fault(call, details) before each call of the model; if it raises, the model fails.
            `details` are the items of the call: shades, prompts, memories, observations or texts.
        calls: name and number of items of every call, newest last, at most `max_calls`.
        batches: the texts of every `generate`, at most `max_calls`.
        prompts: open prompts by id: whether each is a clip, and its embeddings.
        cancelled: ids of cancelled texts.
        known: see PerceptionModel.names.
        says: a text's last state and its confidence; None = `text_of` and words, confidence not known.
        mask_score: of every region in view.
        max_regions: see ModelInfo; if it is not 0, SPARE_REGIONS more memories can be held at a time, as on a
            GPU (`model.vision.fast.memory_slots`).
        held: memories that somebody holds.
        stepping: while it is cleared, generation stands still and a step reports nothing.
    """

    words: int = 3
    things: list[tuple[float, float, float, float]] = field(default_factory=list)
    text_problem: str = ""
    costs: Costs = field(default_factory=Costs)
    hidden: set[int] = field(default_factory=set)
    fault: Callable[[str, Sequence[object]], None] | None = None
    max_calls: int = 2000
    calls: list[tuple[str, int]] = field(default_factory=list)
    batches: list[tuple[FakeText, ...]] = field(default_factory=list)
    prompts: dict[int, tuple[bool, list[FakeEmbeddings]]] = field(default_factory=dict)
    cancelled: set[int] = field(default_factory=set)
    memories: int = 0
    steps: int = 0
    closed: bool = False
    threads: set[int] = field(default_factory=set)
    known: ObjectNames | None = None
    says: Callable[[FakeText], tuple[str, float | None]] | None = None
    mask_score: float = 0.9
    max_regions: int = 0
    held: weakref.WeakSet[FakeMemory] = field(default_factory=weakref.WeakSet)
    stepping: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.stepping.set()
        self._ids = count(1)
        self._running: list[FakeBatch] = []

    @property
    def info(self) -> ModelInfo:
        """Describes no real model."""
        return ModelInfo(
            name="fake",
            device="cpu",
            dtype="float32",
            parameters=0,
            licence="none",
            max_regions=self.max_regions,
        )

    def encode(self, image: NDArray[np.uint8]) -> FakeFeatures:
        shade = int(image.mean())
        self._call("encode", [shade], self.costs.encode_s)
        return FakeFeatures(size=image.shape[:2], shade=shade)

    def new_memory(self) -> FakeMemory:
        slots = self.max_regions + SPARE_REGIONS
        if self.max_regions and len(self.held) >= slots:
            gc.collect()
        if self.max_regions and len(self.held) >= slots:
            raise CapacityError(f"all {slots} slots of the memory bank are in use; remove a region")
        self.memories += 1
        memory = FakeMemory(number=self.memories)
        self.held.add(memory)
        return memory

    def saved(self, memory: FakeMemory) -> Callable[[], None]:
        kept = dict(vars(memory))
        return lambda: vars(memory).update(kept)

    def segment(
        self, features: FakeFeatures, prompts: Sequence[Prompt], memories: Sequence[FakeMemory]
    ) -> list[FakeObservation]:
        self._call("segment", prompts, self.costs.segment_s)
        return [
            self._observe(
                features, memory, _box(prompt, features.size) if prompt.shows_region else memory.box
            )
            for prompt, memory in zip(prompts, memories, strict=True)
        ]

    def candidates(self, features: FakeFeatures, points_xy: NDArray[np.float32]) -> Candidates:
        """One mask for each of `things` that a point lies on: its box, sure and stable."""
        self._call("candidates", points_xy, self.costs.segment_s)
        height, width = features.size
        boxes = [
            thing
            for x, y in points_xy
            for thing in self.things
            if thing[0] <= x < thing[2] and thing[1] <= y < thing[3]
        ]
        array = np.array(boxes, np.float32).reshape(-1, 4)
        sure = np.full(len(boxes), 0.9, np.float32)
        areas = (array[:, 2] - array[:, 0]) * (array[:, 3] - array[:, 1]) / (height * width)
        return Candidates(array, sure, sure, areas.astype(np.float32))

    def track(self, features: FakeFeatures, memories: Sequence[FakeMemory]) -> list[FakeObservation]:
        self._call("track", memories, self.costs.track_s)
        assert all(memory.shades for memory in memories), "tracked before the first prompt"
        return [self._observe(features, memory, memory.box) for memory in memories]

    def embeddings(
        self, observations: Sequence[FakeObservation], *, stride: int, crop: bool = False
    ) -> list[FakeEmbeddings]:
        self._call(
            "embedded_stride2" if stride == FIRST_FRAME_STRIDE else "embedded_stride4", observations, 0.0
        )
        return [FakeEmbeddings(each.region, each.shade, stride) for each in observations]

    @property
    def vision(self) -> FakeModel:
        return self

    @property
    def judge(self) -> FakeModel:
        return self

    @property
    def names(self) -> ObjectNames | None:
        return self.known

    def fits(self, purpose: str, regions: Sequence[Described], language: Language) -> list[float]:
        """1 for an explanation that holds the purpose, else 0.1."""
        self._call("fits", regions, 0.0)
        return [1.0 if purpose in texts.explanation else 0.1 for texts in regions]

    @property
    def text(self) -> FakeModel:
        return self

    # ---- texts

    @property
    def busy(self) -> bool:
        return bool(self._running)

    @property
    def problem(self) -> str:
        return self.text_problem

    @property
    def in_background(self) -> bool:
        return False

    def notify(self, wake: Callable[[], None]) -> None:
        pass

    def open_prompt(self, *, clip: bool, frames: int = 1) -> int:
        prompt_id = next(self._ids)
        self.prompts[prompt_id] = (clip, [])
        return prompt_id

    def extend_prompt(self, prompt_id: int, embeddings: FakeEmbeddings) -> None:
        self.prompts[prompt_id][1].append(embeddings)

    def release_prompt(self, prompt_id: int) -> None:
        del self.prompts[prompt_id]

    def generate(self, requests: Sequence[tuple[int, TextRequest]]) -> list[int]:
        texts = [
            FakeText(next(self._ids), prompt_id, tuple(self.prompts[prompt_id][1]), request)
            for prompt_id, request in requests
        ]
        self._call("generate", texts, 0.0)
        if len(self.batches) < self.max_calls:
            self.batches.append(tuple(texts))
        self._running.insert(0, FakeBatch(texts))
        return [text.text_id for text in texts]

    def step(self) -> list[TextDelta]:
        if not self.stepping.is_set():
            time.sleep(0.001)  # a stopped clock must not spin the worker
            return []
        batch = self._running.pop(0)
        self.steps += 1
        running = batch.running
        try:
            self._call("step", running, self.costs.step_s)
        except Exception as error:
            return [TextDelta(text.text_id, "", False, error) for text in running]
        deltas = [self._said(batch, delta) for delta in batch.step(self.words)]
        if batch.running:
            self._running.append(batch)
        return deltas

    def _said(self, batch: FakeBatch, delta: TextDelta) -> TextDelta:
        if self.says is None or not delta.final:
            return delta
        text, confidence = self.says(batch.texts[delta.text_id])
        return replace(delta, text=text, confidence=confidence)

    def cancel(self, text_id: int) -> None:
        if len(self.cancelled) < self.max_calls:
            self.cancelled.add(text_id)
        for batch in self._running:
            batch.running = [text for text in batch.running if text.text_id != text_id]
        self._running = [batch for batch in self._running if batch.running]

    def close(self) -> None:
        self.closed = True

    def count(self, name: str) -> int:
        """Number of calls of this name."""
        return sum(called == name for called, _ in self.calls)

    def sizes(self, name: str) -> list[int]:
        """Number of items in each call of this name."""
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
            x1, y1, x2, y2 = (
                round(fraction * side) for fraction, side in zip(box, (width, height) * 2, strict=True)
            )
            mask[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)] = True
        presence = 0.95 if present else 0.05
        return FakeObservation(memory.number, features.shade, mask, self.mask_score, presence)

    def _call(self, name: str, details: Sequence[object], cost_s: float) -> None:
        assert not self.closed, "used after close"
        self.threads.add(threading.get_ident())
        if len(self.calls) < self.max_calls:
            self.calls.append((name, len(details)))
        if self.fault is not None:
            self.fault(name, details)
        if cost_s:
            time.sleep(cost_s)


class FakeBatch:
    """Texts that started together: one step for prefill, then one word of each text in each step."""

    def __init__(self, texts: Sequence[FakeText]) -> None:
        self.running = list(texts)
        self.texts = {text.text_id: text for text in texts}
        self._steps = 0

    def step(self, most_words: int) -> list[TextDelta]:
        self._steps += 1
        words = self._steps - 1
        if not words:
            return []
        deltas = []
        for text in self.running:
            last = min(most_words, text.max_new_tokens)
            generated = " ".join([text_of(text), *["w"] * (words - 1)])
            deltas.append(TextDelta(text.text_id, generated, words >= last))
        ended = {delta.text_id for delta in deltas if delta.final}
        self.running = [text for text in self.running if text.text_id not in ended]
        return deltas


def text_of(text: FakeText) -> str:
    """The first word of a text: `label-en-r1s100` names task, language, region and shade.

    A clip's names every frame (`f` for stride 2, `c` for stride 4) and the previous caption's beginning:
    `clip-en-r1f100c110<none`.
    """
    if text.task is not Task.CLIP:
        (frame,) = text.embeddings
        return f"{text.task.value}-{text.language.value}-r{frame.region}s{frame.shade}"
    frames = "".join(
        f"{'f' if frame.stride == FIRST_FRAME_STRIDE else 'c'}{frame.shade}" for frame in text.embeddings
    )
    previous = "none" if text.previous_caption is None else text.previous_caption.split("<")[0]
    return f"clip-{text.language.value}-r{text.embeddings[0].region}{frames}<{previous}"


def _box(prompt: Prompt, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The prompt's box as fractions of width and height."""
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
    """A Listener that records events, at most `limit` in all; `order` has them in order of arrival."""

    limit: int = 5000
    frames: list = field(default_factory=list)
    texts: list = field(default_factory=list)
    captions: list = field(default_factory=list)
    warnings: list = field(default_factory=list)
    order: list = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def on_frame(self, result) -> None:
        self._record(self.frames, result)

    def on_text(self, event) -> None:
        self._record(self.texts, event)

    def on_caption(self, event) -> None:
        self._record(self.captions, event)

    def on_warning(self, camera: str, message: str) -> None:
        self._record(self.warnings, (camera, message))

    def _record(self, events: list, event) -> None:
        with self.changed:
            if len(self.order) < self.limit:
                events.append(event)
                self.order.append(event)
            self.changed.notify_all()

    def wait_for(self, condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
        """Waits until an event makes the condition true; fails the test after the timeout."""
        with self.changed:
            assert self.changed.wait_for(condition, timeout_s), "timed out waiting for an event"
