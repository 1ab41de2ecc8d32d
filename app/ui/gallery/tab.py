"""The Gallery tab: a search box, the pictures, and the chosen one beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gradio as gr

from app.ui.create.handlers import CreateHandlers, CreateTab, Session, filled
from app.ui.create.tab import QUIET
from app.ui.gallery import cards, handlers
from app.ui.gallery.browse import Browse
from app.ui.gallery.handlers import GalleryHandlers, GalleryTab
from app.ui.shell import on_load

if TYPE_CHECKING:
    from app.studio import Studio

_HINT = "Words, “a phrase”, -without, model:nano, size:128x128, date:2026-11, starred:yes"


def _html(name: str, part: str, value: str = "") -> gr.HTML:
    js = on_load(f"gallery/{part}.js")
    return gr.HTML(value, elem_id=name, apply_default_css=False, js_on_load=js)


def build() -> GalleryTab:
    """Draws the tab, empty: nothing is looked for before somebody opens it."""
    with gr.Column(elem_id="gallery"):
        with gr.Row(elem_id="gallery-find", equal_height=False):
            query = gr.Textbox(
                label="Search",
                info=_HINT,
                placeholder="Search your pictures",
                max_lines=1,
                elem_id="gallery-search",
            )
            _html("gallery-chips", "find", cards.find())
        bar = _html("gallery-bar", "bar")
        with gr.Row(elem_id="gallery-split", equal_height=False):
            grid = _html("shots", "shots")
            look = _html("look", "look")
        with gr.Column(elem_id="gallery-dock"):
            note = _html("gallery-note", "dock")
            work = _html("gallery-work", "dock")
    return GalleryTab(
        query=query,
        bar=bar,
        work=work,
        note=note,
        grid=grid,
        look=look,
        timer=gr.Timer(handlers.IDLE_SECONDS, active=False),
    )


def wire(
    studio: Studio,
    tab: GalleryTab,
    session: Session,
    *,
    opener: gr.Tab,
    others: list[gr.Tab],
    create: tuple[CreateTab, CreateHandlers],
) -> None:
    """Connects the components; `opener` is the tab in the rail, `others` those beside it."""
    form_tab, on_create = create
    on = GalleryHandlers(studio, tab, session, on_create)
    browse = gr.State(Browse())
    who = [browse, session.browser, session.owner]
    news = handlers.places(tab)
    quiet: dict[str, Any] = {"preprocess": False, **QUIET}
    opener.select(on.open_gallery, [*who, tab.query], news, **QUIET)
    for other in others:
        other.select(on.leave_gallery, None, tab.timer, **QUIET)
    tab.timer.tick(on.tick_gallery, who, news, **QUIET)
    gr.on(
        [tab.query.change, tab.query.submit],
        on.search,
        [*who, tab.query],
        news,
        trigger_mode="always_last",
        **quiet,
    )
    for place in (tab.bar, tab.work, tab.note, tab.grid, tab.look):
        place.act(
            on.act_gallery,
            who,
            [session.rail, *filled(form_tab, session), *news],
            # On a slow line no press is lost while another one is answered.
            trigger_mode="multiple",
            **QUIET,
        )
