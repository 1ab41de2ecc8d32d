"""The kind of job that trains. One that was stopped, cut or ended by a restart goes on from its
last checkpoint."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from app.jobs import orphans
from app.jobs.entry import Entry
from app.jobs.kinds import JobControl, Kind, Lane, announce, count_of, with_result
from app.settings import Settings, make_folder
from app.training import orders, run_list, training_order, training_process
from app.training.run_list import RunList
from app.training.training_order import TrainingOrder
from lora_manager import drafts
from pipelines import files
from pipelines.errors import RequestError
from pipelines.progress import ShouldStop

TRAIN = "train"
TRAINER = ".trainer"
"""Beside the runs: the process that trained last, as `drafts.writer` names it."""
_MAX_NAME = 80


def kind(settings: Settings, changed: Callable[[], None]) -> Kind:
    """The row of the table. `changed` is called after a model or a LoRA came."""

    def run(control: JobControl) -> bool:
        order: TrainingOrder = control.entry.job.payload
        _wait_for_trainer(settings, control.should_stop)
        made = None
        if not (asked := _asked_to_keep(settings, order)):
            if control.should_stop():
                return False
            made = _train(settings, order, control, control.should_stop)
            asked = made is None and _asked_to_keep(settings, order)
        if asked:
            made = _kept(settings, order, control)
        if made is not None:
            # Only now: whatever ends it before, it is kept when it goes on. Or it was at its end
            # before it could be stopped.
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
        keep=lambda entry: {"made": entry.job.result or "", "reached": entry.painted},
        restore=_restore,
        recover=lambda entry, known: _recover(settings, entry),
        timing=lambda order: f"{platform.node()}|{TRAIN}|{order.name}",
    )


def _asked_to_keep(settings: Settings, order: TrainingOrder) -> bool:
    """Whether somebody wants the result as it is."""
    return _keep_file(settings, order).exists()


def _train(
    settings: Settings, order: TrainingOrder, control: JobControl, should_stop: ShouldStop
) -> str | None:
    """Trains in a process that the next studio knows of. Raises StudioError."""

    def born(process: int) -> None:
        files.write(make_folder(settings.runs) / TRAINER, drafts.writer(process).encode())

    return training_process.run(
        order, settings, report=control.report, should_stop=should_stop, born=born
    )


def _wait_for_trainer(settings: Settings, should_stop: ShouldStop) -> None:
    """That of a studio that was killed writes a checkpoint, and has its run until then."""
    try:
        trainer = (settings.runs / TRAINER).read_text("utf-8", errors="replace")[:_MAX_NAME]
    except OSError:
        return
    end = time.monotonic() + training_process.PATIENCE
    # Not killed: it may be that of another studio, which lives.
    orphans.wait_for(trainer, lambda: should_stop() or time.monotonic() > end, math.inf)


def _recover(settings: Settings, entry: Entry) -> None:
    """A training that was killed and had come further is no one that only dies."""
    reached = _reached(settings, entry.job.payload)
    if reached > entry.painted:
        entry.painted, entry.interruptions = reached, 0


def _reached(settings: Settings, order: TrainingOrder) -> int:
    """How far it is by its checkpoints: the updates of all its stages, 0 for none."""
    try:
        stages = RunList(settings.runs).get(order.name).stages
    except RequestError:
        return 0
    return sum(max(stage.checkpoints, default=0) for stage in stages)


def _keep_file(settings: Settings, order: TrainingOrder) -> Path:
    return settings.runs / order.name / run_list.KEEP


def _kept(settings: Settings, order: TrainingOrder, control: JobControl) -> str | None:
    """Ends a training where it stands; what its result is called. Raises StudioError."""
    stage = RunList(settings.runs).get(order.name).stage
    reached = max(stage.checkpoints, default=0) if stage is not None else 0
    if not reached:
        _keep_file(settings, order).unlink(missing_ok=True)
        raise RequestError("training", "It has learned nothing yet that could be kept.")
    # The same run with an end that is reached already: its result is written, and published.
    shorter = orders.with_steps(order, reached)
    return _train(settings, shorter, control, lambda: False)


def _restore(entry: Entry, kept: Mapping[str, Any]) -> Entry:
    made, reached = kept.get("made", ""), count_of(kept.get("reached"))
    entry.painted = reached or 0
    return with_result(entry, made[:_MAX_NAME] if isinstance(made, str) and made else None)
