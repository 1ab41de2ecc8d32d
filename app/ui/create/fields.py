"""The form and the request: the ways between the two.

A form is a plain mapping from the names in `FIELDS` to what the widgets hold. What the fields are,
their limits and defaults come from `pipelines.request` and the tables behind it; nothing here knows
a number of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

from lora_manager import card
from lora_manager.errors import LoraError
from pipelines import request, sizes
from pipelines.denoising import samplers
from pipelines.denoising.samplers import Sampler
from pipelines.errors import StudioError
from pipelines.field_spec import RequestField, WidgetKind
from pipelines.memory import model_numbers
from pipelines.memory.planning import MemoryRequest
from pipelines.request import GenerationRequest
from pipelines.request_values import MAX_PROMPT
from pipelines.text import styles

if TYPE_CHECKING:
    from app.studio import Studio

Form = dict[str, Any]
FIELDS: dict[str, WidgetKind] = {
    **{name: row.spec.widget.kind for name, row in request.FIELDS.items()},
    "new_seed": "switch",
}
"""Every widget of the form; each name but `new_seed` is a field of the request."""

_NAMED = ("choice", "start")


def _following(name: str) -> tuple[str, ...]:
    """The fields whose defaults change with the field `name`."""
    return tuple(one for one, row in request.FIELDS.items() if name in row.spec.follows)


def _unread(row: Sampler) -> tuple[str, ...]:
    """The fields that this sampler does not read."""
    limited = {name: one.spec.only_for for name, one in request.FIELDS.items()}
    return tuple(name for name, reads in limited.items() if reads is not None and not reads(row))


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
    for name in _unread(row) if row is not None else ():
        given.pop(name, None)
    for name, one in request.FIELDS.items():
        if one.spec.needs and not given.get(one.spec.needs):
            given.pop(name, None)
    # An empty choice is one that nobody made.
    return {k: v for k, v in given.items() if v != "" or FIELDS[k] == "text"}


def first(studio: Studio) -> Form:
    """The form of somebody who comes for the first time."""
    values = from_request(studio.request({"prompt": "x"}))
    return values | {"prompt": "", "seed": "", "new_seed": True}


def from_request(painted: GenerationRequest) -> Form:
    """The form that paints the same again."""
    shown = {name: _shown(row, painted) for name, row in request.FIELDS.items()}
    return shown | {"new_seed": False}


def _shown(row: RequestField, painted: GenerationRequest) -> Any:
    """What the widget of a field holds."""
    if row.name == "size":
        return f"{painted.width}x{painted.height}"
    value = getattr(painted, row.names[0])
    if row.name == "loras":
        return card.written(value)
    if row.spec.widget.kind in ("number", "switch"):
        return value
    return "" if value is None else str(value)


def repeated(painted: GenerationRequest, studio: Studio) -> Form:
    """The form that paints the same again, as far as that can be: where its model is gone, its
    words and its seed with a model that is here. Raises StudioError."""
    values = from_request(painted)
    if painted.style not in styles.all_styles():
        values["style"] = styles.NO_STYLE
    if all(spec.id != painted.model for spec in studio.catalog):
        kept = ("prompt", "negative", "style", "seed", "new_seed")
        values = first(studio) | {name: values[name] for name in kept}
    if values["init"]:
        values["init"] = _start(values["init"], studio)
    return values


def tuned(values: Form, studio: Studio) -> Form:
    """Steps and guidance as the chosen model and sampler like them. Raises StudioError."""
    wanted = {"prompt": "x", "model": values.get("model"), "sampler": values.get("sampler")}
    chosen = from_request(studio.request(wanted))
    return {name: chosen[name] for name in _following("sampler")}


def for_model(values: Form, studio: Studio) -> Form:
    """Sampler, sizes, steps and guidance as the chosen model likes them. Raises StudioError."""
    chosen = from_request(studio.request({"prompt": "x", "model": values.get("model")}))
    return {name: chosen[name] for name in _following("model")}


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
    # Not `isfinite`, which has no answer for a whole number that no float holds.
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) <= sys.float_info.max


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


def memory_request(values: Form) -> MemoryRequest:
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
    off, info = guidance_off(values), request.FIELDS["negative"].spec.widget.info
    unread = _unread(row)
    return {
        # A slider needs two different ends; with one possible value it is shown but locked.
        "steps": {
            "minimum": row.min_steps,
            "maximum": row.max_steps + int(fixed),
            "interactive": not fixed,
        },
        "guidance": {"interactive": row.guided},
        "negative": {"interactive": not off, "info": off or info},
        **{
            name: {"visible": "hidden" if name in unread else True}
            for name, one in request.FIELDS.items()
            if one.spec.only_for is not None
        },
    }
