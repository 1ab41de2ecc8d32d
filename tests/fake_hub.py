"""A hub on this machine: lists, serves ranges, sends to a storage, and misbehaves when told to.

The endpoint is 127.0.0.1, the storage that it redirects to is "localhost": two hosts for a client.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

_TRICKLE = 0.02
"""Seconds between two bytes of a file that is held: far less than anybody takes for silence."""
LFS = 1000
"""Files above this are listed with a SHA-256, others with git's hash of the blob."""


@dataclass
class Fault:
    """What happens to one request. `path` of the file, or "" for a listing."""

    path: str
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    cut: int | None = None
    corrupt: bool = False
    pause: float = 0.0
    chunk: int = 4096
    hang: float = 0.0
    full: bool = False
    length: int | None = None
    content_range: str | None = None
    etag: str | None = None
    times: int = 1


@dataclass
class Asked:
    """One request that came."""

    path: str
    host: str
    range: str | None
    if_range: str | None
    token: str | None


@dataclass
class Repo:
    commit: str
    files: dict[str, bytes]
    gated: bool = False


class FakeHub:
    """The state of the server."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.faults: list[Fault] = []
        self.asked: list[Asked] = []
        self.listed: dict[str, Callable[[dict[str, Any]], None]] = {}
        self.sent = 0
        self.port = 0
        self.behind: dict[str, int] = {}
        self.storage = "localhost"

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def put(self, repo: str, commit: str, files: dict[str, bytes]) -> None:
        self.repos.setdefault(repo, Repo(commit, {})).files.update(files)

    def fail(self, path: str, **how: Any) -> None:
        self.faults.append(Fault(path, **how))

    def fault(self, path: str) -> Fault:
        for fault in self.faults:
            if fault.path == path and fault.times:
                fault.times -= 1
                return fault
        return Fault(path)

    @contextmanager
    def held(self, path: str, *, behind: int) -> Iterator[None]:
        """While the block lasts, a file comes up to that byte, and then byte by byte.

        So a download can neither end before a test has looked at it nor be taken for a silent one.
        """
        self.behind[path] = behind
        try:
            yield
        finally:
            del self.behind[path]

    def requests(self, path: str) -> list[Asked]:
        return [asked for asked in self.asked if asked.path == path]


def listing(hub: FakeHub, name: str) -> dict[str, Any]:
    repo = hub.repos[name]
    rows = []
    for path, data in repo.files.items():
        row: dict[str, Any] = {"rfilename": path, "size": len(data)}
        if len(data) > LFS:
            digest = hashlib.sha256(data).hexdigest()
            row |= {"blobId": "0" * 40, "lfs": {"sha256": digest, "size": len(data)}}
        else:
            row["blobId"] = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        rows.append(row)
    table = {"sha": repo.commit, "siblings": rows}
    if name in hub.listed:
        hub.listed[name](table)
    return table


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Head and body go in two packets: together with the other side, each would wait 40 ms.
        disable_nagle_algorithm = True

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            try:
                self._answer()
            except OSError:
                self.close_connection = True

        def _answer(self) -> None:
            parts = unquote(urlsplit(self.path).path).strip("/").split("/")
            if parts[:2] == ["api", "models"]:
                self._list("/".join(parts[2:4]), parts[-1])
            elif parts[0] == "storage":
                self._send_file("/".join(parts[1:3]), "/".join(parts[3:]))
            elif len(parts) > 4 and parts[2] == "resolve":
                self._resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
            else:
                self._say(404, {"X-Error-Code": "RepoNotFound"})

        def _note(self, path: str) -> None:
            get = self.headers.get
            host = (get("Host") or "").split(":")[0]
            asked = Asked(path, host, get("Range"), get("If-Range"), get("Authorization"))
            hub.asked.append(asked)

        def _say(
            self, status: int, headers: dict[str, str] | None = None, body: bytes = b""
        ) -> None:
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def _list(self, name: str, revision: str) -> None:
            self._note(f"list {name}")
            fault = hub.fault(f"list {name}")
            time.sleep(fault.hang)
            if fault.status:
                self._say(fault.status, fault.headers, fault.body or b"")
            elif name not in hub.repos:
                self._say(401, {"X-Error-Code": "RepoNotFound"})
            elif revision not in ("main", hub.repos[name].commit):
                self._say(404, {"X-Error-Code": "RevisionNotFound"})
            else:
                body = fault.body or json.dumps(listing(hub, name)).encode()
                self._say(200, {"Content-Type": "application/json"}, body)

        def _resolve(self, name: str, commit: str, path: str) -> None:
            repo = hub.repos.get(name)
            if repo is None or repo.commit != commit or path not in repo.files:
                self._note(f"resolve {path}")
                self._say(404, {"X-Error-Code": "EntryNotFound"})
            elif repo.gated and not self.headers.get("Authorization"):
                self._say(401, {"X-Error-Code": "GatedRepo"})
            elif hub.storage:
                hub.asked.append(
                    Asked(f"resolve {path}", "127.0.0.1", None, None, self.headers["Authorization"])
                )
                target = f"http://{hub.storage}:{hub.port}/storage/{name}/{path}?signed=1"
                self._say(302, {"Location": target})
            else:
                self._send_file(name, path)

        def _send_file(self, name: str, path: str) -> None:
            self._note(path)
            fault = hub.fault(path)
            data = hub.repos[name].files[path]
            etag = fault.etag or f'"{hashlib.md5(data).hexdigest()}"'
            time.sleep(fault.hang)
            if fault.status:
                self._say(fault.status, fault.headers, fault.body or b"")
                return
            start = 0
            asked = self.headers.get("Range")
            if_range = self.headers.get("If-Range")
            ranged = asked and not fault.full and if_range in (None, etag)
            if asked and ranged:
                start = int(asked.removeprefix("bytes=").rstrip("-"))
                if start >= len(data):
                    self._say(416, {"Content-Range": f"bytes */{len(data)}"})
                    return
            body = data[start:]
            if fault.corrupt:
                body = bytes([body[0] ^ 0xFF]) + body[1:]
            if fault.body is not None:
                body = fault.body
            self.send_response(206 if ranged else 200)
            self.send_header("Content-Length", str(fault.length or len(body)))
            self.send_header("ETag", etag)
            if ranged:
                span = f"bytes {start}-{len(data) - 1}/{len(data)}"
                self.send_header("Content-Range", fault.content_range or span)
            for key, value in fault.headers.items():
                self.send_header(key, value)
            self.end_headers()
            self._drip(body if fault.cut is None else body[: fault.cut], fault, start)
            if fault.cut is not None:
                self.close_connection = True

        def _drip(self, body: bytes, fault: Fault, start: int) -> None:
            at, whole = 0, fault.chunk if fault.pause else max(1, len(body))
            while at < len(body):
                step, pause = whole, fault.pause
                if (behind := hub.behind.get(fault.path)) is not None:
                    room = behind - start - at
                    step, pause = (min(whole, room), pause) if room > 0 else (1, _TRICKLE)
                self.wfile.write(body[at : at + step])
                hub.sent += len(body[at : at + step])
                at += step
                time.sleep(pause)

    return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A client that goes away in the middle is what is tested."""


@contextmanager
def serve() -> Iterator[FakeHub]:
    """A running hub."""
    hub = FakeHub()
    server = _Server(("127.0.0.1", 0), _handler(hub))
    hub.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def safetensors(size: int, seed: int = 0, name: str = "weight") -> bytes:
    """A whole weight file of `size` bytes of data."""
    header = json.dumps({name: {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}})
    body = hashlib.shake_128(str(seed).encode()).digest(size)
    return len(header).to_bytes(8, "little") + header.encode() + body
