"""The verb `generate`: options -> the values of the form, answers for people or as JSON."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from app import sweeping
from app.cli.options import WorkspaceOption
from app.cli.status import Status
from app.gallery import metadata
from app.gallery.pictures import Gallery, PictureFile
from app.painting.runner import LocalRunner
from app.settings import Settings, make_folder, real_path, user_path
from pipelines import pictures
from pipelines.catalog import Catalog
from pipelines.denoising import samplers
from pipelines.errors import RequestError
from pipelines.memory import forecast
from pipelines.memory.planning import before_torch
from pipelines.progress import Progress, Stage
from pipelines.request import GenerationRequest, complete
from pipelines.streams import say
from pipelines.text import seen_words


class PaintingStopped(Exception):
    """Ctrl+C was obeyed at the end of a step."""


# Every value arrives as text and is checked by the request itself, so that the command line, the
# form and the API have the same limits and say the same sentences.
def generate(
    context: typer.Context,
    prompt: Annotated[str | None, typer.Argument(help="What the picture shows.")] = None,
    negative: Annotated[str | None, typer.Option(help="What it must not show.")] = None,
    model: Annotated[str | None, typer.Option(help="Model, by id.", metavar="ID")] = None,
    sampler: Annotated[str | None, typer.Option(help="Sampler, by id.", metavar="ID")] = None,
    steps: Annotated[str | None, typer.Option(help="Denoising steps.", metavar="N")] = None,
    guidance: Annotated[
        str | None, typer.Option(help="How closely to follow the prompt; 0 = off.", metavar="F")
    ] = None,
    size: Annotated[str | None, typer.Option(help="In pixels.", metavar="WxH")] = None,
    seed: Annotated[str | None, typer.Option(help="Default: a new one.", metavar="N")] = None,
    count: Annotated[
        str | None, typer.Option(help="Pictures; seeds count up.", metavar="N")
    ] = None,
    style: Annotated[str | None, typer.Option(help="Prompt template.", metavar="NAME")] = None,
    init: Annotated[
        str | None, typer.Option(help="Picture to start from.", metavar="IMAGE")
    ] = None,
    strength: Annotated[
        str | None, typer.Option(help="How far to leave it: 0 to 1.", metavar="F")
    ] = None,
    predictor_order: Annotated[
        str | None, typer.Option(help="SA-Solver: 1 to 4.", metavar="N")
    ] = None,
    corrector_order: Annotated[
        str | None, typer.Option(help="SA-Solver: 1 to 4.", metavar="N")
    ] = None,
    eta: Annotated[
        str | None, typer.Option(help="SA-Solver: 0 (no noise) to 1.", metavar="F")
    ] = None,
    tau_at_start: Annotated[
        bool | None,
        typer.Option("--tau-at-start/--no-tau-at-start", help="SA-Solver: noise as diffusers."),
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(help="LoRA to add, by name, with its weight.", metavar="NAME[:WEIGHT]"),
    ] = None,
    clean_caption: Annotated[
        bool | None,
        typer.Option("--clean-caption/--no-clean-caption", help="Clean as in training."),
    ] = None,
    original_size: Annotated[
        str | None,
        typer.Option(help="Told to models with size conditions; default: --size.", metavar="WxH"),
    ] = None,
    approximate: Annotated[
        bool | None,
        typer.Option(
            "--approximate/--no-approximate",
            help="Where memory is short, T5 in 8 bits or tiles are allowed.",
        ),
    ] = None,
    like: Annotated[
        str | None, typer.Option(help="Paint this picture again.", metavar="PICTURE")
    ] = None,
    out: Annotated[str | None, typer.Option(help="Folder for the pictures.", metavar="DIR")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object per picture on stdout.")
    ] = False,
    workspace: WorkspaceOption = None,
) -> int:
    """Paints pictures and prints their paths."""
    options = dict(locals())
    values = {name: options[name] for name in _REQUEST_OPTIONS if options[name] is not None}
    if lora:
        values["loras"] = ",".join(lora)
    settings = sweeping.writer(workspace or context.obj)
    catalog = Catalog(user_models=settings.models, loras=settings.loras)
    recipe = metadata.read(user_path(like)) if like is not None else None
    if recipe is not None:
        values = _like(recipe.request, values)
    elif prompt is None:
        raise RequestError("prompt", 'Say what to paint, e.g. generate "a red apple".')
    if init is not None:
        values["init"] = pictures.keep(user_path(init), settings.inputs)
    request = complete(values, catalog)
    given = {name for name in _REQUEST_OPTIONS if options[name] is not None}
    # Of models, too: some LoRAs lie among them.
    for sentence in catalog.loras.unlisted():
        say(sentence, 0)
    for sentence in _without_effect(request, given, catalog):
        say(sentence, 0)
    if request.init is not None:
        pictures.find(request.init, settings.inputs)
    gallery = Gallery(settings.outputs)
    if out is not None:
        gallery = Gallery(make_folder(real_path(out)), by_day=False)
    gallery.check_writable()
    weights = _paint(request, catalog, settings, gallery, as_json=as_json)
    if recipe is not None and _same_weights(request, recipe.request) and recipe.weights:
        if weights and weights != recipe.weights:
            what = " or one of its LoRAs" if request.loras else ""
            said = f"“{request.model}”{what} has other weights than when that picture was painted."
            say(said, 0)
    return 0


def _same_weights(one: GenerationRequest, other: GenerationRequest) -> bool:
    return (one.model, one.loras) == (other.model, other.loras)


def _like(request: GenerationRequest, values: dict[str, Any]) -> dict[str, Any]:
    """The recipe with the options that were given; what belongs to a replaced one is dropped."""
    dropped: set[str] = set()
    if "size" in values:
        dropped |= {"width", "height"}
    if {"sampler", "model"} & set(values):
        dropped |= {"steps", "guidance", "tau_at_start"}
    if "model" in values:
        dropped |= {"width", "height", "sampler", "original_size", "clean_caption"}
    return {k: v for k, v in request.model_dump().items() if k not in dropped} | values


def _without_effect(request: GenerationRequest, given: set[str], catalog: Catalog) -> Iterator[str]:
    """A sentence for each option that changes nothing, or hardly what the user expects."""
    row, model = samplers.find(request.sampler), catalog.find(request.model)
    if "negative" in given and not request.guided:
        yield "The negative prompt has no effect: guidance is off."
    if "strength" in given and request.init is None:
        yield "--strength has no effect without --init."
    if {"predictor_order", "corrector_order", "eta", "tau_at_start"} & given and not row.orders:
        yield (
            "--predictor-order, --corrector-order, --eta and --tau-at-start have no effect on"
            f" {row.label}."
        )
    distilled = model.distilled or catalog.distilled_by(request.loras)
    if row.distilled != distilled and row.distilled:
        yield f"{row.label} is made for models distilled to it, which “{model.id}” is not."


_REQUEST_OPTIONS = (
    "prompt",
    "negative",
    "model",
    "sampler",
    "steps",
    "guidance",
    "size",
    "seed",
    "count",
    "style",
    "strength",
    "predictor_order",
    "corrector_order",
    "eta",
    "tau_at_start",
    "clean_caption",
    "original_size",
    "approximate",
)


def _paint(
    request: GenerationRequest,
    catalog: Catalog,
    settings: Settings,
    gallery: Gallery,
    *,
    as_json: bool,
) -> str:
    """Paints and prints. Returns the hash of the weights. Raises PaintingStopped."""
    status = Status(sys.stderr)
    stop = _stop_on_interrupt()
    status.show(Progress(stage=Stage.LOADING))
    before_torch()
    # Here and not above: only a command that paints pays for loading torch.
    from pipelines.engine import Engine

    engine = Engine(catalog, inputs=settings.inputs, cache=settings.cache)
    runner = LocalRunner(engine, gallery)
    weights = ""
    plan = engine.plan_of(request)
    # Only now: what refuses the job is one sentence alone.
    if unseen := seen_words.unseen(request.prompt, catalog.find(request.model)):
        status.clear()
        say(f"{seen_words.sentence(unseen)}.", 0)
    status.say(f"“{request.model}” {forecast.sentence(engine.machine, plan)}.")

    def keep(file: PictureFile) -> None:
        nonlocal weights
        weights = file.weights
        status.clear()
        print(_json(file) if as_json else file.path, flush=True)
        status.say(f"{file.seconds:.1f} s, {file.peak / 1e9:.1f} GB at most.")

    try:
        runner.paint(request, report=status.show, keep=keep, should_stop=stop.is_set)
    finally:
        status.clear()
    if stop.is_set():
        raise PaintingStopped
    return weights


def _stop_on_interrupt() -> threading.Event:
    """The first Ctrl+C asks for a stop at the next step, the second ends without it.

    A finished picture that is being written is always written to its end.
    """
    stop = threading.Event()

    def handle(number: int, frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    signal.signal(signal.SIGINT, handle)
    return stop


def _json(file: PictureFile) -> str:
    request = file.request
    return json.dumps(
        {
            "path": str(file.path),
            "seed": request.seed,
            "width": request.width,
            "height": request.height,
            "model": request.model,
            "sampler": request.sampler,
            "steps": request.steps,
            "guidance": request.guidance,
            "loras": [{"name": use.name, "weight": use.weight} for use in request.loras],
            "seconds": round(file.seconds, 3),
            "peak": file.peak,
            "forecast": file.forecast,
        },
    )
