"""Client of a vLLM server: sends prompts as embeddings, streams tokens, and knows if the server can be used.

A thread of its own runs an asyncio loop with all connections. Callers hand over and take; nothing here waits
for the network on their thread.

Letters: L tokens of a prompt, H width.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import httpx2
import numpy as np
import torch
from torch import Tensor

from pam_ros.errors import InferenceError
from pam_ros.model.text.server_address import server_address

PROMPT_EMBEDS_OPTION = "--enable-prompt-embeds"
NAME_OPTION = "--served-model-name"
KEY_VARIABLE = "PAM_TEXT_SERVER_KEY"  # of the environment
MESSAGE_CHARACTERS = 300  # of a server's message that are repeated
PIECE_BYTES = 3 << 16  # of a prompt that are encoded and sent at a time; a multiple of 3, as base64 wants
_ERROR_NUMBER = re.compile(r"\[Errno -?\d+\] ")
_BEFORE_PROMPT, _AFTER_PROMPT = b', "prompt_embeds": "', b'"}'


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the client waits, seconds."""

    connect_s: float = 3.0
    silence_s: float = 10.0  # without a byte from the server, the first token included
    watch_s: float = 5.0  # between two looks at a server that can be used
    retry_s: float = 1.0  # between two looks at one that cannot


@dataclass(frozen=True, slots=True)
class Completion:
    """One text to generate.

    Attributes:
        prompt: embeddings of the whole prompt, in parts (L, H) on the CPU; joined on the client's thread.
        max_tokens: longest answer, stop token included.
        temperature: 0 = greedy.
    """

    prompt: tuple[Tensor, ...]
    max_tokens: int
    temperature: float


@dataclass(frozen=True, slots=True)
class Arrival:
    """What has arrived of a text.

    Attributes:
        tokens: new token ids, without the stop token.
        log_probabilities: of each of them; empty if the server does not say.
        count: how many tokens they are, the stop token included.
        finished: the text is complete.
        error: why nothing more will come; None otherwise.
    """

    text_id: int
    tokens: tuple[int, ...]
    log_probabilities: tuple[float, ...]
    count: int
    finished: bool
    error: InferenceError | None = None


