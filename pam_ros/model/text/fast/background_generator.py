"""`BackgroundGenerator`: texts on a thread of their own, from prompts that are prefilled as they grow.

The caller's thread only submits commands and takes what has arrived; whatever touches a `Growing` prompt
runs on the engine's thread. A clip's frames enter the key-value cache as they arrive, if there is room. A
text that waits for room evicts clips that nobody has asked about yet; they are prefilled later.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from pam_ros.errors import CapacityError
from pam_ros.model.interface import TextDelta, TextRequest
from pam_ros.model.projector import Projector
from pam_ros.model.text.fast.text_engine import CachedPrompt, Growth, Text, TextEngine
from pam_ros.model.text.fast.text_worker import Command, TextWorker
from pam_ros.model.text.generator_base import GeneratorBase
from pam_ros.model.text.language_model import LanguageModel, TextStream
from pam_ros.model.text.open_prompts import Suffix, task_suffix
from pam_ros.model.text.prompts import TEXT_BEFORE_IMAGE


@dataclass(slots=True, eq=False)
class Growing:
    """A prompt on the engine's thread."""

    capacity: int  # tokens; a clip's is an estimate until its texts start
    parts: list[Tensor] = field(default_factory=list)  # embeddings (L, H), prefix first
    frames: list[Tensor] = field(default_factory=list)  # those of its frames, oldest first
    entered: int = 0  # parts that the engine has
    cached: CachedPrompt | None = None
    waiting: int = 0  # texts that have not started yet
    released: bool = False

    @property
    def length(self) -> int:
        """Tokens so far."""
        return sum(len(part) for part in self.parts)

    @property
    def can_be_evicted(self) -> bool:
        """Whether it takes room in the cache for texts that nobody has asked for yet."""
        return self.cached is not None and not self.waiting and not self.released and not self.cached.texts


@dataclass(slots=True, eq=False)
class _Opened:
    """A prompt on the caller's thread."""

    growing: Growing
    clip: bool
    frames: int  # the most it will be extended by
    length: int  # tokens so far


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    """A text that has not started yet."""

    text_id: int
    prompt: Growing
    request: TextRequest
    suffix: Suffix
    max_new_tokens: int

    @property
    def tokens(self) -> int:
        """Of the cache, beside the prompt's."""
        return len(self.suffix.ids) + self.max_new_tokens


@dataclass(frozen=True, slots=True)
class _Running:
    """A text that has started; `looks`: see `ConfidenceModel.looks`."""

    text_id: int
    stream: TextStream
    request: TextRequest
    looks: Tensor | None


