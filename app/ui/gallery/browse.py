"""What one browser tab looks at in the gallery, and what it was told of it.

New pictures are counted but not listed until they are asked for: the ones that are looked at must
not move under the pointer.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.gallery.index import IndexedPicture, SearchResult
from app.gallery.pictures import SECOND
from app.ui.changes import Sent
from app.ui.gallery.cards import PAGE, Orders

Ask = Callable[[int, int], SearchResult]
"""At most so many pictures, after so many newer ones."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """Pictures that would be deleted; `beside` when it is asked beside the one looked at."""

    names: tuple[str, ...]
    beside: bool = False


@dataclass(frozen=True, kw_only=True)
class Press:
    """What was pressed in the tab, for which pictures; `at` counts where order matters."""

    do: str
    at: int
    name: str
    names: tuple[str, ...]
    format: str
    strip: bool


def read_press(data: Any) -> Press:
    """A press from the data of an event, which may be anything."""
    given = data if isinstance(data, dict) else {}
    listed, at = given.get("names"), given.get("at")
    return Press(
        do=str(given.get("do")),
        at=at if isinstance(at, int) else 0,
        name=str(given.get("name") or ""),
        names=tuple(str(one) for one in listed) if isinstance(listed, list) else (),
        format=str(given.get("format")),
        strip=given.get("strip") is True,
    )


@dataclass
class Browse:
    """One browser tab in the gallery: what it looks at, is asked, and was told.

    `newest` are the listed pictures of the newest second; () lists whatever there is.
    """

    shown: int = PAGE
    query: str = ""
    newest: tuple[str, ...] = ()
    picked: str = ""
    at: int = 0
    question: Question | None = None
    notice: str = ""
    reading: bool = False
    orders: Orders = field(default_factory=Orders)
    sent: Sent = field(default_factory=Sent)

    def __post_init__(self) -> None:
        # Presses are not waited for, so that several can be on the way. No field: gradio sends
        # the fields of the first value to the browser.
        self.lock = threading.Lock()

    def __deepcopy__(self, memo: Any) -> Browse:
        # gradio copies the first value for each browser tab; a lock cannot be copied.
        return Browse()

    def pick(self, name: str, at: int) -> None:
        """Looks at another picture, or at none, unless a later press was faster than this one."""
        if at == 0 or at > self.at:
            self.picked, self.at = name, max(at, self.at)

    def ask(self, query: Any) -> None:
        """Another search; a question and a notice are not about it."""
        wanted = query if isinstance(query, str) else ""
        self.notice, self.question = "", None
        if wanted != self.query:
            self.query, self.shown, self.newest = wanted, PAGE, ()

    def order(self, *, select: Sequence[str] = (), gone: Sequence[str] = ()) -> None:
        """Tells the browser, once, what to do with its selection."""
        # By the clock: the page outlives a studio that is started anew.
        turn = max(self.orders.turn + 1, int(time.time() * 1000))
        self.orders = Orders(turn=turn, select=tuple(select), gone=tuple(gone))

    def listed(self, ask: Ask, limit: int) -> tuple[SearchResult, int]:
        """At most `limit` pictures without the new ones, and how many of those there are."""
        if not self.newest:
            return ask(limit, 0), 0
        border = self.newest[0][:SECOND]
        recent: list[IndexedPicture] = []
        while True:
            found = ask(PAGE, len(recent))
            late = [entry for entry in found.entries if entry.name[:SECOND] >= border]
            recent += late
            if not late or len(late) < len(found.entries):
                break
        known = [entry for entry in recent if entry.name in self.newest]
        held = len(recent) - len(known)
        entries = (*known, *ask(limit, len(recent)).entries)[:limit]
        if not entries:
            # All that were listed are gone: what came meanwhile is all there is.
            return ask(limit, 0), 0
        return SearchResult(entries=entries, total=found.total - held), held

    def see(self, entries: Sequence[IndexedPicture]) -> None:
        """Remembers what is listed: whatever comes from now on is new."""
        if not entries:
            return
        second = entries[0].name[:SECOND]
        border = self.newest[0][:SECOND] if self.newest else ""
        if second < border:
            return
        same = [entry.name for entry in entries if entry.name[:SECOND] == second]
        kept = self.newest if second == border else ()
        self.newest = tuple(dict.fromkeys([*kept, *same]))

    def after(self, gone: Sequence[str], order: Sequence[IndexedPicture]) -> str:
        """What is looked at when the pictures `gone` are deleted: the next one, else the last
        before it, else none. `order` is what was listed before."""
        if self.picked not in gone:
            return self.picked
        names = [entry.name for entry in order]
        if self.picked not in names:
            return ""
        place = names.index(self.picked)
        dead = set(gone)
        left = [name for name in [*names[place:], *reversed(names[:place])] if name not in dead]
        return left[0] if left else ""
