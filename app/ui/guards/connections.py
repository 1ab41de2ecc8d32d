"""How many connections the page has, and for how long each may do nothing.

uvicorn waits for ever for a request that does not come and for a reader that does not read, and
takes connections until no file can be opened any more. Here whoever does nothing goes, and when
there are too many the one that matters least makes room: a new visitor always gets in.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from app.ui.guards.clients import network

HEAD_SECONDS = 10.0
"""For the head of a request, from the first moment or from the end of the last answer."""
KEEP_ALIVE_SECONDS = 5
READ_SECONDS = 60.0
"""For a reader that takes nothing of what it asked for."""
MOST = 512
LEAST = 6
"""What one browser opens at once."""
_BACKLOG = 128
_USED_BY_A_STUDIO = 48
_PIECE, _PIECES = 65_536, 128
"""What the system may have taken in of a body that nobody reads, in bytes."""


def most_connections() -> int:
    """A third of the files that may still be opened.

    A second third is taken while others make room, and pictures, uploads and pipes need the last.
    """
    try:
        import resource
    except ImportError:
        # Windows counts no files.
        return MOST
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return MOST
    open_now = Path("/proc/self/fd")
    used = len(os.listdir(open_now)) if open_now.is_dir() else _USED_BY_A_STUDIO
    return max(LEAST, min(MOST, (limit - used) // 3))


class Connection(H11Protocol):
    """A connection that is closed where nothing happens on it. `most` of them are open at once."""

    def __init__(self, *arguments: Any, most: int, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._most = most
        self._since = 0.0
        self._head: asyncio.TimerHandle | None = None
        self._reader: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Takes the connection, and has another one make room where there are too many."""
        super().connection_made(transport)
        self._since = self.loop.time()
        self._await_head()
        others = [one for one in self.connections if isinstance(one, Connection)]
        others = [one for one in others if one is not self and not one.transport.is_closing()]
        if len(others) >= self._most:
            crowd = Counter(one.place for one in others)
            least = min(others, key=lambda one: (one.busy, -crowd[one.place], one._since))
            least.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets its clocks, and ends the connection for whoever else holds it.

        A fork, as ZeroGPU paints in, has inherited it: closing it here alone would leave a client
        that is still sending with nobody to tell it that it was refused.
        """
        self._cancel("_head")
        self._cancel("_reader")
        with suppress(OSError):
            end(self.transport.get_extra_info("socket"))
        super().connection_lost(exc)

    @property
    def place(self) -> str:
        """Where it comes from."""
        return network(self.client[0]) if self.client else ""

    @property
    def busy(self) -> int:
        """0 where nothing is asked, 1 while a request still comes in, 2 while it is answered."""
        if self.cycle is None or self.cycle.response_complete:
            return 0
        return 2 if self.conn.their_state is not h11.SEND_BODY else 1

    def data_received(self, data: bytes) -> None:
        """Reads on; a head that has begun must come to its end."""
        super().data_received(data)
        if self.busy:
            self._cancel("_head")
        elif self._head is None and self.timeout_keep_alive_task is None:
            self._await_head()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """Hands over to another protocol, which has its own clocks."""
        self._cancel("_head")
        super().handle_websocket_upgrade(event)

    def pause_writing(self) -> None:
        """The reader takes nothing for now."""
        super().pause_writing()
        if self._reader is None:
            self._reader = self.loop.call_later(READ_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """The reader goes on."""
        self._cancel("_reader")
        super().resume_writing()

    def _await_head(self) -> None:
        self._head = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _cancel(self, name: str) -> None:
        handle: asyncio.TimerHandle | None = getattr(self, name)
        if handle is not None:
            handle.cancel()
        setattr(self, name, None)


def end(connection: Any) -> None:
    """Ends a connection for both sides, whoever else holds it here. Raises OSError."""
    connection.shutdown(socket.SHUT_RDWR)
    # A client that waits for room to send more only hears of it once there is some.
    for _ in range(_PIECES):
        if not os.read(connection.fileno(), _PIECE):
            break


def _config(*, host: str = "127.0.0.1", **named: Any) -> uvicorn.Config:
    """The settings of the server, which listens on IPv4 and IPv6 where it listens everywhere.

    asyncio takes "::" for IPv6 alone, and an empty name for all that the system has.
    """
    return uvicorn.Config(host="" if host == "::" else host, **named)


@contextmanager
def watched() -> Iterator[None]:
    """Has gradio, which takes no settings of its server, serve over such connections."""
    # Here and not above: gradio reads its settings when it is imported.
    from gradio import http_server

    most = most_connections()
    kept = http_server.uvicorn
    config = partial(
        _config,
        # uvicorn asks for a class, and makes one for each connection.
        http=cast(Any, partial(Connection, most=most)),
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        # No more are taken at once than may be open, or there is a moment without any file left.
        backlog=min(_BACKLOG, most),
    )
    http_server.uvicorn = cast(Any, SimpleNamespace(**{**vars(kept), "Config": config}))
    try:
        yield
    finally:
        http_server.uvicorn = kept
