"""The whole page: header, rail and tabs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gradio as gr

from app.markup import render
from app.ui import api, sessions
from app.ui.create import canvas, watch
from app.ui.create import tab as create
from app.ui.create.handlers import Session
from app.ui.create.watch import BrowserSession
from app.ui.gallery import tab as gallery
from app.ui.guards.refusals import Refusals
from app.ui.jobs import panel as jobs
from app.ui.models import tab as models
from app.ui.shell import logo
from app.ui.train import tab as train

if TYPE_CHECKING:
    from app.studio import Studio

_NO_USE = "This call has a value that the page would not send; it is refused."


class _Page(gr.Blocks):
    """Blocks that refuse a call with values of no use in one sentence, and one line of the log.

    gradio prints a traceback, and answers with the names of its own classes.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._refusals = Refusals()

    async def preprocess_data(
        self, block_fn: Any, inputs: list[Any], state: Any, explicit_call: bool = False
    ) -> Any:
        """The values as the function takes them. Raises gr.Error for those that a browser with
        this page would not send: files that nobody uploaded, texts in the place of numbers."""
        try:
            inputs = api.with_defaults(block_fn.api_name, inputs)
            return await super().preprocess_data(block_fn, inputs, state, explicit_call)
        except gr.Error as error:
            error.print_exception = False
            raise
        except Exception as error:
            self._refusals.call(block_fn.api_name or block_fn.name, error)
            raise gr.Error(_NO_USE, print_exception=False) from None

    def validate_inputs(self, block_fn: Any, inputs: list[Any]) -> None:
        """Raises gr.Error where values are missing at the end; more than enough are cut off."""
        if block_fn.fn is None:
            raise gr.Error("This happens in the browser alone.", print_exception=False)
        wanted = len(block_fn.inputs)
        if len(inputs) < wanted:
            raise gr.Error(
                f"This call takes {wanted} values and got {len(inputs)};"
                " give all of them, null where the default is meant.",
                print_exception=False,
            )


def _header(studio: Studio) -> tuple[gr.HTML, gr.HTML, gr.HTML]:
    """Draws the header; what of it changes: the device, the model, the button of the jobs."""
    with gr.Row(elem_id="top"):
        gr.HTML(
            render("ui/top.html", "brand", logo=logo()),
            elem_id="brand",
            apply_default_css=False,
            js_on_load=None,
        )
        engine = gr.HTML(
            canvas.engine_chip(studio.engine()),
            elem_id="engine",
            apply_default_css=False,
            js_on_load=None,
        )
        model = gr.HTML(
            canvas.model_chip(studio.catalog.default.title),
            elem_id="model-badge",
            apply_default_css=False,
            js_on_load=None,
        )
        button = jobs.chip()
        gr.HTML(
            render("ui/top.html", "theme"),
            elem_id="theme",
            apply_default_css=False,
            js_on_load=None,
        )
    return engine, model, button


def assemble(studio: Studio) -> gr.Blocks:
    """The page of one studio. Nothing is shared between two pages."""
    with _Page(title="PixArt Studio", fill_width=True, analytics_enabled=False) as demo:
        engine, model, button = _header(studio)
        with gr.Tabs(elem_id="rail", overflow_behavior="wrap") as rail:
            with gr.Tab("Create", id="create", elem_id="tab-create") as create_tab:
                tab = create.build(studio)
            with gr.Tab("Gallery", id="gallery", elem_id="tab-gallery") as gallery_tab:
                pictures = gallery.build()
            with gr.Tab("Train", id="train", elem_id="tab-train") as train_tab:
                trainings = train.build()
            with gr.Tab("Models", id="models", elem_id="tab-models") as models_tab:
                shelf = models.build(studio)
        listed = jobs.build(button)
        tabs = [create_tab, gallery_tab, train_tab, models_tab]
        session = Session(
            rail=rail,
            # Copied for each browser tab.
            browser=gr.State(BrowserSession()),
            owner=gr.BrowserState("", storage_key="pixart-studio-owner", secret="pixart-studio"),
            kept=gr.BrowserState({}, storage_key="pixart-studio-form", secret="pixart-studio"),
            engine=engine,
            model=model,
            timer=gr.Timer(watch.IDLE_SECONDS),
        )
        on_create = create.wire(demo, studio, tab, session)
        models.wire(
            studio,
            shelf,
            session,
            opener=models_tab,
            others=[tab for tab in tabs if tab is not models_tab],
            create=(tab, on_create),
        )
        gallery.wire(
            studio,
            pictures,
            session,
            opener=gallery_tab,
            others=[tab for tab in tabs if tab is not gallery_tab],
            create=(tab, on_create),
        )
        train.wire(
            studio,
            trainings,
            session,
            opener=train_tab,
            others=[tab for tab in tabs if tab is not train_tab],
            create=(tab, on_create),
        )
        jobs.wire(demo, studio, listed, session)
        api.publish(studio)
    demo.queue(api_open=False, max_size=128, default_concurrency_limit=8)
    sessions.bound(demo)
    return demo
