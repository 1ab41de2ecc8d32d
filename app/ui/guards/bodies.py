"""How much a request may bring, and how long that may take: counted as it comes in.

What a request says about its own length is the client's word. gradio reads a body to its end,
whatever its size, before it looks at it.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.ui.guards import access, clients
from app.ui.guards import uploads as uploading
from app.ui.guards.refusals import Refusals
from app.ui.guards.shares import Shares, TooManyError
from app.ui.guards.uploads import Uploads
from app.ui.routes import PREPARED
from pipelines.errors import RequestError
from pipelines.pictures import MAX_BYTES as MAX_PICTURE

MAX_BODY = 1_000_000
MAX_UPLOAD = MAX_PICTURE + 100_000
"""One picture, and what a form writes around it."""
BODY_SECONDS, UPLOAD_SECONDS = 20.0, 600.0
PIECE_SECONDS = 20.0
"""For the next piece of an upload."""
LINGER_SECONDS, LINGER_BYTES = 5.0, 2 * MAX_UPLOAD
"""For what comes after it was refused."""
UPLOADS = "/gradio_api/upload"
BROUGHT = f"/{PREPARED}/"
"""Where photos to train on come, or archives of them."""
MAX_BROUGHT, BROUGHT_SECONDS = 2_000_000_000, 3600.0
CALLS_AT_ONCE, UPLOADS_AT_ONCE = 8, 4
"""Of one address."""
MOST_PARTS = 16
"""Of an upload; a form of so many files and their end."""
_NO_BODY = ("GET", "HEAD")


@dataclass
class Refused(Exception):
    """A request that brings too much, or too slowly: what to answer."""

    status: int
    sentence: str
    unread: bool = False
    """There is more to come, which nobody wants."""

    def answer(self) -> Response:
        """Says so. The rest of the body is not read: the connection ends with the answer."""
        return PlainTextResponse(self.sentence, self.status, {"Connection": "close"})


def _too_large(most: int) -> Refused:
    size = f"{most // 1_000_000} MB" if most >= 1_000_000 else f"{most:,} bytes"
    return Refused(413, f"This request is larger than {size}, which is more than it may be.", True)


def _too_slow() -> Refused:
    return Refused(408, "This request came in too slowly; try again.")


def _too_many(*, unread: bool) -> Refused:
    said = "Too much was asked from your address at once; wait for some answers."
    return Refused(429, said, unread)


class Bodies:
    """ASGI middleware: 413 for bodies that are too large, 408 for those that take too long, and
    for uploads what `Uploads` says; each address has its share of what is done at once."""

    def __init__(self, app: ASGIApp, *, uploads: Uploads, refusals: Refusals) -> None:
        self._app = app
        self._uploads = uploads
        self._refusals = refusals
        self._calling, self._uploading = Shares(CALLS_AT_ONCE), Shares(UPLOADS_AT_ONCE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on with its body, or refuses it."""
        if scope["type"] != "http" or scope["method"] in _NO_BODY:
            await self._app(scope, receive, send)
            return
        uploads = scope["path"].rstrip("/") == UPLOADS
        try:
            if uploads:
                async with self._uploading.turn(clients.of_scope(scope)):
                    await self._upload(scope, receive, send)
            elif scope["path"].startswith(BROUGHT):
                async with self._uploading.turn(clients.of_scope(scope)):
                    await self._bring(scope, receive, send)
            else:
                whole = await _whole(scope, receive, most=MAX_BODY)
                async with self._calling.turn(clients.of_scope(scope)):
                    await self._app(scope, whole, send)
        except TooManyError:
            await self._refuse(_too_many(unread=uploads), scope, receive, send)
        except Refused as refused:
            await self._refuse(refused, scope, receive, send)

    async def _refuse(self, refused: Refused, scope: Scope, receive: Receive, send: Send) -> None:
        self._refusals.note(refused.sentence, scope)
        if not refused.unread:
            await refused.answer()(scope, receive, send)
            return

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.body":
                # The connection ends with the last piece. Whoever still has something to send then
                # often hears nothing, or waits for ever, so that is thrown away for a while.
                await send({**message, "more_body": True})
                await _throw_away(receive)
                message = {"type": "http.response.body"}
            await send(message)

        await refused.answer()(scope, receive, answer)

    async def _bring(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on what comes piece by piece: only its owner brings much to this studio."""
        owner = scope.get(access.ADMIN) is True
        most = MAX_BROUGHT if owner else MAX_BODY
        counted = _Counted(receive, most=most, seconds=BROUGHT_SECONDS if owner else BODY_SECONDS)
        counted.believe(scope)

        async def unless_refused(message: Message) -> None:
            # Nothing was said yet: the refusal is the answer.
            if counted.refused is None:
                await send(message)

        await self._app(scope, counted, unless_refused)
        if counted.refused is not None:
            raise counted.refused

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Has gradio keep the files, and looks at them before anybody is told where they are."""
        counted = _Counted(receive, most=MAX_UPLOAD, seconds=UPLOAD_SECONDS)
        counted.believe(scope)
        counted.count_parts(scope)
        with uploading.place() as place:
            files: list[Path] = []
            try:
                answer = await self._kept(scope, counted)
                files = await self._taken(answer, clients.of_scope(scope))
            finally:
                await asyncio.to_thread(place.keep_only, files)
        for message in answer:
            await send(message)

    async def _kept(self, scope: Scope, counted: _Counted) -> list[Message]:
        """What gradio answers to an upload. Raises Refused."""
        answer: list[Message] = []

        async def hold(message: Message) -> None:
            answer.append(message)

        try:
            await self._app(scope, counted, hold)
        except ClientDisconnect:
            # Of our own saying, or because nobody is there to be told anything.
            answer.clear()
        if counted.refused is not None:
            raise counted.refused
        return answer

    async def _taken(self, answer: list[Message], client: str) -> list[Path]:
        """The files that gradio names in its answer, if they are what may be kept. Raises
        Refused."""
        if files := _files(answer):
            try:
                await asyncio.to_thread(self._uploads.take, files, client)
            except RequestError as error:
                raise Refused(415, str(error)) from None
        return files


@dataclass
class _Counted:
    """`receive` of a request, up to so many bytes and seconds."""

    inner: Receive
    most: int
    seconds: float
    came: int = 0
    refused: Refused | None = None
    ends: float = field(default_factory=lambda: asyncio.get_running_loop().time())
    done: bool = False
    boundary: bytes = b""
    parts: int = 0
    tail: bytes = b""

    def __post_init__(self) -> None:
        self.ends += self.seconds

    def believe(self, scope: Scope) -> None:
        """Refuses at once what says itself that it is too large. Raises Refused."""
        length = Headers(scope=scope).get("content-length", "")
        if length.isdecimal() and int(length[:20]) > self.most:
            raise _too_large(self.most)

    def count_parts(self, scope: Scope) -> None:
        """Has the parts of a form counted as well: gradio opens a file for each."""
        _, options = parse_options_header(Headers(scope=scope).get("content-type", ""))
        if b"boundary" in options:
            self.boundary = b"--" + options[b"boundary"]

    async def __call__(self) -> Message:
        """The next piece; that the client has gone, where it is refused."""
        if self.done:
            return await self.inner()
        try:
            return await self.piece()
        except Refused as refused:
            self.refused = refused
            return {"type": "http.disconnect"}

    async def piece(self) -> Message:
        """The next piece. Raises Refused."""
        left = self.ends - asyncio.get_running_loop().time()
        try:
            message = await asyncio.wait_for(self.inner(), min(left, PIECE_SECONDS))
        except TimeoutError:
            raise _too_slow() from None
        self.came += len(message.get("body", b""))
        if self.came > self.most:
            raise _too_large(self.most)
        self._check_parts(message.get("body", b""))
        self.done = not message.get("more_body", False)
        return message

    def _check_parts(self, piece: bytes) -> None:
        if not self.boundary:
            return
        # A boundary may be torn in two by the pieces in which it comes.
        seen = self.tail + piece
        self.parts += seen.count(self.boundary)
        self.tail = seen[-(len(self.boundary) - 1) :]
        if self.parts > MOST_PARTS:
            raise Refused(413, f"This upload has more than {MOST_PARTS} parts.", True)


async def read(scope: Scope, receive: Receive, *, most: int) -> bytes:
    """The body of a request of at most `most` bytes, up to its end or to that of the connection.

    Raises Refused.
    """
    counted = _Counted(receive, most=most, seconds=BODY_SECONDS)
    counted.believe(scope)
    body = bytearray()
    while not counted.done:
        message = await counted.piece()
        if message["type"] == "http.disconnect":
            break
        body += message.get("body", b"")
    return bytes(body)


async def _throw_away(receive: Receive) -> None:
    """Reads what still comes, for so many seconds and bytes."""
    came = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGER_SECONDS):
            while came < LINGER_BYTES:
                message = await receive()
                if message["type"] == "http.disconnect" or not message.get("more_body"):
                    break
                came += len(message.get("body", b""))


async def _whole(scope: Scope, inner: Receive, *, most: int) -> Receive:
    """`inner` of a request whose whole body is here. Raises Refused."""
    body = await read(scope, inner, most=most)
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        return first.pop() if first else await inner()

    return receive


def _files(answer: list[Message]) -> list[Path]:
    """What gradio says that it has kept; nothing where it refused."""
    if not answer or answer[0].get("status") != 200:
        return []
    body = b"".join(message.get("body", b"") for message in answer)
    return [Path(name) for name in json.loads(body)]
