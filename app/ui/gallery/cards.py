"""The Gallery tab as HTML: the pictures, what can be done with many, exports and notices.

The markup stands in `cards.html`; the picture that is looked at is in `detail`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from app.gallery.exports.export_jobs import ExportJob
from app.gallery.exports.formats import FORMATS
from app.gallery.index import IndexedPicture, SearchResult
from app.markup import render
from app.ui.routes import EXPORTS, THUMBS
from pipelines.progress import plain_size

PAGE = 60
"""Pictures that are shown at first, and more with every press of the button below them."""
MAX_SHOWN = 1200
"""A page of more squares is slow; older pictures are found by a search."""
MAX_SELECTED = 5000
"""Pictures that “Select all found” takes: their names go to the browser and back."""
_MARKUP = "ui/gallery/cards.html"
_TOLD = 20
"""Pictures that were left out of an export and are named."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What the tab shows of the gallery. `reading` while older pictures are still being read.

    `held` newer ones wait until they are asked for; `problem` says why nothing can be found.
    """

    found: SearchResult
    held: int = 0
    query: str = ""
    problem: str = ""
    reading: bool = False
    own_only: bool = False


@dataclass(frozen=True, kw_only=True)
class Orders:
    """What the browser is to do with its selection, once for each `turn`: take all of `select`,
    forget those that are `gone`."""

    turn: int = 0
    select: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()

    def text(self) -> str:
        """For an attribute of the markup."""
        return json.dumps({"turn": self.turn, "select": self.select, "gone": self.gone})


def find() -> str:
    """What stands beside the search box."""
    return render(_MARKUP, "find")


def grid(shown: Shown) -> str:
    """The pictures, the newest first, with a button for more."""
    entries, total = shown.found.entries, shown.found.total
    if not entries:
        return _nothing(shown)
    enough, more, held = "", 0, ""
    if len(entries) >= MAX_SHOWN and total > len(entries):
        enough = f"The newest {len(entries):,} of {total:,} are shown. Search to find older ones."
    elif len(entries) < total:
        more = min(PAGE, total - len(entries), MAX_SHOWN - len(entries))
    if shown.held:
        held = "1 new picture" if shown.held == 1 else f"{shown.held:,} new pictures"
    cells = tuple((entry.name, title_of(entry), entry.starred) for entry in entries)
    return _drawn(cells, held, enough, more)


@lru_cache(maxsize=8)
def _drawn(cells: tuple[tuple[str, str, bool], ...], held: str, enough: str, more: int) -> str:
    """The grid of these (name, title, starred). It is asked for again and again and seldom changes;
    one of 1,200 pictures takes 40 ms to draw and 1 MB to keep."""
    return render(_MARKUP, "grid", cells=cells, held=held, thumbs=THUMBS, enough=enough, more=more)


def title_of(entry: IndexedPicture) -> str:
    """The beginning of the prompt."""
    words = " ".join(entry.request.prompt.split()) if entry.request else "A picture with no recipe"
    return words if len(words) <= 120 else f"{words[:119]}…"


def _nothing(shown: Shown) -> str:
    said: dict[str, Any] = {"small": "", "alert": False, "way": "clear" if shown.query else ""}
    if shown.problem:
        said |= {"said": shown.problem, "alert": True}
    elif shown.reading:
        said |= {"said": "Reading the pictures…", "way": ""}
    elif shown.query:
        said |= {"said": "No picture matches this search."}
    else:
        own = (
            "What you paint in this visit is" if shown.own_only else "Everything that you paint is"
        )
        said |= {"said": "No pictures yet", "small": f"{own} kept here.", "way": "create"}
    return render(_MARKUP, "nothing", **said)


def bar(shown: Shown, deleting: int, orders: Orders, *, admin: bool) -> str:
    """How many there are, and what can be done with the selected ones; `deleting` so many is asked
    about."""
    total = shown.found.total
    count = "1 picture" if total == 1 else f"{total:,} pictures"
    return render(
        _MARKUP,
        "gallery_bar",
        total=total,
        orders=orders.text(),
        count="" if shown.problem else f"{count}{', reading more…' if shown.reading else ''}",
        deleting=deleting,
        admin=admin,
        newest=f"the newest {MAX_SELECTED:,}" if total > MAX_SELECTED else f"all {total:,} found",
        formats=FORMATS,
    )


def notice(words: str) -> str:
    """What became of the last press, until the next one."""
    return render(_MARKUP, "notice", words=words)


def size_text(count: int) -> str:
    """A size in bytes that does not break at the end of a line."""
    return plain_size(count).replace(" ", "\u00a0")


def exported(job: ExportJob | None) -> str:
    """The export that runs, or what became of it."""
    if job is None:
        return ""
    said: dict[str, Any] = {"active": job.active, "percent": 0, "bad": False, "left": ()}
    said |= {"more": 0, "address": "", "file": ""}
    if job.active:
        progress = job.progress
        if progress and progress.total:
            said["percent"] = round(100 * progress.done / progress.total)
        said["words"] = "Stopping." if job.phase == "stopping" else "Exporting."
        if progress is not None and job.phase == "running":
            said["words"] = progress.sentence()
    elif job.done is None:
        words = str(job.error) if job.error else "Stopped; nothing of the export was kept."
        said |= {"words": words, "bad": bool(job.error)}
    else:
        done = job.done
        many = "1 picture is" if done.count == 1 else f"{done.count:,} pictures are"
        said |= {
            "words": f"{many} in {done.path.name}, {size_text(done.bytes)}.",
            "left": done.left_out[:_TOLD],
            "more": len(done.left_out) - _TOLD,
            "address": f"{EXPORTS}/{job.token}",
            "file": done.path.name,
        }
    return render(_MARKUP, "exported", **said)
