"""Requests that are refused: a short answer for whoever asked, one line in the log."""

from __future__ import annotations

import logging
import os
import threading
import time
import traceback
from pathlib import Path

from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from app.settings import DEBUG_VARIABLE
from pipelines.errors import printable

log = logging.getLogger(__name__)
LINES_A_MINUTE = 30
_FORBIDDEN = "This studio answers only to its own page, by a name that it knows ({reason})."
_POLICY_VIOLATION = 1008


class Sparing(logging.Filter):
    """Lets `LINES_A_MINUTE` through, and says how many more `what` there were.

    Whoever asks without end must not fill the disk with our lines. As a filter of a logger it does
    so for all that is logged there.
    """

    def __init__(self, what: str) -> None:
        super().__init__()
        self._what = what
        self._lock = threading.Lock()
        self._minute = 0
        self._lines = 0

    def has_room(self) -> bool:
        """True where one more line may be written; it is counted."""
        with self._lock:
            minute = int(time.monotonic() // 60)
            skipped = max(0, self._lines - LINES_A_MINUTE)
            if minute != self._minute:
                self._minute, self._lines = minute, 0
                if skipped:
                    log.warning("%s %d more in that minute", self._what, skipped)
            self._lines += 1
            return self._lines <= LINES_A_MINUTE

    def filter(self, record: logging.LogRecord) -> bool:
        """True where `record` is to be written."""
        return self.has_room()


class Refusals:
    """The log of one studio."""

    def __init__(self) -> None:
        self._sparing = Sparing("requests refused:")

    def note(self, reason: str, scope: Scope) -> None:
        """Writes a line: who asked for what, and why it is refused."""
        self._line(f"refused {_asked(scope)}: {printable(reason, 200)}")

    def fault(self, error: Exception, scope: Scope) -> None:
        """Writes a line about what fell over a request; all of it where somebody looks for it."""
        frames = traceback.extract_tb(error.__traceback__)
        place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
        self._line(f"a fault in {_asked(scope)}: {printable(repr(error), 200)}{place}")
        if os.environ.get(DEBUG_VARIABLE):
            traceback.print_exception(error)

    def call(self, name: object, error: Exception) -> None:
        """Writes a line about a call of the page's functions whose values are of no use."""
        self._line(f"refused a call of {printable(name)}: {printable(repr(error), 200)}")

    def _line(self, line: str) -> None:
        if self._sparing.has_room():
            log.warning("%s", line)

    async def forbid(self, reason: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers 403, or closes a WebSocket before it is open."""
        self.note(reason, scope)
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
            return
        answer = PlainTextResponse(_FORBIDDEN.format(reason=reason), 403)
        await answer(scope, receive, send)


def _asked(scope: Scope) -> str:
    client = (scope.get("client") or ("?",))[0]
    asked = f"{scope.get('method', 'WebSocket')} {scope.get('path', '')}"
    return f"{printable(asked, 120)} from {printable(client)}"
