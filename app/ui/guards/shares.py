"""What one address may have under way at once; the rest of its requests wait for their turn.

The page's functions run in threads that all visitors share, and uploads lie on the disk while they
come in: without this whoever asks for a hundred things at once keeps everybody else waiting.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

MOST_WAITING = 64
"""Requests of one address that wait; each may hold a body."""


class TooManyError(Exception):
    """An address asks for more at once than may wait."""


@dataclass(kw_only=True)
class _Share:
    free: asyncio.Semaphore
    users: int = 0


class Shares:
    """Lets `most` requests of each address go on at once. For one event loop."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._shares: dict[str, _Share] = {}

    @asynccontextmanager
    async def turn(self, client: str) -> AsyncIterator[None]:
        """Waits until `client` has a turn, which it keeps within. Raises TooManyError."""
        share = self._shares.get(client)
        if share is None:
            share = self._shares[client] = _Share(free=asyncio.Semaphore(self._most))
        if share.users >= self._most + MOST_WAITING:
            raise TooManyError
        share.users += 1
        try:
            async with share.free:
                yield
        finally:
            share.users -= 1
            if not share.users:
                del self._shares[client]
