"""The Gallery tab as HTML: the pictures, the one that is looked at, and what can be done with many.

Prompts come from anywhere: every text is escaped, and every name has the shape that the gallery
gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from app import export
from app.export_jobs import ExportJob
from app.gallery_index import Entry, Found
from app.ui.routes import EXPORTS, PICTURES, THUMBS
from pipelines import samplers
from pipelines.catalog import Catalog
from pipelines.errors import StudioError
from pipelines.progress import plain_size
from pipelines.styles import NO_STYLE

PAGE = 60
"""Pictures that are shown at first, and more with every press of the button below them."""
_STAR = (
    '<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M12 3.6l2.6 5.3 5.8.8-4.2 4.100 1'
    ' 5.800-5.200-2.700-5.200 2.700 1-5.800-4.200-4.100 5.800-.8z"/></svg>'
)


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What the tab shows of the gallery. `reading` while older pictures are still being read."""

    found: Found
    query: str = ""
    reading: bool = False
    own_only: bool = False


def grid(shown: Shown) -> str:
    """The pictures, the newest first, with a button for more."""
    entries, total = shown.found.entries, shown.found.total
    if not entries:
        return _nothing(shown)
    cells = "".join(map(_cell, entries))
    more = ""
    if len(entries) < total:
        left = min(PAGE, total - len(entries))
        more = f'<button type="button" class="action more" data-do="more">Show {left} more</button>'
    return f'<ul class="shots" aria-label="Pictures">{cells}</ul>{more}'


def _cell(entry: Entry) -> str:
    name = escape(entry.name)
    alt = escape(_title(entry))
    star = f'<span class="starred" title="Starred">{_STAR}</span>' if entry.starred else ""
    return (
        f'<li class="shot" data-name="{name}">'
        f'<button type="button" class="open" data-do="open" data-name="{name}"'
        f' aria-label="{alt}{", starred" if entry.starred else ""}">'
        f'<img src="{THUMBS}/{name}" alt="" loading="lazy" decoding="async"></button>{star}'
        f'<label class="tick"><input type="checkbox" data-tick="{name}">'
        f'<span class="unseen">Select: {alt}</span></label></li>'
    )


def _title(entry: Entry) -> str:
    words = " ".join(entry.request.prompt.split()) if entry.request else "A picture with no recipe"
    return words if len(words) <= 120 else f"{words[:119]}…"


def _nothing(shown: Shown) -> str:
    if shown.reading:
        return '<div class="hint none"><p>Reading the pictures…</p></div>'
    if shown.query:
        return (
            '<div class="hint none"><p>No picture matches this search.</p>'
            '<button type="button" class="action" data-do="clear">Show all pictures</button></div>'
        )
    own = "What you paint in this visit is" if shown.own_only else "Everything that you paint is"
    return (
        f'<div class="hint none"><p>No pictures yet</p><small>{own} kept here.</small>'
        '<button type="button" class="action lead" data-do="create">Paint one</button></div>'
    )


def bar(shown: Shown, deleting: Sequence[str], notice: str, *, admin: bool) -> str:
    """How many there are, what can be done with the selected ones, and a question or a notice."""
    total = shown.found.total
    count = "1 picture" if total == 1 else f"{total:,} pictures"
    reading = ", reading more…" if shown.reading else ""
    tools = _question(len(deleting)) if deleting else _tools(total, admin=admin)
    said = f'<p class="said" role="status">{escape(notice)}</p>'
    return (
        f'<div class="gallery-bar" data-total="{total}"><p class="counted">'
        f"<span data-count>{count}{reading}</span></p>{tools}</div>{said}"
    )


def _question(count: int) -> str:
    many = "this picture" if count == 1 else f"these {count:,} pictures"
    them = "it" if count == 1 else "them"
    return (
        f'<div class="tools asks" role="group" aria-label="Delete {many}?">'
        f"<p>Delete {many} from the disk, for good?</p>"
        '<button type="button" class="action danger" data-do="delete">Delete</button>'
        f'<button type="button" class="action" data-do="keep">Keep {them}</button></div>'
    )


