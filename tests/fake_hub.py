"""A small Hub for tests: lists, refuses, sends, and drops the connection where it is told to."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" * 6 + "cafe"


@dataclass(frozen=True)
class Request:
    """What was asked for."""

    method: str
    path: str
    range: str | None
    token: str | None


@dataclass
class FakeHub:
    """Repositories in memory, behind the addresses that the Hub's library asks.

    Attributes:
        repositories: content by path, by ``owner/name`` or ``datasets/owner/name``. Of a file that
            ends in .json the Hub knows no sha256, as of those that are small enough for git.
        gated: need a token of ``allowed``.
        gated_listing: whether they keep even their list of files to themselves.
        tokens: that the Hub knows.
        cuts: bytes after which the connection drops, by path; each once.
        bytes_a_second: of a transfer; None as fast as can be.
        down: status of every answer.
        revisions: names of the one commit, beside main.
    """

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    gated_listing: bool = False
    tokens: set[str] = field(default_factory=set)
    allowed: set[str] = field(default_factory=set)
    cuts: dict[str, list[int]] = field(default_factory=dict)
    bytes_a_second: int | None = None
    down: int | None = None
    revisions: tuple[str, ...] = ()
    requests: list[Request] = field(default_factory=list)
    url: str = ""

    def publish(self, name: str, folder: Path) -> None:
        """Hold the files of a folder as a repository."""
        inside = (path for path in folder.rglob("*") if path.is_file())
        self.repositories[name] = {
            path.relative_to(folder).as_posix(): path.read_bytes() for path in inside
        }

    def transfers(self) -> list[tuple[str, str | None]]:
        """What was sent: ``owner/name/path`` of the file, and the range that was asked for."""
        return [
            (r.path.replace(f"/resolve/{COMMIT}", "", 1).lstrip("/"), r.range)
            for r in self.requests
            if r.method == "GET" and "/resolve/" in r.path
        ]

    def sent(self) -> list[str]:
        """The files of :meth:`transfers`."""
        return [path for path, _ in self.transfers()]

    def start(self) -> ThreadingHTTPServer:
        """Serve, on a free port."""
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}).start()
        return server


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        token = (self.headers.get("authorization") or "").removeprefix("Bearer ") or None
        self.hub.requests.append(Request(self.command, path, self.headers.get("range"), token))
        if self.hub.down:
            return self._refuse(self.hub.down)
        if token is not None and token not in self.hub.tokens:
            return self._refuse(401, message="Invalid credentials in Authorization header")
        listing = re.fullmatch(r"/api/(?:models/)?((?:datasets/)?[^/]+/[^/]+)/revision/(.+)", path)
        file = re.fullmatch(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        match = listing or file
        name = match[1] if match else ""
        if name not in self.hub.repositories:
            return self._refuse(404 if token else 401, "RepoNotFound")
        if listing and listing[2] not in ("main", COMMIT, *self.hub.revisions):
            return self._refuse(404, "RevisionNotFound")
        closed = name in self.hub.gated and token not in self.hub.allowed
        if closed and (file or self.hub.gated_listing):
            return self._refuse(403 if token else 401, "GatedRepo")
        if listing:
            return self._list(self.hub.repositories[name])
        content = self.hub.repositories[name].get(file[3])
        if content is None:
            return self._refuse(404, "EntryNotFound")
        self._send(f"{name}/{file[3]}", content)

    def _refuse(self, status: int, code: str = "", message: str = "") -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _list(self, files: dict[str, bytes]) -> None:
        siblings = [_sibling(path, content) for path, content in files.items()]
        body = json.dumps({"id": "x/y", "sha": COMMIT, "siblings": siblings}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _send(self, name: str, content: bytes) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("range") or "")
        first = int(asked[1]) if asked else 0
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - first))
        self.send_header("ETag", f'"{_etag(name, content)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        # As for the files of today; to resume half of one, it must not be followed.
        self.send_header("X-Xet-Hash", "0" * 64)
        self.send_header("X-Xet-Refresh-Route", "/nowhere")
        self.end_headers()
        if self.command == "HEAD":
            return
        cuts = self.hub.cuts.get(name)
        end = cuts.pop(0) if cuts else len(content)
        step = 1 << 16
        for start in range(first, end, step):
            self.wfile.write(content[start : min(start + step, end)])
            if self.hub.bytes_a_second:
                time.sleep(step / self.hub.bytes_a_second)


def _etag(path: str, content: bytes) -> str:
    if path.endswith(".json"):
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    return hashlib.sha256(content).hexdigest()


def _sibling(path: str, content: bytes) -> dict[str, object]:
    sibling: dict[str, object] = {"rfilename": path, "size": len(content)}
    if path.endswith(".json"):
        return {**sibling, "blobId": _etag(path, content)}
    lfs = {"sha256": _etag(path, content), "size": len(content), "pointerSize": 130}
    return {**sibling, "blobId": "0" * 40, "lfs": lfs}
