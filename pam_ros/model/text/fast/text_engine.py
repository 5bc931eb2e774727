"""Generates texts on a static cache: prompts grow, texts branch off them and join one batch at any time.

    open → extend … → generate → step, step, … → release

1. `extend` queues embeddings; a prefill pass puts up to `chunk_tokens` of them into the cache.
2. `generate` queues a text: a suffix that follows the prompt, then the answer. A pass prefills the suffix and
   chooses the first token; then the text holds a slot of the batch.
3. `step` runs one prefill pass or one burst of decoding steps; it alternates if there is work for both.

Letters: T tokens of a pass, B batch slots, H model width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pam_ros.model.text.fast.board import FIELDS, RING, Board, Field, float_bits
from pam_ros.model.text.fast.decoder_ops import Segment, make_plan, next_logits, run_layers
from pam_ros.model.text.fast.decoder_weights import DecoderWeights
from pam_ros.model.text.fast.kv_cache import KeyValueCache, Span
from pam_ros.model.text.fast.runners import make_runner

CACHE_TOKENS = 15872  # three clips of 16 frames; pam-3b then stays within 8 GiB


@dataclass(eq=False)
class CachedPrompt:
    """Embeddings in the cache that texts branch off; made by `TextEngine.open`."""

    span: Span
    length: int = 0  # tokens in the cache
    queued: list[Tensor] = field(default_factory=list)  # embeddings (L, H) that are not in the cache yet
    texts: int = 0  # that still read it
    released: bool = False

    @property
    def queued_tokens(self) -> int:
        """Tokens that still wait for a prefill pass."""
        return sum(len(each) for each in self.queued)


@dataclass(eq=False)
class Text:
    """One text; made by `TextEngine.generate`. `tokens` grows while it is generated."""

    prompt: CachedPrompt
    prefix_length: int  # tokens of the prompt that it sees
    suffix: Sequence[int]  # token ids between the prompt and the answer
    max_new_tokens: int
    temperature: float = 0.0  # 0 = greedy
    seed: int = 0
    tokens: list[int] = field(default_factory=list)  # without the stop token
    log_probabilities: list[float] = field(default_factory=list)  # of each token
    finished: bool = False
    span: Span | None = None  # while it is generated

    @property
    def tokens_needed(self) -> int:
        """Tokens of the cache, beside the prompt's."""
        return len(self.suffix) + self.max_new_tokens


@dataclass(frozen=True, slots=True)
class Growth:
    """Tokens that a step added to a text."""

    text: Text
    tokens: Sequence[int]


