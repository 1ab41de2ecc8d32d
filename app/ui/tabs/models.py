"""The Models tab: the computer on top, then a card for each model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gradio as gr

from app.ui import model_answers
from app.ui.answers import Create, CreateTab, Session, filled
from app.ui.model_answers import Models, ModelsTab, Visit
from app.ui.shell import script
from app.ui.tabs.create import QUIET

if TYPE_CHECKING:
    from app.studio import Studio


def build() -> ModelsTab:
    """Draws the tab, empty: nothing is looked for before somebody opens it."""
    with gr.Column(elem_id="models"):
        hardware = gr.HTML("", elem_id="hardware", apply_default_css=False, js_on_load=None)
        shelf = gr.HTML(
            "", elem_id="shelf", apply_default_css=False, js_on_load=script("models.js")
        )
    return ModelsTab(
        hardware=hardware,
        shelf=shelf,
        timer=gr.Timer(model_answers.IDLE_SECONDS, active=False),
    )


def wire(
    studio: Studio,
    tab: ModelsTab,
    session: Session,
    *,
    opener: gr.Tab,
    create: tuple[gr.Tab, CreateTab, Create],
) -> None:
    """Connects the components; `opener` is the tab in the rail, `create` the one beside it."""
    other, form_tab, on_create = create
    on = Models(studio, tab, session, on_create)
    visit = gr.State(Visit())
    news = model_answers.places(tab)
    model = form_tab.form["model"]
    opener.select(on.open_models, [visit, model], news, **QUIET)
    other.select(on.leave_models, None, tab.timer, **QUIET)
    tab.timer.tick(on.tick_models, [visit, model], news, **QUIET)
    # preprocess=False: values of the form are checked by the request, whoever sent them.
    tab.shelf.act(
        on.act_models,
        [visit, *form_tab.form.values()],
        [session.rail, *filled(form_tab, session), *news],
        preprocess=False,
        **QUIET,
    )
