"""An import in a child process: it loads torch and foreign files, and the page does neither."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from app.models import importing
from app.models.rows import ImportOptions
from app.settings import Settings, make_folder
from lora_manager import drafts
from pipelines.catalog import Catalog
from pipelines.errors import LoraFileError, ProcessDeathError, model_errors
from pipelines.heavy_imports import before_torch
from pipelines.processes.child import Child
from pipelines.processes.inside import ChildSpec, ParentPipe
from pipelines.processes.wire import progress_fields, progress_of
from pipelines.progress import Progress, Report, ShouldStop, Stage

_SEND_SECONDS = 0.1


def run(
    source: Path,
    wanted: ImportOptions,
    settings: Settings,
    *,
    report: Report,
    should_stop: ShouldStop,
) -> str | None:
    """Imports `source`; the new model's id, or None where it was stopped before it had a model.

    `report` hears of tensors that are converted, then of bytes that are copied.
    Nothing is left of it then, nor after a failure. Raises StudioError.
    """
    models = make_folder(settings.models)
    model_id = importing.free_id(source, Catalog(user_models=models), models, wanted)
    spec = ChildSpec(name="pixart-import", what="The import", log=settings.logs / "import.log")
    options = asdict(replace(wanted, id=model_id))
    child = Child.start(spec, work, str(settings.workspace), str(source), options, wanted.id)
    try:
        done = child.follow(lambda event: report(progress_of(event["progress"])), should_stop)
    except ProcessDeathError:
        # The end may come when the model has its name already.
        if not (models / model_id).is_dir():
            raise
        return model_id
    finally:
        child.close()
        # A process that was killed could not do so itself.
        for folder in (models, settings.loras):
            drafts.sweep(folder)
    if done is None:
        return model_id if (models / model_id).is_dir() else None
    return str(done["result"])


def work(
    pipe: ParentPipe, workspace: str, source: str, options: dict[str, Any], asked: str | None
) -> str:
    """Runs in the process; what the model is called. Whoever stops it finds nothing of it left.

    `asked` is the id that somebody has chosen, if any.
    """
    settings, wanted = Settings(workspace=Path(workspace)), ImportOptions(**options)
    told = 0.0

    def tell(stage: Stage, done: int, total: int) -> None:
        nonlocal told
        now = time.monotonic()
        if done == total or now - told > _SEND_SECONDS:
            told = now
            progress = Progress(stage=stage, done=done, total=total)
            pipe.tell("progress", progress=progress_fields(progress))

    before_torch()
    try:
        importing.import_model(
            Path(source),
            make_folder(settings.models),
            wanted,
            lambda done, total: tell(Stage.TENSORS, done, total),
            copying=lambda done, total: tell(Stage.COPYING, done, total),
        )
    except LoraFileError:
        return _import_lora(settings, Path(source), wanted, asked)
    return str(wanted.id)


def _import_lora(settings: Settings, source: Path, wanted: ImportOptions, asked: str | None) -> str:
    """Brings a LoRA in that was given as a model; what it is called. Raises ModelError."""
    library = Catalog(user_models=settings.models, loras=settings.loras).loras
    texts = {"title": wanted.title or "", "licence": wanted.licence or ""}
    with model_errors():
        return library.import_(source, asked, **texts).name
