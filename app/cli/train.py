"""The verb `train`: recipes, their data, and how good the result is."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from app import sweeping
from app.cli import train_data, train_measures
from app.cli.options import JsonOption, WorkspaceOption
from app.cli.status import Status
from app.cli.stopping import INTERRUPTED, stop_on_signals
from app.settings import Settings, make_folder, real_path
from pipelines.catalog import Catalog
from pipelines.errors import RequestError, printable
from pipelines.heavy_imports import importing_diffusers
from pipelines.progress import Progress, Report, Stage
from training import recipes
from training.config import RunConfig, TrainingRecipe
from training.run import is_first_process

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    help="Train models, prepare their data, and measure what they can do.",
)

_LOG_SECONDS = 30.0


def _settings(context: typer.Context, workspace: str | None) -> Settings:
    return sweeping.writer(workspace or context.obj)


RecipeArgument = Annotated[str, typer.Argument(help="A recipe that ships, or a .toml file.")]
DataOption = Annotated[
    str | None, typer.Option(help="Folder or .zip of the pictures.", metavar="PATH")
]
RunOption = Annotated[str | None, typer.Option(help="Folder of this training.", metavar="DIR")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a value: key=value or stage.key=value.", metavar="K=V"),
]
MinutesOption = Annotated[
    float | None, typer.Option(help="Stop with a checkpoint after so long.", metavar="F")
]
BaseOption = Annotated[str | None, typer.Option(help="The model that learns.", metavar="MODEL")]
NameOption = Annotated[str | None, typer.Option(help="What the result is called.", metavar="NAME")]


@app.command("text-to-image")
def text_to_image(
    context: typer.Context,
    recipe: RecipeArgument,
    data: DataOption = None,
    run: RunOption = None,
    set_: SetOption = None,
    stage: Annotated[
        str | None, typer.Option(help="Train only this stage.", metavar="NAME")
    ] = None,
    minutes: MinutesOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> int | None:
    """Trains a model from scratch, stage after stage. The same command again goes on."""
    asked = _Training(
        verb="text-to-image", recipe=recipe, data=data, run=run, changes=tuple(set_ or ())
    )
    return _train(
        asked, _settings(context, workspace), stage=stage, minutes=minutes, as_json=as_json
    )


@app.command()
def lora(
    context: typer.Context,
    recipe: RecipeArgument = "lora-style",
    data: DataOption = None,
    base: BaseOption = None,
    name: NameOption = None,
    trigger: Annotated[
        str | None, typer.Option(help="The words that call it up.", metavar="TEXT")
    ] = None,
    run: RunOption = None,
    set_: SetOption = None,
    minutes: MinutesOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> int | None:
    """Trains a LoRA on pictures with captions: a style or a concept."""
    named = {"base.model": base, **_called(name), "publish.trigger": trigger}
    asked = _Training(
        verb="lora", recipe=recipe, data=data, run=run, changes=_changes(named, set_), name=name
    )
    return _train(asked, _settings(context, workspace), minutes=minutes, as_json=as_json)


@app.command()
def dreambooth(
    context: typer.Context,
    recipe: RecipeArgument = "dreambooth",
    data: DataOption = None,
    base: BaseOption = None,
    name: NameOption = None,
    word: Annotated[
        str | None, typer.Option(help="A word that means nothing yet.", metavar="WORD")
    ] = None,
    kind: Annotated[
        str | None, typer.Option(help="What the subject is one of, as dog.", metavar="TEXT")
    ] = None,
    run: RunOption = None,
    set_: SetOption = None,
    minutes: MinutesOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> int | None:
    """Learns a subject from 3 to 30 photos."""
    named = {"base.model": base, **_called(name), "subject.word": word, "subject.kind": kind}
    asked = _Training(
        verb="dreambooth",
        recipe=recipe,
        data=data,
        run=run,
        changes=_changes(named, set_),
        name=name,
    )
    return _train(asked, _settings(context, workspace), minutes=minutes, as_json=as_json)


@dataclass(frozen=True, kw_only=True)
class _Training:
    """What a command asks for. `changes` are overrides of the recipe, as --set has them."""

    verb: str
    recipe: str
    data: str | None
    run: str | None
    changes: tuple[str, ...]
    name: str | None = None


def _called(name: str | None) -> dict[str, str | None]:
    """A name that somebody gives is the title as well: two of the same title look alike."""
    return {"publish.id": name, "publish.title": name}


def _changes(named: Mapping[str, str | None], further: list[str] | None) -> tuple[str, ...]:
    """Options as overrides; what --set says of the same key comes last and counts."""
    # As TOML writes it, so that a word like "true" stays a word.
    own = [f"{key}={json.dumps(value)}" for key, value in named.items() if value is not None]
    return (*own, *(further or ()))


def _train(
    asked: _Training,
    settings: Settings,
    *,
    stage: str | None = None,
    minutes: float | None = None,
    as_json: bool,
) -> int | None:
    catalog = Catalog(user_models=settings.models)
    file = recipes.find(asked.recipe)
    values = recipes.read(file, asked.changes)
    _check_verb(values, asked)
    suited = recipes.for_base(file, values, catalog)
    if suited != file:
        file, values = suited, recipes.read(suited, asked.changes)
    root = real_path(asked.run) if asked.run else settings.runs / (asked.name or file.stem)
    source = real_path(asked.data) if asked.data else settings.data
    if not source.is_dir() and not _is_archive(source):
        raise RequestError(
            "data", f"There is no folder {printable(source, 200)}.", "Name it with --data."
        )
    if _is_archive(source):
        values = recipes.read(file, (*asked.changes, f"data.source={json.dumps(source.name)}"))
        source = source.parent
    make_folder(root)
    status = Status(sys.stderr)
    stop = stop_on_signals()
    # Here and not above: only a command that trains pays for loading torch.
    with importing_diffusers():
        from training import whole

    try:
        trained = whole.train(
            values,
            root=root,
            data=source,
            models=settings.models,
            loras=settings.loras,
            catalog=Catalog(user_models=settings.models),
            report=_listener(status, as_json=as_json),
            should_stop=_until(stop, minutes),
            tell=_teller(status),
            only=stage,
        )
    finally:
        status.clear()
    if trained.is_stopped:
        return INTERRUPTED
    if is_first_process():
        made = trained.made
        told = {"run": str(root), values.stages[-1].row.result: str(made) if made else None}
        print(json.dumps(told) if as_json else made or root)
    return None


def _is_archive(source: Path) -> bool:
    return source.suffix.lower() == ".zip" and source.is_file()


def _check_verb(values: TrainingRecipe, asked: _Training) -> None:
    """Raises RequestError for a recipe of another command."""
    verb = values.stages[-1].row.verb
    if verb != asked.verb:
        raise RequestError(
            "recipe",
            f"“{printable(asked.recipe)}” is a recipe of `train {verb}`.",
            f"Run: launch.py train {verb} {printable(asked.recipe)}",
        )


def _until(stop: threading.Event, minutes: float | None) -> Callable[[], bool]:
    """True once a person or the clock wants a stop."""
    if minutes is None:
        return stop.is_set
    if not 0 < minutes < 1e6:
        raise RequestError("minutes", f"{minutes} minutes: give more than 0.")
    end = time.monotonic() + 60 * minutes
    return lambda: stop.is_set() or time.monotonic() > end


def _teller(status: Status) -> Callable[[str], None]:
    """Sentences that stay on the screen; the first process speaks for all."""

    def tell(text: str) -> None:
        if is_first_process():
            status.clear()
            print(text, file=sys.stderr, flush=True)

    return tell


def _listener(status: Status, *, as_json: bool) -> Callable[[RunConfig], Report]:
    """A report for each stage: a live line on a terminal, now and then a line elsewhere."""
    told = 0.0
    tell = _teller(status)

    def of_stage(config: RunConfig) -> Report:
        def report(progress: Progress) -> None:
            nonlocal told
            now = time.monotonic()
            if progress.stage is Stage.PREPARING:
                tell(f"{config.name}: {progress.note}")
            elif status.is_live and is_first_process():
                status.show(progress, prefix=f"{config.name}: ")
            elif is_first_process() and now - told > _LOG_SECONDS:
                told = now
                _line(config, progress, as_json=as_json)

        return report

    return of_stage


def _line(config: RunConfig, progress: Progress, *, as_json: bool) -> None:
    if as_json:
        values: dict[str, Any] = {
            "stage": config.name,
            "doing": str(progress.stage),
            "done": progress.done,
            "total": progress.total,
            "seconds_left": progress.seconds_left,
        }
        print(json.dumps(values), flush=True)
    else:
        print(f"{config.name}: {progress.sentence()}", file=sys.stderr, flush=True)


for _command in (train_data.scenes, train_data.check, train_data.evaluate):
    app.command()(_command)
app.command("evaluate-subjects")(train_measures.evaluate_subjects)
app.command("evaluate-style")(train_measures.evaluate_style)
