"""The verb `generate`: options -> the values of the form, answers for people or as JSON."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from inspect import Parameter
from typing import Annotated, Any

import typer

from app import sweeping
from app.cli.lora_work import sure
from app.cli.options import WorkspaceOption, YesOption
from app.cli.status import Status
from app.gallery import metadata, recipe_loras
from app.gallery.pictures import Gallery, PictureFile
from app.painting.runner import LocalRunner
from app.settings import Settings, make_folder, real_path, user_path
from app.signatures import with_parameters
from lora_manager import card
from pipelines import pictures
from pipelines.catalog import Catalog
from pipelines.denoising import samplers
from pipelines.errors import RecipeError, RequestError
from pipelines.heavy_imports import importing_diffusers
from pipelines.memory import forecast
from pipelines.picture_record import PictureRecord
from pipelines.progress import Progress, Stage
from pipelines.request import FIELDS, GenerationRequest, complete
from pipelines.streams import say
from pipelines.text import seen_words

_WITHOUT = "Import it, or choose others with --lora; --lora “” paints without."


class PaintingStopped(Exception):
    """Ctrl+C was obeyed at the end of a step."""


# Every value arrives as text and is checked by the request itself, so that the command line, the
# form and the API have the same limits and say the same sentences.
def _parameters() -> Iterator[Parameter]:
    """The options that the table of fields makes."""
    for row in FIELDS.values():
        kind: Any = str
        name = row.option.replace("_", "-")
        declared: Any = typer.Option(help=row.spec.help, metavar=row.spec.option.metavar or None)
        if row.spec.option.argument:
            declared = typer.Argument(help=row.spec.help)
        elif row.type is bool:
            kind, declared = bool, typer.Option(f"--{name}/--no-{name}", help=row.spec.help)
        elif row.spec.option.several:
            kind = list[str]
        yield Parameter(
            row.option,
            Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[kind | None, declared],
        )


def generate(
    context: typer.Context,
    *,
    like: Annotated[
        str | None, typer.Option(help="Paint this picture again.", metavar="PICTURE")
    ] = None,
    out: Annotated[str | None, typer.Option(help="Folder for the pictures.", metavar="DIR")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object per picture on stdout.")
    ] = False,
    yes: YesOption = False,
    workspace: WorkspaceOption = None,
    **options: Any,
) -> int:
    """Paints pictures and prints their paths."""
    values = _given(options)
    given = set(values)
    settings = sweeping.writer(workspace or context.obj)
    catalog = Catalog(user_models=settings.models, loras=settings.loras)
    recipe = metadata.read(user_path(like)) if like is not None else None
    if recipe is not None:
        values = _like(recipe.request, values)
    elif "prompt" not in values:
        raise RequestError("prompt", 'Say what to paint, e.g. generate "a red apple".')
    same_loras = recipe is not None and "loras" not in given
    changed = _lora_changes(recipe, catalog) if recipe is not None and same_loras else []
    if "init" in given:
        values["init"] = pictures.keep(user_path(options["init"]), settings.inputs)
    request = complete(values, catalog)
    # Of models, too: some LoRAs lie among them.
    for sentence in catalog.loras.unlisted():
        say(sentence, 0)
    for sentence in (*changed, *_without_effect(request, given, catalog)):
        say(sentence, 0)
    if "loras" in given and not sure(request.loras, yes=yes):
        return say("Nothing was painted.", 0)
    if request.init is not None:
        pictures.find(request.init, settings.inputs)
    gallery = Gallery(settings.outputs)
    if out is not None:
        gallery = Gallery(make_folder(real_path(out)), by_day=False)
    gallery.check_writable()
    weights = _paint(request, catalog, settings, gallery, as_json=as_json)
    if recipe is not None and not changed and _same_weights(request, recipe.request):
        if weights and recipe.weights and weights != recipe.weights:
            unknown = len(recipe.lora_hashes) < len([use for use in request.loras if use.weight])
            what = " or one of its LoRAs" if unknown else ""
            said = f"“{request.model}”{what} has other weights than when that picture was painted."
            say(said, 0)
    return 0


with_parameters(generate, _parameters())


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """What was said on the command line, by the names of the request."""
    said = {name: options[row.option] for name, row in FIELDS.items()}
    return {
        name: ",".join(value) if isinstance(value, list) else value
        for name, value in said.items()
        # An option that can be given several times is an empty list where it was not.
        if value is not None and value != []
    }


def _lora_changes(recipe: PictureRecord, catalog: Catalog) -> list[str]:
    """A sentence for each LoRA of the recipe that is another one now. Raises RecipeError for one
    that is not here."""
    found = list(recipe_loras.changed(recipe, catalog.loras))
    for one in found:
        # Somebody may have given it another name; or the folder cannot be read.
        if one.missing and not catalog.loras.unlisted():
            now = recipe_loras.renamed(recipe, one.name, catalog.loras)
            if not now:
                raise RecipeError(one.sentence, _WITHOUT)
            uses = [replace(u, name=now) if u.name == one.name else u for u in recipe.request.loras]
            raise RecipeError(
                one.sentence, f"It is called “{now}” now: add --lora “{card.written(uses)}”."
            )
    return [one.sentence for one in found if not one.missing]


def _same_weights(one: GenerationRequest, other: GenerationRequest) -> bool:
    return (one.model, one.loras) == (other.model, other.loras)


def _like(request: GenerationRequest, values: dict[str, Any]) -> dict[str, Any]:
    """The recipe with the options that were given; what belongs to a replaced one is dropped."""
    dropped = {
        name
        for row in FIELDS.values()
        if row.name in values or set(row.spec.follows) & set(values)
        for name in row.names
    }
    if {"sampler", "model"} & set(values):
        # It says how an older studio painted, with that sampler.
        dropped.add("tau_at_start")
    return {k: v for k, v in request.model_dump().items() if k not in dropped} | values


def _without_effect(request: GenerationRequest, given: set[str], catalog: Catalog) -> Iterator[str]:
    """A sentence for each option that changes nothing, or hardly what the user expects."""
    row, model = samplers.find(request.sampler), catalog.find(request.model)
    idle = [FIELDS[name].spec for name in FIELDS if name in given and _is_idle(name, request)]
    yield from dict.fromkeys(spec.no_effect.format(sampler=row.label) for spec in idle)
    distilled = model.distilled or catalog.distilled_by(request.loras)
    if row.distilled != distilled and row.distilled:
        yield f"{row.label} is made for models distilled to it, which “{model.id}” is not."


def _is_idle(name: str, request: GenerationRequest) -> bool:
    """Whether the field changes nothing in this picture."""
    spec = FIELDS[name].spec
    if name == "negative":
        return not request.guided
    if spec.needs and getattr(request, spec.needs) is None:
        return True
    return spec.only_for is not None and not spec.only_for(samplers.find(request.sampler))


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
    # Here and not above: only a command that paints pays for loading torch.
    with importing_diffusers():
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
    return json.dumps(
        {
            "path": str(file.path),
            **file.request.model_dump(mode="json", exclude={"count"}),
            **file.figures(),
            "seconds": round(file.seconds, 3),
        },
    )
