"""The kind of job that trains. One that was stopped, cut or ended by a restart goes on from its
last checkpoint."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from app.jobs.entry import Entry
from app.jobs.kinds import JobControl, Kind, Lane, announce, with_result
from app.settings import Settings
from app.training import orders, run_list, training_order, training_process
from app.training.run_list import RunList
from app.training.training_order import TrainingOrder
from pipelines.errors import RequestError

TRAIN = "train"
_MAX_NAME = 80


def kind(settings: Settings, changed: Callable[[], None]) -> Kind:
    """The row of the table. `changed` is called after a model or a LoRA came."""

    def run(control: JobControl) -> bool:
        order: TrainingOrder = control.entry.job.payload
        made = None
        if not (asked := _asked_to_keep(settings, order)):
            made = training_process.run(
                order, settings, report=control.report, should_stop=control.should_stop
            )
            asked = made is None and _asked_to_keep(settings, order)
        if asked:
            made = _kept(settings, order, control)
        elif made is not None:
            # It was at its end before it could be stopped.
            _keep_file(settings, order).unlink(missing_ok=True)
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


def _asked_to_keep(settings: Settings, order: TrainingOrder) -> bool:
    """Whether somebody wants the result as it is."""
    return _keep_file(settings, order).exists()


def _keep_file(settings: Settings, order: TrainingOrder) -> Path:
    return settings.runs / order.name / run_list.KEEP


def _kept(settings: Settings, order: TrainingOrder, control: JobControl) -> str | None:
    """Ends a training where it stands; what its result is called. Raises StudioError."""
    stage = RunList(settings.runs).get(order.name).stage
    reached = max(stage.checkpoints, default=0) if stage is not None else 0
    _keep_file(settings, order).unlink(missing_ok=True)
    if not reached:
        raise RequestError("training", "It has learned nothing yet that could be kept.")
    # The same run with an end that is reached already: its result is written, and published.
    shorter = orders.with_steps(order, reached)
    return training_process.run(shorter, settings, report=control.report, should_stop=lambda: False)


def _restore(entry: Entry, kept: Mapping[str, Any]) -> Entry:
    made = kept.get("made", "")
    return with_result(entry, made[:_MAX_NAME] if isinstance(made, str) and made else None)
