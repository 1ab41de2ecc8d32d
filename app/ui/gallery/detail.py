"""The picture of the Gallery tab that is looked at: itself, its recipe, what can be done with it.

Prompts come from anywhere: every text is escaped.
"""

from __future__ import annotations

from html import escape

from app.gallery.index import IndexedPicture
from app.ui.gallery.cards import question, size_text, title_of
from app.ui.routes import PICTURES
from lora_manager import card
from pipelines.catalog import Catalog
from pipelines.denoising import samplers
from pipelines.errors import StudioError
from pipelines.text.styles import NO_STYLE


def nothing(at: int) -> str:
    """What stands there while no picture is chosen; `at` as in `detail`."""
    words = "Choose a picture to see how it was painted."
    return f'<section class="look" data-empty data-at="{at}"><p>{words}</p></section>'


def detail(
    entry: IndexedPicture, catalog: Catalog, *, admin: bool, asks: bool = False, at: int = 0
) -> str:
    """The picture with its recipe; `asks` before it is deleted. `at` numbers the press that is
    answered, so that the page sees when an older answer comes last."""
    name = escape(entry.name)
    actions = question(1) if asks else _actions(entry, catalog, admin=admin)
    return (
        f'<section class="look" data-name="{name}" data-at="{at}" aria-label="The chosen picture">'
        f"{_picture(entry)}{_words(entry)}{actions}{_facts(entry)}</section>"
    )


def _picture(entry: IndexedPicture) -> str:
    name = escape(entry.name)
    return (
        '<div class="stage">'
        '<button type="button" class="round close" data-do="close" aria-label="Close">×</button>'
        '<button type="button" class="large" data-view aria-label="Show in the full window">'
        f'<img src="{PICTURES}/{name}" alt="{escape(title_of(entry))}"></button>'
        '<p class="lost">This picture cannot be shown.</p>'
        f"{_step(-1, 'Previous picture', '&lsaquo;')}{_step(1, 'Next picture', '&rsaquo;')}"
        "</div>"
    )


def _step(by: int, label: str, sign: str) -> str:
    return (
        f'<button type="button" class="round" data-step="{by}" aria-label="{label}">{sign}</button>'
    )


def _words(entry: IndexedPicture) -> str:
    if entry.request is None:
        return f'<p class="problem">{escape(entry.problem)}</p>'
    negative = ""
    if entry.request.negative:
        negative = f'<p class="negative">Without: <bdi>{escape(entry.request.negative)}</bdi></p>'
    return (
        f'<p class="prompt" dir="auto">{escape(entry.request.prompt)}</p>'
        '<div class="under"><button type="button" data-unfold hidden>Show all</button>'
        f'<button type="button" data-copy="{escape(entry.request.prompt)}">Copy prompt</button>'
        f"</div>{negative}"
    )


def _actions(entry: IndexedPicture, catalog: Catalog, *, admin: bool) -> str:
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


def _facts(entry: IndexedPicture) -> str:
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
        if request.loras:
            facts.append(("LoRAs", card.written(request.loras)))
    facts.append(("File", f"{entry.path.name}, {size_text(entry.size)}"))
    rows = "".join(f"<div><dt>{k}</dt><dd>{escape(v)}{_copy(k, v)}</dd></div>" for k, v in facts)
    return f'<dl class="facts">{rows}</dl>'


def _copy(name: str, value: str) -> str:
    if name != "Seed":
        return ""
    return f' <button type="button" data-copy="{value}" aria-label="Copy the seed">Copy</button>'
