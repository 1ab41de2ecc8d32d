"""Inputs that gradio does not have: native selects with groups, shapes to pick, a start picture.

Each is a gr.HTML whose value is a plain string, so it is an input and an output like any other.
gr.HTML is called, never subclassed: a subclass would make gradio write a .pyi file beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import gradio as gr

from app.markup import render
from app.ui.routes import STARTS
from app.ui.shell import on_load
from lora_manager import card
from lora_manager.card import LoraCard
from lora_manager.errors import LoraError
from lora_manager.library import LoraLibrary
from pipelines.catalog import Catalog, ModelSpec
from pipelines.denoising.samplers import SAMPLERS
from pipelines.sizes import MIN_SIDE, MULTIPLE, Size
from pipelines.text.styles import NO_STYLE, all_styles

# Shapes that nearly everybody wants, tallest last; the rest is one click away.
_FIRST = ("1:1", "4:3", "3:2", "16:9", "2:1", "3:4", "2:3", "9:16", "1:2")
_FEW = 10
_SIDE = 26
"""Pixels of the longest side of a drawn shape."""
_MARKUP = "ui/choices.html"
MAX_PROBLEMS = 3
_PROBLEM = "Not every model can be used; the Models tab says why."
Option = tuple[str, str]


def choice(name: str, value: str, markup: str, **arguments: Any) -> gr.HTML:
    """An input whose control is `markup` and whose value is `value`."""
    return gr.HTML(
        value,
        html_template="${markup}",
        js_on_load=on_load("choices/choice.js"),
        apply_default_css=False,
        elem_id=name,
        elem_classes=["field"],
        markup=markup,
        **arguments,
    )


def loras(name: str) -> gr.HTML:
    """LoRAs to add to the model: "name:0.8, other", or ""."""
    return gr.HTML(
        "",
        html_template="${markup}",
        js_on_load=on_load("choices/loras.js"),
        apply_default_css=False,
        elem_id=name,
        elem_classes=["field"],
        markup="",
    )


def lora_rows(library: LoraLibrary, chosen: str, width: int) -> str:
    """The LoRAs of the library with a box and a weight each, and those of a recipe that are gone.

    `width` is that of the model's layers, 0 where it is not known: what was made for another one
    is said.
    """
    cards = {one.name: one for one in library.cards()}
    try:
        asked = [use.name for use in card.parse(chosen)]
    except LoraError:
        asked = []
    rows = [_lora(name, cards.get(name), width) for name in dict.fromkeys([*cards, *asked])]
    low, high = (f"{limit:g}" for limit in (card.MIN_WEIGHT, card.MAX_WEIGHT))
    return render(_MARKUP, "loras", rows=rows, low=low, high=high)


def _lora(name: str, found: LoraCard | None, width: int) -> dict[str, str]:
    """The name, the title and what is said of a LoRA."""
    if found is None:
        return {"name": name, "title": name, "note": "Not here any more."}
    note = f"Say “{found.trigger}” in the prompt." if found.trigger else ""
    if width and found.width and found.width != width:
        note = "Made for another model; it does not fit this one."
    return {"name": name, "title": found.title or name, "note": note}


def start(name: str) -> gr.HTML:
    """The picture to start from: its name in a request, or ""."""
    return gr.HTML(
        "",
        html_template=render(_MARKUP, "start", address=STARTS),
        js_on_load=on_load("choices/start.js"),
        apply_default_css=False,
        elem_id=name,
        elem_classes=["field"],
    )


def select(
    name: str,
    label: str,
    groups: Iterable[tuple[str, Sequence[Option]]],
    note: str = "",
    *,
    licence: str = "",
    problem: str = "",
) -> str:
    """A labelled native select. `groups` are (title or "", options), options (value, label)."""
    return render(
        _MARKUP,
        "select",
        name=name,
        label=label,
        groups=list(groups),
        note=note,
        licence=licence,
        problem=problem,
    )


def style_select() -> str:
    """The styles, "None" first."""
    rows = [(name, "No style" if name == NO_STYLE else name) for name in all_styles()]
    return select("style", "Style", [("", rows)])


def model_select(catalog: Catalog, chosen: ModelSpec) -> str:
    """The models of the catalog with summary and licence of the chosen one.

    That rows of the user's folder could not be read is said below.
    """
    rows = list(catalog)
    shipped = [(m.id, m.title) for m in rows if m.embedded]
    own = [(m.id, m.title) for m in rows if not m.embedded and not m.sources]
    downloaded = [(m.id, m.title) for m in rows if m.sources]
    named = [("Yours", own), ("Downloaded", downloaded), ("Shipped", shipped)]
    groups = [(name, group) for name, group in named if group]
    groups = groups if len(groups) > 1 else [("", shipped)]
    return select(
        "model",
        "Model",
        groups,
        chosen.summary,
        licence=chosen.licence,
        # Why holds paths, and every visitor sees this.
        problem=_PROBLEM if catalog.problems else "",
    )


def sampler_select(note: str) -> str:
    """The samplers, the special ones in a group of their own."""
    main = [(row.id, row.label) for row in SAMPLERS.values() if not row.more]
    more = [(row.id, row.label) for row in SAMPLERS.values() if row.more]
    return select("sampler", "Sampler", [("", main), ("More samplers", more)], note)


def _shape(size: Size) -> dict[str, Any]:
    """A shape as it is drawn, in pixels."""
    longest = max(size.width, size.height)
    across, down = (max(4, round(_SIDE * s / longest)) for s in (size.width, size.height))
    return {
        "size": str(size),
        "ratio": size.ratio,
        "width": size.width,
        "height": size.height,
        "across": across,
        "down": down,
    }


def shapes(sizes: Sequence[Size], chosen: str, max_side: int) -> str:
    """The trained shapes as a group of radio buttons; a size that is none of them comes first.

    Below them any other size up to `max_side` can be typed.
    """
    ranked = sorted(sizes, key=lambda s: s.width / s.height, reverse=True)
    front = list(ranked)
    if len(ranked) > _FEW:
        named: dict[str, tuple[float, Size]] = {}
        for size in ranked:
            # Two bins may round to one ratio: the one nearer to it speaks for it.
            a, b = map(int, size.ratio.split(":"))
            off = abs(size.width / size.height / (a / b) - 1)
            if size.ratio not in named or off < named[size.ratio][0]:
                named[size.ratio] = (off, size)
        front = [named[ratio][1] for ratio in _FIRST if ratio in named]
    odd = [] if any(str(s) == chosen for s in sizes) else _odd(chosen)
    rest = [size for size in ranked if size not in front]
    width, _, height = chosen.partition("x")
    return render(
        _MARKUP,
        "shapes",
        front=[_shape(size) for size in (*odd, *front)],
        rest=[_shape(size) for size in rest],
        opened=any(str(size) == chosen for size in rest),
        only=len(sizes) == 1 and not odd,
        sides=[("Width", width), ("Height", height)],
        low=MIN_SIDE,
        high=max_side,
        step=MULTIPLE,
    )


def _odd(chosen: str) -> list[Size]:
    """A size from a recipe that the model was not trained on, so that it can be painted again."""
    width, _, height = chosen.partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        return []
    return [Size(int(width), int(height))]
