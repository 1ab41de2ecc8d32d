"""What gradio's queue keeps of sessions: bounded, and never of one that waits for something.

It keeps the messages of 2,000 sessions and the names of all, 8 kB each, long after they have ended.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

from gradio.utils import LRUCache

if TYPE_CHECKING:
    import gradio as gr

IDLE = 100
"""Sessions that are remembered after everything was told to them."""
MOST = 2000


class _Messages(LRUCache[str, Any]):
    """The messages of sessions. `waiting` are their events, until each was told."""

    def __init__(self, waiting: dict[str, set[str]]) -> None:
        super().__init__(MOST)
        self._waiting = waiting

    def __setitem__(self, session: str, messages: Any) -> None:
        if session not in self:
            older = islice(list(self), max(0, len(self) - IDLE))
            for idle in [one for one in older if not self._waiting.get(one)]:
                del self[idle]
                self._waiting.pop(idle, None)
        super().__setitem__(session, messages)


def bound(demo: gr.Blocks) -> None:
    """Has the queue of a page that was just built forget sessions that have ended."""
    queue = demo._queue
    queue.pending_messages_per_session = _Messages(queue.pending_event_ids_session)
