"""A LoRA of a checkpoint, made in a child process: it loads torch, and the page does not."""

from __future__ import annotations

from pathlib import Path

from app.settings import Settings
from app.training import run_list
from app.training.run_list import RunList
from pipelines.catalog import Catalog
from pipelines.errors import RequestError
from pipelines.heavy_imports import importing_diffusers
from pipelines.processes.child import Child
from pipelines.processes.inside import ChildSpec, ParentPipe
from pipelines.progress import ShouldStop


def run(name: str, step: int, settings: Settings, *, should_stop: ShouldStop) -> str | None:
    """Makes it; what it is called, None where it was stopped. Raises StudioError."""
    spec = ChildSpec(
        name="pixart-checkpoint", what="Making the LoRA", log=settings.logs / "checkpoint.log"
    )
    child = Child.start(spec, work, str(settings.workspace), name, step)
    try:
        done = child.follow(lambda event: None, should_stop)
    finally:
        child.close()
    return None if done is None else str(done["result"])


def work(pipe: ParentPipe, workspace: str, name: str, step: int) -> str:
    """Runs in the process. Raises StudioError."""
    settings = Settings(workspace=Path(workspace))
    folder = RunList(settings.runs).folder(name)
    order = run_list.read_order(folder)
    if order is None:
        raise RequestError("training", f"“{name}” was not begun in the page.")
    with importing_diffusers():
        from training import publish_lora, stages

    recipe = order.recipe
    stage = stages.folder_of(folder, recipe, recipe.stages[-1].name)
    catalog = Catalog(user_models=settings.models)
    return publish_lora.publish_checkpoint(recipe, stage, step, settings.loras, catalog).stem