def _tools(total: int, *, admin: bool) -> str:
    off = "" if total else " disabled"
    delete = ""
    if admin:
        delete = (
            '<button type="button" class="action" data-do="ask-delete" data-many hidden>'
            "Delete…</button>"
        )
    formats = "".join(
        f'<button type="button" data-do="export" data-format="{key}">'
        f"<b>{escape(row.label)}</b><small>{escape(row.summary)}</small></button>"
        for key, row in export.FORMATS.items()
    )
    return (
        '<div class="tools">'
        f'<button type="button" class="action" data-do="select-all"{off}>Select all shown</button>'
        '<button type="button" class="action" data-do="select-none" data-many hidden>'
        f"Clear selection</button>{delete}"
        f'<details class="menu"><summary class="action" data-export>Export all…</summary>'
        f'<div class="sheet">{formats}<label><input type="checkbox" data-strip>'
        " Leave the recipes out</label></div></details></div>"
    )


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
        return _work(f"<p{tone}>{escape(words)}</p>", close)
    done = job.done
    many = "1 picture is" if done.count == 1 else f"{done.count:,} pictures are"
    left = "".join(f"<li>{escape(sentence)}</li>" for sentence in done.left_out[:20])
    rest = len(done.left_out) - 20
    left += f"<li>and {rest:,} more</li>" if rest > 0 else ""
    lead = (
        f'<a class="action lead" href="{EXPORTS}/{job.token}" download="{escape(done.path.name)}">'
        "Download</a>"
    )
    words = f"{many} in {done.path.name}, {plain_size(done.bytes)}."
    listed = f"<ul>{left}</ul>" if left else ""
    return _work(f'<p role="status">{escape(words)}</p>{listed}', lead + close)


def _work(words: str, buttons: str) -> str:
    return (
        f'<section class="work" aria-label="Export"><div class="words">{words}</div>'
        f'<div class="tools">{buttons}</div></section>'
    )


def detail(
    entry: Entry | None, catalog: Catalog, notice: str, *, admin: bool, asks: bool = False
) -> str:
    """The picture that is looked at, with its recipe and what can be done with it; `asks` before
    it is deleted. The notice is for phones, where this lies over everything else."""
    if entry is None:
        return (
            '<aside class="look" data-empty><p>Choose a picture to see how it was painted.</p>'
            "</aside>"
        )
    name = escape(entry.name)
    title = escape(_title(entry))
    return (
        f'<aside class="look" data-name="{name}" aria-label="The chosen picture">'
        '<button type="button" class="close" data-do="close" aria-label="Close">×</button>'
        f'<a class="large" href="{PICTURES}/{name}" target="_blank" rel="noopener"'
        f' aria-label="Open the original in a new tab"><img src="{PICTURES}/{name}" alt="{title}">'
        f'</a>{_words(entry)}<p class="said">{escape(notice)}</p>'
        f"{_question(1) if asks else _actions(entry, catalog, admin=admin)}{_facts(entry)}</aside>"
    )


def _words(entry: Entry) -> str:
    if entry.request is None:
        return f'<p class="problem">{escape(entry.problem)}</p>'
    negative = ""
    if entry.request.negative:
        negative = f'<p class="negative">Without: <bdi>{escape(entry.request.negative)}</bdi></p>'
    return f'<p class="prompt" dir="auto">{escape(entry.request.prompt)}</p>{negative}'


def _actions(entry: Entry, catalog: Catalog, *, admin: bool) -> str:
    name = escape(entry.name)
    missing = ""
    wanted: list[tuple[str, str, str]] = []
    if entry.request is not None:
        try:
            catalog.find(entry.request.model)
        except StudioError as error:
            missing = f'<p class="note">{escape(str(error))}</p>'
        wanted.append(("use", "Use its prompt" if missing else "Use these settings", " lead"))
    wanted.append(("start", "Use as start", ""))
    if admin:
        wanted.append(
            ("unstar", "Take the star off", "") if entry.starred else ("star", "Star", "")
        )
        wanted.append(("ask-delete", "Delete…", ""))
    buttons = [
        f'<button type="button" class="action{tone}" data-do="{do}" data-name="{name}">'
        f"{words}</button>"
        for do, words, tone in wanted
    ]
    download = (
        f'<a class="action" href="{PICTURES}/{name}?download=1"'
        f' download="{escape(entry.path.name)}">Download</a>'
    )
    buttons.insert(1, download)
    return f'<div class="actions">{"".join(buttons)}</div>{missing}'


def _facts(entry: Entry) -> str:
    facts = [("Painted", entry.created)]
    request = entry.request
    if request is not None:
        row = samplers.SAMPLERS.get(request.sampler)
        facts += [
            ("Model", request.model),
            ("Sampler", row.label if row else request.sampler),
            ("Steps", str(request.steps)),
            ("Guidance", f"{request.guidance:g}" if request.guided else "off"),
            ("Size", f"{request.width}×{request.height}"),
            ("Seed", str(request.seed)),
        ]
        if request.style != NO_STYLE:
            facts.append(("Style", request.style))
        if request.init is not None:
            facts.append(("Strength", f"{request.strength:g}"))
    facts.append(("File", f"{entry.path.name}, {plain_size(entry.size)}"))
    rows = "".join(f"<div><dt>{k}</dt><dd>{escape(v)}</dd></div>" for k, v in facts)
    return f'<dl class="facts">{rows}</dl>'