class BackgroundGenerator(GeneratorBase[None]):
    """Implements `interface.TextGenerator` with a `TextEngine` on a thread of its own."""

    def __init__(
        self,
        language: LanguageModel,
        projector: Projector,
        engine: TextEngine,
        *,
        later_frame_tokens: int,
    ) -> None:
        """`later_frame_tokens`: of a clip's frame after the first."""
        super().__init__(language)
        self._engine = engine
        self._newline = projector.frame_newline.detach()[None]
        self._later_frame_tokens = later_frame_tokens
        self._prefix = engine.embed(language.encode_text(TEXT_BEFORE_IMAGE)).detach()
        self._opened: dict[int, _Opened] = {}
        self._wake: Callable[[], None] = lambda: None
        self._arrived: dict[int, TextDelta] = {}
        self._lock = threading.Lock()  # of what has arrived
        # On the engine's thread:
        self._growing: list[Growing] = []  # that may grow, oldest first
        self._waiting: list[_Waiting] = []  # oldest first
        self._texts: dict[Text, _Running] = {}
        self._by_id: dict[int, Text] = {}
        # What stays free in one piece when a prompt enters, so that a text always fits.
        self._reserve = min(2 * self.max_new_tokens + 64, engine.cache.tokens // 4)
        self._worker = TextWorker(engine, on_growth=self._take, on_error=self._fail)

    # ---- on the caller's thread

    @property
    def in_background(self) -> bool:
        """True: `step` returns immediately."""
        return True

    def notify(self, wake: Callable[[], None]) -> None:
        """Calls `wake` on the engine's thread whenever `step` has something to report."""
        self._wake = wake

    def open_prompt(self, *, clip: bool, frames: int = 1) -> int:
        """Starts a prompt about one frame, or about a clip of at most `frames`; returns its id."""
        prompt_id, growing = next(self._ids), Growing(0, [self._prefix])
        self._opened[prompt_id] = _Opened(growing, clip, frames, len(self._prefix))
        self._worker.submit(lambda: self._growing.append(growing))
        return prompt_id

    def extend_prompt(self, prompt_id: int, embeddings: Any) -> None:
        """Appends one frame's embeddings, oldest first; a clip's enter the cache now if there is room."""
        opened, tensor = self._opened[prompt_id], embeddings.tensor
        parts = [tensor, self._newline] if opened.clip else [tensor]  # as in `Projector.prompt_embeddings`
        opened.length += sum(len(part) for part in parts)
        later = (opened.frames - 1) * (self._later_frame_tokens + 1)
        capacity = min(opened.length + later, self._language.context_length)
        self._worker.submit(
            lambda: self._extend(opened.growing, tensor, parts, capacity, early=opened.clip),
            tensor,
            ready=getattr(embeddings, "ready", None),
        )
        opened.frames = max(1, opened.frames - 1)

    def release_prompt(self, prompt_id: int) -> None:
        """No more texts will branch off this prompt. Running texts keep what they need."""
        opened = self._opened.pop(prompt_id, None)
        if opened is not None:
            self._worker.submit(lambda: self._release(opened.growing))

    def generate(self, requests: Sequence[tuple[int, TextRequest]]) -> list[int]:
        """Starts texts that branch off prompts; returns an id for each.

        Raises CapacityError, and starts none, if a prompt and its answer do not fit into the model's context
        or into the key-value cache.
        """
        started = []
        for prompt_id, request in requests:
            opened = self._opened[prompt_id]
            limit = min(self._language.context_length, self._engine.cache.tokens)
            suffix = task_suffix(self._language, request, opened.length, limit)
            most = min(request.max_new_tokens, self.max_new_tokens, suffix.room)
            started.append(
                _Waiting(next(self._ids), opened.growing, request, suffix, most),
            )
        self._unfinished |= dict.fromkeys(each.text_id for each in started)
        self._worker.submit(lambda: self._start(started))
        return [each.text_id for each in started]

    def step(self) -> list[TextDelta]:
        """The texts that have grown or ended since the last call."""
        with self._lock:
            arrived, self._arrived = self._arrived, {}
        deltas = [delta for delta in arrived.values() if delta.text_id in self._unfinished]
        for delta in deltas:
            if delta.final or delta.error is not None:
                del self._unfinished[delta.text_id]
        return deltas

    def cancel(self, text_id: int) -> None:
        """Ends a text without a report. Does nothing if it has ended already."""
        if text_id in self._unfinished:
            del self._unfinished[text_id]
            self._worker.submit(lambda: self._cancel(text_id))

    def prepare(self, pieces: Iterable[Command]) -> None:
        """See `TextWorker.prepare`."""
        self._worker.prepare(pieces)

    def close(self) -> None:
        """Drops all texts and ends the thread."""
        self._worker.close(drop=True)

    # ---- on the engine's thread: prompts

    def _extend(
        self, prompt: Growing, frame: Tensor, parts: Sequence[Tensor], capacity: int, *, early: bool
    ) -> None:
        prompt.frames.append(frame)
        prompt.parts += parts
        prompt.capacity = max(prompt.capacity, capacity)
        if early and (prompt.cached is not None or self._place(prompt, self._reserve)):
            self._enter(prompt)

    def _place(self, prompt: Growing, beside: int) -> bool:
        """Gives a prompt its part of the cache if `beside` tokens stay free in one piece."""
        cache = self._engine.cache
        try:
            prompt.cached = self._engine.open(prompt.capacity)
        except CapacityError:
            return False
        if cache.largest_free >= beside:
            return True
        self._evict(prompt)
        return False

    def _enter(self, prompt: Growing) -> None:
        """Passes on what the engine does not have yet; a clip that outgrows its place loses it."""
        assert prompt.cached is not None
        if prompt.length > prompt.cached.span.capacity:
            self._evict(prompt)
            return
        for part in prompt.parts[prompt.entered :]:
            self._engine.extend(prompt.cached, part)
        prompt.entered = len(prompt.parts)

    def _evict(self, prompt: Growing) -> None:
        if prompt.cached is not None:
            self._engine.release(prompt.cached)
        prompt.cached, prompt.entered = None, 0

    def _evict_one(self, kept: Growing | None) -> bool:
        """Makes room by the newest clip that can be prefilled later."""
        for prompt in reversed(self._growing):
            if prompt is not kept and prompt.can_be_evicted:
                self._evict(prompt)
                return True
        return False

    def _release(self, prompt: Growing) -> None:
        prompt.released = True
        self._growing.remove(prompt)
        if not prompt.waiting:
            self._drop(prompt)

    def _drop(self, prompt: Growing) -> None:
        if prompt.cached is not None:
            self._engine.release(prompt.cached)
        prompt.cached = None
        prompt.parts.clear()
        prompt.frames.clear()

    # ---- on the engine's thread: texts

    def _start(self, texts: Sequence[_Waiting] = ()) -> None:
        """Starts waiting texts, the oldest first, as far as their prompts find room."""
        for each in texts:
            each.prompt.waiting += 1
        self._waiting += texts
        while self._waiting:
            text = self._waiting[0]
            if not self._ready(text):
                break
            self._begin(text)  # if it fails, the text is among those that `_fail` reports
            self._waiting.pop(0)
        if self._waiting and self._engine.idle:  # nothing will ever make room
            text = self._waiting.pop(0)
            self._abandon(text)
            error = CapacityError(
                f"a prompt of {text.prompt.length} tokens and an answer of {text.tokens} do not fit into the "
                f"key-value cache of {self._engine.cache.tokens}; use fewer frames or shorter texts"
            )
            self._report(TextDelta(text.text_id, "", final=False, error=error))
            self._start()

    def _ready(self, text: _Waiting) -> bool:
        """Whether the text's prompt is in the cache; evicts others for it if it must."""
        prompt = text.prompt
        if prompt.cached is None:
            prompt.capacity = prompt.length
        beside = max(text.tokens, min(self._reserve, self._engine.cache.tokens - prompt.length))
        while prompt.cached is None and not self._place(prompt, beside):
            if not self._evict_one(prompt):
                return False
        self._enter(prompt)
        return prompt.cached is not None or self._ready(text)

    def _begin(self, waiting: _Waiting) -> None:
        prompt = waiting.prompt
        assert prompt.cached is not None
        text = self._engine.generate(
            prompt.cached,
            waiting.suffix.ids,
            max_new_tokens=waiting.max_new_tokens,
            temperature=waiting.request.temperature,
            seed=random.getrandbits(31) if waiting.request.temperature > 0 else 0,
        )
        stream = TextStream(self._language)
        stream.add(waiting.suffix.beginning)
        looks = self.confidence.looks(prompt.frames)
        self._texts[text] = _Running(waiting.text_id, stream, waiting.request, looks)
        self._by_id[waiting.text_id] = text
        self._abandon(waiting)

    def _abandon(self, waiting: _Waiting) -> None:
        """The text waits no more."""
        prompt = waiting.prompt
        prompt.waiting -= 1
        if prompt.released and not prompt.waiting:
            self._drop(prompt)

    def _take(self, grown: Sequence[Growth]) -> None:
        """Reports what a step added."""
        for growth in grown:
            text = growth.text
            if text not in self._texts:
                continue
            running, sure = self._texts[text], None
            said = running.stream.add(growth.tokens)
            if text.finished:
                said = self._language.decode_text(running.stream.tokens)
                sure = self.confidence.of(running.request, text.log_probabilities, running.looks)
                del self._texts[text], self._by_id[running.text_id]
            self._report(
                TextDelta(
                    running.text_id, said, text.finished, new_tokens=len(growth.tokens), confidence=sure
                )
            )
        if self._waiting:
            self._start()
        if self._engine.starved and not self._evict_one(None):
            self._fail(CapacityError("the key-value cache has no room for a text"))

    def _cancel(self, text_id: int) -> None:
        for waiting in [each for each in self._waiting if each.text_id == text_id]:
            self._waiting.remove(waiting)
            self._abandon(waiting)
        text = self._by_id.pop(text_id, None)
        if text is not None:
            del self._texts[text]
            self._engine.cancel(text)

    def _fail(self, error: Exception) -> None:
        """A step failed: its texts end, and the cache is emptied. Clips enter it again as they grow."""
        failed = {running.text_id: running.stream.text for running in self._texts.values()}
        failed |= {each.text_id: "" for each in self._waiting}
        for waiting in self._waiting:
            waiting.prompt.cached = None
            self._abandon(waiting)
        self._waiting.clear()
        self._texts.clear()
        self._by_id.clear()
        self._engine.reset()
        for prompt in self._growing:
            prompt.cached, prompt.entered = None, 0
        for text_id, said in failed.items():
            self._report(TextDelta(text_id, said, final=False, error=error))

    def _report(self, delta: TextDelta) -> None:
        with self._lock:
            known = self._arrived.get(delta.text_id)
            if known is not None:
                delta = replace(delta, new_tokens=known.new_tokens + delta.new_tokens)
            self._arrived[delta.text_id] = delta
        self._wake()
