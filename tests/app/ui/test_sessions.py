"""Sessions that have ended are forgotten; those that wait are not."""

from __future__ import annotations

from app.ui.build import build
from app.ui.sessions import IDLE, _Messages
from tests.app.ui.fake_studio import FakeStudio


def test_ended_sessions_are_forgotten_and_waiting_ones_stay() -> None:
    waiting: dict[str, set[str]] = {}
    messages = _Messages(waiting)
    for number in range(10 * IDLE):
        messages[str(number)] = object()
        waiting[str(number)] = {"event"} if number in (0, 7) else set()
    assert {"0", "7", str(10 * IDLE - 1)} <= set(messages)
    assert len(messages) <= IDLE + 3
    assert set(waiting) == set(messages)
    waiting["0"].clear()
    messages["last"] = object()
    assert "0" not in messages
    assert "7" in messages


def test_the_page_has_them(tmp_path: object) -> None:
    from pathlib import Path

    studio = FakeStudio(Path(str(tmp_path)))
    queue = build(studio)._queue
    assert isinstance(queue.pending_messages_per_session, _Messages)
    assert queue.pending_messages_per_session._waiting is queue.pending_event_ids_session
    assert queue.ANALYTICS_MAX_EVENTS == 100
    studio.close()
