"""The Train tab: the runs at the left, and what was chosen of them, or a new one, at the right."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gradio as gr

from app.ui.create.handlers import CreateHandlers, CreateTab, Session, filled
from app.ui.create.tab import QUIET
from app.ui.shell import on_load
from app.ui.train import handlers
from app.ui.train.handlers import TrainHandlers, TrainTab, TrainVisit

if TYPE_CHECKING:
    from app.studio import Studio


def build() -> TrainTab:
    """Draws the tab, empty: nothing is looked for before somebody opens it."""
    with gr.Row(elem_id="train"):
        runs = gr.HTML(
            "", elem_id="train-runs", apply_default_css=False, js_on_load=on_load("train/runs.js")
        )
        view = gr.HTML(
            "", elem_id="train-view", apply_default_css=False, js_on_load=on_load("train/view.js")
        )
    return TrainTab(runs=runs, view=view, timer=gr.Timer(handlers.IDLE_SECONDS, active=False))


def wire(
    studio: Studio,
    tab: TrainTab,
    session: Session,
    *,
    opener: gr.Tab,
    others: list[gr.Tab],
    create: tuple[CreateTab, CreateHandlers],
) -> None:
    """Connects the components; `opener` is the tab in the rail, `others` those beside it."""
    form_tab, on_create = create
    on = TrainHandlers(studio, tab, session, on_create)
    visit = gr.State(TrainVisit())
    who = [visit, session.browser, session.owner]
    news = handlers.places(tab)
    opener.select(on.open_train, who, news, **QUIET)
    for other in others:
        other.select(on.leave_train, None, tab.timer, **QUIET)
    tab.timer.tick(on.tick_train, who, news, **QUIET)
    # preprocess=False: values of the form are checked by the request, whoever sent them.
    for place in (tab.runs, tab.view):
        place.act(
            on.act_train,
            [*who, *form_tab.form.values()],
            [session.rail, *filled(form_tab, session), *news],
            preprocess=False,
            # A press right behind a field that was filled in must not be lost.
            trigger_mode="multiple",
            **QUIET,
        )
