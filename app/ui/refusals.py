"""Requests that are refused: a short answer for whoever asked, one line in the log."""

from __future__ import annotations

import logging
import threading
import time

from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from pipelines.errors import printable

log = logging.getLogger(__name__)
LINES_A_MINUTE = 30
_FORBIDDEN = "This studio answers only to its own page, by a name that it knows ({reason})."
_POLICY_VIOLATION = 1008


class Refusals:
    """The log of one studio. Whoever asks without end must not fill the disk with our lines."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._minute = 0
        self._lines = 0

    def note(self, reason: str, scope: Scope) -> None:
        """Writes a line: who asked for what, and why it is refused."""
        client = (scope.get("client") or ("?",))[0]
        asked = f"{scope.get('method', 'WebSocket')} {scope.get('path', '')}"
        line = f"refused {printable(asked, 120)} from {printable(client)}: {printable(reason, 200)}"
        with self._lock:
            minute = int(time.monotonic() // 60)
            skipped = max(0, self._lines - LINES_A_MINUTE)
            if minute != self._minute:
                self._minute, self._lines = minute, 0
                if skipped:
                    log.warning("refused %d more requests in that minute", skipped)
            self._lines += 1
            shown = self._lines <= LINES_A_MINUTE
        if shown:
            log.warning("%s", line)

    async def forbid(self, reason: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers 403, or closes a WebSocket before it is open."""
        self.note(reason, scope)
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
            return
        answer = PlainTextResponse(_FORBIDDEN.format(reason=reason), 403)
        await answer(scope, receive, send)
