"""The kinds of jobs that the studio has beside painting: one row each."""

from __future__ import annotations

from collections.abc import Callable

from app.jobs import (
    checkpoints,
    downloads,
    exports,
    imports,
    lora_exports,
    lora_works,
    trainings,
)
from app.jobs.exports import Find
from app.jobs.kinds import Kind
from app.models.store import ModelStore
from app.settings import Settings


def kinds(
    settings: Settings,
    *,
    models_changed: Callable[[], None] = lambda: None,
    find: Find = lambda order, owner: (),
) -> tuple[Kind, ...]:
    """The rows. `models_changed` is called after models came; `find` finds pictures to export.

    A command that only reads and orders jobs needs neither.
    """
    store = ModelStore(settings)
    return (
        downloads.question(store),
        downloads.kind(store, models_changed),
        imports.kind(settings, models_changed),
        exports.kind(settings.exports, find),
        lora_exports.kind(settings),
        lora_works.kind(settings, models_changed),
        trainings.kind(settings, models_changed),
        checkpoints.kind(settings, models_changed),
    )
