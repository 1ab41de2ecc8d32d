"""Importing a model in the page: the form, and what becomes of it as HTML."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from app.markup import render
from app.models.import_jobs import ImportJob
from app.models.rows import ImportOptions
from app.ui import choices
from pipelines.catalog import Catalog
from pipelines.errors import RequestError, StudioError
from pipelines.progress import plain_size

OWN = ""
COPY, IN_PLACE = "copy", "in-place"
MAX_TEXT = 1000
_MARKUP = "ui/models/import_form.html"
_ANOTHER = "Choose another model to take T5 and VAE from."
# The same errors are said on the command line, where options are named.
_WAYS = {
    "id": "Give another id.",
    "text": "Choose a model to take T5 and VAE from.",
    "vae": "Choose a model to take T5 and VAE from.",
    "in_place": "Have it copied.",
}
_WORDS = {"": "Reading it…", "convert": "Converting the transformer, {} of {} tensors"}
_PARTS_NOTE = (
    "A single file holds only the transformer, so it takes the rest from a model that is here:"
    " PixArt-Σ from one of PixArt-Σ, PixArt-α from one of PixArt-α."
)


def build(catalog: Catalog) -> dict[str, Any]:
    """The fields, by name, and the button. Call it where the form stands."""
    fields: dict[str, Any] = {}
    fields["path"] = gr.Textbox(
        label="Path",
        info="A folder in diffusers' layout, a .safetensors, the original .pth, or a LoRA.",
        placeholder="/home/me/PixArt-XL-2-1024-MS.pth",
        max_lines=1,
        elem_id="import-path",
    )
    with gr.Row(elem_classes="pair"):
        fields["title"] = gr.Textbox(
            label="Title", placeholder="its name", max_lines=1, elem_id="import-title"
        )
        fields["id"] = gr.Textbox(
            label="Id", placeholder="made of its name", max_lines=1, elem_id="import-id"
        )
    with gr.Row(elem_classes="pair"):
        fields["parts"] = choices.choice("import-parts", OWN, parts_select(catalog))
        fields["files"] = choices.choice("import-files", COPY, _files_select())
    return fields


def parts_select(catalog: Catalog) -> str:
    """The models that parts can be taken from."""
    rows = [(OWN, "Its own folder"), *((spec.id, spec.title) for spec in catalog)]
    return choices.select("import-parts", "T5 and VAE from", [("", rows)], _PARTS_NOTE)


def _files_select() -> str:
    rows = [(COPY, "Copied into the studio"), (IN_PLACE, "Left where they are")]
    note = "Only a whole folder in diffusers' layout can stay where it is."
    return choices.select("import-files", "Its files are", [("", rows)], note)


def head() -> str:
    """The line above the form, which opens it."""
    return render(_MARKUP, "head")


def wanted(values: Mapping[str, Any]) -> tuple[str, ImportOptions]:
    """The path and what is wished for it. Raises RequestError for values that are no text."""
    texts = {name: value for name, value in values.items() if isinstance(value, str)}
    if len(texts) < len(values) or any(len(text) > MAX_TEXT for text in texts.values()):
        raise RequestError("path", "This form takes text, and not that much of it.")
    parts = texts["parts"] or None
    return texts["path"], ImportOptions(
        id=texts["id"].strip() or None,
        title=texts["title"].strip() or None,
        text=parts,
        vae=parts,
        in_place=texts["files"] == IN_PLACE,
    )


def sentence(error: StudioError) -> str:
    """What went wrong, with a way out that the page has."""
    way = error.way_out
    field = error.field if isinstance(error, RequestError) else ""
    if "--" in way:
        option = field.replace("_", "-")
        way = _WAYS.get(field) or (
            f"Import it on the command line, with --{option}." if field else _ANOTHER
        )
    return f"{error.message} {way}".strip()


def job(state: ImportJob | None, title: str, *, usable: bool) -> str:
    """How the last import goes, or went. `title` is that of the finished model."""
    if state is None:
        return ""
    said, tone = f"Stopped. Nothing of {state.source} was left behind.", ""
    if state.phase == "done":
        said, tone = f"“{title}” is here.", "good"
    elif state.error is not None:
        said, tone = f"{state.source} was not imported. {sentence(state.error)}", "bad"
    return render(
        _MARKUP,
        "job",
        name=state.source,
        progress=_progress(state) if state.active else None,
        stopping=state.phase == "stopping",
        said=said,
        tone=tone,
        use=state.model if state.phase == "done" and usable else "",
    )


def _progress(state: ImportJob) -> dict[str, str | None]:
    if state.phase == "stopping":
        words = "Stopping…"
    elif state.stage == "copy":
        words = f"Copying the rest, {plain_size(state.done)} of {plain_size(state.total)}"
    else:
        words = _WORDS[state.stage].format(state.done, state.total)
    part = 100 * state.done / state.total if state.total else 0.0
    value = f"{part:.0f}" if state.total else None
    return {"value": value, "width": f"{part:.1f}", "words": words}
