"""The kind of job that trains. One that was stopped, cut or ended by a restart goes on from its
last checkpoint."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from typing import Any

from app.jobs.entry import Entry
from app.jobs.kinds import JobControl, Kind, Lane, announce, with_result
from app.settings import Settings
from app.training import training_order, training_process
from app.training.training_order import TrainingOrder

TRAIN = "train"
_MAX_NAME = 80


def kind(settings: Settings, changed: Callable[[], None]) -> Kind:
    """The row of the table. `changed` is called after a model or a LoRA came."""

    def run(control: JobControl) -> bool:
        made = training_process.run(
            control.entry.job.payload,
            settings,
            report=control.report,
            should_stop=control.should_stop,
        )
        if made:
            control.give(made)
        announce(changed)
        return made is not None

    return Kind(
        name=TRAIN,
        lane=Lane.DEVICE,
        resumes=True,
        run=run,
        write=TrainingOrder.to_json,
        read=training_order.of_json,
        title=lambda order: f"Train {order.name}",
        keep=lambda entry: {"made": entry.job.result or ""},
        restore=_restore,
        timing=lambda order: f"{platform.node()}|{TRAIN}|{order.name}",
    )


def _restore(entry: Entry, kept: Mapping[str, Any]) -> Entry:
    made = kept.get("made", "")
    return with_result(entry, made[:_MAX_NAME] if isinstance(made, str) and made else None)
