"""An HTTP server that speaks vLLM's completions API as far as it is used, and misbehaves on request.

It really generates: it continues the embeddings it receives with the language model it is given.
"""

from __future__ import annotations

import base64
import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

from pam_ros.model.text.language_model import LanguageModel


@dataclass(eq=False)
class Behaviour:
    """How the server behaves; may be changed while it runs.

    Attributes:
        models: names that it serves.
        context_length: as it reports it, tokens.
        token_s: pause before each token, seconds.
        status: HTTP status of completions with an answer longer than one token.
        break_after: tokens after which a stream breaks off; None = never.
        key: that it asks for; empty = none.
        log_probabilities: whether it sends them with the tokens.
        requests: bodies of the completions, with the prompt as a tensor, and the shortest (probes) left out.
        disconnected: set when a client has closed a stream.
    """

    models: list[str]
    context_length: int = 2048
    token_s: float = 0.0
    status: int = 200
    break_after: int | None = None
    key: str = ""
    log_probabilities: bool = True
    requests: list[dict[str, Any]] = field(default_factory=list)
    disconnected: threading.Event = field(default_factory=threading.Event)


def free_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64  # connections of texts that start together


@contextmanager
def text_server(language: LanguageModel, behaviour: Behaviour, port: int = 0) -> Iterator[str]:
    """Serves until the block ends; yields the address. `port` 0 takes a free one."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            if self._refused():
                return
            models = [{"id": name, "max_model_len": behaviour.context_length} for name in behaviour.models]
            self._answer(200, {"data": models})

        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            content = self.rfile.read(length)
            if len(content) < length:  # the client has gone
                return
            body = json.loads(content)
            if self._refused():
                return
            body["prompt_embeds"] = torch.load(io.BytesIO(base64.b64decode(body["prompt_embeds"])))
            if body["max_tokens"] > 1:
                behaviour.requests.append(body)
                if behaviour.status != 200:
                    self._answer(behaviour.status, {"error": {"message": "it was told to refuse"}})
                    return
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            try:
                self._stream(body)
            except OSError:
                behaviour.disconnected.set()
            self.close_connection = True

        def _stream(self, body: dict[str, Any]) -> None:
            embeddings = body["prompt_embeds"].to(language.transformer.lm_head.weight.dtype)
            reason, sent = None, 0
            while reason is None:
                time.sleep(behaviour.token_s)
                with torch.inference_mode():
                    odds = language.logits(embeddings)[: language.tokens].float().log_softmax(-1)
                    token = int(odds.argmax())
                    embeddings = torch.cat([embeddings, language.embed([token])])
                sent += 1
                if behaviour.break_after is not None and sent > behaviour.break_after:
                    return
                if token in body["stop_token_ids"]:
                    reason = "stop"
                elif sent == body["max_tokens"]:
                    reason = "length"
                choice = {"token_ids": [token], "finish_reason": reason, "logprobs": None}
                if behaviour.log_probabilities and body["logprobs"] is not None:
                    choice["logprobs"] = {"token_logprobs": [float(odds[token])]}
                self._send(json.dumps({"choices": [choice]}))
            self._send("[DONE]")

        def _send(self, data: str) -> None:
            self.wfile.write(f"data: {data}\n\n".encode())
            self.wfile.flush()

        def _refused(self) -> bool:
            if not behaviour.key or self.headers["Authorization"] == f"Bearer {behaviour.key}":
                return False
            self._answer(401, {"error": {"message": "Unauthorized"}})
            return True

        def _answer(self, status: int, content: dict[str, Any]) -> None:
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = _Server(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
