"""The Jobs panel: a button in the header, and what it opens beside every tab."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gradio as gr

from app.ui.create.handlers import Session
from app.ui.create.tab import QUIET
from app.ui.jobs import handlers, view
from app.ui.jobs.handlers import JobsHandlers, JobsPanel, PanelState
from app.ui.shell import on_load

if TYPE_CHECKING:
    from app.studio import Studio


def chip() -> gr.HTML:
    """The button. Call it where the header is open."""
    return gr.HTML(
        view.chip([]),
        elem_id="jobs-chip",
        apply_default_css=False,
        js_on_load=on_load("jobs/chip.js"),
    )


def build(button: gr.HTML) -> JobsPanel:
    """Draws the panel, empty: it is filled when somebody opens it."""
    return JobsPanel(
        chip=button,
        panel=gr.HTML(
            "", elem_id="jobs-panel", apply_default_css=False, js_on_load=on_load("jobs/panel.js")
        ),
        timer=gr.Timer(handlers.IDLE_SECONDS),
    )


def wire(demo: gr.Blocks, studio: Studio, parts: JobsPanel, session: Session) -> None:
    """Connects the components."""
    on = JobsHandlers(studio, parts)
    state = gr.State(PanelState())
    who = [state, session.browser, session.owner]
    news = [parts.chip, parts.panel, parts.timer]
    demo.load(on.begin_jobs, who, news, **QUIET)
    parts.timer.tick(on.tick_jobs, who, news, **QUIET)
    for place in (parts.chip, parts.panel):
        place.act(on.act_jobs, who, news, trigger_mode="multiple", **QUIET)
