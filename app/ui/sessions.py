"""What gradio's queue takes and keeps: so much of one address, and few sessions that have ended.

It keeps the messages of 2,000 sessions and the names of all, 8 kB each, long after they have ended.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

from gradio.utils import LRUCache

from app.ui.guards import clients

if TYPE_CHECKING:
    import gradio as gr

IDLE = 100
"""Sessions that are remembered after everything was told to them."""
MOST = 2000
MOST_EVENTS = 40
"""Of one address, that wait or go on; the queue has room for others."""
_TOO_MANY = "Too much was asked from your address at once; wait for some answers."


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
    """Has the queue of a page that was just built forget sessions that have ended, and share its
    room."""
    queue = demo._queue
    queue.pending_messages_per_session = _Messages(queue.pending_event_ids_session)
    _share(queue)


def _share(queue: Any) -> None:
    """Has `queue` refuse the events of an address that has `MOST_EVENTS` in it."""
    push = queue.push

    async def push_one(body: Any, request: Any, username: str | None) -> Any:
        client = clients.of_scope(request.scope)
        held = [one.queue for one in queue.event_queue_per_concurrency_id.values()]
        events = [event for some in (*held, *queue.active_jobs) for event in some or ()]
        if sum(clients.of_scope(one.request.scope) == client for one in events) >= MOST_EVENTS:
            return False, _TOO_MANY, "queue_full"
        return await push(body, request, username)

    queue.push = push_one
