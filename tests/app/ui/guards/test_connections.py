"""Connections that do nothing, and too many of them: against a real server of a small page."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from app.ui.guards import connections
from app.ui.guards.connections import Connection, most_connections

MOST = 4
WAIT = 20
ASK = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"
STREAM = ASK.replace(b"/ ", b"/stream ")
POST = b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 10\r\n\r\nhalf"


async def page(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers when the body is there; /stream never ends, /large is more than buffers hold."""
    if scope["type"] != "http":
        return
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if scope["path"] == "/stream":
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        await receive()
        return
    size = 50_000_000 if scope["path"] == "/large" else 2
    await send({"type": "http.response.body", "body": b"ok" + bytes(size - 2)})


class Server:
    """The small page, and the connections that a test opens to it."""

    def __init__(self, inner: uvicorn.Server) -> None:
        self.port = inner.servers[0].sockets[0].getsockname()[1]
        self.connections = inner.server_state.connections
        self.opened: list[socket.socket] = []

    def open(self, said: bytes = b"", buffer: int = 0) -> socket.socket:
        made = socket.socket()
        self.opened.append(made)
        if buffer:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        made.settimeout(WAIT)
        made.connect(("127.0.0.1", self.port))
        if said:
            made.sendall(said)
        return made


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(connections, "READ_SECONDS", 0.5)
    config = uvicorn.Config(
        page,
        port=0,
        log_level="error",
        lifespan="off",
        http=cast(Any, partial(Connection, most=MOST)),
    )
    inner = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(inner.serve()), daemon=True)
    thread.start()
    while not inner.started:
        time.sleep(0.01)
    made = Server(inner)
    yield made
    for one in made.opened:
        one.close()
    inner.should_exit = inner.force_exit = True
    thread.join(WAIT)


def answer(made: socket.socket) -> bytes:
    """What comes first; empty where it was closed."""
    try:
        return made.recv(65_536)
    except ConnectionResetError:
        return b""


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def whole(made: socket.socket) -> bool:
    """Whether the page comes to its end."""
    got = b""
    while not got.endswith(b"ok\r\n0\r\n\r\n"):
        if not (piece := answer(made)):
            return False
        got += piece
    return True


@pytest.mark.parametrize("said", [b"", b"G", ASK[:-2], ASK[:-2] + b"X-Slow: 1\r\n"])
def test_a_head_that_never_comes_is_not_waited_for(
    server: Server, said: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.3)
    made = server.open(said)
    assert answer(made) == b""
    made.close()


def test_letters_that_drip_do_not_wind_the_clock_up(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.5)
    made, sent = server.open(b"GET / HTTP/1.1\r\n"), 0
    try:
        for _ in range(3000):
            made.sendall(b"X: y\r\n")
            sent += 1
            time.sleep(0.02)
    except (BrokenPipeError, ConnectionResetError):
        pass
    assert sent < 3000


def test_the_second_head_must_come_to_its_end_as_well(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = server.open(ASK)
    assert whole(made)
    made.sendall(ASK)
    assert whole(made)
    # The clock of a head is set when it begins.
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.5)
    made.sendall(ASK[:20])
    assert answer(made) == b""


def test_a_stream_may_take_as_long_as_it_likes(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.5)
    made = server.open(STREAM)
    got = b""
    while b"first" not in got:
        piece = answer(made)
        assert piece
        got += piece
    made.settimeout(1.5)
    with pytest.raises(TimeoutError):
        made.recv(1)


def test_a_reader_that_takes_nothing_is_left(server: Server) -> None:
    made = server.open(ASK.replace(b"/ ", b"/large "), buffer=4096)
    until(lambda: bool(server.connections))
    until(lambda: not server.connections)
    got = 0
    try:
        while piece := made.recv(1 << 20):
            got += len(piece)
    except ConnectionResetError:
        pass
    assert got < 50_000_000


@pytest.mark.parametrize("said", [b"", ASK[:-2], POST, STREAM])
def test_whoever_comes_gets_in(server: Server, said: bytes) -> None:
    _ = [server.open(said) for _ in range(40)]
    for _ in range(5):
        made = server.open(ASK)
        assert whole(made)
        made.close()


def test_who_does_nothing_makes_room_before_who_is_answered(server: Server) -> None:
    streams = [server.open(STREAM) for _ in range(MOST - 1)]
    for one in streams:
        got = b""
        while b"first" not in got:
            got += answer(one)
    idle = [server.open() for _ in range(12)]
    made = server.open(ASK)
    assert whole(made)
    for one in streams:
        one.settimeout(0.2)
        with pytest.raises(TimeoutError):
            one.recv(1)
    closed = sum(answer(one) == b"" for one in idle[:-2])
    assert closed == len(idle) - 2


def test_as_many_as_files_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    def limited(files: int) -> int:
        monkeypatch.setattr(resource, "getrlimit", lambda kind: (files, files))
        return most_connections()

    assert connections.LEAST <= limited(64) <= 20
    assert limited(1) == connections.LEAST
    assert limited(10**6) == limited(resource.RLIM_INFINITY) == connections.MOST


def test_the_page_is_served_over_such_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    from gradio import http_server

    before = http_server.uvicorn
    with connections.watched():
        config: Any = http_server.uvicorn.Config(app=page)
        config.load()
        assert config.http_protocol_class.func is Connection
        assert config.timeout_keep_alive == connections.KEEP_ALIVE_SECONDS
        assert config.backlog <= 128
    assert http_server.uvicorn is before


def test_a_sender_hears_of_the_end_although_a_fork_holds_the_connection() -> None:
    server = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(server.getsockname(), timeout=20)
    ours, _ = server.accept()
    ours.setblocking(False)
    with server, client, ours.dup():
        # As much as the system takes in: from here on the client waits for room.
        client.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                client.send(b"0" * 65_536)
        client.settimeout(20)
        connections.end(ours)
        ours.close()
        with pytest.raises(OSError, match=r"reset|[Bb]roken pipe"):
            while True:
                client.send(b"0" * 65_536)


@pytest.mark.parametrize(
    ("host", "listens"), [("::", ""), ("::1", "::1"), ("0.0.0.0", "0.0.0.0"), ("a.lan", "a.lan")]
)
def test_everywhere_is_both_families(host: str, listens: str) -> None:
    from gradio import http_server

    with connections.watched():
        assert http_server.uvicorn.Config(app=page, host=host).host == listens
