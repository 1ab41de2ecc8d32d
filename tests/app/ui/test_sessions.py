"""Sessions that have ended are forgotten; those that wait are not."""

from __future__ import annotations

import asyncio
from collections import Counter
from types import SimpleNamespace
from typing import Any

from app.jobs.turns import MAX_WAITING
from app.ui.build import AT_ONCE, build
from app.ui.sessions import IDLE, MOST_EVENTS, _Messages, _share
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


def test_an_address_has_its_share_of_the_queue() -> None:
    async def push(body: Any, request: Any, username: Any) -> tuple[bool, str, str]:
        queue.event_queue_per_concurrency_id["x"].queue.append(SimpleNamespace(request=request))
        return True, "event", "success"

    def of(client: str) -> Any:
        return SimpleNamespace(scope={"client": (client, 1), "headers": []})

    active = [[SimpleNamespace(request=of("192.0.2.1"))], None]
    queue: Any = SimpleNamespace(
        push=push,
        active_jobs=active,
        event_queue_per_concurrency_id={"x": SimpleNamespace(queue=[])},
    )
    _share(queue)

    async def ask(client: str, times: int) -> Counter[str]:
        said = [
            await queue.push(body=None, request=of(client), username=None) for _ in range(times)
        ]
        return Counter(state for _, _, state in said)

    assert asyncio.run(ask("192.0.2.1", 100)) == {
        "success": MOST_EVENTS - 1,
        "queue_full": 101 - MOST_EVENTS,
    }
    assert asyncio.run(ask("192.0.2.2", 3)) == {"success": 3}


def test_every_job_that_can_wait_has_a_place_in_the_queue(tmp_path: Any) -> None:
    studio = FakeStudio(tmp_path)
    demo = build(studio)
    (generate,) = [fn for fn in demo.fns.values() if fn.api_name == "generate"]
    # Else calls that wait for their jobs keep those of others from being heard.
    assert generate.concurrency_limit is None
    assert AT_ONCE > MAX_WAITING + 8
    studio.close()
