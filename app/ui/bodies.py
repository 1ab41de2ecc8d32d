"""How much a request may bring, and how long that may take: counted as it comes in.

What a request says about its own length is the client's word. gradio reads a body to its end,
whatever its size, before it looks at it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.ui import clients
from app.ui.refusals import Refusals
from app.ui.uploads import Uploads
from pipelines.errors import RequestError
from pipelines.pictures import MAX_BYTES as MAX_PICTURE

MAX_BODY = 1_000_000
MAX_UPLOAD = MAX_PICTURE + 100_000
"""One picture, and what a form writes around it."""
BODY_SECONDS, UPLOAD_SECONDS = 20.0, 600.0
PIECE_SECONDS = 20.0
"""For the next piece of an upload."""
UPLOADS = "/gradio_api/upload"
_NO_BODY = ("GET", "HEAD")


@dataclass
class _Refused(Exception):
    status: int
    sentence: str


def _too_large(most: int) -> _Refused:
    size = f"{most // 1_000_000} MB" if most >= 1_000_000 else f"{most:,} bytes"
    return _Refused(413, f"This request is larger than {size}, which is more than it may be.")


def _too_slow() -> _Refused:
    return _Refused(408, "This request came in too slowly; try again.")


class Bodies:
    """ASGI middleware: 413 for bodies that are too large, 408 for those that take too long, and
    for uploads what `Uploads` says."""

    def __init__(self, app: ASGIApp, *, uploads: Uploads, refusals: Refusals) -> None:
        self._app = app
        self._uploads = uploads
        self._refusals = refusals

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on with its body, or refuses it."""
        if scope["type"] != "http" or scope["method"] in _NO_BODY:
            await self._app(scope, receive, send)
            return
        uploads = scope["path"].rstrip("/") == UPLOADS
        counted = _Counted(
            receive,
            most=MAX_UPLOAD if uploads else MAX_BODY,
            seconds=UPLOAD_SECONDS if uploads else BODY_SECONDS,
        )
        try:
            counted.believe(Headers(scope=scope).get("content-length", ""))
            if uploads:
                await self._upload(scope, counted, send)
            else:
                await self._app(scope, await _whole(counted), send)
        except _Refused as refused:
            await self._refuse(refused, scope, receive, send)

    async def _upload(self, scope: Scope, counted: _Counted, send: Send) -> None:
        """Has gradio keep the files, and looks at them before anybody is told where they are."""
        answer: list[Message] = []

        async def hold(message: Message) -> None:
            answer.append(message)

        try:
            await self._app(scope, counted, hold)
        except ClientDisconnect:
            if counted.refused is None:
                raise
        if counted.refused is not None:
            raise counted.refused
        if files := _files(answer):
            try:
                await asyncio.to_thread(self._uploads.take, files, clients.of_scope(scope))
            except RequestError as error:
                raise _Refused(415, str(error)) from None
        for message in answer:
            await send(message)

    async def _refuse(self, refused: _Refused, scope: Scope, receive: Receive, send: Send) -> None:
        self._refusals.note(refused.sentence, scope)
        # The rest of the body is not read: the connection ends with the answer.
        answer = PlainTextResponse(refused.sentence, refused.status, {"Connection": "close"})
        await answer(scope, receive, send)


@dataclass
class _Counted:
    """`receive` of a request, up to so many bytes and seconds."""

    inner: Receive
    most: int
    seconds: float
    bytes: int = 0
    refused: _Refused | None = None
    ends: float = field(default_factory=lambda: asyncio.get_running_loop().time())
    done: bool = False

    def __post_init__(self) -> None:
        self.ends += self.seconds

    def believe(self, length: str) -> None:
        """Refuses at once what says itself that it is too large."""
        if length.isdecimal() and int(length[:20]) > self.most:
            raise _too_large(self.most)

    async def __call__(self) -> Message:
        """The next piece; that the client has gone, where it is refused."""
        if self.done:
            return await self.inner()
        try:
            return await self.piece()
        except _Refused as refused:
            self.refused = refused
            return {"type": "http.disconnect"}

    async def piece(self) -> Message:
        """The next piece. Raises _Refused."""
        left = self.ends - asyncio.get_running_loop().time()
        try:
            message = await asyncio.wait_for(self.inner(), min(left, PIECE_SECONDS))
        except TimeoutError:
            raise _too_slow() from None
        self.bytes += len(message.get("body", b""))
        if self.bytes > self.most:
            raise _too_large(self.most)
        self.done = not message.get("more_body", False)
        return message


async def _whole(counted: _Counted) -> Callable[[], Awaitable[Message]]:
    """`receive` of a request whose whole body is here. Raises _Refused."""
    body = bytearray()
    while not counted.done:
        message = await counted.piece()
        if message["type"] == "http.disconnect":
            break
        body += message.get("body", b"")
    first: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

    async def receive() -> Message:
        return first.pop() if first else await counted.inner()

    return receive


def _files(answer: list[Message]) -> list[Path]:
    """What gradio says that it has kept; nothing where it refused."""
    if not answer or answer[0].get("status") != 200:
        return []
    body = b"".join(message.get("body", b"") for message in answer)
    return [Path(name) for name in json.loads(body)]
