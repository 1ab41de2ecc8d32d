"""From a recipe to results: its stages one after another, each a run of its own.

    RUN/01-vae/result/...       what a stage hands over: files in diffusers layout
    RUN/cache/                  lists of pictures and features, shared by the stages

A finished stage is skipped, an interrupted one goes on; to repeat one, delete its folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from accelerate import Accelerator

from pipelines.errors import RequestError, StudioError, TrainingError
from pipelines.progress import Report, ShouldStop
from training import run as runs
from training.config import STAGE_PREFIX, Recipe, RunConfig
from training.data.sources import Sources, Stopped
from training.devices import make_accelerator
from training.loop import Outcome, train
from training.methods import class_to_image, text_encoder, text_to_image, vae
from training.task import Task

_TASKS: Mapping[str, Callable[[RunConfig, Sources], Task]] = {
    "vae": vae.task,
    "text-encoder": text_encoder.task,
    "class-to-image": class_to_image.task,
    "text-to-image": text_to_image.task,
}


def folder_of(root: Path, recipe: Recipe, name: str) -> Path:
    """The run folder of a stage. Raises UnknownNameError."""
    number = recipe.stages.index(recipe.stage(name)) + 1
    return root / f"{number:02d}-{name}"


def walk(
    recipe: Recipe,
    *,
    root: Path,
    data: Path,
    report: Callable[[RunConfig], Report],
    should_stop: ShouldStop,
    tell: Callable[[str], None] = lambda _: None,
    only: str | None = None,
) -> Outcome:
    """Trains every stage that is not finished, or `only` one. Raises StudioError.

    `report` gives each stage its own listener, `tell` gets sentences to be read.
    """
    if only is not None:
        recipe.stage(only)
    outcome = Outcome(reason="finished", step=0)
    for config in recipe.stages:
        if only is not None and config.name != only:
            continue
        folder = folder_of(root, recipe, config.name)
        with runs.only_one(folder):
            accelerator = make_accelerator(config)
            with accelerator.main_process_first():
                run = runs.open_run(folder, config)
            if run.is_finished:
                continue
            sources = Sources(
                config,
                folder=data,
                cache=root / "cache",
                bases=_bases(recipe, config, root),
                report=report(config),
                tell=tell,
                should_stop=should_stop,
            )
            outcome = _train(run, sources, accelerator, report(config), should_stop)
            accelerator.free_memory()
            accelerator.end_training()
        if outcome.reason == "stopped":
            break
    return outcome


def _train(
    run: runs.Run,
    sources: Sources,
    accelerator: Accelerator,
    report: Report,
    should_stop: ShouldStop,
) -> Outcome:
    try:
        # One process computes the features, the others read what it wrote.
        with accelerator.main_process_first():
            task = _TASKS[run.config.method](run.config, sources)
        return train(run, task, accelerator, report=report, should_stop=should_stop)
    except Stopped:
        return Outcome(reason="stopped", step=0)
    except StudioError as error:
        if accelerator.is_main_process:
            run.event("failed", sentence=str(error))
        raise


def results(recipe: Recipe, root: Path) -> dict[str, Path]:
    """The folders of the parts of the finished model: what `publish` takes.

    Raises TrainingError where the last stage is not a finished text-to-image training.
    """
    last = recipe.stages[-1]
    folder = folder_of(root, recipe, last.name) / "result"
    if last.method != "text-to-image" or not (folder / "training.json").is_file():
        raise TrainingError(
            f"The last stage, “{last.name}”, is not a finished text-to-image training."
        )
    return _bases(recipe, last, root) | {"transformer": folder}


def _bases(recipe: Recipe, config: RunConfig, root: Path) -> dict[str, Path]:
    """The folders that the recipe's bases stand for. Raises RequestError."""
    found = {}
    for name, value in config.base.model_dump().items():
        if value is None:
            continue
        if value.startswith(STAGE_PREFIX):
            stage = value.removeprefix(STAGE_PREFIX)
            folder = folder_of(root, recipe, stage) / "result"
            if not (folder / "training.json").is_file():
                raise RequestError(
                    "base",
                    f"Stage “{config.name}” needs the result of “{stage}”, which is not finished.",
                    "Train that stage first.",
                )
        else:
            folder = Path(value).expanduser()
            if not folder.is_dir():
                raise RequestError("base", f"There is no model folder {folder}.")
        found[name] = folder
    return found
