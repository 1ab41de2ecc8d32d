"""The Create tab: a form on the left, one canvas on the right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gradio as gr

from app import hosting
from app.ui import choices
from app.ui.create import canvas, fields
from app.ui.create.fields import FIELDS, Form
from app.ui.create.handlers import FORECAST, CreateHandlers, CreateTab, Session, filled
from app.ui.shell import on_load
from pipelines.errors import StudioError
from pipelines.field_spec import Place
from pipelines.request import FIELDS as DECLARED

if TYPE_CHECKING:
    from app.studio import Studio

# Events of the page itself: no place in the queue, no API name, no veil over the outputs.
QUIET: dict[str, Any] = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}
_SAVE = """(kept, ...values) => window.studioReady
  ? Object.fromEntries(%s.map((name, i) => [name, values[i]])) : kept"""


def _html(name: str, value: str = "", part: str = "") -> gr.HTML:
    """Markup of its own; `part` is the module that brings it to life."""
    js = on_load(f"create/{part}.js") if part else None
    return gr.HTML(value, elem_id=name, apply_default_css=False, js_on_load=js)


def build(studio: Studio) -> CreateTab:
    """Draws the tab. Call it where the tab is open."""
    start = fields.first(studio)
    with gr.Row(elem_id="create", equal_height=False):
        with gr.Column(elem_id="form", scale=0, min_width=320):
            parts = _form(studio, start)
        with gr.Column(elem_id="stage", scale=1, min_width=320):
            stage: dict[str, Any] = {
                "canvas": _html("canvas", canvas.canvas(None, ""), "canvas"),
                "status": _html(
                    "status",
                    canvas.status(None, studio.engine(), None),
                    "status",
                ),
                "result": _html("result", canvas.result(None, busy=False), "canvas"),
            }
    return CreateTab(**parts, **stage)


class _Controls:
    """Draws the controls of the fields: most from their declarations alone.

    What stands around them has a place of its own in the form; a field that is new is drawn with
    the `rest` of the place that it names.
    """

    def __init__(self, studio: Studio, start: Form) -> None:
        self.studio, self.start = studio, start
        self.model = studio.model(start["model"])
        self.drawn: dict[str, Any] = {}
        # What the chosen model and sampler, and a Space, allow.
        self._allowed = fields.limits(start)
        self._allowed["count"] = {"maximum": hosting.most_pictures()}
        example = f"For example: {self.model.examples[0]}" if self.model.examples else ""
        self._allowed["prompt"] = {"placeholder": example}
        shown: Any = True if fields.knows_sizes(start, studio) else "hidden"
        self._allowed["original_size"] = {"visible": shown}

    def draw(self, name: str) -> None:
        """The control of one field."""
        drawn: Any
        match DECLARED[name].spec.widget.kind:
            case "text":
                drawn = self._text(name)
            case "number":
                drawn = self._slider(name)
            case "switch":
                drawn = self._switch(name)
            case "start":
                drawn = choices.start(name)
            case "choice":
                drawn = self._choice(name)
        self.drawn[name] = drawn

    def rest(self, place: Place) -> None:
        """The controls that belong there and are not drawn yet."""
        for name, row in DECLARED.items():
            if row.spec.widget.place == place and name not in self.drawn:
                self.draw(name)

    def _common(self, name: str) -> dict[str, Any]:
        spec = DECLARED[name].spec
        info = {"info": spec.widget.info} if spec.widget.info else {}
        return {"label": spec.label, "elem_id": name, "value": self.start[name], **info}

    def _text(self, name: str) -> gr.Textbox:
        widget = DECLARED[name].spec.widget
        arguments = self._common(name) | {
            "lines": widget.lines,
            "max_lines": widget.most_lines,
            "placeholder": widget.placeholder or None,
        }
        return gr.Textbox(**arguments | self._allowed.get(name, {}))

    def _slider(self, name: str) -> gr.Slider:
        row = DECLARED[name]
        arguments = self._common(name) | {
            "minimum": row.low if row.spec.widget.low is None else row.spec.widget.low,
            "maximum": row.high,
            "step": row.spec.widget.step,
            "interactive": True,
        }
        return gr.Slider(buttons=[], **arguments | self._allowed.get(name, {}))

    def _switch(self, name: str) -> gr.Checkbox:
        return gr.Checkbox(**self._common(name) | self._allowed.get(name, {}))

    def _choice(self, name: str) -> gr.HTML:
        """What gradio has no control for."""
        start, model = self.start, self.model
        markup = {
            "style": choices.style_select,
            "size": lambda: choices.shapes(model.shapes, start["size"], model.max_side),
            "model": lambda: choices.model_select(self.studio.catalog, model),
            "sampler": lambda: choices.sampler_select(fields.sampler_note(start, self.studio)),
        }
        return (
            choices.loras(name)
            if name == "loras"
            else choices.choice(name, start[name], markup[name]())
        )


def _form(studio: Studio, start: Form) -> dict[str, Any]:
    form = _Controls(studio, start)
    with gr.Column(elem_classes="card", elem_id="words"):
        form.rest("prompt")
        count = _html("token-count", _count(studio, form.model.id))
        examples = _html("examples", canvas.examples(form.model.examples), "examples")
        form.rest("words")
    with gr.Column(elem_classes="card", elem_id="frame"):
        form.draw("size")
        forecast = _html("forecast", canvas.forecast(""))
        form.rest("frame")
    with gr.Column(elem_classes="card", elem_id="start-card"):
        form.draw("init")
        upload = gr.UploadButton(
            DECLARED["init"].spec.label, file_types=["image"], size="sm", elem_id="upload"
        )
        form.rest("start")
    with gr.Column(elem_classes="card", elem_id="method"):
        form.rest("model")
        with gr.Row(elem_classes="pair"):
            form.rest("pace")
        form.draw("original_size")
        form.rest("method")
        with gr.Row(elem_classes="pair", elem_id="orders"):
            form.rest("orders")
    with gr.Column(elem_classes="card", elem_id="lora-card"):
        form.rest("loras")
    with gr.Column(elem_classes="card", elem_id="chance"), gr.Row(elem_classes="pair"):
        form.rest("chance")
        form.drawn["new_seed"] = gr.Checkbox(label="New each time", value=True, elem_id="new_seed")
    with gr.Row(elem_id="go"):
        generate = gr.Button("Generate", variant="primary", elem_id="generate")
        stop = gr.Button("Stop", elem_id="stop", interactive=False)
    return {
        "form": {name: form.drawn[name] for name in FIELDS},
        "count": count,
        "forecast": forecast,
        "examples": examples,
        "upload": upload,
        "generate": generate,
        "stop": stop,
    }


def _count(studio: Studio, model_id: str) -> str:
    """The limit of the text; a model without its tokenizer must not keep the page from opening."""
    try:
        return canvas.token_count(studio.count(model_id, ""), empty=True)
    except StudioError as error:
        return canvas.sentence(str(error))


def wire(demo: gr.Blocks, studio: Studio, tab: CreateTab, session: Session) -> CreateHandlers:
    """Connects the components with the handlers, which it returns."""
    on = CreateHandlers(studio, tab, session)
    form = list(tab.form.values())
    who = [session.browser, session.owner]
    shown = [tab.canvas, tab.status, tab.result, session.engine, tab.generate, tab.stop]
    shown.append(session.timer)
    follows = filled(tab, session)
    opened = demo.load(on.open, [*who, session.kept], [session.owner, *follows, *shown], **QUIET)
    # Only now do changes of the form come from a person, and are kept.
    opened.then(None, js="() => { window.studioReady = true }", api_visibility="private")
    # preprocess=False: the request checks every value itself, whoever sent it.
    session.timer.tick(on.tick, [*who, *form], [*follows, *shown], preprocess=False, **QUIET)
    tab.generate.click(
        on.paint, [*who, *form], [tab.form["seed"], *shown], preprocess=False, **QUIET
    )
    tab.stop.click(on.stop, who, shown, **QUIET)
    for place in (tab.canvas, tab.result):
        place.act(on.act, [*who, tab.form["new_seed"]], [*follows, *shown], **QUIET)
    _wire_form(tab, session, on, shown)
    return on


def _wire_form(tab: CreateTab, session: Session, on: CreateHandlers, shown: list[Any]) -> None:
    form = list(tab.form.values())
    follows = filled(tab, session)
    field = tab.form
    raw = {"preprocess": False, **QUIET}
    latest = {"trigger_mode": "always_last"}
    field["sampler"].input(on.retune, form, follows, **raw)
    field["loras"].input(on.relora, form, follows, **raw)
    field["model"].input(on.remodel, form, follows, **raw)
    # .change and not .input: gradio's textbox says "input" for keys only, not for a paste.
    field["guidance"].change(
        on.reguide, [field["sampler"], field["guidance"]], field["negative"], **raw, **latest
    )
    gr.on(
        [field[name].change for name in ("size", "guidance", "approximate")],
        on.reforecast,
        [field[name] for name in FORECAST],
        tab.forecast,
        **raw,
        **latest,
    )
    words = [field["prompt"], field["style"], field["model"], field["clean_caption"]]
    gr.on(
        [field["prompt"].change, field["style"].change, field["clean_caption"].change],
        on.recount,
        words,
        tab.count,
        **raw,
        **latest,
    )
    tab.upload.upload(
        on.keep_upload,
        [session.browser, tab.upload],
        [field["init"], tab.upload, *shown],
        **QUIET,
    )
    tab.examples.example(on.example, field["model"], field["prompt"], **QUIET)
    gr.on(
        [component.change for component in form],
        None,
        [session.kept, *form],
        session.kept,
        js=_SAVE % list(FIELDS),
        api_visibility="private",
        **latest,
    )
