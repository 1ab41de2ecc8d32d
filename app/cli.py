"""The command line: options -> the same values that the form gives, answers for people or as JSON.

Exit codes: 0 all is well; 2 with one sentence on stderr for what the user can mend; 130 after
Ctrl+C; 1 for a fault of ours.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from typer.exceptions import TyperException

from app import convert_cli, hosting, metadata, streams, tokens
from app.bench_cli import bench
from app.doctor_cli import doctor
from app.gallery import Gallery, PictureFile
from app.gallery_cli import app as gallery_app
from app.loras_cli import app as loras
from app.models_cli import app as models
from app.options import (
    AdminTokenOption,
    PublicUrlOption,
    ShareTokenOption,
    WorkspaceOption,
)
from app.runner import LocalRunner
from app.settings import DEBUG_VARIABLE, VERSION, Settings, make_folder, user_path, workspace_path
from app.status import Status
from app.train_cli import app as train
from pipelines import forecast, pictures, samplers
from pipelines.catalog import Catalog
from pipelines.errors import RequestError, StudioError, printable
from pipelines.memory import before_torch
from pipelines.progress import Progress, Stage
from pipelines.request import GenerationRequest, complete

_INTERRUPTED = 130

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="PixArt Studio: paint pictures from text. Without a verb it opens in the browser.",
    epilog="The launcher itself adds: “launch.py test” runs the test suite; "
    "--torch auto|cpu|cuda|rocm chooses the build of torch that it installs.",
)

app.add_typer(train, name="train")
app.add_typer(models, name="models")
app.add_typer(gallery_app, name="gallery")
app.add_typer(loras, name="loras")
app.command()(bench)
app.command()(doctor)
app.command()(convert_cli.convert)


def main(argv: list[str]) -> int:
    """Runs one command. Returns the exit code; never raises."""
    for stream in (sys.stdout, sys.stderr):
        # A pipe of another encoding must not fail over a path or a prompt after the painting.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with streams.escaped_output():
        return _run(argv)


def _run(argv: list[str]) -> int:
    try:
        code = app(args=argv, prog_name="launch.py", standalone_mode=False)
        if code == _INTERRUPTED:
            return _say("Stopped.", _INTERRUPTED)
        return code if isinstance(code, int) else 0
    except StudioError as error:
        return _say(str(error), 2)
    except TyperException as error:
        return _say(_usage(error, argv), 2)
    except _PaintingStopped:
        return _say("Stopped; the finished pictures are kept.", _INTERRUPTED)
    except KeyboardInterrupt:
        return _say("Stopped.", _INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output went away ("| head"): nothing is left to say to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    # The outermost seam of the command line.
    except Exception as error:
        if os.environ.get(DEBUG_VARIABLE):
            traceback.print_exc()
        return _say(
            f"This is a fault of the studio: {printable(repr(error), 300)}. "
            f"Set {DEBUG_VARIABLE}=1 to see where.",
            1,
        )


class _PaintingStopped(Exception):
    """Ctrl+C was obeyed at the end of a step."""


def _say(sentence: str, code: int) -> int:
    print(sentence, file=sys.stderr)
    return code


def _usage(error: TyperException, argv: list[str]) -> str:
    sentence = " ".join(error.format_message().split()).rstrip(".")
    verb = next((f"{a} " for a in argv if a in _verbs()), "")
    dash = " Put -- before a text that begins with a dash." if "No such option" in sentence else ""
    return f"{sentence}. See “launch.py {verb}--help”.{dash}"


def _verbs() -> list[str]:
    groups = {"train": train, "models": models, "gallery": gallery_app, "loras": loras}
    commands = [c for group in (app, *groups.values()) for c in group.registered_commands]
    own = [command.callback.__name__ for command in commands if command.callback]
    return [*own, *groups]


@app.callback(invoke_without_command=True)
def studio(
    context: typer.Context,
    workspace: WorkspaceOption = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; default: 127.0.0.1, on a Space all.")
    ] = None,
    port: Annotated[
        str | None, typer.Option(help="Port; default: the first free one from 7860.")
    ] = None,
    share_token: ShareTokenOption = None,
    admin_token: AdminTokenOption = None,
    public_url: PublicUrlOption = None,
    browser: Annotated[bool, typer.Option(help="Open the browser.")] = True,
    version: Annotated[bool, typer.Option("--version", help="Say the version.")] = False,
) -> None:
    """Opens the studio in the browser."""
    # Whatever is started from here on has no need of the secrets.
    tokens.forget()
    if version:
        print(f"PixArt Studio {VERSION}")
        return
    if context.invoked_subcommand is not None:
        context.obj = workspace
        return
    chosen = tokens.choose(share_token, admin_token)
    settings = Settings(workspace=workspace_path(workspace))
    make_folder(settings.outputs)
    number = _port(port)
    # Here and not above: the other verbs must not wait for the page's libraries.
    from app.studio import Studio
    from app.ui.build import prepare, serve
    from app.ui.serving import asking_nobody_else

    # The package of ZeroGPU imports gradio, which reads these settings once.
    prepare(settings)
    with asking_nobody_else():
        made = Studio(settings)
    serve(
        made,
        host=host or hosting.default_host(),
        port=number,
        tokens=chosen,
        public_url=public_url,
        open_browser=browser,
    )


def _port(text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:6]) <= 65535:
        raise RequestError("port", f"“{printable(text)}” is not a port; give 1 to 65535.")
    return int(text)


# Every value arrives as text and is checked by the request itself, so that the command line, the
# form and the API have the same limits and say the same sentences.
@app.command()
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
    settings = Settings(workspace=workspace_path(workspace or context.obj))
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
    for sentence in _without_effect(request, given, catalog):
        _say(sentence, 0)
    if request.init is not None:
        pictures.find(request.init, settings.inputs)
    gallery = Gallery(settings.outputs)
    if out is not None:
        gallery = Gallery(make_folder(user_path(out).resolve()), by_day=False)
    gallery.check_writable()
    weights = _paint(request, catalog, settings, gallery, as_json=as_json)
    if recipe is not None and _same_weights(request, recipe.request) and recipe.weights:
        if weights and weights != recipe.weights:
            what = " or one of its LoRAs" if request.loras else ""
            said = f"“{request.model}”{what} has other weights than when that picture was painted."
            _say(said, 0)
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
    """Paints and prints. Returns the hash of the weights. Raises _PaintingStopped."""
    status = Status(sys.stderr)
    stop = _stop_on_interrupt()
    status.show(Progress(stage=Stage.LOADING))
    before_torch()
    # Here and not above: only a command that paints pays for loading torch.
    from pipelines.engine import Engine

    engine = Engine(catalog, inputs=settings.inputs, cache=settings.cache)
    runner = LocalRunner(engine, gallery)
    weights = ""
    way = engine.plan_of(request)
    status.say(f"“{request.model}” {forecast.sentence(engine.machine, way)}.")

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
        raise _PaintingStopped
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
