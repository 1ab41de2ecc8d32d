"""What is made of LoRAs, in a child process: it loads torch, and the page does not."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from app.models import baking, lora_orders, lora_work
from app.models.lora_orders import LoraOrder, LoraOutcome
from app.models.lora_work import MadeLora
from app.settings import Settings, make_folder
from lora_manager import drafts
from pipelines.catalog import Catalog
from pipelines.heavy_imports import before_torch
from pipelines.processes.child import Child
from pipelines.processes.inside import ChildSpec, ParentPipe
from pipelines.processes.wire import progress_fields, progress_of
from pipelines.progress import Progress, Report, ShouldStop, Stage

_WHAT = {
    "merge": "Merging",
    "resize": "Resizing",
    "losses": "Measuring",
    "compare": "Comparing",
    "bake": "Baking",
}


def run(
    order: LoraOrder, settings: Settings, *, report: Report, should_stop: ShouldStop
) -> LoraOutcome | None:
    """Does what `order` says; None where it was stopped.

    Nothing is left then, nor after a failure. Raises StudioError.
    """
    spec = ChildSpec(
        name="pixart-lora", what=_WHAT[order.verb], log=settings.logs / "lora-work.log"
    )
    child = Child.start(spec, work, str(settings.workspace), order.to_json())
    try:
        done = child.follow(lambda event: report(progress_of(event["progress"])), should_stop)
    finally:
        child.close()
        # A process that was killed could not do so itself.
        for folder in (settings.models, settings.loras):
            drafts.sweep(folder)
    if done is None:
        return None
    told: dict[str, Any] = done["result"]
    losses = tuple((int(rank), float(lost)) for rank, lost in told["losses"])
    return LoraOutcome(**{**told, "losses": losses})


def work(pipe: ParentPipe, workspace: str, told: dict[str, Any]) -> dict[str, Any]:
    """Runs in the process; the fields of a `LoraOutcome`. Raises StudioError."""
    order, settings = lora_orders.of_json(told), Settings(workspace=Path(workspace))
    catalog = Catalog(user_models=settings.models, loras=settings.loras)
    before_torch()
    return asdict(_outcome(order, catalog, settings, pipe))


def _outcome(
    order: LoraOrder, catalog: Catalog, settings: Settings, pipe: ParentPipe
) -> LoraOutcome:
    library, names = catalog.loras, [use.name for use in order.uses]
    match order.verb:
        case "merge":
            return _made(lora_work.merge(catalog, order.uses, order.name, rank=order.rank))
        case "resize":
            return _made(lora_work.resize(library, names[0], order.name, order.rank or 0))
        case "losses":
            return LoraOutcome(losses=tuple(lora_work.losses(library, names[0])))
        case "compare":
            return LoraOutcome(comparison=asdict(lora_work.compare(library, names[0], names[1])))

    def report(done: int, total: int) -> None:
        progress = Progress(stage=Stage.BAKING, done=done, total=total)
        pipe.tell("progress", progress=progress_fields(progress))

    spec = baking.bake(
        catalog,
        catalog.find(order.model),
        order.uses,
        make_folder(settings.models),
        lora_orders.options(order),
        report,
    )
    return LoraOutcome(name=spec.id)


def _made(made: MadeLora) -> LoraOutcome:
    return LoraOutcome(name=made.card.name, rank=made.card.rank, error=made.error)