class TextServer:
    """A server, as one model's client sees it. Thread-safe."""

    def __init__(
        self,
        url: str,
        model: str,
        *,
        stop_ids: Sequence[int],
        probe: Tensor,
        key: str = "",
        patience: Patience | None = None,
    ) -> None:
        """Starts looking for the server immediately.

        Args:
            url: as in `http://host:8000`; a `/v1` at its end is allowed.
            model: the name that the server must have given the model.
            stop_ids: tokens that end a text.
            probe: (L, H) embeddings of a short prompt, which a usable server must be able to continue.
            key: sent as a bearer token; empty = none.
        """
        self.url = server_address(url)
        self.model = model
        self.sent_bytes = 0  # of all texts so far
        self._stop_ids = frozenset(stop_ids)
        self._probe = Completion((probe,), 1, 0.0)
        self._key = key
        self._patience = patience or Patience()
        self._problem = f"the text server {self.url} was not asked yet"
        self._context_length: int | None = None
        self._arrivals: deque[Arrival] = deque()
        self._wake: Callable[[], None] = lambda: None
        self._tasks: dict[int, asyncio.Task[None]] = {}  # by text id; the loop's own
        self._checked = threading.Event()
        self._closing, self._doubt = asyncio.Event(), asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="pam_text_server", daemon=True)
        self._thread.start()

    # ---- for callers

    @property
    def problem(self) -> str:
        """Why no text can be generated now, and what to do; empty if texts can be generated."""
        return self._problem

    @property
    def context_length(self) -> int | None:
        """Tokens of a prompt and its answer together; None before the server was reached."""
        return self._context_length

    def wait_checked(self) -> None:
        """Waits until the first check of the server is done."""
        self._checked.wait(self._patience.connect_s + self._patience.silence_s)

    def notify(self, wake: Callable[[], None]) -> None:
        """Calls `wake` on the client's thread whenever `take` has something."""
        self._wake = wake

    def start(self, text_id: int, completion: Completion) -> None:
        """Starts a text."""
        self._loop.call_soon_threadsafe(self._start, text_id, completion)

    def cancel(self, text_id: int) -> None:
        """Closes the text's stream, on which the server stops. Idempotent."""

        def cancel() -> None:
            if (task := self._tasks.get(text_id)) is not None:
                task.cancel()

        with suppress(RuntimeError):  # closed: nothing runs any more
            self._loop.call_soon_threadsafe(cancel)

    def take(self) -> list[Arrival]:
        """What has arrived since the last call, oldest first."""
        taken = []
        with suppress(IndexError):
            while True:
                taken.append(self._arrivals.popleft())
        return taken

    def close(self) -> None:
        """Closes all streams and ends the thread. Idempotent."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._closing.set)
            self._thread.join()

    # ---- on the client's thread

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        except Exception as error:  # noqa: BLE001 - such as of a key that no header can hold
            self._problem = self._problem_of(error)
            self._checked.set()
        self._loop.close()

    async def _serve(self) -> None:
        wait = self._patience
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        timeout = httpx2.Timeout(wait.silence_s, connect=wait.connect_s)
        async with httpx2.AsyncClient(base_url=self.url, headers=headers, timeout=timeout) as client:
            self._client = client
            watch = asyncio.create_task(self._watch())
            await self._closing.wait()
            tasks = [watch, *self._tasks.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self) -> None:
        """Checks the server periodically: more often while it cannot be used, immediately after a fault."""
        while not self._closing.is_set():  # before Python 3.12, `wait_for` can swallow the cancellation
            self._doubt.clear()
            await self._look()
            self._checked.set()
            pause_s = self._patience.retry_s if self._problem else self._patience.watch_s
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._doubt.wait(), pause_s)

    async def _look(self) -> None:
        try:
            response = await self._client.get("/v1/models")
            _raise_refusal(response.status_code, response.content)
            served = {each["id"]: each for each in response.json()["data"]}
            if self.model in served:
                self._context_length = served[self.model].get("max_model_len")
                if self._problem:
                    await self._complete(self._probe, lambda tokens, odds, finished: None)
                if not self._doubt.is_set():  # by a text that failed meanwhile
                    self._problem = ""
            else:
                self._problem = (
                    f"the text server {self.url} serves {', '.join(served)}, not {self.model}; serve what "
                    f"`pam export-language` writes for this model, with {NAME_OPTION} {self.model}"
                )
        except Exception as error:  # noqa: BLE001 - the server may answer anything
            self._problem = self._problem_of(error)

    def _start(self, text_id: int, completion: Completion) -> None:
        task = self._loop.create_task(self._generate(text_id, completion))
        self._tasks[text_id] = task
        task.add_done_callback(lambda _: self._tasks.pop(text_id, None))

    async def _generate(self, text_id: int, completion: Completion) -> None:
        ended = False

        def arrive(tokens: list[int], odds: list[float], finished: bool) -> None:
            nonlocal ended
            ended |= finished
            kept = [place for place, token in enumerate(tokens) if token not in self._stop_ids]
            known = len(odds) == len(tokens)
            self._arrive(
                Arrival(
                    text_id,
                    tuple(tokens[place] for place in kept),
                    tuple(odds[place] for place in kept) if known else (),
                    len(tokens),
                    finished,
                )
            )

        try:
            await self._complete(completion, arrive)
        except Exception as error:  # noqa: BLE001 - every text must end
            if ended:
                return
            if not isinstance(error, _RefusalError) or error.concerns_all:
                self._problem = self._problem_of(error)
                self._doubt.set()
            why = f"the text server {self.url} broke off the text: {self._reason(error)}"
            self._arrive(Arrival(text_id, (), (), 0, False, InferenceError(why)))

    async def _complete(
        self, completion: Completion, arrive: Callable[[list[int], list[float], bool], None]
    ) -> None:
        """Sends a prompt; calls `arrive` for every piece of the answer: tokens, log probabilities, end."""
        file = io.BytesIO()
        torch.save(_joined(completion.prompt), file)
        settings = self._settings(completion)
        length = len(settings) + len(_BEFORE_PROMPT) + -(-len(file.getbuffer()) // 3) * 4 + len(_AFTER_PROMPT)
        headers = {"Content-Type": "application/json", "Content-Length": str(length)}
        body = _pieces(settings, file.getbuffer())
        finished = False
        async with self._client.stream("POST", "/v1/completions", content=body, headers=headers) as response:
            _raise_refusal(response.status_code, b"" if response.is_success else await response.aread())
            self.sent_bytes += length
            async for event in httpx2.EventSource(response):
                if event.data == "[DONE]":
                    break
                chunk = json.loads(event.data)
                if "error" in chunk:
                    raise ValueError(chunk["error"]["message"])
                choice = chunk["choices"][0]
                if choice.get("token_ids") is None:
                    raise ValueError("it sends no token ids; use vLLM 0.11 or newer")
                finished = choice["finish_reason"] in ("stop", "length")
                odds = (choice.get("logprobs") or {}).get("token_logprobs") or []
                arrive(choice["token_ids"], [float(each) for each in odds if each is not None], finished)
        if not finished:
            raise ValueError("the stream ended early")

    def _settings(self, completion: Completion) -> bytes:
        """The request as JSON, up to the prompt. Says everything that a server's defaults could change."""
        settings = {
            "model": self.model,
            "stream": True,
            "max_tokens": completion.max_tokens,
            "temperature": completion.temperature,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "stop_token_ids": sorted(self._stop_ids),
            "ignore_eos": True,  # the stop tokens say it
            "return_token_ids": True,
            "logprobs": 1,  # with 0, some versions leave them out
        }
        return json.dumps(settings)[:-1].encode()

    def _arrive(self, arrival: Arrival) -> None:
        self._arrivals.append(arrival)
        self._wake()

    def _problem_of(self, error: Exception) -> str:
        hint = "masks continue, and texts resume once it can be used"
        if isinstance(error, _RefusalError):
            if error.status in (401, 403):
                hint = f"set {KEY_VARIABLE} to the server's key"
            elif "prompt-embeds" in str(error):
                hint = f"start it with {PROMPT_EMBEDS_OPTION}"
        return f"the text server {self.url} cannot be used: {self._reason(error)}; {hint}"

    def _reason(self, error: Exception) -> str:
        if isinstance(error, httpx2.ConnectTimeout):
            return f"no connection within {self._patience.connect_s:g} s"
        if isinstance(error, httpx2.ConnectError):
            return f"no connection ({_ERROR_NUMBER.sub('', str(error))})"
        if isinstance(error, httpx2.TimeoutException):
            return f"nothing came for {self._patience.silence_s:g} s"
        if isinstance(error, KeyError | TypeError | IndexError | AttributeError):
            return f"its answer is not vLLM's ({type(error).__name__}: {error})"
        return str(error) or type(error).__name__


