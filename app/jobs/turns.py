"""Whose job is next. Everybody has a turn, however many jobs one of them queues.

An owner is what a browser or a program calls itself, so one person may be many; an address is what
the network tells. Addresses take turns, and at each address the owners do.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pipelines.errors import BusyError

MAX_WAITING = 64
MAX_WAITING_EACH = 16
MAX_WAITING_CLIENT = 24
"""Jobs from one address, under whatever names: the others find room."""
MAX_WAITING_TRUSTED = 1000
MAX_REMEMBERED = 4096
K = TypeVar("K")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Who waits: the owner of a job, and the address that it came from ("" where none is known)."""

    owner: str
    client: str = ""


def check_room(waiting: Sequence[Claim], claim: Claim, *, trusted: bool = False) -> None:
    """Raises BusyError where `claim` cannot wait beside those that wait already.

    A `trusted` one is of somebody at the computer, who may fill the queue for a night.
    """
    if trusted and len(waiting) < MAX_WAITING_TRUSTED:
        return
    if len(waiting) >= MAX_WAITING:
        raise BusyError(f"{len(waiting)} jobs are waiting already.", "Try again later.")
    mine = sum(one.owner == claim.owner for one in waiting)
    near = sum(one.client == claim.client for one in waiting) if claim.client else 0
    if mine >= MAX_WAITING_EACH or near >= MAX_WAITING_CLIENT:
        raise BusyError(
            f"{max(mine, near)} jobs of yours are waiting already.", "Wait, or stop some of them."
        )


class Turns:
    """Remembers who had the last turns. Not safe in several threads: the queue holds its lock."""

    def __init__(self) -> None:
        self._count = 0
        self._had: OrderedDict[tuple[str, str], int] = OrderedDict()

    def order(self, waiting: Iterable[T], claim: Callable[[T], Claim]) -> list[T]:
        """Those that wait, given in the order in which they came, in the order of their turns."""
        by_client: dict[str, list[T]] = defaultdict(list)
        for one in waiting:
            by_client[claim(one).client].append(one)
        for client, mine in by_client.items():
            by_client[client] = self._taken_in_turns(mine, lambda one: ("owner", claim(one).owner))
        together = [one for mine in by_client.values() for one in mine]
        return self._taken_in_turns(together, lambda one: ("client", claim(one).client))

    def had(self, claim: Claim) -> None:
        """A job of `claim` begins."""
        self._count += 1
        for key in (("owner", claim.owner), ("client", claim.client)):
            self._had.pop(key, None)
            bounded(self._had, MAX_REMEMBERED)[key] = self._count

    def _taken_in_turns(self, waiting: list[T], key: Callable[[T], tuple[str, str]]) -> list[T]:
        """First one job of each `key`, beginning with whose turn is longest ago, then another."""
        rounds: dict[tuple[str, str], int] = defaultdict(int)
        placed = []
        for place, one in enumerate(waiting):
            name = key(one)
            placed.append((rounds[name], self._had.get(name, 0), place, one))
            rounds[name] += 1
        placed.sort(key=lambda row: row[:3])
        return [one for *_, one in placed]


def bounded(kept: OrderedDict[K, T], most: int) -> OrderedDict[K, T]:
    """`kept` with room for one more: the oldest go."""
    while len(kept) >= most:
        kept.popitem(last=False)
    return kept
