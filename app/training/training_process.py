"""A training in a child process, which writes a checkpoint before it stops."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from app.settings import Settings, make_folder
from app.training import training_order
from app.training.training_order import TrainingOrder
from pipelines.catalog import Catalog
from pipelines.errors import RequestError, printable
from pipelines.heavy_imports import importing_diffusers
from pipelines.processes.child import Child
from pipelines.processes.inside import ChildSpec, ParentPipe
from pipelines.processes.wire import progress_fields, progress_of
from pipelines.progress import Progress, Report, ShouldStop, Stage
from training.config import RunConfig

PATIENCE = 600.0
"""Seconds that it may take to write a checkpoint, or to end a piece of the preparation."""
_SEND_SECONDS = 0.25


def run(
    order: TrainingOrder,
    settings: Settings,
    *,
    report: Report,
    should_stop: ShouldStop,
    born: Callable[[int], None] = lambda process: None,
) -> str | None:
    """Trains; what the result is called, "" where the recipe publishes none. None where it was
    stopped: the same order goes on from the checkpoint that was written. `born` hears the number of
    the process. Raises StudioError."""
    if not order.data.is_dir():
        raise RequestError(
            "data",
            f"There is no folder {printable(order.data, 200)}.",
            "Put the pictures back; what was learned is kept.",
        )
    spec = ChildSpec(
        name="pixart-train", what="The training", log=settings.logs / "training.log", saves=True
    )
    child = Child.start(spec, work, str(settings.workspace), order.to_json())
    try:
        born(child.pid)
        done = child.follow(
            lambda event: report(progress_of(event["progress"])), should_stop, PATIENCE
        )
    finally:
        child.close()
    # A name, "" for a result that is not published, or nothing after a stop.
    return None if done is None or done["result"] is None else str(done["result"])


def work(pipe: ParentPipe, workspace: str, told: dict[str, object]) -> str | None:
    """Runs in the process. Raises StudioError."""
    settings, order = Settings(workspace=Path(workspace)), training_order.of_json(told)
    recipe = order.recipe
    with importing_diffusers():
        from training import whole

    trained = whole.train(
        recipe,
        root=make_folder(settings.runs) / order.name,
        data=order.data,
        models=settings.models,
        loras=settings.loras,
        catalog=Catalog(user_models=settings.models),
        report=_reports(pipe),
        should_stop=pipe.stopping,
        tell=lambda sentence: print(sentence, flush=True),
    )
    if trained.is_stopped:
        return None
    return recipe.publish.id if trained.made is not None and recipe.publish else ""


def _reports(pipe: ParentPipe) -> Callable[[RunConfig], Report]:
    """What tells the studio how far it is, not more often than somebody looks."""
    told = 0.0

    def of_stage(config: RunConfig) -> Report:
        def report(progress: Progress) -> None:
            nonlocal told
            now = time.monotonic()
            if progress.stage is not Stage.PREPARING and now - told < _SEND_SECONDS:
                return
            told = now
            # A studio that is gone is seen by `stopping`, and a checkpoint is written first.
            with suppress(OSError):
                pipe.tell("progress", progress=progress_fields(progress))

        return report

    return of_stage