class _RefusalError(ValueError):
    """An answer with an HTTP status that means failure."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(f"HTTP {status}: {detail}")
        self.status = status

    @property
    def concerns_all(self) -> bool:
        """False if the request alone is to blame."""
        return self.status not in (400, 413, 422)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Parts (L_i, H) → (L, H).

    By NumPy, on this thread alone: torch would start OpenMP helpers that slow down the others' (`threads`).
    """
    whole = torch.empty(sum(map(len, parts)), *parts[0].shape[1:], dtype=parts[0].dtype)
    np.concatenate(
        [part.contiguous().view(torch.uint8).numpy() for part in parts], out=whole.view(torch.uint8).numpy()
    )
    return whole


async def _pieces(settings: bytes, prompt: memoryview) -> AsyncIterator[bytes]:
    """The body of a request. In pieces, so that the interpreter's lock is never held for long."""
    yield settings + _BEFORE_PROMPT
    for start in range(0, len(prompt), PIECE_BYTES):
        yield base64.b64encode(prompt[start : start + PIECE_BYTES])
    yield _AFTER_PROMPT


def _raise_refusal(status: int, content: bytes) -> None:
    """Raises _RefusalError with the server's own message, unless the status means success."""
    if status == 200:
        return
    text = content.decode(errors="replace")
    with suppress(ValueError, KeyError, TypeError):
        text = str(json.loads(text)["error"]["message"])
    raise _RefusalError(status, text[:MESSAGE_CHARACTERS])
