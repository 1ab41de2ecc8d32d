"""The fields of a request, each declared once: type, limits, default, and how the studio shows it.

A new field is one declaration in `RequestFields`. The command line, the form, the API, the recipe,
the infotext, the index of the gallery and the tables in docs/ are made from it, by way of
`pipelines.request.FIELDS`; code of its own has only what the field changes in the picture.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from lora_manager import card
from lora_manager.card import LoraUse
from pipelines import sizes
from pipelines.denoising import samplers
from pipelines.denoising.samplers import Sampler
from pipelines.field_spec import Column, CommandOption, FieldSpec, Infotext, Widget
from pipelines.request_values import (
    MAX_COUNT,
    MAX_GUIDANCE,
    MAX_ORIGINAL,
    MAX_SEED,
    MIN_ORIGINAL,
    Name,
    Text,
    lora_uses,
)
from pipelines.text import styles

_Side = Annotated[
    int,
    Field(ge=sizes.MIN_SIDE, le=sizes.MAX_SIDE),
    FieldSpec(
        name="size",
        label="Size",
        help="In pixels.",
        doc="multiples of 16",
        api="width x height in pixels, multiples of 16, e.g. `128x128`",
        default="the model's",
        follows=("model",),
        option=CommandOption(metavar="WxH"),
        widget=Widget(kind="choice", place="frame"),
        infotext=Infotext(key="Size", text=lambda r: f"{r.width}x{r.height}"),
        column=Column(kind="number"),
    ),
]
_NO_ORDERS = (
    "--predictor-order, --corrector-order, --eta and --tau-at-start have no effect on {sampler}."
)


def _has_orders(row: Sampler) -> bool:
    return row.orders


class RequestFields(BaseModel):
    """The fields in the order in which the command line and the API have them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: Annotated[
        Text,
        FieldSpec(
            label="Prompt",
            help="What the picture shows.",
            option=CommandOption(argument=True),
            widget=Widget(kind="text", place="prompt", lines=3, most_lines=8),
            column=Column(kind="text", words=True),
        ),
    ]
    negative: Annotated[
        Text,
        FieldSpec(
            label="Negative prompt",
            noun="negative prompt",
            help="What it must not show.",
            doc="what the picture must not show",
            no_effect="The negative prompt has no effect: guidance is off.",
            widget=Widget(
                kind="text",
                place="words",
                most_lines=4,
                info="What should stay out of the picture.",
            ),
            column=Column(kind="text", words=True),
            always_written=True,
        ),
    ] = ""
    model: Annotated[
        Name,
        FieldSpec(
            label="Model",
            help="Model, by id.",
            doc="[model](models.md), by id; a wrong name is answered with the nearest",
            default="your first one, else the one that ships",
            option=CommandOption(metavar="ID"),
            widget=Widget(kind="choice", place="model"),
            infotext=Infotext(key="Model"),
            column=Column(kind="text", term="model", words=True),
        ),
    ]
    sampler: Annotated[
        Name,
        FieldSpec(
            label="Sampler",
            help="Sampler, by id.",
            doc="[sampler](samplers.md), by id",
            default="the model's",
            follows=("model",),
            option=CommandOption(metavar="ID"),
            widget=Widget(kind="choice", place="model"),
            infotext=Infotext(
                key="Sampler", text=lambda request: samplers.find(request.sampler).infotext
            ),
            column=Column(kind="text", term="sampler"),
        ),
    ]
    steps: Annotated[
        int,
        Field(ge=1, le=1000),
        FieldSpec(
            label="Steps",
            help="Denoising steps.",
            doc="denoising steps, within the limits of the sampler",
            default="the sampler's",
            follows=("model", "sampler"),
            option=CommandOption(metavar="N"),
            widget=Widget(kind="number", place="pace"),
            infotext=Infotext(key="Steps"),
            column=Column(kind="number", term="steps"),
        ),
    ]
    guidance: Annotated[
        float,
        Field(ge=0, le=MAX_GUIDANCE, allow_inf_nan=False),
        FieldSpec(
            label="Guidance",
            help="How closely to follow the prompt; 0 = off.",
            doc="how closely to follow the prompt; 0 to 1 is off",
            default="the sampler's",
            follows=("model", "sampler"),
            option=CommandOption(metavar="F"),
            widget=Widget(kind="number", place="pace", step=0.1),
            infotext=Infotext(key="CFG scale"),
            column=Column(kind="number", term="guidance"),
        ),
    ]
    width: _Side
    height: _Side
    seed: Annotated[
        int,
        Field(ge=0, le=MAX_SEED),
        FieldSpec(
            label="Seed",
            help="Default: a new one.",
            doc="decides the noise; picture i gets seed N + i",
            api="decides the noise, as text: it may be too large for a number; picture i gets"
            " seed + i",
            default="a new one",
            option=CommandOption(metavar="N"),
            widget=Widget(kind="text", place="chance", placeholder="new each time"),
            infotext=Infotext(key="Seed"),
            column=Column(kind="digits", term="seed"),
        ),
    ]
    count: Annotated[
        int,
        Field(ge=1, le=MAX_COUNT),
        FieldSpec(
            label="Pictures",
            noun="number of pictures",
            help="Pictures; seeds count up.",
            doc="how many pictures; seeds count up",
            option=CommandOption(metavar="N"),
            widget=Widget(kind="number", place="frame"),
            always_written=True,
        ),
    ] = 1
    style: Annotated[
        Name,
        FieldSpec(
            label="Style",
            help="Prompt template.",
            doc="prompt template, by name",
            option=CommandOption(metavar="NAME"),
            widget=Widget(kind="choice", place="words"),
            infotext=Infotext(
                key="Style", text=lambda r: "" if r.style == styles.NO_STYLE else str(r.style)
            ),
            column=Column(kind="text", term="style", words=True),
            always_written=True,
        ),
    ] = styles.NO_STYLE
    init: Annotated[
        str | None,
        Field(pattern=r"^[0-9a-f]{16}\.png$"),
        FieldSpec(
            label="Start from a picture",
            help="Picture to start from.",
            doc="start from a picture",
            api="start from a picture: an upload, or the name of one that is kept",
            fault="“{value}” is not the name of a kept picture.",
            option=CommandOption(metavar="IMAGE"),
            widget=Widget(kind="start", place="start"),
            always_written=True,
        ),
    ] = None
    strength: Annotated[
        float,
        Field(gt=0, le=1, allow_inf_nan=False),
        FieldSpec(
            label="Strength",
            help="How far to leave it: 0 to 1.",
            doc="with a start picture: the share of the steps that are painted anew",
            needs="init",
            no_effect="--strength has no effect without --init.",
            option=CommandOption(metavar="F"),
            widget=Widget(
                kind="number",
                place="start",
                step=0.05,
                low=0.05,
                info="How much is painted anew.",
            ),
            infotext=Infotext(key="Denoising strength"),
            always_written=True,
        ),
    ] = 0.6
    predictor_order: Annotated[
        int,
        Field(ge=1, le=samplers.MAX_ORDER),
        FieldSpec(
            label="Predictor order",
            help="SA-Solver: 1 to 4.",
            doc="[SA-Solver](samplers.md) only",
            only_for=_has_orders,
            no_effect=_NO_ORDERS,
            option=CommandOption(metavar="N"),
            widget=Widget(kind="number", place="orders"),
            always_written=True,
        ),
    ] = 2
    corrector_order: Annotated[
        int,
        Field(ge=1, le=samplers.MAX_ORDER),
        FieldSpec(
            label="Corrector order",
            help="SA-Solver: 1 to 4.",
            doc="[SA-Solver](samplers.md) only",
            only_for=_has_orders,
            no_effect=_NO_ORDERS,
            option=CommandOption(metavar="N"),
            widget=Widget(kind="number", place="orders"),
            always_written=True,
        ),
    ] = 2
    eta: Annotated[
        float,
        Field(ge=0, le=1, allow_inf_nan=False),
        FieldSpec(
            label="Eta",
            help="SA-Solver: 0 (no noise) to 1.",
            doc="[SA-Solver](samplers.md) only: how much noise is added",
            only_for=_has_orders,
            no_effect=_NO_ORDERS,
            option=CommandOption(metavar="F"),
            widget=Widget(kind="number", place="orders", step=0.05),
            always_written=True,
        ),
    ] = 1.0
    tau_at_start: Annotated[
        bool,
        FieldSpec(
            label="Tau where a step begins",
            help="SA-Solver: noise as diffusers.",
            doc="[SA-Solver](samplers.md) only: noise as diffusers adds it",
            only_for=_has_orders,
            no_effect=_NO_ORDERS,
            widget=Widget(
                kind="switch",
                place="orders",
                info="As diffusers does, and as older pictures were painted.",
            ),
            # What a silent recipe means depends on its sampler: `GenerationRequest` decides.
            always_written=True,
        ),
    ] = False
    loras: Annotated[
        tuple[LoraUse, ...],
        BeforeValidator(lora_uses),
        FieldSpec(
            label="LoRAs",
            help="LoRA to add, by name, with its weight.",
            doc="add a [LoRA](loras.md); can be given several times",
            api="[LoRAs](loras.md) to add, with their weights: `ink:0.8, other`",
            option=CommandOption(name="lora", metavar="NAME[:WEIGHT]", several=True),
            widget=Widget(kind="choice", place="loras"),
            infotext=Infotext(key="LoRAs", text=lambda request: card.written(request.loras)),
            column=Column(kind="names", term="lora"),
        ),
    ] = ()
    clean_caption: Annotated[
        bool,
        FieldSpec(
            label="Clean the prompt as in training",
            help="Clean as in training.",
            doc="clean the prompt as in the training of PixArt-α, or only put it in lower case",
            default="[as the model's row says](models.md)",
            follows=("model",),
            widget=Widget(
                kind="switch",
                place="method",
                info="Drops brackets, &, #, web addresses and Chinese characters, as PixArt-α"
                " learned.",
            ),
        ),
    ] = False
    original_size: Annotated[
        str | None,
        Field(pattern=r"^[1-9]\d{1,4}x[1-9]\d{1,4}$"),
        FieldSpec(
            label="Original size",
            help="Told to models with size conditions; default: --size.",
            doc="what a model with size conditions is told of the picture it imagines,"
            " [more](models.md#size-conditions)",
            default="what is painted",
            follows=("model",),
            fault="“{value}” is not an original size: write width x height,"
            f" each from {MIN_ORIGINAL} to {MAX_ORIGINAL}.",
            option=CommandOption(metavar="WxH"),
            widget=Widget(
                kind="text",
                place="method",
                placeholder="as painted",
                info="What the model imagines, e.g. 2048x2048: larger is crisper, smaller is"
                " softer.",
            ),
            always_written=True,
        ),
    ] = None
    approximate: Annotated[
        bool,
        FieldSpec(
            label="Approximate where memory is short",
            help="Where memory is short, T5 in 8 bits or tiles are allowed.",
            doc="where memory is short, ways that change the picture a little are allowed:"
            " [memory](memory.md#what-is-exact)",
            widget=Widget(
                kind="switch",
                place="method",
                info="T5 in 8 bits or decoding in tiles: the picture may change a little.",
            ),
            always_written=True,
        ),
    ] = False
