"""Wrong tokens: whoever guesses waits longer and longer, and nobody else does."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

FREE = 5
LONGEST = 30.0
FORGOTTEN_AFTER = 600.0
MOST = 4096


@dataclass
class _Guesser:
    wrong: int
    since: float


class Guesses:
    """Counts wrong guesses by where they come from (`clients.of_scope`).

    Nothing sleeps: a guess that comes early is not compared, and is told when to come back.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._guessers: OrderedDict[str, _Guesser] = OrderedDict()

    def wait(self, client: str) -> int:
        """Whole seconds until the next guess of `client` is looked at; 0 now."""
        guesser = self._guessers.get(client)
        if guesser is None or guesser.wrong < FREE:
            return 0
        delay = min(LONGEST, 2.0 ** (guesser.wrong - FREE))
        return max(0, math.ceil(guesser.since + delay - self._now()))

    def wrong(self, client: str) -> None:
        """`client` guessed, and was wrong."""
        now = self._now()
        guesser = self._guessers.pop(client, None)
        if guesser is None or now - guesser.since > FORGOTTEN_AFTER:
            guesser = _Guesser(wrong=0, since=now)
        guesser.wrong, guesser.since = guesser.wrong + 1, now
        self._guessers[client] = guesser
        # Those that guessed longest ago are forgotten first.
        while len(self._guessers) > MOST:
            self._guessers.popitem(last=False)
