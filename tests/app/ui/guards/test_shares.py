"""What one address may have under way at once, and that the others do not wait for it."""

from __future__ import annotations

import asyncio

import pytest

from app.ui.guards import shares
from app.ui.guards.shares import Shares, TooManyError


async def all_have_run() -> None:
    """Every task has gone as far as it comes by itself, however slow the machine is."""
    for _ in range(50):
        await asyncio.sleep(0)


def test_an_address_has_so_many_turns_and_others_have_their_own() -> None:
    async def tried() -> None:
        kept, end, going = Shares(2), asyncio.Event(), []

        async def one(client: str) -> None:
            async with kept.turn(client):
                going.append(client)
                await end.wait()

        tasks = [asyncio.create_task(one("many")) for _ in range(20)]
        tasks.append(asyncio.create_task(one("other")))
        await all_have_run()
        assert sorted(going) == ["many", "many", "other"]
        end.set()
        await asyncio.gather(*tasks)
        assert len(going) == 21
        assert not kept._shares

    asyncio.run(tried())


def test_so_many_wait_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "MOST_WAITING", 3)

    async def tried() -> None:
        kept, end = Shares(1), asyncio.Event()

        async def one() -> None:
            async with kept.turn("many"):
                await end.wait()

        tasks = [asyncio.create_task(one()) for _ in range(4)]
        await all_have_run()
        with pytest.raises(TooManyError):
            await one()
        # One that goes away while it waits makes room.
        tasks.pop().cancel()
        await all_have_run()
        tasks.append(asyncio.create_task(one()))
        end.set()
        await asyncio.gather(*tasks)
        assert not kept._shares

    asyncio.run(tried())
