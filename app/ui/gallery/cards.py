"""The Gallery tab as HTML: the pictures, what can be done with many, exports and notices.

Prompts come from anywhere: every text is escaped, and every name has the shape that the gallery
gives. The picture that is looked at is in `gallery_look`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from html import escape

from app.gallery.exports.export_jobs import ExportJob
from app.gallery.exports.formats import FORMATS
from app.gallery.index import IndexedPicture, SearchResult
from app.ui.routes import EXPORTS, THUMBS
from pipelines.progress import plain_size

PAGE = 60
"""Pictures that are shown at first, and more with every press of the button below them."""
MAX_SHOWN = 1200
"""A page of more squares is slow; older pictures are found by a search."""
MAX_SELECTED = 5000
"""Pictures that “Select all found” takes: their names go to the browser and back."""
_STAR = (
    '<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M12 3.6l2.6 5.3 5.8.8-4.2 4.100 1'
    ' 5.800-5.200-2.700-5.200 2.700 1-5.800-4.200-4.100 5.800-.8z"/></svg>'
)
FIND = (
    '<h2 class="unseen">Gallery</h2>'
    '<button type="button" class="cross" data-empty aria-label="Clear the search" hidden>×</button>'
    f'<button type="button" class="chip" data-starred aria-pressed="false">{_STAR}Starred</button>'
)
"""What stands beside the search box."""


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
        return escape(json.dumps({"turn": self.turn, "select": self.select, "gone": self.gone}))


def grid(shown: Shown) -> str:
    """The pictures, the newest first, with a button for more."""
    entries, total = shown.found.entries, shown.found.total
    if not entries:
        return _nothing(shown)
    cells = "".join(map(_cell, entries))
    more = ""
    if len(entries) >= MAX_SHOWN and total > len(entries):
        more = (
            f'<p class="enough">The newest {len(entries):,} of {total:,} are shown.'
            " Search to find older ones.</p>"
        )
    elif len(entries) < total:
        left = min(PAGE, total - len(entries), MAX_SHOWN - len(entries))
        # No stop for Tab: an arrow key past the last picture presses it.
        more = (
            '<button type="button" class="action more" data-do="more" tabindex="-1">'
            f"Show {left} more</button>"
        )
    return f'{_fresh(shown.held)}<ul class="shots" aria-label="Pictures">{cells}</ul>{more}'


def _fresh(held: int) -> str:
    # There even when empty, so that what follows stays what it is.
    words = "1 new picture" if held == 1 else f"{held:,} new pictures"
    button = f'<button type="button" class="action lead" data-do="fresh">{words}</button>'
    return f'<div class="fresh" role="status">{button if held else ""}</div>'


def _cell(entry: IndexedPicture) -> str:
    name = escape(entry.name)
    alt = escape(title_of(entry))
    star = f'<span class="starred" title="Starred">{_STAR}</span>' if entry.starred else ""
    return (
        f'<li class="shot" data-name="{name}">'
        f'<button type="button" class="open" data-do="open" data-name="{name}" tabindex="-1"'
        f' aria-label="{alt}{", starred" if entry.starred else ""}" title="{alt}">'
        f'<img src="{THUMBS}/{name}" alt="" loading="lazy" decoding="async"></button>'
        f'<label class="tick"><input type="checkbox" data-tick="{name}" tabindex="-1">'
        f'<span class="unseen">Select: {alt}</span></label>{star}</li>'
    )


def title_of(entry: IndexedPicture) -> str:
    """The beginning of the prompt."""
    words = " ".join(entry.request.prompt.split()) if entry.request else "A picture with no recipe"
    return words if len(words) <= 120 else f"{words[:119]}…"


def _nothing(shown: Shown) -> str:
    everything = (
        '<button type="button" class="action" data-do="clear">Show all pictures</button></div>'
    )
    if shown.problem:
        said = f'<div class="hint none"><p role="alert">{escape(shown.problem)}</p>'
        return f"{said}{everything}" if shown.query else f"{said}</div>"
    if shown.reading:
        return '<div class="hint none"><p>Reading the pictures…</p></div>'
    if shown.query:
        return f'<div class="hint none"><p>No picture matches this search.</p>{everything}'
    own = "What you paint in this visit is" if shown.own_only else "Everything that you paint is"
    return (
        f'<div class="hint none"><p>No pictures yet</p><small>{own} kept here.</small>'
        '<button type="button" class="action lead" data-do="create">Paint one</button></div>'
    )


def bar(shown: Shown, deleting: int, orders: Orders, *, admin: bool) -> str:
    """How many there are, and what can be done with the selected ones; `deleting` so many is asked
    about."""
    total = shown.found.total
    count = "1 picture" if total == 1 else f"{total:,} pictures"
    count = "" if shown.problem else f"{count}{', reading more…' if shown.reading else ''}"
    tools = question(deleting) if deleting else _tools(total, admin=admin)
    return (
        f'<div class="gallery-bar" data-total="{total}" data-orders="{orders.text()}">'
        f'<p class="counted" role="status"><span data-count data-all="{count}">{count}</span></p>'
        f"{tools}</div>"
    )


def question(count: int) -> str:
    """Whether so many pictures shall be deleted."""
    many = "this picture" if count == 1 else f"these {count:,} pictures"
    them = "it" if count == 1 else "them"
    return (
        f'<div class="tools asks" role="group" aria-label="Delete {many}?">'
        f"<p>Delete {many} from the disk, for good?</p>"
        '<button type="button" class="action danger" data-do="delete">Delete</button>'
        f'<button type="button" class="action" data-do="keep">Keep {them}</button></div>'
    )


def _tools(total: int, *, admin: bool) -> str:
    if not total:
        # What was selected before a search is still there.
        return f'<div class="tools" data-many hidden>{_many(admin=admin)}</div>'
    newest = f"the newest {MAX_SELECTED:,}" if total > MAX_SELECTED else f"all {total:,} found"
    return (
        '<div class="tools">'
        '<button type="button" class="action" data-do="select-all">'
        'Select all<span class="wide"> shown</span></button>'
        '<button type="button" class="action" data-do="select-found" hidden>'
        f"Select {newest}</button>{_many(admin=admin)}</div>"
    )


def _many(*, admin: bool) -> str:
    own = ""
    if admin:
        own = (
            '<button type="button" class="action" data-do="star" data-many hidden>Star</button>'
            '<button type="button" class="action" data-do="ask-delete" data-many hidden>'
            "Delete…</button>"
        )
    formats = "".join(
        f'<button type="button" data-do="export" data-format="{key}">'
        f"<b>{escape(row.label)}</b><small>{escape(row.summary)}</small></button>"
        for key, row in FORMATS.items()
    )
    return (
        '<button type="button" class="action" data-do="select-none" data-many hidden>'
        f'Clear<span class="wide"> selection</span></button>{own}'
        '<details class="menu"><summary class="action" data-export>Export all…</summary>'
        '<div class="sheet"><label><input type="checkbox" data-strip> Leave the recipes out</label>'
        f"{formats}</div></details>"
    )


def notice(words: str) -> str:
    """What became of the last press, until the next one."""
    close = '<button type="button" data-do="dismiss" aria-label="Close the notice">×</button>'
    # There even when empty, so that what comes into it is read out.
    said = f'<p role="status">{escape(words)}</p>'
    return f'<div class="toast">{said}{close if words else ""}</div>'


def size_text(count: int) -> str:
    """A size in bytes that does not break at the end of a line."""
    return plain_size(count).replace(" ", "\u00a0")


def exported(job: ExportJob | None) -> str:
    """The export that runs, or what became of it."""
    if job is None:
        return ""
    if job.active:
        progress = job.progress
        percent = round(100 * progress.done / progress.total) if progress and progress.total else 0
        words = "Stopping." if job.phase == "stopping" else "Exporting."
        if progress is not None and job.phase == "running":
            words = progress.sentence()
        return _work(
            f'<div class="bar" role="progressbar" aria-label="Progress of the export"'
            f' aria-valuemin="0" aria-valuemax="100" aria-valuenow="{percent}">'
            f'<i style="width:{percent}%"></i></div><p>{escape(words)}</p>',
            '<button type="button" class="action" data-do="stop-export">Stop</button>',
        )
    close = '<button type="button" class="action" data-do="close-export">Close</button>'
    if job.done is None:
        words = str(job.error) if job.error else "Stopped; nothing of the export was kept."
        tone = ' class="bad"' if job.error else ""
        return _work(f'<p role="status"{tone}>{escape(words)}</p>', close)
    done = job.done
    many = "1 picture is" if done.count == 1 else f"{done.count:,} pictures are"
    left = "".join(f"<li>{escape(sentence)}</li>" for sentence in done.left_out[:20])
    rest = len(done.left_out) - 20
    left += f"<li>and {rest:,} more</li>" if rest > 0 else ""
    lead = (
        f'<a class="action lead" href="{EXPORTS}/{job.token}" download="{escape(done.path.name)}">'
        "Download</a>"
    )
    words = f"{many} in {done.path.name}, {size_text(done.bytes)}."
    listed = f"<ul>{left}</ul>" if left else ""
    return _work(f'<p role="status">{escape(words)}</p>{listed}', lead + close)


def _work(words: str, buttons: str) -> str:
    return (
        f'<section class="work" aria-label="Export"><div class="words">{words}</div>'
        f'<div class="tools">{buttons}</div></section>'
    )
