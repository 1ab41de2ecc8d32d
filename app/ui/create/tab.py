"""The Create tab: a form on the left, one canvas on the right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gradio as gr

from app import hosting
from app.ui import choices
from app.ui.create import canvas, fields
from app.ui.create.fields import FIELDS, Form
from app.ui.create.handlers import FORECAST, CreateHandlers, CreateTab, Session, filled
from app.ui.shell import script
from pipelines import request_values as limits
from pipelines.denoising import samplers
from pipelines.errors import StudioError

if TYPE_CHECKING:
    from app.studio import Studio

# Events of the page itself: no place in the queue, no API name, no veil over the outputs.
QUIET: dict[str, Any] = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}
_SAVE = """(kept, ...values) => window.studioReady
  ? Object.fromEntries(%s.map((name, i) => [name, values[i]])) : kept"""


def _html(name: str, value: str = "", js: str | None = None) -> gr.HTML:
    return gr.HTML(value, elem_id=name, apply_default_css=False, js_on_load=js)


def build(studio: Studio) -> CreateTab:
    """Draws the tab. Call it where the tab is open."""
    start = fields.first(studio)
    with gr.Row(elem_id="create", equal_height=False):
        with gr.Column(elem_id="form", scale=0, min_width=320):
            parts = _form(studio, start)
        with gr.Column(elem_id="stage", scale=1, min_width=320):
            stage: dict[str, Any] = {
                "canvas": _html("canvas", canvas.canvas(None, ""), script("canvas.js")),
                "status": _html(
                    "status", canvas.status(None, studio.engine(), None), script("status.js")
                ),
                "result": _html("result", canvas.result(None, busy=False), script("canvas.js")),
            }
    return CreateTab(**parts, **stage)


def _form(studio: Studio, start: Form) -> dict[str, Any]:
    form: dict[str, Any] = {}
    model = studio.model(start["model"])
    allowed = fields.limits(start)
    with gr.Column(elem_classes="card", elem_id="words"):
        form["prompt"] = gr.Textbox(
            label="Prompt",
            lines=3,
            max_lines=8,
            placeholder=f"For example: {model.examples[0]}" if model.examples else "",
            elem_id="prompt",
        )
        count = _html("token-count", _count(studio, model.id))
        examples = _html("examples", canvas.examples(model.examples), script("examples.js"))
        form["negative"] = gr.Textbox(
            label="Negative prompt", lines=1, max_lines=4, elem_id="negative", **allowed["negative"]
        )
        form["style"] = choices.choice("style", start["style"], choices.style_select())
    with gr.Column(elem_classes="card", elem_id="frame"):
        form["size"] = choices.choice(
            "size", start["size"], choices.shapes(model.shapes, start["size"], model.max_side)
        )
        forecast = _html("forecast", canvas.forecast(""))
        form["count"] = _slider("count", "Pictures", 1, hosting.most_pictures(), 1, start)
    with gr.Column(elem_classes="card", elem_id="start-card"):
        form["init"] = choices.start("init")
        upload = gr.UploadButton(
            "Start from a picture", file_types=["image"], size="sm", elem_id="upload"
        )
        form["strength"] = _slider(
            "strength", "Strength", 0.05, 1, 0.05, start, info="How much is painted anew."
        )
    _method(form, studio, start)
    with gr.Column(elem_classes="card", elem_id="lora-card"):
        form["loras"] = choices.loras("loras")
    with gr.Column(elem_classes="card", elem_id="chance"), gr.Row(elem_classes="pair"):
        form["seed"] = gr.Textbox(
            label="Seed", max_lines=1, placeholder="new each time", elem_id="seed", value=""
        )
        form["new_seed"] = gr.Checkbox(label="New each time", value=True, elem_id="new_seed")
    with gr.Row(elem_id="go"):
        generate = gr.Button("Generate", variant="primary", elem_id="generate")
        stop = gr.Button("Stop", elem_id="stop", interactive=False)
    ordered = {name: form[name] for name in FIELDS}
    return {
        "form": ordered,
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


def _method(form: dict[str, Any], studio: Studio, start: Form) -> None:
    """The model, the sampler and what the sampler can be told."""
    model = studio.model(start["model"])
    allowed = fields.limits(start)
    with gr.Column(elem_classes="card", elem_id="method"):
        form["model"] = choices.choice(
            "model", start["model"], choices.model_select(studio.catalog, model)
        )
        form["sampler"] = choices.choice(
            "sampler", start["sampler"], choices.sampler_select(fields.sampler_note(start, studio))
        )
        with gr.Row(elem_classes="pair"):
            form["steps"] = _slider("steps", "Steps", 1, 2, 1, start, **allowed["steps"])
            form["guidance"] = _slider(
                "guidance", "Guidance", 0, limits.MAX_GUIDANCE, 0.1, start, **allowed["guidance"]
            )
        form["original_size"] = gr.Textbox(
            label="Original size",
            max_lines=1,
            placeholder="as painted",
            info="What the model imagines, e.g. 2048x2048: larger is crisper, smaller is softer.",
            visible=True if fields.knows_sizes(start, studio) else "hidden",
            elem_id="original_size",
        )
        form["clean_caption"] = gr.Checkbox(
            label="Clean the prompt as in training",
            info="Drops brackets, &, #, web addresses and Chinese characters, as PixArt-α learned.",
            value=start["clean_caption"],
            elem_id="clean_caption",
        )
        form["approximate"] = gr.Checkbox(
            label="Approximate where memory is short",
            info="T5 in 8 bits or decoding in tiles: the picture may change a little.",
            value=False,
            elem_id="approximate",
        )
        with gr.Row(elem_classes="pair", elem_id="orders"):
            for name, label, low, high, step in (
                ("predictor_order", "Predictor order", 1, samplers.MAX_ORDER, 1),
                ("corrector_order", "Corrector order", 1, samplers.MAX_ORDER, 1),
                ("eta", "Eta", 0, 1, 0.05),
            ):
                form[name] = _slider(name, label, low, high, step, start, **allowed[name])
            form["tau_at_start"] = gr.Checkbox(
                label="Tau where a step begins",
                info="As diffusers does, and as older pictures were painted.",
                value=start["tau_at_start"],
                elem_id="tau_at_start",
                **allowed["tau_at_start"],
            )


def _slider(
    name: str, label: str, low: float, high: float, step: float, start: Form, **more: Any
) -> gr.Slider:
    arguments = {"minimum": low, "maximum": high, "interactive": True} | more
    return gr.Slider(
        step=step, value=start[name], label=label, elem_id=name, buttons=[], **arguments
    )


def wire(demo: gr.Blocks, studio: Studio, tab: CreateTab, session: Session) -> CreateHandlers:
    """Connects the components with the handlers, which it returns."""
    on = CreateHandlers(studio, tab, session)
    form = list(tab.form.values())
    who = [session.seat, session.owner]
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
        [session.seat, tab.upload],
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
