"""The form and the request: one table of fields, and the ways between the two.

A form is a plain mapping from the names in `FIELDS` to what the widgets hold. Limits and defaults
come from `studio.request` and the tables behind it; nothing here knows a number of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeGuard

from lora_manager import card
from lora_manager.errors import LoraError
from pipelines import sizes
from pipelines.denoising import samplers
from pipelines.errors import StudioError
from pipelines.memory import model_numbers
from pipelines.memory.planning import MemoryRequest
from pipelines.request import GenerationRequest
from pipelines.request_values import MAX_PROMPT
from pipelines.text import styles

if TYPE_CHECKING:
    from app.studio import Studio

Form = dict[str, Any]
FieldKind = Literal["text", "choice", "number", "switch", "start"]

FIELDS: dict[str, FieldKind] = {
    "prompt": "text",
    "negative": "text",
    "style": "choice",
    "model": "choice",
    "sampler": "choice",
    "steps": "number",
    "guidance": "number",
    "predictor_order": "number",
    "corrector_order": "number",
    "eta": "number",
    "tau_at_start": "switch",
    "size": "choice",
    "count": "number",
    "seed": "text",
    "new_seed": "switch",
    "init": "start",
    "strength": "number",
    "clean_caption": "switch",
    "original_size": "text",
    "approximate": "switch",
    "loras": "choice",
}
"""Every widget of the form; each name but `new_seed` is a field of the request."""

_NAMED = ("choice", "start")
_ORDERS = ("predictor_order", "corrector_order", "eta", "tau_at_start")
_OF_MODEL = ("sampler", "size", "steps", "guidance", "clean_caption", "original_size")


def form(raw: Sequence[Any]) -> Form:
    """What the widgets sent, in the order of `FIELDS`, by name."""
    values = dict(zip(FIELDS, raw, strict=True))
    # A choice is a name; whatever else a program sends becomes a name that is in no list.
    names = {n: "" if v is None else str(v) for n, v in values.items() if FIELDS[n] in _NAMED}
    return values | names


def request_values(values: Form) -> dict[str, Any]:
    """The form as the values of a request: what is off or hidden takes its default."""
    given = {name: value for name, value in values.items() if name != "new_seed"}
    if values.get("new_seed") is True:
        given["seed"] = ""
    elif given.get("seed") is None:
        given["seed"] = ""
    row = samplers.SAMPLERS.get(str(given.get("sampler")))
    if row is not None and not row.orders:
        for name in _ORDERS:
            given.pop(name, None)
    if not given.get("init"):
        given.pop("init", None)
        given.pop("strength", None)
    # An empty choice is one that nobody made.
    return {k: v for k, v in given.items() if v != "" or FIELDS[k] == "text"}


def first(studio: Studio) -> Form:
    """The form of somebody who comes for the first time."""
    values = from_request(studio.request({"prompt": "x"}))
    return values | {"prompt": "", "seed": "", "new_seed": True}


def from_request(request: GenerationRequest) -> Form:
    """The form that paints `request` again."""
    values: Form = request.model_dump(include=set(FIELDS))
    return values | {
        "size": f"{request.width}x{request.height}",
        "seed": str(request.seed),
        "new_seed": False,
        "init": request.init or "",
        "original_size": request.original_size or "",
        "loras": card.written(request.loras),
    }


def repeated(request: GenerationRequest, studio: Studio) -> Form:
    """The form that paints `request` again, as far as that can be: where its model is gone, its
    words and its seed with a model that is here. Raises StudioError."""
    values = from_request(request)
    if request.style not in styles.all_styles():
        values["style"] = styles.NO_STYLE
    if all(spec.id != request.model for spec in studio.catalog):
        kept = ("prompt", "negative", "style", "seed", "new_seed")
        values = first(studio) | {name: values[name] for name in kept}
    if values["init"]:
        values["init"] = _start(values["init"], studio)
    return values


def tuned(values: Form, studio: Studio) -> Form:
    """Steps and guidance as the chosen model and sampler like them. Raises StudioError."""
    wanted = {"prompt": "x", "model": values.get("model"), "sampler": values.get("sampler")}
    request = studio.request(wanted)
    return {"steps": request.steps, "guidance": request.guidance}


def for_model(values: Form, studio: Studio) -> Form:
    """Sampler, sizes, steps and guidance as the chosen model likes them. Raises StudioError."""
    request = studio.request({"prompt": "x", "model": values.get("model")})
    chosen = from_request(request)
    return {name: chosen[name] for name in _OF_MODEL}


def restored(kept: Any, studio: Studio) -> Form:
    """The form of the last visit, out of the browser's storage: nothing in it is trusted."""
    values = first(studio)
    if not isinstance(kept, Mapping):
        return values
    known = {
        "style": set(styles.all_styles()),
        "model": {spec.id for spec in studio.catalog},
        "sampler": set(samplers.SAMPLERS),
    }
    if str(kept.get("model")) in known["model"]:
        values["model"] = str(kept["model"])
        values |= for_model(values, studio)
    for name, kind in FIELDS.items():
        value = kept.get(name)
        if kind == "text" and isinstance(value, str):
            values[name] = value[: MAX_PROMPT * 2]
        elif kind == "switch" and isinstance(value, bool):
            values[name] = value
        elif kind == "number" and _is_number(value) and _is_possible(name, value, studio):
            values[name] = value
        elif name in known and isinstance(value, str) and value in known[name]:
            values[name] = value
    row = samplers.find(str(values["sampler"]))
    if not row.min_steps <= values["steps"] <= row.max_steps:
        values["steps"] = row.steps
    values["size"] = _size(kept.get("size"), values["size"], studio.model(values["model"]).max_side)
    if not knows_sizes(values, studio):
        values["original_size"] = ""
    values["init"] = _start(kept.get("init"), studio)
    values["loras"] = _loras(kept.get("loras"), studio)
    return values


