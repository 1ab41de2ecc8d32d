"""The Models tab: the computer on top, a form to import, then a card for each model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gradio as gr

from app.ui.create.handlers import CreateHandlers, CreateTab, Session, filled
from app.ui.create.tab import QUIET
from app.ui.models import handlers, import_form
from app.ui.models.handlers import ModelsHandlers, ModelsTab, Visit
from app.ui.shell import on_load

if TYPE_CHECKING:
    from app.studio import Studio


def _html(name: str, part: str = "", value: str = "") -> gr.HTML:
    """Markup of its own; `part` is the module that brings it to life."""
    js = on_load(f"models/{part}.js") if part else None
    return gr.HTML(value, elem_id=name, apply_default_css=False, js_on_load=js)


def build(studio: Studio) -> ModelsTab:
    """Draws the tab, empty: nothing is looked for before somebody opens it."""
    with gr.Column(elem_id="models"):
        with gr.Column(elem_id="computer"):
            parts: dict[str, Any] = {"hardware": _html("hardware")}
            parts["care"] = _html("care", "maintenance")
        # Shown to people at the computer itself. Its fields are there from the start: gradio loses
        # the properties of what is told something before it is drawn, as inside an Accordion.
        with gr.Column(elem_id="import", visible="hidden") as parts["import_box"]:
            _html("import-head", "disclose", import_form.head())
            with gr.Column(elem_id="import-body"):
                parts["form"] = import_form.build(studio.catalog)
                parts["start"] = gr.Button("Import", variant="primary", elem_id="import-start")
        parts["imported"] = _html("imported", "cards")
        parts["shelf"] = _html("shelf", "cards")
        parts["loras"] = _html("lora-shelf", "cards")
        parts["bench"] = _html("lora-bench", "bench")
    return ModelsTab(timer=gr.Timer(handlers.IDLE_SECONDS, active=False), **parts)


def wire(
    studio: Studio,
    tab: ModelsTab,
    session: Session,
    *,
    opener: gr.Tab,
    others: list[gr.Tab],
    create: tuple[CreateTab, CreateHandlers],
) -> None:
    """Connects the components; `opener` is the tab in the rail, `others` those beside it."""
    form_tab, on_create = create
    on = ModelsHandlers(studio, tab, session, on_create)
    visit = gr.State(Visit())
    news = handlers.places(tab)
    model = form_tab.form["model"]
    opener.select(on.open_models, [visit, model], news, **QUIET)
    for other in others:
        other.select(on.leave_models, None, tab.timer, **QUIET)
    tab.timer.tick(on.tick_models, [visit, model], news, **QUIET)
    # preprocess=False: values of the form are checked by the request, whoever sent them.
    for place in (tab.shelf, tab.loras, tab.bench, tab.care, tab.imported):
        place.act(
            on.act_models,
            [visit, *form_tab.form.values()],
            [session.rail, *filled(form_tab, session), *news],
            preprocess=False,
            **QUIET,
        )
    gr.on(
        [tab.start.click, tab.form["path"].submit],
        on.start_import,
        [visit, model, *tab.form.values()],
        news,
        preprocess=False,
        **QUIET,
    )
