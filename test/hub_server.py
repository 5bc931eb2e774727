"""A local server with the part of the hub's API that `pam fetch` uses: metadata, and files with ranges."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LARGE_BYTES = 5000  # larger files are announced as the hub's large files: with a SHA-256


@dataclass
class Repository:
    """One repository: its commits, and the branch's newest one."""

    commits: dict[str, dict[str, bytes]]  # commit → path → content
    main: str

    def commit(self, revision: str) -> str | None:
        """The commit that a revision names."""
        revision = self.main if revision == "main" else revision
        return revision if revision in self.commits else None


@dataclass
class Hub:
    """What the server serves, how it misbehaves, and what it was asked.

    Attributes:
        stop_after: path → bytes after which the connection breaks; later requests for it get status 503.
        wrong: path → content to send instead of the announced one.
        ranges: (path, first byte) of every request for a file.
    """

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    stop_after: dict[str, int] = field(default_factory=dict)
    wrong: dict[str, bytes] = field(default_factory=dict)
    ranges: list[tuple[str, int]] = field(default_factory=list)


@contextmanager
def serving() -> Iterator[Hub]:
    """Serves a hub on a free local port until the block ends."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/([^/?]+)(\?.*)?", self.path):
                self.metadata(match[1], match[2])
            elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path):
                self.file(match[1], match[2], match[3])
            else:
                self.answer(404, b"{}")

        def metadata(self, name: str, revision: str) -> None:
            repository = hub.repositories.get(name)
            commit = repository.commit(revision) if repository is not None else None
            if repository is None or commit is None:
                code = "RepoNotFound" if repository is None else "RevisionNotFound"
                self.answer(404, b"{}", {"X-Error-Code": code})
                return
            siblings = [sibling(path, content) for path, content in repository.commits[commit].items()]
            body = {"id": name, "sha": commit, "siblings": siblings}
            self.answer(200, json.dumps(body).encode())

        def file(self, name: str, revision: str, path: str) -> None:
            content = hub.wrong.get(path, hub.repositories[name].commits[revision][path])
            start = (
                int(match[1]) if (match := re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))) else 0
            )
            again = any(asked == path for asked, _ in hub.ranges)
            hub.ranges.append((path, start))
            if path in hub.stop_after and again:
                self.answer(503, b"")
            elif path in hub.stop_after:
                self.begin(200, len(content), {})
                self.wfile.write(content[: hub.stop_after[path]])
                self.close_connection = True
            else:
                ranged = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
                self.answer(206 if start else 200, content[start:], ranged if start else {})

        def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.begin(status, len(body), headers or {})
            self.wfile.write(body)

        def begin(self, status: int, length: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(length), **headers}.items():
                self.send_header(key, value)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def sibling(path: str, content: bytes) -> dict[str, object]:
    """A file's metadata as the hub states it: git's name for small files, SHA-256 for large ones."""
    entry: dict[str, object] = {"rfilename": path, "size": len(content)}
    if len(content) > LARGE_BYTES:
        entry["blobId"] = hashlib.sha1(b"pointer").hexdigest()
        sha256 = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 134}
    else:
        entry["blobId"] = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
    return entry
