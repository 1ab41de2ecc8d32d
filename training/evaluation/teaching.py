"""A training as the command line does it, for what is measured afterwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipelines.catalog import Catalog
from pipelines.errors import RequestError
from pipelines.progress import Report, ShouldStop
from training import publish, recipes, stages


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """Folders of the workspace, and who hears of what is done."""

    models: Path
    inputs: Path
    cache: Path
    report: Report
    tell: Callable[[str], None]
    should_stop: ShouldStop


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """One training: `recipe` with `changes`, on the pictures in `data`; its run and its LoRA lie
    below `out` under `name`."""

    recipe: str
    changes: tuple[str, ...]
    data: Path
    out: Path
    name: str


def teach(lesson: Lesson, catalog: Catalog, around: Surroundings) -> bool:
    """Trains where that is not done yet; False where it was stopped. Raises StudioError."""
    file = recipes.find(lesson.recipe)
    values = recipes.read(file, lesson.changes)
    suited = recipes.for_base(file, values, catalog)
    if suited != file:
        values = recipes.read(suited, lesson.changes)
    if values.stages[-1].row.published != "loras":
        raise RequestError("set", "This measures LoRAs.", "Leave the method as it is.")
    root = lesson.out / "runs" / lesson.name
    outcome = stages.walk(
        values,
        root=root,
        data=lesson.data,
        report=lambda config: around.report,
        tell=around.tell,
        should_stop=around.should_stop,
        catalog=catalog,
    )
    if outcome.reason == "stopped":
        return False
    loras = lesson.out / "loras"
    publish.finished(values, root, catalog, models=around.models, loras=loras)
    return True
