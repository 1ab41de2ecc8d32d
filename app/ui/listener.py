"""Whether somebody still waits for the answer of an event, as gradio's queue knows it.

gradio lets a plain function run to its end when its client has gone, and throws the answer away.
It offers no question about that, so its queue is asked here, and nowhere else.
"""

from __future__ import annotations

import time
from typing import Any

from gradio.context import LocalContext

DEAF_SECONDS = 30.0
"""For how long an answer may lie there unread, e.g. between asking and listening."""


class ClientListener:
    """The client of the event that runs now. Make it inside of the event."""

    def __init__(self) -> None:
        blocks = LocalContext.blocks.get(None)
        self._queue: Any = getattr(blocks, "_queue", None)
        self._event: Any = None
        if self._queue is not None:
            name = LocalContext.event_id.get(None)
            self._event = self._queue.event_ids_to_events.get(name)
        self._heard = time.monotonic()

    def has_gone(self) -> bool:
        """True where nobody can fetch the answer any more, or nobody has listened for a while.

        Called without an event, e.g. by a test, there is always somebody.
        """
        if self._event is None:
            return False
        if not self._event.alive:
            return True
        messages = self._queue.pending_messages_per_session.get(self._event.session_hash)
        # Whoever listens takes messages out at once.
        if messages is not None and messages.empty():
            self._heard = time.monotonic()
        return time.monotonic() - self._heard > DEAF_SECONDS
