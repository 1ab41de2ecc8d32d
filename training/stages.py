"""From a recipe to results: its stages one after another, each a run of its own.

    RUN/01-vae/result/...       what a stage hands over: files in diffusers layout
    RUN/cache/                  lists of pictures and features, shared by the stages

A finished stage is skipped, an interrupted one goes on; to repeat one, delete its folder.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError

from pipelines.catalog import Catalog
from pipelines.errors import (
    OutOfMemoryError,
    RequestError,
    StudioError,
    TrainingError,
    printable,
)
from pipelines.memory import planning
from pipelines.progress import Report, ShouldStop
from training import bases
from training import run as runs
from training.bases import Base
from training.config import STAGE_PREFIX, RunConfig, TrainingRecipe
from training.data.sources import Sources, Stopped
from training.loop.devices import check_precision, make_accelerator
from training.loop.run_state import RunEnd
from training.loop.task import Task
from training.loop.trainer import train
from training.methods.table import METHODS

# What the libraries raise for shapes and files that do not go together.
_SETUP_FAULTS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
)
_T = TypeVar("_T")
Begins = Callable[[RunConfig, str], None]
"""Asked with a stage and the digest of its pictures before anything is computed; it may raise."""


def folder_of(root: Path, recipe: TrainingRecipe, name: str) -> Path:
    """The run folder of a stage. Raises UnknownNameError."""
    number = recipe.stages.index(recipe.stage(name)) + 1
    return root / f"{number:02d}-{name}"


def walk(
    recipe: TrainingRecipe,
    *,
    root: Path,
    data: Path,
    report: Callable[[RunConfig], Report],
    should_stop: ShouldStop,
    tell: Callable[[str], None] = lambda _: None,
    only: str | None = None,
    catalog: Catalog | None = None,
    begins: Begins = lambda config, data: None,
) -> RunEnd:
    """Trains every stage that is not finished, or `only` one. Raises StudioError.

    `catalog` knows the models that bases may name, by default those that ship. `report` gives each
    stage its own listener, `tell` gets sentences to be read.
    """
    asked = recipe.stages if only is None else (recipe.stage(only),)
    models = catalog or Catalog()
    for config in asked:
        _check(config, data, models)
    outcome = RunEnd(reason="finished", step=0)
    for config in asked:
        folder = folder_of(root, recipe, config.name)
        with runs.only_one(folder):
            accelerator = make_accelerator(config)
            run = _first_alone(accelerator, partial(runs.open_run, folder, config))
            if run.is_finished and run.finished_step >= config.steps:
                continue
            sources = Sources(
                config,
                folder=data,
                cache=root / "cache",
                bases=_bases(recipe, config, root, models),
                report=report(config),
                tell=tell,
                should_stop=should_stop,
            )
            listeners = (report(config), tell)
            outcome = _train(run, sources, accelerator, listeners, should_stop, begins)
            accelerator.free_memory()
        if outcome.reason == "stopped":
            break
    return outcome


def _check(config: RunConfig, data: Path, catalog: Catalog) -> None:
    """What a later stage is missing is said before the first one takes days. Raises StudioError."""
    check_precision(config)
    source = data / config.data.source
    if not source.exists():
        raise RequestError(
            "data",
            f"Stage “{config.name}” reads {printable(source, 200)}, which is not there.",
            "Name the folder that holds it with --data.",
        )
    bases.check(config, catalog)


def _train(
    run: runs.Run,
    sources: Sources,
    accelerator: Accelerator,
    listeners: tuple[Report, Callable[[str], None]],
    should_stop: ShouldStop,
    begins: Begins,
) -> RunEnd:
    report, tell = listeners
    try:
        task = _first_alone(accelerator, partial(_task, run, sources, begins))
        return train(run, task, accelerator, report=report, should_stop=should_stop, tell=tell)
    except Stopped:
        return RunEnd(reason="stopped", step=0)
    except StudioError as error:
        if accelerator.is_main_process:
            run.event("failed", sentence=str(error))
        raise


def _task(run: runs.Run, sources: Sources, begins: Begins) -> Task:
    """The task of a run, on the pictures that it began with. Raises StudioError, Stopped."""
    try:
        run.hold_data(sources.manifest.digest)
        begins(run.config, sources.manifest.digest)
        task: Task = run.config.row.load()(run.config, sources)
        return task
    except _SETUP_FAULTS as error:
        if planning.is_out_of_memory(error):
            raise OutOfMemoryError(
                "There is not enough memory to prepare the training.", "Use a smaller base model."
            ) from None
        raise TrainingError(
            f"Stage “{run.config.name}” cannot be set up ({printable(error, 160)}).",
            "Check `net` and `base` of the recipe.",
        ) from error


def _first_alone(accelerator: Accelerator, work: Callable[[], _T]) -> _T:
    """`work` in the first process, then in the others, which find done what can be done once.

    If the first one stops or fails, all of them do, instead of waiting for it for ever.
    """
    if accelerator.num_processes == 1:
        return work()
    told: list[str | None] = [None]
    made: list[_T] = []
    fault: BaseException | None = None
    if accelerator.is_main_process:
        try:
            made.append(work())
        except (StudioError, Stopped) as error:
            fault = error
            told = ["stopped" if isinstance(error, Stopped) else str(error)]
    broadcast_object_list(told)
    if fault is not None:
        raise fault
    if told[0] == "stopped":
        raise Stopped
    if told[0] is not None:
        raise TrainingError(told[0])
    return made[0] if made else work()


def results(recipe: TrainingRecipe, root: Path, catalog: Catalog | None = None) -> dict[str, Base]:
    """The parts of the finished model: what `publish` takes.

    Raises TrainingError where the last stage is not a finished training of a model.
    """
    last = recipe.stages[-1]
    folder = folder_of(root, recipe, last.name) / "result"
    if last.row.result != "model" or not (folder / "training.json").is_file():
        wanted = " or ".join(row.name for row in METHODS.values() if row.result == "model")
        raise TrainingError(f"The last stage, “{last.name}”, is not a finished {wanted} training.")
    found = _bases(recipe, last, root, catalog or Catalog())
    return found | {last.row.goes_on_from: bases.of_folder(folder)}


def _bases(
    recipe: TrainingRecipe, config: RunConfig, root: Path, catalog: Catalog
) -> dict[str, Base]:
    """What the recipe's bases stand for. Raises StudioError."""
    found = {}
    for name, value in config.bases.items():
        if value.startswith(STAGE_PREFIX):
            stage = value.removeprefix(STAGE_PREFIX)
            folder = folder_of(root, recipe, stage) / "result"
            if not (folder / "training.json").is_file():
                raise RequestError(
                    "base",
                    f"Stage “{config.name}” needs the result of “{stage}”, which is not finished.",
                    "Train that stage first.",
                )
            found[name] = bases.of_folder(folder)
        else:
            found[name] = bases.resolve(value, catalog)
    return found