class TextEngine:
    """Generates texts with a static cache. Not thread-safe: one thread owns it."""

    def __init__(
        self,
        weights: DecoderWeights,
        *,
        stop_ids: Sequence[int],
        cache_tokens: int = CACHE_TOKENS,
        slots: int = 16,
        window: int | None = None,
        chunk_tokens: int = 1088,
        fast: bool = True,
    ) -> None:
        """`window`: how many tokens back one attends to, None = all; `chunk_tokens`: of a prefill pass.

        `fast`: use kernels and graphs if the device has CUDA; the results are the same.
        """
        device = weights.norm.device
        self.cache = KeyValueCache(
            layers=len(weights.layers),
            tokens=cache_tokens,
            heads=weights.kv_heads,
            width=weights.head_width,
            dtype=weights.norm.dtype,
            device=device,
        )
        self.board = Board(slots, device)
        self.chunk_tokens = chunk_tokens
        self._weights, self._window = weights, window
        self._runner = make_runner(weights, self.cache.tensor, self.board, stop_ids, window, fast=fast)
        self._prompts: list[CachedPrompt] = []  # with queued embeddings, oldest first
        self._waiting: list[Text] = []  # without a slot, oldest first
        self._running: list[Text] = []  # by slot
        self._changed = False  # whether the board must be written
        self._prefilled_last = False

    # ---- for callers

    def open(self, capacity: int) -> CachedPrompt:
        """Opens a prompt of at most `capacity` tokens. Raises CapacityError if the cache has no room."""
        return CachedPrompt(self.cache.allocate(capacity))

    def embed(self, ids: Sequence[int]) -> Tensor:
        """Token ids → embeddings (L, H)."""
        index = torch.tensor(list(ids), device=self._weights.embeddings.device)
        return self._weights.embeddings[index]

    def logits(self, embeddings: Tensor) -> Tensor:
        """A prompt's embeddings (L, H) → logits (V) of the token after it, in one pass and eagerly."""
        span = self.cache.allocate(len(embeddings))
        plan = make_plan([Segment(len(embeddings), 0, 0, 0, span.start)], embeddings.device)
        hidden = run_layers(self._weights, self.cache.tensor, embeddings.clone(), plan, self._window)
        self.cache.free(span)
        return next_logits(self._weights, hidden[-1:])[0]

    def extend(self, prompt: CachedPrompt, embeddings: Tensor) -> None:
        """Appends embeddings (L, H) to a prompt."""
        assert prompt.length + prompt.queued_tokens + len(embeddings) <= prompt.span.capacity
        if not prompt.queued:
            self._prompts.append(prompt)
        prompt.queued.append(embeddings)

    def generate(
        self,
        prompt: CachedPrompt,
        suffix: Sequence[int],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Text:
        """Starts a text that continues the prompt as it is now, queued embeddings included, with `suffix`."""
        length = prompt.length + prompt.queued_tokens
        text = Text(prompt, length, suffix, max_new_tokens, temperature, seed)
        prompt.texts += 1
        self._waiting.append(text)
        return text

    def cancel(self, text: Text) -> None:
        """Ends a text without a report. Idempotent."""
        if text.finished:
            return
        text.finished = True
        if text in self._waiting:
            self._waiting.remove(text)
            self._leave(text)

    def release(self, prompt: CachedPrompt) -> None:
        """Frees a prompt's part of the cache once its last text has ended. Idempotent."""
        if prompt.released:
            return
        prompt.released = True
        if prompt.texts == 0:
            self._drop(prompt)

    @property
    def bytes_per_token(self) -> int:
        """Bytes of weights that decoding one token reads."""
        return self._weights.bytes_per_token

    @property
    def idle(self) -> bool:
        """Whether `step` has nothing to do."""
        return not (self._prompts or self._waiting or self._running)

    @property
    def starved(self) -> bool:
        """Whether texts wait for room in the cache and nothing that runs will make any."""
        if not self._waiting or self._prompts or self._running:
            return False
        return min(each.tokens_needed for each in self._waiting) > self.cache.largest_free

    def reset(self) -> None:
        """Forgets all prompts and texts, after a step that failed."""
        self._prompts.clear()
        self._waiting.clear()
        self._running.clear()
        self.cache.clear()
        self.board.host[:] = 0
        self._changed, self._prefilled_last = True, False

    @torch.inference_mode()
    def step(self, tokens: int = 4) -> list[Growth]:
        """Runs a prefill pass, or up to `tokens` steps of the batch; returns the texts that grew or ended."""
        self._drop_finished()
        segments: list[Segment] = []
        parts: list[Tensor] = []
        admitted: list[Text] = []
        if not (self._running and self._prefilled_last):
            segments, parts, admitted = self._plan_pass()
        self._prefilled_last = bool(segments)
        if segments:
            self._prefill(segments, parts, admitted)
            return self._collect() if admitted else []
        if not self._running:
            return []
        self._write_board()
        remaining = int(self.board.host[Field.REMAINING, : len(self._running)].max())
        self._runner.decode(len(self._running), min(tokens, remaining, RING))
        return self._collect()

    def first_runs(self) -> list[Callable[[], None]]:
        """What launches the kernels that every text needs, so that they compile."""
        return self._runner.first_runs(self.chunk_tokens)

    def preparations(self) -> list[Callable[[], None]]:
        """What compiles kernels and captures graphs, piece by piece; until then steps run eagerly."""
        return self._runner.preparations(self.chunk_tokens)

    def warm_up(self) -> None:
        """Runs every preparation."""
        for prepare in self.preparations():
            prepare()

    # ---- prefill

    def _plan_pass(self) -> tuple[list[Segment], list[Tensor], list[Text]]:
        """The next pass: its segments, their embeddings, and the texts whose suffixes are in it."""
        segments: list[Segment] = []
        parts: list[Tensor] = []
        room = self.chunk_tokens
        for prompt in list(self._prompts):
            count = min(room, prompt.queued_tokens)
            if count == 0:
                break
            segments.append(Segment(count, prompt.length, 0, 0, prompt.span.start))
            parts += self._take(prompt, count)
            room -= count
        admitted: list[Text] = []
        for text in list(self._waiting):
            fits = len(text.suffix) <= room or not segments
            slot_free = len(self._running) + len(admitted) < min(self.board.slots, self._runner.max_batch)
            if (
                text.prompt.length < text.prefix_length
                or text.tokens_needed > self.cache.largest_free
                or not (fits and slot_free)
            ):
                continue
            text.span = self.cache.allocate(text.tokens_needed)
            start = text.span.start
            segments.append(
                Segment(
                    len(text.suffix), text.prefix_length, text.prompt.span.start, text.prefix_length, start
                )
            )
            parts.append(self.embed(text.suffix))
            room -= len(text.suffix)
            admitted.append(text)
            self._waiting.remove(text)
        return segments, parts, admitted

    def _take(self, prompt: CachedPrompt, count: int) -> list[Tensor]:
        """The next `count` queued embeddings of a prompt, which count as cached from here on."""
        taken: list[Tensor] = []
        prompt.length += count
        while count:
            first = prompt.queued.pop(0)
            taken.append(first[:count])
            if len(first) > count:
                prompt.queued.insert(0, first[count:])
            count -= len(taken[-1])
        if not prompt.queued:
            self._prompts.remove(prompt)
        return taken

    def _prefill(self, segments: list[Segment], parts: list[Tensor], admitted: list[Text]) -> None:
        """Runs a pass; admitted texts get slots and their first tokens."""
        slots = range(len(self._running), len(self._running) + len(admitted))
        host = self.board.host
        for slot, text in zip(slots, admitted, strict=True):
            assert text.span is not None
            host[:FIELDS, slot] = 0
            host[Field.POSITION, slot] = text.prefix_length + len(text.suffix)
            host[Field.PREFIX_START, slot] = text.prompt.span.start
            host[Field.PREFIX_LENGTH, slot] = text.prefix_length
            host[Field.OWN_START, slot] = text.span.start
            host[Field.REMAINING, slot] = text.max_new_tokens
            host[Field.SEED, slot] = text.seed
            host[Field.TEMPERATURE, slot] = float_bits(text.temperature)
        self._running += admitted
        if admitted:
            self._changed = True
        self._write_board()
        ends, total = [], 0
        for each in segments:
            total += each.count
            ends.append(total - 1)
        last = ends[len(ends) - len(admitted) :]
        self._runner.prefill(segments, parts, last, list(slots))

    # ---- slots

    def _write_board(self) -> None:
        if self._changed:
            self.board.write()
            self._changed = False

    def _collect(self) -> list[Growth]:
        """Waits for the device and takes the new tokens."""
        before = [int(emitted) for emitted in self.board.host[Field.EMITTED, : len(self._running)]]
        self.board.request()
        self.board.read()
        grown = []
        for slot, (text, read) in enumerate(zip(self._running, before, strict=True)):
            if text.finished:  # cancelled
                continue
            tokens, log_probabilities = self.board.tokens(slot, read)
            text.tokens += tokens
            text.log_probabilities += log_probabilities
            text.finished = int(self.board.host[Field.REMAINING, slot]) == 0
            if tokens or text.finished:
                grown.append(Growth(text, tokens))
        return grown

    def _drop_finished(self) -> None:
        """Takes ended and cancelled texts out of the batch; the others move up."""
        kept = [slot for slot, text in enumerate(self._running) if not text.finished]
        if len(kept) == len(self._running):
            return
        for text in self._running:
            if text.finished:
                self._leave(text)
        host = self.board.host
        host[:, : len(kept)] = host[:, kept]
        host[:FIELDS, len(kept) :] = 0
        self._running = [self._running[slot] for slot in kept]
        self._changed = True

    def _leave(self, text: Text) -> None:
        """Frees the span and the prompt of a text."""
        if text.span is not None:
            self.cache.free(text.span)
            text.span = None
        text.prompt.texts -= 1
        if text.prompt.released and text.prompt.texts == 0:
            self._drop(text.prompt)

    def _drop(self, prompt: CachedPrompt) -> None:
        if prompt in self._prompts:
            self._prompts.remove(prompt)
        prompt.queued.clear()
        self.cache.free(prompt.span)
