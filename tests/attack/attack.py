"""What an attack is: a promise, and a function that tries to break it within bounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx


class Broken(Exception):
    """The attack succeeded: the promise does not hold."""


class NotTried(Exception):
    """This studio cannot be attacked so, e.g. because its log or its token is not known."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A running studio on this machine."""

    address: str
    """As http://127.0.0.1:7860."""
    short: bool = False
    """Few repetitions, for the test suite."""
    share_token: str = ""
    admin_token: str = ""
    log: Path | None = None
    """What the studio printed, where it was started by the attack."""
    workspace: Path | None = None
    pid: int | None = None

    @contextmanager
    def client(self, **headers: str) -> Iterator[httpx.Client]:
        """A program that talks to the studio, without any secret."""
        with httpx.Client(
            base_url=self.address, headers=headers, timeout=30, trust_env=False
        ) as http:
            yield http

    def said(self) -> str:
        """What the studio has printed so far. Raises NotTried where nobody kept it."""
        if self.log is None:
            raise NotTried("its log is not known")
        return self.log.read_bytes().decode("utf-8", "replace")


@dataclass(frozen=True, kw_only=True)
class Attack:
    """One row of the table."""

    topic: str
    promise: str
    run: Callable[[Target], str]
    """Returns figures for the table. Raises Broken or NotTried."""


def must(holds: bool, what: str) -> None:
    """Raises Broken with `what` happened where it does not hold."""
    if not holds:
        raise Broken(what)