def _loras(text: Any, studio: Studio) -> str:
    """Those of the kept LoRAs that are still there."""
    if not isinstance(text, str):
        return ""
    known = {one.name for one in studio.catalog.loras.cards()}
    try:
        return card.written([use for use in card.parse(text) if use.name in known])
    except LoraError:
        return ""


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_possible(name: str, value: float, studio: Studio) -> bool:
    """Whether a request may have this number: a typing error must not greet the next visit."""
    try:
        # IDDPM takes the most steps; what the chosen sampler takes is checked when it is known.
        sampler = "iddpm" if name == "steps" else None
        studio.request({"prompt": "x", "sampler": sampler, name: value})
    except StudioError:
        return False
    return True


def _size(kept: Any, otherwise: str, max_side: int) -> str:
    """The kept size where the model can paint it."""
    try:
        size = sizes.parse(kept if isinstance(kept, str) else "")
        sizes.check(size, max_side)
    except StudioError:
        return otherwise
    return str(size)


def _start(name: Any, studio: Studio) -> str:
    """The kept start picture, if it is still there."""
    if not isinstance(name, str) or not name:
        return ""
    try:
        return studio.find_start(name).name
    except StudioError:
        return ""


def knows_sizes(values: Form, studio: Studio) -> bool:
    """Whether the chosen model can be told an original size."""
    try:
        return model_numbers.knows_sizes(studio.model(str(values.get("model"))))
    except StudioError:
        return False


def guidance_off(values: Form) -> str:
    """Why the negative prompt does nothing now, or ""."""
    row = samplers.SAMPLERS.get(str(values.get("sampler")))
    if row is not None and not row.guided:
        return f"Not used: {row.label} paints without guidance."
    guidance = values.get("guidance")
    if _is_number(guidance) and guidance <= samplers.GUIDANCE_OFF:
        return f"Not used while guidance is {samplers.GUIDANCE_OFF:g} or less."
    return ""


def wish(values: Form) -> MemoryRequest:
    """What the form asks of the memory. Raises RequestError for a size that is none."""
    size = sizes.parse(str(values.get("size")))
    return MemoryRequest(
        width=size.width,
        height=size.height,
        rows=1 if guidance_off(values) else 2,
        approximate=values.get("approximate") is True,
    )


def sampler_note(values: Form, studio: Studio) -> str:
    """What to know about the chosen sampler, with the chosen model. Raises StudioError."""
    row = samplers.find(str(values.get("sampler")))
    if row.distilled is None:
        return row.hint
    model = studio.model(str(values.get("model")))
    if (model.distilled or distilled(values, studio)) == row.distilled:
        return row.hint
    return f"{row.hint} {model.title} is not one of them, so expect rough pictures."


def distilled(values: Form, studio: Studio) -> str | None:
    """The sampler to which one of the chosen LoRAs distills the model."""
    try:
        return studio.catalog.distilled_by(card.parse(str(values.get("loras") or "")))
    except LoraError:
        return None


def limits(values: Form) -> dict[str, dict[str, Any]]:
    """What a widget allows and shows, as the chosen sampler needs it: arguments of the widgets."""
    row = samplers.SAMPLERS.get(str(values.get("sampler")), samplers.SAMPLERS["dpm-solver++"])
    fixed = row.min_steps == row.max_steps
    off = guidance_off(values)
    shown: bool | Literal["hidden"] = True if row.orders else "hidden"
    return {
        # A slider needs two different ends; with one possible value it is shown but locked.
        "steps": {
            "minimum": row.min_steps,
            "maximum": row.max_steps + int(fixed),
            "interactive": not fixed,
        },
        "guidance": {"interactive": row.guided},
        "negative": {"interactive": not off, "info": off or NEGATIVE_INFO},
        **{name: {"visible": shown} for name in _ORDERS},
    }


NEGATIVE_INFO = "What should stay out of the picture."
